"""F12, F13, F21: full disks, an object store that fails in every way it can, bytes that rot."""
import hashlib
import json
import os
import pathlib
import signal
import subprocess

import pytest

from api import errors
from fault_proxy import FaultProxy
from fleet import QUICK, Fleet
from machine import fill, mount_tmpfs
from object_store import CREDENTIALS, artifact_root, client, moto, seaweedfs
from service import EXAMPLES, wait_for


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


def test_f12_disk_full_at_the_server(make_fleet, tmp_path):
    """No room for SQLite's log nor for the server's own: submits are refused, what was acknowledged is kept."""
    unmount = mount_tmpfs(tmp_path / "fleet/a", "6m")
    try:
        fleet = make_fleet().start(workers=1)
        fleet.submit("f12-before")
        fleet.wait_end("f12-before")
        filler = tmp_path / "fleet/a/filler"
        fill(filler)
        with pytest.raises(errors.QuantryError) as refused:
            for number in range(2000):
                fleet.submit(f"f12-full-{number}")
        assert refused.value.reason in ("DISK_FULL", "STORE_UNAVAILABLE"), refused.value
        assert fleet.state("f12-before") == "SUCCEEDED"
        filler.unlink()
        fleet.submit_for_sure("f12-after")
        for record in [r for r in fleet.history.records if r["call"] == "submit" and "error" not in r]:
            fleet.wait_end(record["job"], seconds=60)
        fleet.collect()
        # What could not be written while the disk was full may have failed its job: told, not lost.
        assert [v for v in fleet.history.check()] == []
        assert fleet.state("f12-after") == "SUCCEEDED"
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


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    with moto(tmp_path_factory.mktemp("moto")) as address:
        yield address


@pytest.fixture(scope="module")
def behind_proxy(store, tmp_path_factory, binaries):
    """A fleet whose artifacts lie in an object store behind a proxy."""
    with FaultProxy(store) as proxy:
        fleet = Fleet(tmp_path_factory.mktemp("s3"), binaries, env=CREDENTIALS, ttl_s=6,
                      flags=[f"--artifact-root={artifact_root(proxy.address)}"])
        try:
            yield fleet.start(workers=1), proxy
        finally:
            fleet.stop()


FAULTS = [("503", "PUT", True), ("reset", "PUT", True), ("late-500", "PUT", True), ("500", "GET", True), ("500", "PUT", False),
          ("stall", "PUT", False), ("409", "PUT", False), ("503", "GET", False), ("reset", "GET", False)]
TRANSIENT = [pytest.param(kind, method, id=f"{method}-{kind}", marks=[] if quick else pytest.mark.full)
             for kind, method, quick in FAULTS]


def manifest_of(fleet, job, folder):
    fleet.servers["a"].cli("pull", job, folder, check=0)
    manifest = json.loads((folder / "manifest.json").read_text())
    for file in manifest["files"]:
        assert hashlib.sha256((folder / file["path"]).read_bytes()).hexdigest() == file["sha256"]
    return manifest


@pytest.mark.parametrize("kind, method", TRANSIENT)
def test_f13_transient(behind_proxy, tmp_path, kind, method):
    """One or two failures: repeated, and the artifact is whole. The store never held a half one under the commit."""
    fleet, proxy = behind_proxy
    job = f"f13-{method}-{kind}".lower()
    fault = proxy.fail(kind, method=method, path="manifest|safetensors|block", times=1 if kind == "409" else 2, seconds=1)
    try:
        fleet.submit(job)
        found = fleet.wait_state(job, "SUCCEEDED", seconds=60)
        manifest_of(fleet, job, tmp_path / "pulled")
        assert fault.hits > 0, "the fault did not happen"
        assert found.user_failures <= 1
    finally:
        proxy.clear()


@pytest.mark.full
def test_f13_store_away(behind_proxy, tmp_path):
    """Nothing but errors: the attempt fails with STORAGE_ERROR, a later one, with the store back, ends well."""
    fleet, proxy = behind_proxy
    proxy.fail("503")
    try:
        fleet.submit("f13-away", retry_policy={"max_attempts": 1})
        found = fleet.wait_state("f13-away", "FAILED", seconds=90)
        assert found.state_reason == "STORAGE_ERROR", found.error
    finally:
        proxy.clear()
    fleet.retry("f13-away")
    fleet.wait_state("f13-away", "SUCCEEDED", seconds=60)
    manifest_of(fleet, "f13-away", tmp_path / "pulled")


