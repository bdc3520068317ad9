"""Retry of a cancelled job, a paused queue, quotas, and what a queued job tells about waiting."""
import os
import subprocess
import urllib.request

from conftest import submit_args, wait_for
from test_faults import blocks_done, long_job
from test_main_job import file_hashes


def test_retry_goes_on_from_the_checkpoint_with_the_same_bytes(server, stories):
    server.json(*long_job(stories, "undisturbed"))
    undisturbed = server.json("watch", "undisturbed")
    server.json(*long_job(stories, "retried"))
    wait_for(lambda: blocks_done(server, "retried") >= 2, 60, "two blocks")
    wait_for(lambda: "checkpoint" in server.cli("events", "retried", check=0).stdout, 30, "a checkpoint")
    server.json("cancel", "retried")
    assert server.json("watch", "retried", check=3)["state"] == "CANCELLED"
    job = server.json("retry", "retried", "--wait")
    assert job["state"] == "SUCCEEDED"
    assert int(server.json("get", "retried")["epoch"]) == 2
    assert file_hashes(job) == file_hashes(undisturbed)
    resumed = [line for line in server.log_text().splitlines() if "engine started" in line][-1]
    assert "resumed=0" not in resumed, resumed
    done = server.cli("retry", "retried")
    assert done.returncode != 0 and "JOB_NOT_RETRYABLE" in done.stderr


def test_a_paused_queue_says_so_and_goes_on(server, stories):
    server.cli("queue", "pause", "--reason", "tea", check=0)
    server.json(*submit_args(stories, "--id", "patient", method="rtn"))
    wait_for(lambda: server.json("get", "patient").get("state_reason") == "waiting: the queue is paused: tea", 30,
             "the reason")
    assert "tea" in server.cli("queue", check=0).stdout
    server.cli("queue", "resume", check=0)
    assert server.json("watch", "patient")["state"] == "SUCCEEDED"


def test_a_job_says_that_the_only_worker_refuses(make_server, stories):
    server = make_server(env={"QUANTRY_MIN_FREE_DISK_BYTES": str(1 << 60)}).start()
    server.json(*submit_args(stories, "--id", "starved", method="rtn"))
    job = wait_for(lambda: next((j for j in [server.json("get", "starved")] if j.get("state_reason")), None), 30,
                   "the reason")
    assert job["state"] == "QUEUED"
    assert "each worker takes no jobs: too little free disk space" in job["state_reason"]
    assert "too little free disk space" in server.cli("workers", check=0).stdout
    assert "too little free disk space" in server.cli("events", "starved", check=0).stdout


def test_gc_removes_uploads_of_deleted_jobs(server, stories):
    server.json(*submit_args(stories, "--id", "short", method="rtn"), "--wait")
    blobs = [p for p in (server.data_dir / "blobs/default").iterdir() if p.is_file()]
    assert blobs
    server.cli("delete", "short", check=0)
    assert server.json("gc")["objects"] in (0, "0"), "too new"
    for path in blobs:
        os.utime(path, (1, 1))
    would = server.json("gc", "--dry-run")
    assert int(would["blobs"]) == len(blobs) and all(p.exists() for p in blobs)
    done = server.json("gc")
    assert done == would
    assert not any(p.exists() for p in blobs)
    # The same model again: its uploads are sent anew.
    assert server.json(*submit_args(stories, "--id", "again", method="rtn"), "--wait")["state"] == "SUCCEEDED"


def test_quotas_tell_what_they_limit(make_server, stories):
    server = make_server("--embedded=false").start()
    server.json(*submit_args(stories, "--id", "first", method="rtn"))
    stored = sum(p.stat().st_size for p in (server.data_dir / "blobs/default").iterdir() if p.is_file())
    usage = server.json("quota", "default", "--max-stored-bytes", stored, "--max-submits-per-minute", 1)
    assert (int(usage["queued"]), int(usage["stored_bytes"])) == (1, stored)
    text = server.cli("quota", "default", "--max-submits-per-minute", 2, check=0).stdout
    assert "at most 2" in text and "no limit" in text
    server.json(*submit_args(stories, "--id", "second", method="rtn"))
    server.json(*submit_args(stories, "--id", "third", method="rtn"))
    refused = server.json(*submit_args(stories, "--id", "fourth", method="rtn"), check=6)["error"]
    assert refused["reason"] == "QUOTA_SUBMIT_RATE" and 0 < refused["retry_after_s"] <= 30, refused
    server.cli("quota", "default", "--max-stored-bytes", 1, check=0)
    refused = server.json(*submit_args(stories, "--id", "fourth", method="rtn"), check=6)["error"]
    assert refused["reason"] == "QUOTA_STORED_BYTES" and refused["field_violations"][0]["field"] == "tenants/default", refused
    shown = server.json("quota", "default")
    assert (shown["max_stored_bytes"], shown["queued"]) == (1, 3), shown
    server.json(*submit_args(stories, "--id", "fourth", method="rtn"), check=6)  # as before
    server.cli("quota", "default", "--max-queued", 0, check=0)
    server.json(*submit_args(stories, "--id", "fourth", method="rtn"))


def test_a_watch_above_the_quota_says_so(make_server, stories):
    """It waits for its turn, and knows that the connection is not what is wrong."""
    server = make_server("--embedded=false").start()
    server.json(*submit_args(stories, "--id", "waits", method="rtn"))
    server.cli("quota", "default", "--max-watches", 1, check=0)

    def streams():
        with urllib.request.urlopen(f"http://{server.admin}/metrics", timeout=10) as answer:
            return "\nquantry_watch_streams 1\n" in answer.read().decode()

    first = subprocess.Popen([server.binaries / "quantry", "watch", "waits"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                             env={**os.environ, "QUANTRY_SERVER": server.address})
    try:
        wait_for(streams, 20, "the first watch")
        second = server.cli("watch", "waits", "--wait-timeout", 3, check=8)
        assert "may have 1 watches open" in second.stderr and "connection lost" not in second.stderr, second.stderr
        assert "unspecified" not in second.stdout, second.stdout
    finally:
        first.terminate()
        first.wait(timeout=20)


def test_a_root_belongs_to_one_job_store(make_server, stories, tmp_path):
    """All of another's files look like garbage: it collects none of them."""
    for folder in ("artifacts", "blobs"):
        (tmp_path / folder).mkdir()
    flags = ["--embedded=false", f"--artifact-root=file://{tmp_path}/artifacts", f"--blob-dir={tmp_path}/blobs"]
    owner = make_server(*flags, name="owner").start()
    owner.json(*submit_args(stories, "--id", "first", method="rtn"))
    uploads = sorted((tmp_path / "blobs/default").iterdir())
    for path in uploads:
        os.utime(path, (1e9, 1e9))
    stranger = make_server(*flags, name="stranger").start()
    assert "no garbage is collected" in stranger.log_text()
    for more in (["--dry-run"], []):
        refused = stranger.json("gc", *more, check=2)["error"]
        assert refused["reason"] == "INVALID_CONFIG" and "quantry-store" in refused["message"], refused
    assert sorted((tmp_path / "blobs/default").iterdir()) == uploads
    assert int(owner.json("gc")["objects"]) == 0, "a job names them"
