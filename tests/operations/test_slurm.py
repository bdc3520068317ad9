"""The batch script without Slurm: it takes jobs and ends when idle; a signal before the time limit loses nothing."""
import json
import os
import signal

import pytest

from conftest import DEPLOY, EXAMPLES, cli, start_service, submit, wait_for

SCRIPT = DEPLOY / "slurm/quantry-worker.sbatch"


@pytest.fixture
def service(binaries, tmp_path, processes):
    return start_service(processes, binaries, tmp_path, worker=False)


def start_script(processes, binaries, folder, service, **environment):
    scratch = folder / "slurm"
    scratch.mkdir(exist_ok=True)
    return processes.start("slurm", ["bash", SCRIPT], env={
        **os.environ, "SLURM_JOB_ID": "4711", "SLURM_CPUS_PER_TASK": "1", "SLURM_TMPDIR": str(scratch), "WORKER_BIN_DIR": str(binaries),
        "WORKER_SERVER": service["worker"], **environment})


def workers(binaries, service):
    return {w["worker"]["worker_id"] for w in json.loads(cli(binaries, service["tenant"], "workers", "--output", "json")) if w["live"]}


def test_it_runs_a_job_and_ends_when_idle(binaries, tmp_path, processes, service):
    script = start_script(processes, binaries, tmp_path, service, WORKER_MAX_IDLE_S="2")
    submit(binaries, service["tenant"], "slurm-job", "rtn")
    assert json.loads(cli(binaries, service["tenant"], "get", "slurm-job", "--output", "json"))["state"] == "SUCCEEDED"
    assert script.wait(timeout=40) == 0, processes.log("slurm")
    assert list((tmp_path / "slurm").iterdir()) == []  # scratch is gone


def test_the_signal_before_the_time_limit_gives_the_job_back(binaries, tmp_path, processes, service):
    script = start_script(processes, binaries, tmp_path, service)
    wait_for(lambda: "slurm-4711" in workers(binaries, service), 20, "the worker")
    submitted = processes.start("submit", [
        binaries / "quantry", "--server", service["tenant"], "submit", EXAMPLES / "stories260k", "--id", "long-job", "--method", "tesseraq",
        "--group-size", "-1", "--stages", "8", "--steps-per-stage", "100", "--calibration", EXAMPLES / "text/calibration.txt",
        "--calibration-samples", "8", "--calibration-length", "64"])
    assert submitted.wait(timeout=30) == 0
    job = lambda: json.loads(cli(binaries, service["tenant"], "get", "long-job", "--output", "json"))  # noqa: E731
    wait_for(lambda: job()["state"] == "RUNNING" and job()["progress"].get("stage") == "QUANTIZING", 30, "the job to run")
    script.send_signal(signal.SIGTERM)
    assert script.wait(timeout=60) == 0, processes.log("slurm")
    assert job()["state"] == "QUEUED" and job()["user_failures"] == 0


def test_it_refuses_to_run_outside_slurm(tmp_path, processes):
    script = processes.start("bare", ["bash", SCRIPT], env={"PATH": os.environ["PATH"]})
    assert script.wait(timeout=10) != 0
    assert "run this with sbatch" in processes.log("bare")