def test_f13_error_in_a_200(behind_proxy, tmp_path):
    """A PUT answered 200 with an error document, nothing stored: no success, whoever notices."""
    fleet, proxy = behind_proxy
    fault = proxy.fail("error-body", method="PUT", path="safetensors", times=1)
    try:
        fleet.submit("f13-200")
        fleet.wait_state("f13-200", "SUCCEEDED", seconds=60)
        assert fault.hits == 1
        manifest_of(fleet, "f13-200", tmp_path / "pulled")
    finally:
        proxy.clear()


@pytest.mark.parametrize("kind", ["corrupt", "truncate"])
def test_f13_wrong_bytes(behind_proxy, tmp_path, kind):
    """Never handed on: the pull ends with ARTIFACT_CORRUPT; the same pull afterwards is right."""
    fleet, proxy = behind_proxy
    job = f"f13-{kind}"
    fleet.submit(job)
    fleet.wait_state(job, "SUCCEEDED", seconds=60)
    fault = proxy.fail(kind, method="GET", path=r"/1/.*safetensors|/1/model")
    try:
        done = fleet.servers["a"].cli("pull", job, tmp_path / "bad")
        assert fault.hits > 0
        assert done.returncode != 0 and ("ARTIFACT_CORRUPT" in done.stderr or "STORAGE_ERROR" in done.stderr), done.stderr
        assert not (tmp_path / "bad/model.safetensors").exists()
    finally:
        proxy.clear()
    manifest_of(fleet, job, tmp_path / "good")


def sprinkle(proxy, every, rounds):
    """Each transient fault in its turn, one request in so many."""
    kinds = ["500", "503", "reset", "late-500"]
    for number in range(rounds):
        proxy.fail(kinds[number % len(kinds)], method="GET,PUT,HEAD", skip=every * (number + 1), times=1)


def run_conformance(binaries, proxy, log, tests="*named*"):
    """The contract of common/storage.h, over the store behind the proxy."""
    binary = binaries.parent / "tests/storage_test"
    assert binary.exists(), f"no {binary}: build the target storage_test"
    done = subprocess.run([binary, f"--gtest_filter={tests}"], capture_output=True, text=True, timeout=300,
                          env={**os.environ, **CREDENTIALS, "QUANTRY_TEST_STORAGE_URI": artifact_root(proxy.address, "conformance")})
    log.write_text(done.stdout + done.stderr)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "PASSED" in done.stdout and "SKIPPED" not in done.stdout


def test_f13_conformance(store, binaries, tmp_path):
    """The storage contract holds although every tenth request fails; large files: with SeaweedFS."""
    with FaultProxy(store) as proxy:
        sprinkle(proxy, 10, 20)
        run_conformance(binaries, proxy, tmp_path / "log", "*named*-*LargeFiles*")
        assert proxy.hits >= 5


@pytest.mark.full
def test_f13_seaweedfs(make_fleet, tmp_path):
    """A real store behind the proxy, every tenth request a fault."""
    with seaweedfs(tmp_path) as address, FaultProxy(address) as proxy:
        fleet = make_fleet(env=CREDENTIALS, ttl_s=6, flags=[f"--artifact-root={artifact_root(proxy.address)}"]).start(workers=1)
        run_conformance(fleet.binaries, proxy, tmp_path / "log")
        sprinkle(proxy, 10, 100)
        for number in range(10):
            fleet.submit(f"f13-weed-{number}")
        for number in range(10):
            fleet.wait_state(f"f13-weed-{number}", "SUCCEEDED", seconds=120)
            manifest_of(fleet, f"f13-weed-{number}", tmp_path / str(number))
        assert proxy.hits >= 10
        stored = client(address).list_objects_v2(Bucket="bucket", Prefix="quantry/")["Contents"]
        assert sum(file["Key"].endswith("manifest.json") for file in stored) == 10


@pytest.mark.full
def test_f13_wrong_credentials(make_fleet, tmp_path):
    """Told at the start, as what they are: "the key does not exist" is no missing file."""
    with seaweedfs(tmp_path) as address:
        fleet = make_fleet(env={**CREDENTIALS, "AWS_ACCESS_KEY_ID": "stranger"}, flags=[f"--artifact-root={artifact_root(address)}"])
        assert fleet.servers["a"].start(expect_failure=True) != 0
        assert "INVALID_ACCESS_KEY" in fleet.servers["a"].log_text()


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
