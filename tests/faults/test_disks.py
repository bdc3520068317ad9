"""F12, F21: full disks, disks that fail, bytes that rot."""
import contextlib
import pathlib
import signal
import subprocess

import pytest

from api import errors
from fleet import QUICK
from machine import fill, mount_tmpfs
from service import EXAMPLES, wait_for
from test_workers import engine_at, waiting_in

REFUSED_ENDS = (r'grpc_server_call_duration_seconds_count\{grpc_method="/quantry.v1.WorkerService/CompleteJob",'
                r'grpc_status="RESOURCE_EXHAUSTED"\}')


def test_f12_disk_full_at_the_worker(make_fleet, tmp_path):
    """No room for a checkpoint and the shards: DISK_FULL; with room again, a retry ends well."""
    unmount = mount_tmpfs(tmp_path / "fleet/w1", "1m")
    try:
        fleet = make_fleet().start(workers=1)
        big = "stage QUANTIZING\nblock\nblock\nblock\nblock\n" + "fill 2000000\n" + "artifact\ncomplete\n"
        fleet.submit("job-f12", big, retry_policy={"max_attempts": 1})
        found = fleet.wait_end("job-f12")
        assert found.state_reason == "DISK_FULL", found.error
        unmount()
        unmount = mount_tmpfs(tmp_path / "fleet/w1", "16m")
        fleet.workers["w1"].stop(signal.SIGKILL)
        fleet.workers["w1"].start()
        fleet.retry("job-f12")
        fleet.wait_state("job-f12", "SUCCEEDED")
        fleet.check()
    finally:
        fleet.stop()
        unmount()


def test_f12_a_cache_makes_room_for_what_comes(make_fleet, tmp_path):
    """A worker's cached uploads fill its disk: those of the last job go when the next one's do not fit beside them."""
    unmount = mount_tmpfs(tmp_path / "fleet/w1", "16m")
    try:
        fleet = make_fleet().start(workers=0)
        fleet.worker("w1", flags=("--min-free-disk-bytes=1048576",))
        script = tmp_path / "script"
        script.write_text(QUICK)
        for number in range(3):
            model = tmp_path / f"model-{number}"
            model.mkdir()
            (model / "config.json").write_text("{}")
            (model / "model.safetensors").write_bytes(bytes([number]) * 9_000_000)
            fleet.servers["a"].cli("submit", model, "--method", "awq", "--bits", 4, "--calibration", script,
                                   "--id", f"f12-cached-{number}", check=0)
            found = fleet.wait_state(f"f12-cached-{number}", "SUCCEEDED", "FAILED")
            assert (found.state_reason, found.epoch) == ("artifact committed", 1), found.error
    finally:
        fleet.stop()
        unmount()


def test_f12_disk_full_at_the_server(make_fleet, tmp_path):
    """No room for SQLite's log nor for the server's own: submits are refused, what was acknowledged is kept."""
    unmount = mount_tmpfs(tmp_path / "fleet/a", "6m")
    try:
        fleet = make_fleet(flags=[f"--artifact-root=file://{tmp_path}/artifacts"]).start(workers=1)
        fleet.submit("f12-before")
        fleet.wait_end("f12-before")
        filler = tmp_path / "fleet/a/filler"
        fill(filler)
        fleet.expect_full("f12-full")
        assert fleet.state("f12-before") == "SUCCEEDED"
        filler.unlink()
        fleet.submit_for_sure("f12-after")
        for record in [r for r in fleet.history.records if r["call"] == "submit" and "error" not in r]:
            fleet.wait_end(record["job"], seconds=60)
        fleet.collect()
        assert [v for v in fleet.history.check()] == []
        # Workers tell again what the server had no room for.
        assert {r["state"] for r in fleet.history.records if r["call"] == "final"} == {"SUCCEEDED"}
    finally:
        fleet.stop()
        unmount()


