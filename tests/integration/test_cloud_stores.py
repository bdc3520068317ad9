"""gs:// and abfs:// stores: what test_object_store.py and F13 ask of s3://, over fake-gcs-server and (full) Azurite."""
import contextlib
import hashlib
import json
import os
import signal
import subprocess
import time
import uuid

import pytest

from cloud_stores import azurite, fake_gcs
from conftest import EXAMPLES, submit_args, wait_for
from fault_proxy import FaultProxy
from service import Worker


@contextlib.contextmanager
def started(name, folder):
    """A store with a proxy in front of it, which does nothing until it is told a fault."""
    with FaultProxy("127.0.0.1:1") as proxy:
        opened = fake_gcs(folder, told_address=proxy.address) if name == "gs" else azurite(folder)
        with opened as store:
            proxy.target = store.address
            yield store, proxy


@pytest.fixture(scope="module", params=["gs", pytest.param("abfs", marks=pytest.mark.full)])
def shared(request, tmp_path_factory):
    with started(request.param, tmp_path_factory.mktemp(request.param)) as found:
        yield found


@pytest.fixture
def store(shared):
    """An empty one."""
    store, proxy = shared
    proxy.clear()
    yield store
    proxy.clear()


@pytest.fixture
def proxy(shared, store):
    return shared[1]


@pytest.fixture
def root(store):
    """A prefix of the test's own."""
    return f"t{uuid.uuid4().hex[:8]}"


def keys(store, root):
    return [key for key in store.keys() if key.startswith(root + "/")]


def contract(binaries, store, uri, program, tests):
    """Unit tests of a contract, over the store."""
    binary = binaries.parent / "tests" / program
    assert binary.exists(), f"no {binary}: build the target {program}"
    done = subprocess.run([binary, f"--gtest_filter={tests}"], capture_output=True, text=True, timeout=300,
                          env={**os.environ, **store.env, "QUANTRY_TEST_STORAGE_URI": uri})
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert "[  PASSED  ]" in done.stdout and "SKIPPED" not in done.stdout, done.stdout[-3000:]


CONTRACTS = [("storage_test", "*StorageTest*named*"), ("artifacts_test", "*BlobStoreTest*named*:*ArtifactStoreSuite*named*-*PlacesTheHead*")]


@pytest.mark.parametrize("program, tests", CONTRACTS, ids=["storage", "artifacts and uploads"])
def test_contract(store, root, binaries, program, tests):
    contract(binaries, store, store.uri(root), program, tests)
    assert not keys(store, root), "something is left, temporaries perhaps"


@pytest.mark.full
@pytest.mark.parametrize("program, tests", CONTRACTS, ids=["storage", "artifacts and uploads"])
def test_contract_while_requests_fail(store, proxy, root, binaries, program, tests):
    """Every tenth request a fault, once. fake-gcs-server forgets an upload that it has finished, where Google's still says how it ended."""
    proxy.sprinkle(10, 20, never_late="/upload/" if store.scheme == "gs://" else None)
    contract(binaries, store, store.uri(root, behind=proxy.address), program, tests + ("" if "-" in tests else "-") + ":*LargeFiles*")
    assert proxy.hits >= 5


@pytest.fixture
def server(make_server, store, root):
    flags = [f"--artifact-root={store.uri(root + '/artifacts')}", f"--blob-root={store.uri(root + '/uploads')}"]
    return make_server(*flags, env=store.env).start()


def pulled(server, job, folder):
    server.cli("pull", job, folder, check=0)
    manifest = json.loads((folder / "manifest.json").read_text())
    for file in manifest["files"]:
        assert hashlib.sha256((folder / file["path"]).read_bytes()).hexdigest() == file["sha256"], file["path"]
    return manifest


