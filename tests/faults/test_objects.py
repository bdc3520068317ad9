"""F13: an object store that fails in every way it can."""
import contextlib
import hashlib
import json
import os
import signal
import subprocess
import threading
import time

import pytest

from api import PARENT, admin_service_pb2, errors
from fault_proxy import BUCKET_REGION, FaultProxy
from fleet import Fleet
from object_store import CREDENTIALS, READER, artifact_root, client, keys, moto, seaweedfs
from service import wait_for


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    with moto(tmp_path_factory.mktemp("moto")) as address:
        yield address


@pytest.fixture(scope="module")
def shared_fleet(store, tmp_path_factory, binaries):
    """A fleet whose artifacts lie in an object store behind a proxy; the test's own reads of them pass it by."""
    with FaultProxy(store) as proxy:
        fleet = Fleet(tmp_path_factory.mktemp("s3"), binaries, env=CREDENTIALS, ttl_s=6, bucket=client(store),
                      flags=[f"--artifact-root={artifact_root(proxy.address)}"])
        try:
            yield fleet.start(workers=1), proxy
        finally:
            fleet.stop()


@pytest.fixture
def behind_proxy(shared_fleet):
    """The shared fleet; afterwards every job must have kept the promise."""
    fleet, proxy = shared_fleet
    fleet.heal()
    yield fleet, proxy
    proxy.clear()
    fleet.check()


FAULTS = [("503", "PUT", True), ("reset", "PUT", True), ("late-500", "PUT", True), ("500", "GET", True), ("500", "PUT", False),
          ("stall", "PUT", False), ("409", "PUT", False), ("412", "PUT", False), ("503", "GET", False), ("reset", "GET", False)]
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
    fault = proxy.fail(kind, method=method, path="manifest|safetensors|block", times=1 if kind in ("409", "412") else 2, seconds=1)
    try:
        fleet.submit(job)
        found = fleet.wait_state(job, "SUCCEEDED", seconds=60)
        manifest_of(fleet, job, tmp_path / "pulled")
        assert fault.hits > 0, "the fault did not happen"
        assert found.user_failures <= 1
    finally:
        proxy.clear()


def test_f13_a_store_that_hangs_stops_nothing_else(store, tmp_path, binaries):
    """As many completing jobs and deletions as there are threads for other calls: heartbeats and reads never ask the store."""
    with FaultProxy(store) as proxy:
        fleet = Fleet(tmp_path / "hangs", binaries, env=CREDENTIALS, ttl_s=5, bucket=client(store),
                      flags=[f"--artifact-root={artifact_root(proxy.address)}"])
        fleet.start(workers=0)
        try:
            busy, quiet = fleet.puppet("w1"), fleet.puppet("w2")
            names = [f"f13-hangs-{i}" for i in range(30)]
            for name in names:
                fleet.submit(name, method="gptq")
            leases = [fleet.acquire(busy) for _ in range(8)]
            kept = fleet.acquire(quiet)
            for name in names[10:]:
                fleet.cancel(name)
            proxy.fail("stall", seconds=30)
            tenant = fleet.api("a")
            remove = [lambda name=name: fleet.delete(name) for name in names[10:]]
            complete = [lambda lease=lease: fleet.write(busy, "complete", lease, "0" * 64, timeout=4) for lease in leases]
            calls = [threading.Thread(target=call_quietly, args=(call,)) for call in remove + complete + complete]
            for call in calls:
                call.start()
            for _ in range(6):
                assert quiet.beat(kept) == "CONTINUE"
                assert tenant.get(names[9]).name.endswith(names[9])
                time.sleep(1)
            for call in calls:
                call.join()
            assert quiet.beat(kept) == "CONTINUE"
            proxy.clear()
            end_all(fleet, names[:10])
            for name in names[10:]:
                fleet.delete_for_sure(name)
            fleet.check()
        finally:
            proxy.clear()
            fleet.stop()


@pytest.fixture
def uploads_behind_proxy(store, tmp_path, binaries):
    """A server whose uploads lie in an object store behind a proxy, and of whose tenant it counts the bytes."""
    with FaultProxy(store) as proxy:
        fleet = Fleet(tmp_path / "uploads", binaries, env=CREDENTIALS, ttl_s=5,
                      flags=[f"--blob-root={artifact_root(proxy.address)}", "--drain-timeout-s=2"])
        try:
            yield fleet.start(workers=0), proxy
        finally:
            proxy.clear()
            fleet.stop()