def test_f12_disk_full_for_artifacts(make_fleet, small_disk):
    """No room where artifacts go: the attempt is DISK_FULL and shows none; with room again, a retry ends well."""
    folder = small_disk("8m")
    fleet = make_fleet(flags=[f"--artifact-root=file://{folder}/artifacts"]).start(workers=1)
    filler = folder / "filler"
    fill(filler)
    fleet.submit("f12-artifact", retry_policy={"max_attempts": 1})
    found = fleet.wait_end("f12-artifact")
    assert found.state_reason == "DISK_FULL", found.error
    assert not fleet.artifacts_of("f12-artifact")
    filler.unlink()
    fleet.retry("f12-artifact")
    fleet.wait_state("f12-artifact", "SUCCEEDED")
    fleet.check()
    fleet.stop()


def test_f12_disk_full_for_uploads(make_fleet, small_disk, tmp_path):
    """No room where uploads go: DISK_FULL; the same command goes on from what has arrived."""
    folder = small_disk("4m")
    fleet = make_fleet(flags=[f"--blob-dir={folder}/blobs"]).start(workers=1)
    script = tmp_path / "script"
    script.write_text(QUICK)
    submit = ["submit", EXAMPLES / "stories260k", "--method", "awq", "--bits", 4, "--calibration", script, "--id", "f12-upload"]
    filler = folder / "filler"
    fill(filler)
    refused = fleet.servers["a"].json(*submit, check=6)
    assert refused["error"]["reason"] == "DISK_FULL", refused
    filler.unlink()
    fleet.servers["a"].cli(*submit, check=0)
    fleet.wait_state("f12-upload", "SUCCEEDED")
    fleet.stop()


class FailingDisk:
    """`env` for a program whose SQLite files fail (failing_disk.c) while fails() is on."""

    def __init__(self, folder):
        library, self.control = folder / "failing_disk.so", folder / "faults"
        subprocess.run(["gcc", "-shared", "-fPIC", "-O2", "-Wall", "-Werror", "-o", library,
                        pathlib.Path(__file__).parent / "failing_disk.c"], check=True, timeout=60)
        self.env = {"LD_PRELOAD": str(library), "QUANTRY_FAULT_FILE": str(self.control), "QUANTRY_FAULT_PATH": "/quantry.db"}

    @contextlib.contextmanager
    def fails(self, calls):
        whole = self.control.with_suffix(".new")
        whole.write_text(calls)
        whole.rename(self.control)
        try:
            yield
        finally:
            self.control.unlink()


@pytest.mark.parametrize("killed", [False, True], ids=["goes on", "killed"])
@pytest.mark.parametrize("calls", ["pwrite64", "torn", "fdatasync", "pwrite64 fdatasync ftruncate64"])
def test_f12_io_errors(make_fleet, tmp_path, calls, killed):
    """EIO for SQLite's writes, or its syncs: nothing is acknowledged and the reason is told; reads go on, so does the engine.
    With the disk well again the same process goes on, or the next one; what was acknowledged is there, and has ended."""
    disk = FailingDisk(tmp_path)
    fleet = make_fleet(env=disk.env).start(workers=1)
    server = fleet.servers["a"]
    fleet.submit("f12-before")
    fleet.wait_end("f12-before")
    fleet.submit("f12-running", f"stage QUANTIZING\nblock\nwait {tmp_path}/go\nblock\nartifact\ncomplete\n")
    fleet.wait_block("f12-running")
    with disk.fails(calls):
        for number in range(5):
            with pytest.raises(errors.ServerUnavailable) as refused:
                fleet.submit(f"f12-refused-{number}", timeout=5)
            assert refused.value.reason == "STORE_UNAVAILABLE" and "disk I/O error" in str(refused.value), refused.value
        assert fleet.state("f12-before") == "SUCCEEDED"
        if killed:
            server.stop(signal.SIGKILL)
    if killed:
        server.start()
    assert server.process.poll() is None
    fleet.submit_for_sure("f12-after")
    (tmp_path / "go").touch()
    for job in ("f12-running", "f12-after"):
        fleet.wait_state(job, "SUCCEEDED", seconds=60)
    fleet.check()
    fleet.stop()


