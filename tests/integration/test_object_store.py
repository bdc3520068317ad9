"""Artifacts and checkpoints in an S3 store: quantryd --artifact-root=s3://..."""
import hashlib
import json

import pytest

from conftest import submit_args, wait_for
from object_store import CREDENTIALS, artifact_root, client, keys, moto


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
    wait_for(lambda: not [key for key in keys(s3) if not key.endswith("/")], 10, "an empty bucket")


def test_wrong_endpoint_is_told_at_the_start(make_server):
    server = make_server("--artifact-root=s3://bucket/x?scheme=http&region=us-east-1&endpoint_override=127.0.0.1:1",
                         env=CREDENTIALS)
    assert server.start(expect_failure=True) != 0
    assert "artifact_root" in server.log_text()