def test_f13_quotas_of_a_store_that_hangs_stop_nothing_else(uploads_behind_proxy):
    """More looks at what a tenant has uploaded than there are threads for short calls, which go on."""
    fleet, proxy = uploads_behind_proxy
    tenant = fleet.api("a")
    fleet.submit("f13-there")
    tenant.call(tenant.admin.SetQuota, admin_service_pb2.SetQuotaRequest(parent=PARENT, max_stored_bytes=1 << 40))
    proxy.fail("stall", seconds=30)
    ask = [lambda: tenant.call(tenant.admin.GetQuota, admin_service_pb2.GetQuotaRequest(parent=PARENT))] * 20
    submit = [lambda i=i: tenant.submit(f"f13-late-{i}", fleet.spec()) for i in range(20)]
    calls = [threading.Thread(target=call_quietly, args=(call,)) for call in ask + submit]
    for call in calls:
        call.start()
    for _ in range(5):
        began = time.monotonic()
        assert tenant.get("f13-there").name.endswith("f13-there")
        assert time.monotonic() - began < 3
        time.sleep(0.5)
    proxy.clear()
    for call in calls:
        call.join()


def test_f13_a_drain_does_not_wait_for_a_store_that_hangs(uploads_behind_proxy):
    """A collection of garbage lists for minutes: the server is gone in its time, with status 0."""
    fleet, proxy = uploads_behind_proxy
    tenant = fleet.api("a")
    fleet.submit("f13-kept")
    fault = proxy.fail("stall", seconds=60)
    collect = threading.Thread(target=call_quietly, args=(
        lambda: tenant.call(tenant.admin.CollectGarbage, admin_service_pb2.CollectGarbageRequest(), timeout=50),))
    collect.start()
    wait_for(lambda: fault.hits > 0, 20, "the collection to ask the store")
    assert fleet.servers["a"].stop(timeout=15) == 0
    assert "--drain-timeout-s" in fleet.servers["a"].log_text()
    collect.join()
    proxy.clear()
    fleet.servers["a"].start()
    assert fleet.state("f13-kept") == "QUEUED"


def end_all(fleet, jobs):
    """Cancels them; nobody beats for them any more."""
    for job in jobs:
        fleet.cancel(job)
    for job in jobs:
        fleet.wait_state(job, "CANCELLED", seconds=60)


def call_quietly(call):
    with contextlib.suppress(errors.QuantryError):
        call()


def waits(fleet, job):
    """What the job's owner reads of a store that does not answer."""
    logs = [event.log.message for event in fleet.api("a").events(job) if event.WhichOneof("kind") == "log"]
    return [text for text in logs if "does not answer, trying again in" in text]


@pytest.mark.full
def test_f13_store_away(behind_proxy, tmp_path):
    """Nothing but errors: the finished artifact waits, and is stored by the same attempt once the store is back."""
    fleet, proxy = behind_proxy
    proxy.fail("503")
    try:
        fleet.submit("f13-away", retry_policy={"max_attempts": 1})
        wait_for(lambda: waits(fleet, "f13-away"), 120, "the attempt to say that it waits")
    finally:
        proxy.clear()
    found = fleet.wait_state("f13-away", "SUCCEEDED", seconds=120)
    assert (found.epoch, found.user_failures) == (1, 0)
    manifest_of(fleet, "f13-away", tmp_path / "pulled")