def test_job(server, store, root, stories, tmp_path):
    """Uploads, checkpoints and artifact are there; what is read is what was committed; a deletion leaves the uploads."""
    job = server.json(*submit_args(stories, "--id", "in-a-cloud", method="rtn"), "--wait")
    assert job["state"] == "SUCCEEDED"
    assert job["artifact"]["uri"].startswith(store.scheme)
    prefix = f"{root}/artifacts/default/{job['uid']}/1/"
    assert prefix + "manifest.json" in keys(store, root)
    for file in job["spec"]["model"]["blobs"]["files"]:
        assert f"{root}/uploads/default/{file['sha256']}" in keys(store, root)
    wait_for(lambda: not [key for key in keys(store, root) if "/checkpoints/" in key], 10, "the checkpoints to be removed")
    assert not [key for key in keys(store, root) if "/.tmp-" in key]

    manifest = pulled(server, "in-a-cloud", tmp_path / "pulled")
    again = server.cli(*submit_args(stories, "--id", "again", method="rtn"), check=0)
    assert "uploaded nothing" in again.stderr

    store.put(prefix + manifest["files"][0]["path"], b"changed")
    done = server.cli("pull", "in-a-cloud", tmp_path / "changed")
    assert done.returncode != 0 and "ARTIFACT_CORRUPT" in done.stderr

    server.cli("delete", "in-a-cloud", check=0)
    wait_for(lambda: not [key for key in keys(store, root) if job["uid"] in key], 10, "the artifact to be gone")


def test_job_with_inputs_there(make_server, store, root, stories):
    """Read by the worker; the artifact goes to a folder."""
    for path in stories.iterdir():
        store.put(f"{root}/models/stories/{path.name}", path.read_bytes())
    for name in ("calibration", "evaluation"):
        store.put(f"{root}/texts/{name}.txt", (EXAMPLES / f"text/{name}.txt").read_bytes())
    server = make_server(env=store.env).start()
    args = submit_args(store.uri(root + "/models/stories"), "--id", "from-a-cloud", "--wait", method="rtn")
    for name in ("calibration", "evaluation"):
        args[args.index("--" + name) + 1] = store.uri(f"{root}/texts/{name}.txt")
    job = server.json(*args)
    assert job["state"] == "SUCCEEDED"
    args[1], args[args.index("--id") + 1] = store.uri(root + "/models/none"), "of-nothing"
    failed = json.loads(server.cli(*args, "--output", "json", check=1).stdout)
    assert failed["error"]["reason"] == "SOURCE_MISSING" and "holds no files" in failed["error"]["message"]


@pytest.mark.full
def test_a_killed_workers_job_goes_on_from_the_checkpoint(make_server, binaries, store, root, stories, tmp_path):
    flags = [f"--artifact-root={store.uri(root)}", "--embedded=false", "--lease-ttl-s=5", "--heartbeat-interval-s=1", "--sweep-interval-s=1"]
    server = make_server(*flags, env=store.env).start()
    first = Worker(binaries, tmp_path / "w1", server.worker_address, env=store.env).start()
    server.json(*submit_args(stories, "--id", "resumed", method="gptq"))

    def blocks():
        return int(server.json("get", "resumed").get("progress", {}).get("blocks_done", 0))

    uid = server.json("get", "resumed")["uid"]
    wait_for(lambda: [key for key in keys(store, root) if f"{uid}/checkpoints/1/" in key] and blocks() >= 1, 60, "a checkpoint")
    first.stop(signal.SIGKILL)
    second = Worker(binaries, tmp_path / "w2", server.worker_address, env=store.env).start()
    try:
        wait_for(lambda: server.json("get", "resumed")["state"] == "SUCCEEDED", 90, "the second worker")
        assert int(server.json("get", "resumed")["epoch"]) >= 2
        pulled(server, "resumed", tmp_path / "pulled")
    finally:
        second.stop()


