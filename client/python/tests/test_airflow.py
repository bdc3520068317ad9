"""The Airflow operator and its trigger against a live quantryd: called as Airflow calls them, and by Airflow itself."""
import asyncio
import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import types

import pytest

import quantry
from conftest import LONG, MEASURED, ROOT, TESTS, load, wait_for

pytest.importorskip("airflow", reason="Airflow is not in the default test environment: pip install -r "
                    "tests/requirements-full.txt (scripts/test --full)")
pytestmark = pytest.mark.full

TASK = types.SimpleNamespace(dag_id="models", task_id="quantize", run_id="manual__1", map_index=-1)
QUICK_LEASES = ("--lease-ttl-s=3", "--heartbeat-interval-s=1", "--sweep-interval-s=1")


@pytest.fixture(scope="module")
def module():
    return importlib.import_module("quantry.integrations.airflow")


@pytest.fixture(scope="module")
def deferred():
    try:
        from airflow.sdk.exceptions import TaskDeferred
    except ImportError:
        from airflow.exceptions import TaskDeferred
    return TaskDeferred


def operator(module, server, stories, **options):
    arguments = {name: str(value) if "calibration" == name or "evaluation" == name else value
                 for name, value in (options.pop("arguments", None) or MEASURED).items() if name != "method"}
    return module.QuantizeOperator(task_id="quantize", server=server.address, model=str(stories), method="awq",
                                   arguments=arguments, **options)


def again(module, trigger):
    """The trigger as another triggerer makes it from what is stored."""
    path, kwargs = trigger.serialize()
    name, _, kind = path.rpartition(".")
    return getattr(importlib.import_module(name), kind)(**kwargs)


async def first_event(trigger):
    async for event in trigger.run():
        return event.payload


def test_defers_waits_and_comes_back(module, deferred, server, client, stories, tmp_path):
    task = operator(module, server, stories, pull_to=str(tmp_path / "w4"))
    with pytest.raises(deferred) as caught:
        task.execute({"ti": TASK})
    assert caught.value.method_name == "execute_complete"
    event = asyncio.run(first_event(again(module, caught.value.trigger)))
    assert event["state"] == "succeeded"
    result = task.execute_complete({"ti": TASK}, event)
    assert 1 < float(result["perplexity_ratio"]) < 2 and quantry.LocalArtifact(result["folder"]).verify() > 3
    assert result["artifact_uri"] and client.get(result["job"]).succeeded


def test_a_worker_that_died_finds_its_job(module, deferred, server, client, stories):
    """Another try submits again, and gets the same job; another attempt does not."""
    names = []
    for attempt in ("", "", "second"):
        with pytest.raises(deferred) as caught:
            operator(module, server, stories, arguments=LONG, attempt=attempt).execute(
                {"ti": types.SimpleNamespace(**{**vars(TASK), "run_id": "manual__died"})})
        names.append(caught.value.trigger.job)
    assert names[0] == names[1] != names[2]
    for name in set(names):
        client.cancel(name)


def test_the_trigger_survives_a_restart_and_another_triggerer(module, deferred, make_server, stories):
    server = make_server(*QUICK_LEASES).start()
    task = operator(module, server, stories, arguments=LONG)
    with pytest.raises(deferred) as caught:
        task.execute({"ti": TASK})
    trigger = caught.value.trigger
    with quantry.connect(server.address) as client:
        def restart():
            wait_for(lambda: client.get(trigger.job).progress.blocks_done >= 1, 60, "a block")
            server.stop(signal.SIGKILL)
            server.start()

        thread = threading.Thread(target=restart)

        async def run():
            first = asyncio.ensure_future(first_event(trigger))
            await asyncio.sleep(0.3)
            first.cancel()  # the first triggerer goes
            thread.start()
            return await first_event(again(module, trigger))

        event = asyncio.run(run())
        thread.join(60)
    assert event["state"] == "succeeded"
    assert task.execute_complete({"ti": TASK}, event)["state"] == "succeeded"


def test_a_trigger_that_starts_while_the_server_is_away(module, make_server, stories):
    server = make_server().start()
    with quantry.connect(server.address) as client:
        job = client.wait(client.submit(stories, method="rtn", group_size="channel"), timeout=60)
    server.stop(signal.SIGKILL)

    async def run():
        event = asyncio.ensure_future(first_event(module.QuantryJobTrigger(job.name, server=server.address)))
        await asyncio.sleep(1)
        assert not event.done()
        await asyncio.to_thread(server.start)
        return await event

    assert asyncio.run(run())["state"] == "succeeded"


