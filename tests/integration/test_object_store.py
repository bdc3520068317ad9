"""S3 stores: artifacts and checkpoints (quantryd --artifact-root=s3://...), uploads (--blob-root), models and texts that jobs name there."""
import hashlib
import json
import os
import signal
import threading
import time

import api
import google_crc32c
import pytest
from quantry.v1 import artifact_service_pb2

from conftest import EXAMPLES, quote_args, submit_args, wait_for
from object_store import CREDENTIALS, artifact_root, client, keys, moto, moto_process
from postgres import PASSWORD, Postgres
from service import Worker


@pytest.fixture
def s3(tmp_path):
    """An S3 server of the test's own; its address."""
    with moto(tmp_path) as address:
        yield address


def test_job_with_artifacts_in_an_object_store(make_server, s3, stories, tmp_path):
    server = make_server(f"--artifact-root={artifact_root(s3)}", env=CREDENTIALS).start()
    job = server.json(*submit_args(stories, "--id", "in-s3", method="rtn"), "--wait")
    assert job["state"] == "SUCCEEDED"
    assert job["artifact"]["uri"].startswith("s3://bucket/quantry/")
    stored = keys(s3)
    prefix = f"quantry/default/{job['uid']}/1/"
    assert prefix + "manifest.json" in stored
    wait_for(lambda: not [key for key in keys(s3) if "/checkpoints/" in key and not key.endswith("/")],
             10, "the checkpoints to be removed, once the job has succeeded")

    pulled = tmp_path / "pulled"
    server.cli("pull", "in-s3", pulled, check=0)
    manifest = json.loads((pulled / "manifest.json").read_text())
    for file in manifest["files"]:
        assert hashlib.sha256((pulled / file["path"]).read_bytes()).hexdigest() == file["sha256"], file["path"]

    # What is read is what was committed: a changed object is refused.
    victim = manifest["files"][0]["path"]
    client(s3).put_object(Bucket="bucket", Key=prefix + victim, Body=b"changed")
    done = server.cli("pull", "in-s3", tmp_path / "again")
    assert done.returncode != 0 and "ARTIFACT_CORRUPT" in done.stderr

    server.cli("delete", "in-s3", check=0)
    wait_for(lambda: [key for key in keys(s3) if not key.endswith("/")] == ["quantry/quantry-store"], 10, "a bucket with nothing of the job")
    wait_for(lambda: not [key for key in keys(s3) if job["uid"] in key], 10, "no marker of its folder either")


@pytest.fixture
def inputs(s3, stories):
    """The example model and texts as objects, beside files that are none of a model's. uri(KEY) names one."""
    files = {f"models/stories/{path.name}": path for path in stories.iterdir()}
    files |= {f"texts/{name}.txt": EXAMPLES / f"text/{name}.txt" for name in ("calibration", "evaluation")}
    for key, path in files.items():
        client(s3).upload_file(str(path), "bucket", key)
    for key in ("models/stories/modeling.py", "models/stories/onnx/model.onnx", "models/stories-2/config.json",
                "models/pickled/config.json", "models/pickled/pytorch_model.bin"):
        client(s3).put_object(Bucket="bucket", Key=key, Body=b"{}")
    return lambda key: artifact_root(s3, key)


def stored_args(inputs, *extra, model="models/stories", calibration="texts/calibration.txt"):
    """submit_args() with everything in the object store."""
    args = submit_args(inputs(model), *extra, method="rtn")
    args[args.index("--calibration") + 1] = inputs(calibration)
    args[args.index("--evaluation") + 1] = inputs("texts/evaluation.txt")
    return args


def inputs_of(job):
    """Names and digests of what the engine read."""
    with open(job["artifact"]["uri"].removeprefix("file://") + "/manifest.json") as file:
        return [{**row, "path": ""} for row in json.load(file)["inputs"]]


def test_job_with_inputs_in_an_object_store(make_server, inputs, stories):
    server = make_server(env=CREDENTIALS).start()
    job = server.json(*stored_args(inputs, "--id", "from-s3", "--wait"))
    assert job["state"] == "SUCCEEDED"
    assert job["spec"]["model"] == {"uri": inputs("models/stories")}
    assert job["spec"]["calibration"]["source"] == {"uri": inputs("texts/calibration.txt")}
    uploaded = server.json(*submit_args(stories, "--id", "uploaded", "--wait", method="rtn"))
    assert inputs_of(job) == inputs_of(uploaded) != []
    assert job["quality"] == uploaded["quality"]
    refused = server.cli(*quote_args(stored_args(inputs)), check=2)
    assert "UNIMPLEMENTED_RPC" in refused.stderr and "submit the job" in refused.stderr