def test_f12_no_room_for_an_end(make_fleet, tmp_path):
    """Full just when an attempt ends: its worker tells the end until there is room, and no attempt is lost for it."""
    disk = FailingDisk(tmp_path)
    fleet = make_fleet(env=disk.env).start(workers=1)
    fleet.submit("f12-ends", waiting_in(tmp_path))
    engine_at(tmp_path / "at")
    with disk.fails("full"):
        (tmp_path / "go").touch()
        wait_for(lambda: fleet.metric("a", REFUSED_ENDS) >= 3, 20, "the end to be refused three times")
    assert fleet.wait_end("f12-ends").epoch == 1
    fleet.wait_state("f12-ends", "SUCCEEDED")
    fleet.check()


@pytest.mark.parametrize("calls", ["pread64", "pwrite64 fdatasync"])
def test_f12_start_on_a_disk_that_fails(make_fleet, tmp_path, calls):
    """Refused with the reason; afterwards all is there."""
    disk = FailingDisk(tmp_path)
    fleet = make_fleet(env=disk.env).start(workers=1)
    fleet.submit("f12-before")
    fleet.wait_end("f12-before")
    fleet.servers["a"].stop(signal.SIGKILL)
    with disk.fails(calls):
        assert fleet.servers["a"].start(expect_failure=True) != 0
        assert "disk I/O error" in fleet.servers["a"].log_text()
    fleet.servers["a"].start()
    fleet.submit_for_sure("f12-after")
    fleet.wait_state("f12-after", "SUCCEEDED", seconds=60)
    fleet.check()


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGE = {
    "flipped bit": lambda folder: flip(folder / "model.safetensors"),
    "missing shard": lambda folder: (folder / "model.safetensors").unlink(),
    "truncated shard": lambda folder: (folder / "model.safetensors").write_bytes(b"b"),
    "truncated manifest": lambda folder: (folder / "manifest.json").write_bytes((folder / "manifest.json").read_bytes()[:50]),
    "flipped bit in the manifest": lambda folder: flip(folder / "manifest.json"),
}


def test_f21_rotten_artifacts(fleet, tmp_path):
    """Each damage is told as ARTIFACT_CORRUPT; nothing of it is handed on as good."""
    for number, (name, damage) in enumerate(DAMAGE.items()):
        job = f"f21-{number}"
        fleet.submit(job, QUICK)
        fleet.wait_end(job)
        folder = pathlib.Path(next(a.uri for a in fleet.artifacts_of(job)).removeprefix("file://"))
        kept = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        damage(folder)
        done = fleet.servers["a"].cli("pull", job, tmp_path / job)
        assert done.returncode != 0 and "ARTIFACT_CORRUPT" in done.stderr, (name, done.stderr)
        for path, data in kept.items():
            path.write_bytes(data)
        fleet.servers["a"].cli("pull", job, tmp_path / job, check=0)


@pytest.mark.full
def test_f21_rotten_checkpoint(fleet, tmp_path):
    """The next attempt notices and starts over instead of going on from it."""
    fleet.submit("f21-checkpoint", f"block\nblock\nepoch 1 touch {tmp_path}/at\nepoch 1 wait {tmp_path}/go\n"
                                   "epoch 1 signal 9\nblock\nblock\nartifact\ncomplete\n")
    wait_for((tmp_path / "at").exists, 20, "two blocks")
    fleet.wait_block("f21-checkpoint", 2)
    victim = fleet.workers[fleet.get("f21-checkpoint").worker]
    uid = fleet.get("f21-checkpoint").uid
    stored = [path for path in (fleet.folder / "shared/artifacts").rglob(f"*{uid}*/*checkpoints*/**/*") if path.is_file()]
    stored = stored or [path for path in (fleet.folder / "shared/artifacts").rglob("*") if uid in str(path) and path.is_file()]
    assert stored
    for path in stored:
        flip(path)
    victim.stop(signal.SIGKILL)  # its own copy goes with it, unless it comes back
    (tmp_path / "go").touch()
    found = fleet.wait_end("f21-checkpoint")
    assert found.epoch == 2
    logs = [e.log.message for e in fleet.api("a").events("f21-checkpoint") if e.WhichOneof("kind") == "log"]
    assert any("starting over" in line for line in logs), logs