@pytest.mark.full
def test_f13_store_away_and_no_patience(store, tmp_path, binaries):
    """The attempt fails with STORAGE_ERROR, a later one, with the store back, ends well. A cancel ends the wait of a patient one."""
    with FaultProxy(store) as proxy:
        fleet = Fleet(tmp_path / "fleet", binaries, env=CREDENTIALS, ttl_s=6, bucket=client(store),
                      flags=[f"--artifact-root={artifact_root(proxy.address)}"])
        try:
            fleet.start(workers=0).worker("hasty", flags=("--store-patience-s=0",))
            proxy.fail("503")
            fleet.submit("f13-hasty", retry_policy={"max_attempts": 1})
            found = fleet.wait_state("f13-hasty", "FAILED", seconds=90)
            assert found.state_reason == "STORAGE_ERROR" and waits(fleet, "f13-hasty") == [], found.error
            fleet.workers.pop("hasty").stop()
            fleet.worker("patient")
            fleet.submit("f13-cancelled")
            wait_for(lambda: waits(fleet, "f13-cancelled"), 120, "the attempt to say that it waits")
            fleet.cancel("f13-cancelled")
            fleet.wait_state("f13-cancelled", "CANCELLED", seconds=60)
            proxy.clear()
            fleet.retry("f13-hasty")
            fleet.wait_state("f13-hasty", "SUCCEEDED", seconds=60)
            manifest_of(fleet, "f13-hasty", tmp_path / "pulled")
            fleet.check()
        finally:
            fleet.stop()


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


@pytest.mark.parametrize("kind", ["403", "denied"])
def test_f13_denied_deletion(behind_proxy, store, kind):
    """No outage: told once a job, and the jobs behind it are tried too. Once it is allowed, all go."""
    fleet, proxy = behind_proxy
    server, jobs = fleet.servers["a"], [f"f13-{kind}-{number}" for number in range(2)]
    for job in jobs:
        fleet.submit(job)
    uids = [fleet.wait_state(job, "SUCCEEDED", seconds=60).uid for job in jobs]
    fault = proxy.fail(kind, method="POST", path="delete")
    try:
        for job in jobs:
            fleet.delete(job)

        def told(uid):
            return sum("cannot remove a deleted job's files" in line and uid in line for line in server.log_text().splitlines())

        wait_for(lambda: all(told(uid) for uid in uids), 60, "both to be told")
        before = fault.hits
        wait_for(lambda: fault.hits >= before + 4, 60, "both to be tried again")
        assert [told(uid) for uid in uids] == [1, 1]
        assert all(any(uid in key for key in keys(store)) for uid in uids), "the files are there"
    finally:
        proxy.clear()
    wait_for(lambda: not [key for key in keys(store) if not key.endswith("/") and any(uid in key for uid in uids)], 60,
             "the files to be gone")


@pytest.mark.parametrize("kind, file", [("corrupt", "model"), ("corrupt", "manifest"),
                                        pytest.param("truncate", "model", marks=pytest.mark.full)])
def test_f13_wrong_bytes(behind_proxy, tmp_path, kind, file):
    """Never handed on: the pull ends, of short answers after it has asked for a while; the same pull afterwards is right."""
    fleet, proxy = behind_proxy
    job = f"f13-{kind}-{file}"
    fleet.submit(job)
    fleet.wait_state(job, "SUCCEEDED", seconds=60)
    fault = proxy.fail(kind, method="GET", path=f"/1/{file}")
    try:
        done = fleet.servers["a"].cli("pull", job, tmp_path / "bad")
        assert fault.hits > 0
        assert done.returncode != 0 and ("ARTIFACT_CORRUPT" in done.stderr or "STORAGE_ERROR" in done.stderr), done.stderr
        assert not (tmp_path / "bad/model.safetensors").exists()
    finally:
        proxy.clear()
    manifest_of(fleet, job, tmp_path / "good")


def test_f13_wrong_bytes_at_the_commit(behind_proxy, tmp_path):
    """No success of a manifest that reads otherwise than it was written; the next attempt's is whole."""
    fleet, proxy = behind_proxy
    fault = proxy.fail("corrupt", method="GET", path="/manifest", times=1)
    try:
        fleet.submit("f13-commit")
        found = fleet.wait_state("f13-commit", "SUCCEEDED", seconds=60)
        assert (fault.hits, found.epoch, found.user_failures) == (1, 2, 1)
        manifest_of(fleet, "f13-commit", tmp_path / "pulled")
    finally:
        proxy.clear()


