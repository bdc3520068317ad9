"""A job as an MLflow run, in a local store, from a live quantryd."""
import pytest

import quantry
from conftest import LONG
from quantry.v1 import job_pb2

mlflow_tracking = pytest.importorskip("mlflow.tracking", reason="MLflow is not in the default test environment: pip "
                                      "install -r tests/requirements-full.txt (scripts/test --full)")
pytestmark = pytest.mark.full


@pytest.fixture
def store(tmp_path, monkeypatch):
    """mlflow-skinny has no database: a folder, which newer versions want to be asked for."""
    uri = f"file://{tmp_path / 'mlruns'}"
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)  # where MLflow looks behind the client's back
    monkeypatch.chdir(tmp_path)
    return mlflow_tracking.MlflowClient(tracking_uri=uri, registry_uri=uri)


def test_log_job(client, finished, store, tmp_path):
    from quantry.integrations.mlflow import log_job
    pulled = client.pull(finished, tmp_path / "w4", format="quantry")
    run_id = log_job(finished, folder=pulled.folder, model_name="stories", mlflow=store)
    run = store.get_run(run_id)
    assert run.info.status == "FINISHED" and run.info.run_name == "finished"
    assert run.data.params["method"] == "awq" and run.data.params["awq.grid.bits"] == "4"
    assert run.data.tags["quantry.job"] == finished.name and run.data.tags["quantry.label.team"] == "a"
    assert run.data.metrics["perplexity_ratio"] == pytest.approx(finished.row()["perplexity_ratio"])
    losses = store.get_metric_history(run_id, "block/loss_final")
    assert [(m.step, m.value) for m in sorted(losses, key=lambda m: m.step)] == [
        (row["block"], row["loss_final"]) for row in finished.block_rows()]
    assert "quantry/manifest.json" in {file.path for file in store.list_artifacts(run_id, "quantry")}
    version = store.get_model_version("stories", "1")
    assert version.run_id == run_id and version.source.endswith("/quantry") and version.tags["method"] == "awq"
    # Again, as a repeated step does: the same run, no second version.
    assert log_job(client.get("finished"), folder=pulled.folder, model_name="stories", mlflow=store) == run_id
    assert len(store.search_model_versions("name = 'stories'")) == 1
    # Under another name it is a version of that model too.
    assert log_job(finished, model_name="tales", mlflow=store) == run_id
    assert [version.run_id for version in store.search_model_versions("name = 'tales'")] == [run_id]


def test_a_version_whose_files_stay_on_the_server(finished, store):
    from quantry.integrations.mlflow import log_job
    run_id = log_job(finished, model_name="remote", mlflow=store)
    version = store.get_model_version("remote", "1")
    assert version.source == finished.proto.result.artifact_uri and version.run_id == run_id


def test_losses_that_were_not_measured_are_no_metrics():
    from quantry.integrations.mlflow import _metrics
    job = job_pb2.QuantizationJob()
    job.result.blocks.add(index=0, seconds=1.5)
    job.result.blocks.add(index=1, seconds=1.5, loss_rtn=4, loss_final=1)
    logged = {(metric.key, metric.step) for metric in _metrics(quantry.Job(job)) if metric.key.startswith("block/")}
    assert logged == {("block/seconds", 0), *((f"block/{name}", 1) for name in ("seconds", "loss_rtn", "loss_final", "improvement"))}


def test_live_metrics(client, stories, store):
    from quantry.integrations.mlflow import log_job, run_of
    job = client.submit(stories, **LONG)
    with pytest.raises(quantry.InvalidRequest, match="wanted a job that has ended"):
        log_job(job, mlflow=store)
    with run_of(job, mlflow=store) as live:
        ended = client.wait(job, timeout=120, progress=live)
    assert log_job(ended, mlflow=store) == live.run_id
    progress = [m.value for m in store.get_metric_history(live.run_id, "progress")]
    assert len(progress) >= 2 and progress == sorted(progress)


def test_a_run_that_was_left_without_parameters(finished, store, monkeypatch, caplog):
    from mlflow.exceptions import MlflowException
    from quantry.integrations.mlflow import run_of

    def away(*_, **__):
        raise MlflowException("the store is away")

    with monkeypatch.context() as patched:
        patched.setattr(store, "log_batch", away)
        with pytest.raises(MlflowException):
            run_of(finished, mlflow=store)
    live = run_of(finished, mlflow=store)
    assert store.get_run(live.run_id).data.params["method"] == "awq"
    monkeypatch.setattr(store, "log_batch", away)
    live(finished)  # an outage does not end the wait
    assert "progress could not be logged" in caplog.text


@pytest.mark.parametrize("error, tag", [(KeyboardInterrupt(), "KeyboardInterrupt"), (ValueError("no\nmore"), "no")])
def test_an_interrupt_comes_through(finished, store, error, tag):
    from quantry.integrations.mlflow import run_of
    with pytest.raises(type(error)), run_of(finished, mlflow=store) as live:
        raise error
    assert store.get_run(live.run_id).data.tags["quantry.interrupted"] == tag


def test_an_error_is_not_hidden_by_a_store_that_fails(finished, store, monkeypatch, caplog):
    from mlflow.exceptions import MlflowException
    from quantry.integrations.mlflow import run_of

    def away(*_):
        raise MlflowException("the store is away")

    monkeypatch.setattr(store, "set_tag", away)
    with pytest.raises(KeyboardInterrupt), run_of(finished, mlflow=store):
        raise KeyboardInterrupt
    assert "the store is away" in caplog.text


def test_experiments(finished, store, monkeypatch):
    from quantry.integrations.mlflow import run_of
    first = run_of(finished, mlflow=store)
    # Made by somebody else between the look and the making.
    look, looks = store.get_experiment_by_name, iter([None])
    monkeypatch.setattr(store, "get_experiment_by_name", lambda name: next(looks, look(name)))
    assert run_of(finished, mlflow=store).run_id == first.run_id
    store.delete_experiment(look("quantry").experiment_id)
    with pytest.raises(quantry.InvalidRequest, match="wanted an active one, got \"quantry\", which is deleted"):
        run_of(finished, mlflow=store)


def test_a_job_that_failed(client, stories, store):
    from conftest import MEASURED
    from quantry.integrations.mlflow import log_job
    job = client.wait(client.submit(stories, max_perplexity_ratio=0.5, **MEASURED), timeout=120, raise_on_failure=False)
    run = store.get_run(log_job(job, model_name="bad", mlflow=store))
    assert run.info.status == "FAILED" and run.data.tags["quantry.state"] == "failed"
    assert store.search_registered_models() == []