@pytest.mark.parametrize("change, reason, words", [
    ({"model": "models/none"}, "SOURCE_MISSING", ["models/none", "holds no files", "config.json"]),
    ({"model": "models/stories-2"}, "SOURCE_MISSING", ["models/stories-2", "no *.safetensors"]),
    ({"model": "models/pickled"}, "CHECKPOINT_FORMAT_REFUSED", ["pytorch_model.bin", "save_pretrained"]),
    ({"calibration": "texts/none.txt"}, "SOURCE_MISSING", ["texts/none.txt"]),
], ids=["no model", "no weights", "pickles", "no text"])
def test_inputs_that_are_not_in_the_object_store(make_server, inputs, change, reason, words):
    server = make_server(env=CREDENTIALS).start()
    done = server.cli(*stored_args(inputs, "--wait", "--output", "json", **change), check=1)
    job = json.loads(done.stdout)
    assert job["error"]["reason"] == reason, job
    for word in words:
        assert word in job["error"]["message"], job
    assert job["epoch"] in (1, "1"), "a user's mistake is not tried again"


def test_wrong_endpoint_is_told_at_the_start(make_server):
    server = make_server("--artifact-root=s3://bucket/x?scheme=http&region=us-east-1&endpoint_override=127.0.0.1:1",
                         env=CREDENTIALS)
    assert server.start(expect_failure=True) != 0
    assert "artifact_root" in server.log_text()


@pytest.fixture
def two_servers(make_server, s3, binaries, tmp_path):
    """Two servers that share PostgreSQL and a bucket, no folder; the one worker calls the second."""
    password, postgres = tmp_path / "password", Postgres()
    password.touch(mode=0o600)
    password.write_text(PASSWORD + "\n")
    worker = None
    try:
        flags = [f"--job-store={postgres.start().uri}", f"--job-store-password-file={password}", "--embedded=false",
                 f"--artifact-root={artifact_root(s3, 'artifacts')}", f"--blob-root={artifact_root(s3, 'uploads')}"]
        servers = [make_server(*flags, name=name, env=CREDENTIALS).start() for name in ("a", "b")]
        worker = Worker(binaries, tmp_path / "w1", servers[1].worker_address, env=CREDENTIALS).start()
        yield servers
    finally:
        if worker:
            worker.stop()
        for server in servers:
            server.stop()
        postgres.remove()


def test_uploads_in_an_object_store(two_servers, s3, stories):
    a, b = two_servers
    job = a.json(*submit_args(stories, "--id", "uploaded", "--wait", method="rtn"))
    assert job["state"] == "SUCCEEDED"
    for file in job["spec"]["model"]["blobs"]["files"]:
        assert f"uploads/default/{file['sha256']}" in keys(s3)
    assert not (a.data_dir / "blobs").exists() and not list(a.data_dir.glob("uploads/default/.partial/*"))

    # More parts, and S3 refuses the object when all of it is there.
    assert int(a.json("server-info")["max_blob_bytes"]) == 10_000 * (10 << 20)

    # The other server has them too: for a client, for a quote, for the collection of garbage.
    again = b.cli(*submit_args(stories, "--id", "again", method="rtn"), check=0)
    assert "uploaded nothing" in again.stderr
    quote = b.json(*quote_args(submit_args(stories, method="rtn")))
    assert quote == a.json(*quote_args(submit_args(stories, method="rtn")))
    client(s3).put_object(Bucket="bucket", Key=f"uploads/default/{'0' * 64}", Body=b"nobody's")
    assert int(b.json("gc")["blobs"]) == 0, "it is new"


