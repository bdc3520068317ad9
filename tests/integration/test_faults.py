"""Kills, cancels and full disks while a job runs."""
import json
import os
import random
import signal
import subprocess
import time

import pytest

from conftest import EXAMPLES, Server, submit_args, wait_for
from machine import fill, mount_tmpfs
from test_main_job import file_hashes


def blocks_done(server, job):
    return int(server.json("get", job).get("progress", {}).get("blocks_done", 0))


def long_job(stories, name):
    return submit_args(stories, "--id", name, samples=32, length=256)


@pytest.fixture(scope="module")
def undisturbed(binaries, stories, tmp_path_factory):
    """Hashes of the files that long_job() makes."""
    server = Server(binaries, tmp_path_factory.mktemp("undisturbed") / "data").start()
    try:
        server.json(*long_job(stories, "undisturbed"))
        return file_hashes(server.json("watch", "undisturbed"))
    finally:
        server.stop()


@pytest.mark.parametrize("seed", [1, 2])
def test_engine_killed_resumes_with_the_same_bytes(server, stories, undisturbed, seed):
    name = f"killed-{seed}"
    server.json(*long_job(stories, name))
    block = random.Random(seed).randint(1, 3)
    wait_for(lambda: blocks_done(server, name) >= block, 60, f"block {block}")
    pids = server.engine_pids()
    assert pids
    os.kill(pids[0], signal.SIGKILL)
    job = server.json("watch", name)
    assert job["state"] == "SUCCEEDED"
    assert int(server.json("get", name)["epoch"]) == 2
    log = server.cli("events", name, "--output", "json", check=0).stdout
    assert "checkpoint" in log
    assert file_hashes(job) == undisturbed


def restored_job(stories, name):
    """Preprocessing whose adapters take seconds."""
    calibration = EXAMPLES / "text/calibration.txt"
    return ["submit", stories, "--method", "ptq161", "--epochs", 1, "--calibration", calibration, "--calibration-samples", 8,
            "--calibration-length", 64, "--preprocessing", "lora", "--preprocessing-corpus", calibration, "--preprocessing-steps",
            150, "--preprocessing-length", 64, "--no-check", "--id", name]


def test_engine_killed_while_adapters_are_trained(server, stories):
    def training():
        return "lm_loss" in server.json("get", "adapters").get("progress", {}).get("metrics", {})

    server.json(*restored_job(stories, "whole"))
    whole = server.json("watch", "whole")
    server.json(*restored_job(stories, "adapters"))
    wait_for(training, 60, "the adapters' loss")
    os.kill(server.engine_pids()[0], signal.SIGKILL)
    job = server.json("watch", "adapters")
    assert job["state"] == "SUCCEEDED"
    assert int(server.json("get", "adapters")["epoch"]) == 2
    assert file_hashes(job) == file_hashes(whole)


STAGES = ["FETCHING", "LOADING", "PREPROCESSING", "CALIBRATING", "QUANTIZING", "PACKING", "EVALUATING"]


@pytest.mark.parametrize("stage", ["QUEUED", "CALIBRATING", "QUANTIZING", "EVALUATING"])
def test_cancel_in_each_stage(server, stories, stage):
    """Stages of a few milliseconds may have passed when they are seen: the next one serves."""
    if stage == "QUEUED":
        server.json(*long_job(stories, "ahead"))
    job = long_job(stories, "cancelled")
    if stage == "EVALUATING":
        job[job.index("awq")] = "rtn"
        job[job.index("--evaluation-windows") + 1] = 0
    server.json(*job)

    def reached():
        job = server.json("get", "cancelled")
        if stage == "QUEUED":
            return job["state"] == "QUEUED"
        assert job["state"] in ("QUEUED", "RUNNING"), f"ended before {stage}"
        seen = job.get("progress", {}).get("stage", "").removeprefix("STAGE_")
        return seen in STAGES and STAGES.index(seen) >= STAGES.index(stage)

    wait_for(reached, 60, stage)
    server.cli("cancel", "cancelled", check=0)
    began = time.monotonic()
    done = server.cli("watch", "cancelled", "--output", "json", check=3)
    assert json.loads(done.stdout)["state"] == "CANCELLED"
    if stage != "QUEUED":
        assert not server.engine_pids()
        assert time.monotonic() - began < 10
    server.cli("cancel", "cancelled", check=0)  # idempotent


def test_worker_killed(server, stories):
    server.json(*long_job(stories, "orphan"))
    wait_for(lambda: blocks_done(server, "orphan") >= 1, 60, "a block")
    children = subprocess.run(["pgrep", "-P", str(server.process.pid)], capture_output=True, text=True).stdout.split()
    worker = next(pid for pid in children if "quantry-worker" in open(f"/proc/{pid}/cmdline").read())
    os.kill(int(worker), signal.SIGKILL)
    wait_for(lambda: not server.engine_pids() or int(server.json("get", "orphan")["epoch"]) != 1, 40, "the engine to go")
    job = server.json("watch", "orphan", timeout=120)
    assert job["state"] == "SUCCEEDED"


def test_disk_full_while_writing_the_artifact(make_server, stories, tmp_path):
    unmount = mount_tmpfs(tmp_path / "full", "300k")
    try:
        server = make_server(f"--artifact-root=file://{tmp_path}/full", name="store").start()
        done = server.cli(*submit_args(stories, "--id", "full", "--wait", "--output", "json", "--format", "dense",
                                       "--format", "compressed-tensors", method="rtn", evaluation=False), timeout=200)
        assert done.returncode == 1
        assert "DISK_FULL" in done.stdout + done.stderr
        assert server.json("get", "full")["state"] == "FAILED"
    finally:
        for item in [server]:
            item.stop()
        unmount()


def test_disk_full_under_sqlite(make_server, stories, tmp_path):
    unmount = mount_tmpfs(tmp_path / "data", "40m")
    try:
        # The embedded worker inherits this; else it takes no job on so small a disk.
        server = make_server(env={"QUANTRY_MIN_FREE_DISK_BYTES": "1"}).start()
        server.json(*submit_args(stories, "--id", "before", "--wait", method="rtn", evaluation=False))
        filler = tmp_path / "data" / "filler"
        fill(filler)
        # The store's log may still have room for a few.
        accepted = ["before"]
        for attempt in range(400):
            name = f"full-{attempt}"
            done = server.cli(*submit_args(stories, "--id", name, method="rtn", evaluation=False))
            if done.returncode != 0:
                break
            accepted.append(name)
        assert done.returncode != 0, "400 jobs fitted on a full disk"
        assert "DISK_FULL" in done.stderr or "STORE_UNAVAILABLE" in done.stderr, done.stderr
        assert server.json("get", "before")["state"] == "SUCCEEDED"
        filler.unlink()
        for name in accepted[1:]:  # acknowledged: still there, whatever became of it
            assert server.json("get", name)["name"].endswith(name)
        job = server.json(*submit_args(stories, "--id", "after", "--wait", method="rtn", evaluation=False))
        assert job["state"] == "SUCCEEDED"
    finally:
        server.stop()
        unmount()
