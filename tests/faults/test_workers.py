"""F1 to F4, F20, F22: engines and workers die, freeze, come back, or are told to go."""
import signal
import time

import pytest

from api import errors
from fleet import QUICK, alive, kill
from service import wait_for


def model_bytes(fleet, job):
    file = next(r for r in fleet.history.records if r["call"] == "file" and r["job"] == job and r["path"] != "manifest.json")
    return file["got"]


def stopping_at(path, blocks=2):
    """A script whose first attempt stops after its blocks and says so; later ones go on from the checkpoint."""
    return "stage QUANTIZING\n" + "block\n" * blocks + f"epoch 1 touch {path}\nepoch 1 hang\n" + "block\n" * (4 - blocks) + (
        "artifact\ncomplete\n")


def waiting_in(folder):
    """A script whose engine tells by the file `at` of a folder that it runs, and goes on when there is a file `go`."""
    return f"block\ntouch {folder}/at\nwait {folder}/go\nblock\nblock\nblock\nartifact\ncomplete\n"


def engine_at(path):
    wait_for(path.exists, 20, f"an engine at {path.name}")
    wait_for(path.read_text, 5, "its pid")
    return int(path.read_text())


def worker_of(fleet, job):
    return fleet.workers[fleet.get(job).worker]


def test_f01_kill_engine(fleet, tmp_path):
    """Killed mid-block, it goes on from the last checkpoint and makes the same bytes."""
    fleet.submit("f01-undisturbed", QUICK)
    fleet.submit("job-f01", stopping_at(tmp_path / "at"))
    pid = engine_at(tmp_path / "at")
    fleet.wait_block("job-f01", 2)
    kill(pid)
    found = fleet.wait_end("job-f01")
    assert found.epoch == 2 and found.user_failures == 1
    fleet.wait_end("f01-undisturbed")
    fleet.collect()
    assert model_bytes(fleet, "job-f01") == model_bytes(fleet, "f01-undisturbed")


def test_f02_kill_worker(fleet, tmp_path):
    """Its engine dies with it; the job runs elsewhere once the lease has lapsed."""
    fleet.submit("job-f02", stopping_at(tmp_path / "at"))
    pid = engine_at(tmp_path / "at")
    fleet.wait_block("job-f02", 2)
    victim = worker_of(fleet, "job-f02")
    victim.stop(signal.SIGKILL)
    wait_for(lambda: not alive(pid), 5, "the engine to die with its worker")
    found = fleet.wait_end("job-f02")
    assert found.epoch == 2 and found.worker != victim.name and found.worker_losses == 1


def test_f03_kill_engine_and_worker(fleet, tmp_path):
    """Started again under its name, a worker's jobs are taken from it at once: no lease is waited for."""
    fleet.submit("job-f03", stopping_at(tmp_path / "at"))
    pid = engine_at(tmp_path / "at")
    victim = worker_of(fleet, "job-f03")
    kill(pid)
    victim.stop(signal.SIGKILL)
    victim.start()
    found = fleet.wait_end("job-f03")
    assert found.epoch >= 2


def test_f04_zombie_worker(fleet, tmp_path):
    """SIGSTOP past the lease, then SIGCONT: a real worker stops by itself, a stubborn one is refused."""
    fleet.submit("job-f04", stopping_at(tmp_path / "at"))
    fleet.submit("f04-stubborn", method="gptq")
    pid = engine_at(tmp_path / "at")
    frozen = worker_of(fleet, "job-f04")
    zombie = fleet.puppet("zombie")
    lease = fleet.acquire(zombie)
    digest = fleet.put_artifact(lease)
    frozen.send(signal.SIGSTOP)
    kill(pid, signal.SIGSTOP)

    heir = fleet.puppet("heir", "b")
    second = wait_for(lambda: fleet.acquire(heir), 15, "the stubborn worker's job to be given away")
    assert second.epoch == 2
    for what, arguments in (("complete", [digest]), ("checkpoint", []), ("fail", []), ("release", [])):
        with pytest.raises(errors.QuantryError) as refused:
            fleet.write(zombie, what, lease, *arguments)
        assert refused.value.reason == "LEASE_LOST", what
    assert zombie.beat(lease) == "LOST"
    fleet.write(heir, "complete", second, fleet.put_artifact(second))
    with pytest.raises(errors.QuantryError):
        fleet.write(zombie, "complete", lease, digest)
    fleet.write(heir, "complete", second, fleet.put_artifact(second))  # a repeat is welcome

    assert fleet.wait_end("job-f04").epoch == 2
    frozen.send(signal.SIGCONT)
    kill(pid, signal.SIGCONT)
    wait_for(lambda: not alive(pid), 10, "the zombie's engine to be stopped")
    assert fleet.get("job-f04").epoch == 2


def test_f20_lost_reply_of_an_acquire(fleet, far_worker):
    """Asked again, it is the same lease."""
    time.sleep(0.3)  # the worker's long poll is on its way
    far_worker.hold("back")
    fleet.submit("f20-acquire")
    fleet.wait_state("f20-acquire", "RUNNING", server="b")
    far_worker.reset()
    found = fleet.wait_end("f20-acquire", server="b")
    assert found.epoch == 1 and found.worker == "far"


@pytest.mark.full
def test_f20_lost_replies_of_heartbeats(fleet, far_worker, tmp_path):
    """For longer than a lease: the worker stops its engine, the job moves on."""
    fleet.submit("f20-beats", stopping_at(tmp_path / "at"))
    pid = engine_at(tmp_path / "at")
    far_worker.hold("back")
    wait_for(lambda: not alive(pid), 10, "the worker to stop its engine: nobody renewed the lease")
    far_worker.cut()
    fleet.heal_processes()
    found = fleet.wait_end("f20-beats")
    assert found.epoch >= 2 and found.worker != "far"


def test_f22_drain(fleet, tmp_path):
    """SIGTERM: the job is given back at a checkpoint and costs nothing. An engine that ignores it is killed after the grace."""
    script = f"stage QUANTIZING\nblock\nepoch 1 touch {tmp_path}/at\nepoch 1 wait {tmp_path}/go\n" + "block\nsleep 50\n" * 3 + (
        "artifact\ncomplete\n")
    fleet.submit("job-f22", script)
    engine_at(tmp_path / "at")
    drained = worker_of(fleet, "job-f22")
    drained.send(signal.SIGTERM)
    wait_for(lambda: "draining" in drained.log_text(), 5, "the worker to drain")
    (tmp_path / "go").touch()
    assert drained.process.wait(timeout=10) == 0
    found = fleet.wait_end("job-f22")
    assert found.user_failures == found.worker_losses == 0 and found.epoch == 2 and found.worker != drained.name


@pytest.mark.full
def test_f22_drain_of_a_deaf_engine(fleet, tmp_path):
    fleet.submit("f22-deaf", f"ignore-term\nblock\nepoch 1 touch {tmp_path}/at\nepoch 1 hang\nblock\nblock\nblock\nartifact\ncomplete\n")
    pid = engine_at(tmp_path / "at")
    drained = worker_of(fleet, "f22-deaf")
    began = time.monotonic()
    drained.send(signal.SIGTERM)
    assert drained.process.wait(timeout=60) == 0
    assert not alive(pid)
    assert time.monotonic() - began < 5 + 15 + 5  # drain, kill grace, slack
    found = fleet.wait_end("f22-deaf")
    assert found.worker_losses == 0 and found.epoch == 2


