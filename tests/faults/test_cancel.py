"""F16: a cancel in every stage. Acknowledged, it ends the job as CANCELLED within seconds and leaves no engine and no artifact."""
import os

import pytest

from fault_proxy import FaultProxy
from fleet import QUICK, Fleet, alive
from object_store import CREDENTIALS, artifact_root, client, moto
from quantry.v1 import job_pb2
from service import wait_for

# Those the engine tells, FETCHING, UPLOADING and COMMITTING are the worker's.
ENGINE_STAGES = ["LOADING", "PREPROCESSING", "CALIBRATING", "QUANTIZING", "PACKING", "EVALUATING"]


def stage(fleet, job):
    return job_pb2.Stage.Name(fleet.get(job).progress.stage).removeprefix("STAGE_")


def test_every_stage_has_its_cancel():
    ours = ["UNSPECIFIED", "FETCHING", *ENGINE_STAGES, "UPLOADING", "COMMITTING"]
    assert [name.removeprefix("STAGE_") for name in job_pb2.Stage.keys()] == ours


def wait_cancelled(fleet, job):
    fleet.wait_state(job, "CANCELLED", seconds=10)
    assert not fleet.artifacts_of(job)


@pytest.mark.parametrize("name", ENGINE_STAGES)
def test_f16_cancel_while_the_engine_is(fleet, tmp_path, name):
    at = tmp_path / "at"
    fleet.submit(f"f16-{name.lower()}", f"stage {name}\ntouch {at}\nhang\n")
    wait_for(lambda: stage(fleet, f"f16-{name.lower()}") == name, 20, name)
    fleet.cancel(f"f16-{name.lower()}", "b")
    wait_cancelled(fleet, f"f16-{name.lower()}")
    wait_for(lambda: not alive(int(at.read_text())), 10, "the engine to be gone")


@pytest.fixture(scope="module")
def behind_proxy(tmp_path_factory, binaries):
    """A fleet whose artifacts lie in an object store behind a proxy, and a model there."""
    folder = tmp_path_factory.mktemp("cancel")
    with moto(folder) as store, FaultProxy(store) as proxy:
        for file in ("config.json", "model.safetensors"):
            client(store).put_object(Bucket="bucket", Key=f"model/{file}", Body=b"{}")
        fleet = Fleet(folder / "fleet", binaries, env=CREDENTIALS, ttl_s=6, flags=[f"--artifact-root={artifact_root(proxy.address)}"])
        try:
            yield fleet.start(workers=1), proxy
        finally:
            fleet.stop()


@pytest.mark.parametrize("name, method, path", [("FETCHING", "GET", "/model/model"), ("UPLOADING", "PUT", "/1/model")])
def test_f16_cancel_while_the_worker_is(behind_proxy, tmp_path, name, method, path):
    """The store does not answer meanwhile. A job that is fetched has no engine yet; of one that is uploaded nothing is shown."""
    fleet, proxy = behind_proxy
    job = f"f16-{name.lower()}"
    fault = proxy.fail("stall", method=method, path=path, seconds=2)
    try:
        fleet.submit(job, f"touch {tmp_path}/engine\n{QUICK}", model_uri=artifact_root(proxy.address, "model"))
        wait_for(lambda: stage(fleet, job) == name and fault.hits, 20, name)
        fleet.cancel(job)
    finally:
        proxy.clear()
    wait_cancelled(fleet, job)
    assert (tmp_path / "engine").exists() == (name == "UPLOADING")
    fleet.submit(f"{job}-after")
    fleet.wait_state(f"{job}-after", "SUCCEEDED")


def test_f16_cancel_while_committing(fleet, far_worker):
    """The commit is on its way when the cancel is acknowledged: it comes too late."""
    # The formats of the outputs are told by the commit alone.
    on_its_way = far_worker.when("there", [b"compressed-tensors"], lambda: far_worker.hold("there"), forward=False)
    fleet.submit("f16-committing")
    assert on_its_way.wait(20)
    assert stage(fleet, "f16-committing") == "COMMITTING"
    fleet.cancel("f16-committing", "b")
    assert fleet.state("f16-committing") == "CANCELLING"
    far_worker.reset()
    wait_cancelled(fleet, "f16-committing")