@pytest.mark.full
def test_losing_prefixes_and_temporaries_are_swept(server, store, root):
    """What an attempt that lost, and a process that died in a write, left behind."""
    uid, temporary = uuid.uuid4(), f".tmp-{uuid.uuid4()}/name"
    garbage = [f"artifacts/default/{uid}/1/model.safetensors", f"artifacts/default/{uid}/1/{temporary}", f"uploads/default/{temporary}",
               f"artifacts/{temporary}", f"uploads/default/{'0' * 64}"]
    kept = ["artifacts/default/.tmp-mine", "artifacts/notes.txt"]
    for name in garbage + kept:
        store.put(f"{root}/{name}", b"x")
    assert int(server.json("gc")["objects"]) == 0, "all of it is new"
    time.sleep(63)  # the shortest age there is: a minute
    found = server.json("gc", "--older-than", "0.017")
    assert (int(found["attempts"]), int(found["objects"])) == (1, len(garbage)), found
    left = keys(store, root)
    assert not [name for name in garbage if f"{root}/{name}" in left]
    assert all(f"{root}/{name}" in left for name in kept)


@pytest.mark.full
@pytest.mark.parametrize("kind", ["500", "503", "reset", "late-500"])
def test_failing_commits(make_server, store, proxy, root, stories, tmp_path, kind):
    """Requests for the artifact fail for a moment: repeated, and it is whole."""
    server = make_server(f"--artifact-root={store.uri(root, behind=proxy.address)}", env=store.env).start()
    fault = proxy.fail(kind, method="PUT,POST", path="manifest|model.*safetensors", times=2)
    job = server.json(*submit_args(stories, "--id", "cloud-job", method="rtn"), "--wait", timeout=200)
    assert job["state"] == "SUCCEEDED" and fault.hits > 0
    pulled(server, "cloud-job", tmp_path / "pulled")


@pytest.mark.full
def test_wrong_bytes_are_not_handed_on(make_server, store, proxy, root, stories, tmp_path):
    server = make_server(f"--artifact-root={store.uri(root, behind=proxy.address)}", env=store.env).start()
    server.json(*submit_args(stories, "--id", "cloud-job", method="rtn"), "--wait")
    fault = proxy.fail("corrupt", method="GET", path=store.data_of("model.*safetensors"))
    done = server.cli("pull", "cloud-job", tmp_path / "bad")
    assert fault.hits > 0
    assert done.returncode != 0 and ("ARTIFACT_CORRUPT" in done.stderr or "STORAGE_ERROR" in done.stderr), done.stderr
    assert not (tmp_path / "bad/model.safetensors").exists()
    proxy.clear()
    pulled(server, "cloud-job", tmp_path / "good")


def refused(make_server, uri, env):
    server = make_server(f"--artifact-root={uri}", env=env)
    assert server.start(expect_failure=True) not in (None, 0)
    return server.log_text()


def test_refused_at_the_start(make_server, store):
    log = refused(make_server, store.uri(bucket="none-such"), store.env)
    assert "artifact_root" in log and "does not answer as it should" in log and ("404" in log or "NOT_FOUND" in log), log


@pytest.mark.full
def test_keys_and_signatures_of_azure(make_server, tmp_path):
    """A wrong key is told as what it is; a SAS is never in an error nor sent to another host."""
    with azurite(tmp_path) as store:
        wrong = {**store.env, "AZURE_STORAGE_KEY": "d3Jvbmc="}
        assert "403" in refused(make_server, store.uri(), wrong)
        sas = {**wrong, "AZURE_STORAGE_KEY": "", "AZURE_STORAGE_SAS_TOKEN": "sv=2021-12-02&sig=tellnobody"}
        log = refused(make_server, store.uri(), sas)
        assert "tokens are sent to Microsoft's hosts by https alone" in log and "tellnobody" not in log, log
        log = refused(make_server, store.uri() + "&sv=2021-12-02&sig=tellnobody", {})
        assert "holds credentials" in log and "AZURE_STORAGE_KEY" in log and "tellnobody" not in log, log