def test_f13_wrong_bytes_of_a_checkpoint(behind_proxy, tmp_path):
    """Another worker's attempt that reads them starts over."""
    fleet, proxy = behind_proxy
    at, job = tmp_path / "at", "f13-checkpoint"
    fleet.submit(job, f"block\nblock\nepoch 1 touch {at}\nepoch 1 hang\nblock\nblock\nartifact\ncomplete\n")
    wait_for(at.exists, 20, "the engine")
    fleet.wait_block(job, 2)
    fault = proxy.fail("corrupt", method="GET", path="/checkpoints/")
    try:
        fleet.workers["w1"].stop(signal.SIGKILL)
        fleet.worker("other")
        found = fleet.wait_state(job, "SUCCEEDED", seconds=60)
        assert fault.hits > 0 and found.epoch == 2
        logs = [event.log.message for event in fleet.api("a").events(job) if event.WhichOneof("kind") == "log"]
        assert any("checkpoint cannot be used, starting over" in text for text in logs), logs
    finally:
        proxy.clear()
    manifest_of(fleet, job, tmp_path / "pulled")


def run_contract(binaries, proxy, log, program="storage_test", tests="*named*"):
    """Unit tests of a contract, over the store behind the proxy."""
    binary = binaries.parent / "tests" / program
    assert binary.exists(), f"no {binary}: build the target {program}"
    done = subprocess.run([binary, f"--gtest_filter={tests}"], capture_output=True, text=True, timeout=300,
                          env={**os.environ, **CREDENTIALS, "QUANTRY_TEST_STORAGE_URI": artifact_root(proxy.address, "conformance")})
    log.write_text(done.stdout + done.stderr)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "PASSED" in done.stdout


def run_conformance(binaries, proxy, log, without=""):
    """The contracts of common/storage.h, of uploads and of artifacts, every tenth request a fault."""
    for program, named in (("storage_test", "*named*"), ("artifacts_test", "*BlobStoreTest*named*"),
                           ("artifacts_test", "*ArtifactStoreSuite*named*")):
        proxy.sprinkle_s3(10, 24)
        run_contract(binaries, proxy, log, program, named + without)
        assert proxy.happened() >= {"error-body", "truncate", "500", "reset"}
        proxy.clear()


def test_f13_conformance(store, binaries, tmp_path):
    """The contracts hold although every tenth request fails; large files: with SeaweedFS."""
    with FaultProxy(store) as proxy:
        run_conformance(binaries, proxy, tmp_path / "log", "-*LargeFiles*")


@pytest.mark.parametrize("kind, times", [("500", 3), ("503", 3), ("reset", 3), ("stall", 1), ("error-body", 3), ("truncate", 1)])
def test_f13_small_reads_are_repeated(store, binaries, tmp_path, kind, times):
    """Reads of fewer bytes than an error document has; a store that goes silent in the middle of the night."""
    with FaultProxy(store) as proxy:
        fault = proxy.fail(kind, method="GET", path="/f$", times=times, seconds=60)
        run_contract(binaries, proxy, tmp_path / "log", tests="*RandomAccess/named")
        assert fault.hits == times


def test_f13_large_files_through_lies(store, binaries, tmp_path):
    """An error document in the 200 to each step of an upload in parts; reads of it that are one, or too short."""
    lies = [("error-body", "POST", "uploads$"), ("error-body", "PUT", "partNumber"), ("error-body", "POST", "uploadId"),
            ("error-body", "GET", "/large$"), ("truncate", "GET", "/whole$")]
    with FaultProxy(store) as proxy:
        faults = [proxy.fail(kind, method=method, path=path, times=1) for kind, method, path in lies]
        run_contract(binaries, proxy, tmp_path / "log", tests="*LargeFiles*/named")
        assert [fault.hits for fault in faults] == [1] * len(lies)


def test_f13_wrong_bytes_of_uploads(store, binaries, tmp_path):
    """What the server takes for a quote has its digest."""
    with FaultProxy(store) as proxy:
        fault = proxy.fail("corrupt", method="GET", path="/t/[0-9a-f]{64}$")
        with pytest.raises(AssertionError, match="DATA_LOSS: blob .* has sha256"):
            run_contract(binaries, proxy, tmp_path / "log", "artifacts_test", "*PlacesBlobsForPrograms/named")
        assert fault.hits > 0