def test_without_deferring(module, server, stories):
    result = operator(module, server, stories, deferrable=False).execute(
        {"ti": types.SimpleNamespace(**{**vars(TASK), "run_id": "manual__wait"})})
    assert result["state"] == "succeeded"


def test_a_fixed_folder_run_after_run(module, server, stories, tmp_path):
    (tmp_path / "manifest.json").write_text("{}")
    task = operator(module, server, stories, deferrable=False, pull_to=str(tmp_path), pull_force=True)
    result = task.execute({"ti": types.SimpleNamespace(**{**vars(TASK), "run_id": "manual__wait"})})
    assert quantry.LocalArtifact(result["folder"]).verify() > 3


def test_what_fails_the_task(module, server, client, stories, monkeypatch):
    gated = operator(module, server, stories, deferrable=False, arguments={**MEASURED, "max_perplexity_ratio": 0.5})
    with pytest.raises(module.AirflowException, match="QUALITY_GATE_FAILED"):
        gated.execute({"ti": types.SimpleNamespace(**{**vars(TASK), "run_id": "manual__gate"})})
    job = client.submit(stories, **LONG)
    client.cancel(job)
    client.wait(job, raise_on_failure=False)
    event = asyncio.run(first_event(module.QuantryJobTrigger(job.name, server=server.address)))
    with pytest.raises(module.AirflowException, match="is cancelled"):
        gated.execute_complete({}, event)
    monkeypatch.setattr(module, "AWAY", 1)
    away = asyncio.run(first_event(module.QuantryJobTrigger(job.name, server="127.0.0.1:1")))
    with pytest.raises(module.AirflowException, match="no answer from the server"):
        gated.execute_complete({}, away)


def test_a_failed_job_goes_on_in_the_next_try(module, deferred, server, client, stories):
    # Each block takes far longer than a second on any machine, so that no try ends its first.
    slow = {**LONG, "method_options": {"scale_grid_points": 1000}}

    def after_try(number, **options):
        task = operator(module, server, stories, arguments={**slow, **options})
        context = {"ti": types.SimpleNamespace(**{**vars(TASK), "run_id": "manual__again", "try_number": number})}
        with pytest.raises(deferred) as caught:
            task.execute(context)
        return client.wait(caught.value.trigger.job, raise_on_failure=False)

    first, second, died_in_it = (after_try(number, max_run=1) for number in (1, 2, 2))
    assert first.name == second.name == died_in_it.name and second.error.reason == "MAX_RUN_EXCEEDED"
    assert [job.proto.epoch for job in (first, second, died_in_it)] == [1, 2, 2]


def test_a_job_whose_gate_failed_stays_so(module, server, stories):
    gated = operator(module, server, stories, deferrable=False, arguments={**MEASURED, "max_perplexity_ratio": 0.5})
    for number in (1, 2):
        with pytest.raises(module.AirflowException, match="QUALITY_GATE_FAILED"):
            gated.execute({"ti": types.SimpleNamespace(**{**vars(TASK), "run_id": "manual__gated", "try_number": number})})


def test_killed(module, deferred, server, client, stories):
    task = operator(module, server, stories, arguments=LONG, cancel_on_kill=True)
    with pytest.raises(deferred) as caught:
        task.execute({"ti": types.SimpleNamespace(**{**vars(TASK), "run_id": "manual__killed"})})
    task.on_kill()
    assert client.wait(caught.value.trigger.job, raise_on_failure=False).state == "cancelled"


def test_connection(module):
    connection = types.SimpleNamespace(conn_id="quantry", host="q.example", port=None, password="secret",
                                       extra_dejson={"tenant": "acme", "tls_ca": "/ca.pem", "other": 1})
    assert module.options_of(connection) == {"target": "q.example:7070", "tenant": "acme", "tls_ca": "/ca.pem",
                                             "token": "secret"}
    connection.host = None
    with pytest.raises(quantry.InvalidRequest, match="connection \"quantry\": wanted the server's host"):
        module.options_of(connection)