@pytest.mark.parametrize("size, read", [(8 << 20, True), ((8 << 20) + 1, False)], ids=["short", "long"])
def test_a_quote_reads_a_short_text_in_an_object_store(two_servers, s3, stories, tmp_path, size, read):
    """It counts the tokens of one of up to 8 MiB, so it tells of wrong bytes; of a longer one it knows the size alone."""
    a, b = two_servers
    text = tmp_path / "text.txt"
    text.write_bytes((b"Once upon a time there was a quote. " * (size // 36 + 1))[:size])
    args = submit_args(stories, method="rtn")
    args[args.index("--calibration") + 1] = text
    quote = a.json(*quote_args(args))
    key = f"uploads/default/{hashlib.sha256(text.read_bytes()).hexdigest()}"
    assert key in keys(s3)
    client(s3).put_object(Bucket="bucket", Key=key, Body=bytes(size))
    if read:
        assert "ARTIFACT_CORRUPT" in b.cli(*quote_args(args), check=1).stderr
    else:
        assert b.json(*quote_args(args)) == quote


def test_a_quote_counts_a_short_text_in_an_object_store(two_servers, stories, tmp_path):
    """Both servers say the same of what either of them has taken."""
    a, b = two_servers
    ids = tmp_path / "ids.json"
    ids.write_text("\n".join(json.dumps([(line * token) % 500 for token in range(128)]) for line in range(32)))

    def arguments(samples):
        args = submit_args(stories, "--calibration-format", "tokens", evaluation=False, samples=samples)
        args[args.index("--calibration") + 1] = ids
        return args

    a.cli("queue", "pause", check=0)
    a.cli(*arguments(32), check=0)
    for server in (a, b):
        assert not server.json(*quote_args(arguments(32))).get("problems")
        (problem,) = json.loads(server.cli(*quote_args(arguments(33)), "--output", "json", check=2).stdout)["problems"]
        assert "has 4096 tokens = 32 windows of 128, 33 are asked for" in problem


def test_a_blob_that_rots_in_the_object_store(two_servers, s3, stories):
    """Wrong bytes in the store never reach an engine: the job says so."""
    a, _ = two_servers
    a.cli("queue", "pause", check=0)
    job = a.json(*submit_args(stories, "--id", "rotten", method="rtn"))
    victim = next(file for file in job["spec"]["model"]["blobs"]["files"] if file["path"] == "model.safetensors")
    key = f"uploads/default/{victim['sha256']}"
    body = bytearray(client(s3).get_object(Bucket="bucket", Key=key)["Body"].read())
    body[len(body) // 2] ^= 1
    client(s3).put_object(Bucket="bucket", Key=key, Body=bytes(body))
    a.cli("queue", "resume", check=0)
    ended = json.loads(a.cli("watch", "rotten", "--output", "json").stdout)
    assert ended["state"] == "FAILED" and ended["error"]["reason"] == "ARTIFACT_CORRUPT", ended


def test_a_store_that_takes_no_uploads_stops_nothing_else(make_server, stories, tmp_path):
    """More uploads end than threads do so, and the store does not answer: what does not need it is answered."""
    more = 40
    with moto_process(tmp_path) as (address, store):
        server = make_server(f"--blob-root={artifact_root(address)}", env=CREDENTIALS).start()
        job = server.json(*submit_args(stories, "--id", "before", "--wait", method="rtn"))
        tenant, stopped = api.Tenant(server.address), threading.Event()

        def messages(data):
            header, chunk = (artifact_service_pb2.UploadBlobRequest() for _ in range(2))
            header.header.parent = api.PARENT
            header.header.blob.sha256, header.header.blob.size_bytes = hashlib.sha256(data).hexdigest(), len(data)
            chunk.chunk.data, chunk.chunk.crc32c = data, google_crc32c.value(data)
            yield header
            yield chunk
            stopped.wait(60)

        uploads = [tenant.artifacts.UploadBlob.future(messages(b"upload %d" % i), timeout=120) for i in range(more)]
        partial = server.data_dir / "uploads/default/.partial"
        wait_for(lambda: len([path for path in partial.iterdir() if path.stat().st_size]) == more, 30, "the bytes of all uploads")
        store.send_signal(signal.SIGSTOP)
        stopped.set()
        try:
            time.sleep(1)  # all threads that end uploads wait for the store
            artifact = tenant.call(tenant.artifacts.GetArtifact, artifact_service_pb2.GetArtifactRequest(name=job["artifact"]["name"]))
            assert artifact.uri == job["artifact"]["uri"]
            assert not any(upload.done() for upload in uploads)
        finally:
            store.send_signal(signal.SIGCONT)
        for i, upload in enumerate(uploads):
            assert upload.result().committed_bytes == len(b"upload %d" % i)


def test_a_folder_and_an_object_store_for_uploads(make_server, s3, tmp_path):
    server = make_server(f"--blob-root={artifact_root(s3)}", f"--blob-dir={tmp_path}/uploads", env=CREDENTIALS)
    assert server.start(expect_failure=True) == 2
    assert "--blob-root: wanted one of it and --blob-dir" in server.log_text()


def test_garbage_is_collected_by_itself(make_server, s3):
    """An upload that stopped two days ago goes, in the server's own folder; the bucket says when it was."""
    server = make_server(f"--blob-root={artifact_root(s3)}", "--garbage-collection-interval-s=1", "--embedded=false", env=CREDENTIALS)
    stopped = server.data_dir / "uploads/default/.partial" / ("0" * 64)
    stopped.parent.mkdir(parents=True)
    stopped.write_bytes(b"half")
    os.utime(stopped, (time.time() - 48 * 3600,) * 2)
    server.start()
    wait_for(lambda: not stopped.exists(), 30, "the collection")
    wait_for(lambda: "garbage collected" in server.log_text(), 30, "its report")
    assert (server.data_dir / "artifacts/quantry-garbage").exists()