@pytest.mark.full
def test_f13_a_completion_that_always_fails_is_none(store, binaries, tmp_path):
    with FaultProxy(store) as proxy:
        proxy.fail("error-body", method="POST", path="uploadId")
        with pytest.raises(AssertionError, match="during CompleteMultipartUpload"):
            run_contract(binaries, proxy, tmp_path / "log", tests="*LargeFiles*/named")


@pytest.mark.full
def test_f13_reads_are_not_repeated_for_ever(store, binaries, tmp_path):
    with FaultProxy(store) as proxy:
        fault = proxy.fail("503", method="GET", path="/f$")
        with pytest.raises(AssertionError, match="during GetObject"):
            run_contract(binaries, proxy, tmp_path / "log", tests="*RandomAccess/named")
        assert fault.hits == 8


@pytest.mark.full
def test_f13_seaweedfs(make_fleet, tmp_path):
    """A real store behind the proxy, every tenth request a fault: of the storage contract, large files in parts among it,
    and of ten jobs."""
    with seaweedfs(tmp_path) as address, FaultProxy(address) as proxy:
        fleet = make_fleet(env=CREDENTIALS, ttl_s=6, bucket=client(address),
                           flags=[f"--artifact-root={artifact_root(proxy.address)}"])
        run_conformance(fleet.binaries, proxy, tmp_path / "log")
        fleet.start(workers=1)
        proxy.sprinkle_s3(10, 100)
        for number in range(10):
            fleet.submit(f"f13-weed-{number}")
        for number in range(10):
            fleet.wait_state(f"f13-weed-{number}", "SUCCEEDED", seconds=120)
            manifest_of(fleet, f"f13-weed-{number}", tmp_path / str(number))
        assert proxy.hits >= 10
        stored = client(address).list_objects_v2(Bucket="bucket", Prefix="quantry/")["Contents"]
        assert sum(file["Key"].endswith("manifest.json") for file in stored) == 10
        proxy.clear()
        fleet.check()


@pytest.mark.full
def test_f13_refused(make_fleet, tmp_path):
    """A key that is none, or may only read, is told at the server's start as what it is: "the key does not exist" is no
    missing file. A worker whose key may only read fails its jobs with the same words."""
    with seaweedfs(tmp_path) as address:
        root = f"--artifact-root={artifact_root(address)}"
        for key, why in (("stranger", "INVALID_ACCESS_KEY"), (READER, "ACCESS_DENIED")):
            fleet = make_fleet(key, env={**CREDENTIALS, "AWS_ACCESS_KEY_ID": key}, flags=[root])
            assert fleet.servers["a"].start(expect_failure=True) != 0
            log = fleet.servers["a"].log_text()
            assert "artifact_root s3://bucket/quantry" in log and why in log, log
        fleet = make_fleet(env=CREDENTIALS, flags=[root], bucket=client(address)).start(workers=0)
        fleet.worker("w1", env={"AWS_ACCESS_KEY_ID": READER})
        fleet.submit("f13-reader", retry_policy={"max_attempts": 1})
        found = fleet.wait_state("f13-reader", "FAILED", seconds=60)
        assert found.state_reason == "STORAGE_ERROR" and "ACCESS_DENIED" in found.error.message, found.error
        assert not fleet.artifacts_of("f13-reader")
        fleet.check()


@pytest.mark.parametrize("kind, words", [
    ("wrong-region", ["AuthorizationHeaderMalformed", "us-east-1", BUCKET_REGION]), ("other-endpoint", ["PermanentRedirect", "endpoint"]),
    ("other-endpoint-head", [])])
def test_f13_wrong_region(make_fleet, store, kind, words):
    """Refused at the start, with what the store said, the region that was asked and how to say another."""
    with FaultProxy(store) as proxy:
        proxy.fail(kind.removesuffix("-head"), method="HEAD" if kind.endswith("-head") else "")
        fleet = make_fleet(env=CREDENTIALS, flags=[f"--artifact-root={artifact_root(proxy.address)}"])
        assert fleet.servers["a"].start(expect_failure=True) != 0
        log = fleet.servers["a"].log_text()
        for word in [f"artifact_root s3://bucket/quantry?scheme=http&region=us-east-1&endpoint_override={proxy.address}",
                     "bucket bucket was asked in region us-east-1", "s3://bucket/...?region=REGION", *words]:
            assert word in log, log