def test_the_tenant_is_the_environment_s(module, monkeypatch):
    asked = []
    monkeypatch.setattr(module, "connect", lambda target, tenant: asked.append((target, tenant)))
    for options in ({}, {"tenant": "other", "server": "q:7070"}):
        module.QuantizeOperator(task_id="quantize", **options)._connect()
        asked.append(asyncio.run(module.QuantryJobTrigger("j", **options)._options()))
    assert asked == [(None, None), {"target": None, "tenant": None},
                     ("q:7070", "other"), {"target": "q:7070", "tenant": "other"}]


def test_the_tenant_beats_the_connection_s(module, monkeypatch):
    connection = types.SimpleNamespace(conn_id="quantry", host="q", port=None, password="", extra_dejson={"tenant": "acme"})

    async def found(_):
        return connection

    hook = types.SimpleNamespace(get_connection=lambda _: connection, aget_connection=found)
    monkeypatch.setattr(module, "BaseHook", hook)
    asked = []
    monkeypatch.setattr(module, "connect", lambda **options: asked.append(options["tenant"]))
    for tenant in ("", "other"):
        module.QuantizeOperator(task_id="quantize", quantry_conn_id="quantry", tenant=tenant)._connect()
        trigger = module.QuantryJobTrigger("j", quantry_conn_id="quantry", tenant=tenant)
        asked.append(asyncio.run(trigger._options())["tenant"])
    assert asked == ["acme", "acme", "other", "other"]
    with pytest.raises(quantry.InvalidRequest, match="wanted one of quantry_conn_id and server"):
        module.QuantizeOperator(task_id="quantize", quantry_conn_id="quantry", server="q:7070")


def test_the_example_dag(module):
    dag = load("quantize_dag", ROOT / "integrations/airflow/quantize_dag.py").dag
    assert set(dag.task_ids) == {"quantize", "accept"}
    assert isinstance(dag.get_task("quantize"), module.QuantizeOperator)
    assert dag.get_task("accept").upstream_task_ids == {"quantize"}
    task, given = dag.get_task("quantize"), {"params": {"bits": 3, "model_uri": "s3://models/a"}}
    rendered = task.render_template({"uri": task.model_uri, **task.arguments}, given, task.get_template_env(dag))
    assert rendered["bits"] == 3 and rendered["uri"] == "s3://models/a"


DAG_FILE = """
from airflow.sdk import DAG, task
from quantry.integrations.airflow import QuantizeOperator

with DAG("quantize_test", schedule=None, catchup=False, params={{"bits": 4}}) as dag:
    quantize = QuantizeOperator(task_id="quantize", quantry_conn_id="quantry", model={model!r}, method="awq",
                                arguments={arguments!r},
                                pull_to={folder!r} + "/{{{{ dag.dag_id }}}}-w4")

    @task
    def accept(result: dict[str, str]) -> float:
        assert float(result["perplexity_ratio"]) < 2
        return float(result["perplexity_ratio"])

    accept(quantize.output)

if __name__ == "__main__":
    run = dag.test()
    print("ENDED", run.state, sorted((task.task_id, str(task.state)) for task in run.get_task_instances()))
"""


def test_in_airflow_itself(server, client, stories, tmp_path):
    """A run of a DAG: connection, templates, deferral, trigger, XCom to the next task."""
    arguments = {name: value if isinstance(value, (int, float)) else str(value) for name, value in MEASURED.items()
                 if name != "method"}
    (tmp_path / "dags").mkdir()
    (tmp_path / "dags/quantize_test.py").write_text(DAG_FILE.format(model=str(stories), arguments=arguments,
                                                                   folder=str(tmp_path)))
    host, _, port = server.address.rpartition(":")
    environment = {**os.environ, "AIRFLOW_HOME": str(tmp_path / "home"), "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
                   "AIRFLOW__CORE__DAGS_FOLDER": str(tmp_path / "dags"), "PYTHONPATH": str(TESTS.parent),
                   "AIRFLOW_CONN_QUANTRY": json.dumps({"conn_type": "generic", "host": host, "port": int(port)})}
    for command in (["-m", "airflow", "db", "migrate"], [str(tmp_path / "dags/quantize_test.py")]):
        done = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, timeout=180)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "ENDED success [('accept', 'success'), ('quantize', 'success')]" in done.stdout, done.stdout[-3000:]
    pulled = quantry.LocalArtifact(tmp_path / "quantize_test-w4")
    assert pulled.verify() > 3 and client.get(pulled.job).succeeded
