"""Which GPUs a worker speaks of and its engines see, on a machine with two imagined ones.

NVML is fake_nvml.c; driver and LibTorch's CUDA half are of worker/engine/device/testing, whose GPUs compute on the CPU.
"""
import json
import os
import re

import pytest

from conftest import EXAMPLES, cli, free_ports, http_get, start_service, submit, wait_for, with_imagined_gpus


@pytest.fixture
def service(binaries, tmp_path, processes):
    return start_service(processes, binaries, tmp_path, worker=False)


def start_worker(processes, binaries, folder, service, device, cuda=True, **environment):
    """The GPUs that its metrics name."""
    imagined = with_imagined_gpus(folder)
    if cuda:
        imagined["LD_LIBRARY_PATH"] += f":{binaries.parent / 'tests/fake_cuda'}"
    admin = f"127.0.0.1:{free_ports(1)[0]}"
    processes.start("worker", [
        binaries / "quantry-worker", f"--server={service['worker']}", f"--work-dir={folder}/work", f"--admin-listen={admin}",
        "--worker-id=gpus", "--threads=1", f"--device={device}"], env={**imagined, **environment})
    wait_for(lambda: http_get(f"http://{admin}/readyz"), 40, "the worker")
    return set(re.findall(r'quantry_worker_gpu_memory_used_bytes{gpu="([^"]*)"}', http_get(f"http://{admin}/metrics")))


def gpus_told(binaries, service):
    [worker] = json.loads(cli(binaries, service["tenant"], "workers", "--output", "json"))
    return [gpu["uuid"] for gpu in worker["worker"].get("gpus", [])]


@pytest.mark.parametrize("device, environment, told", [
    ("auto", {}, ["GPU-1", "GPU-2"]),
    ("cuda", {"CUDA_VISIBLE_DEVICES": "1"}, ["GPU-2"]),
    ("cuda:1", {}, ["GPU-2"]),
    ("cuda:1", {"CUDA_VISIBLE_DEVICES": "GPU-2,GPU-1"}, ["GPU-1"]),
    ("cpu", {}, []),
])
def test_a_worker_speaks_of_the_gpus_that_its_engines_see(binaries, tmp_path, processes, service, device, environment, told):
    measured = start_worker(processes, binaries, tmp_path, service, device, **environment)
    assert gpus_told(binaries, service) == told, processes.log("worker")
    assert measured == set(told) or device == "cpu"


def test_gpus_that_no_engine_can_use_are_no_gpus(binaries, tmp_path, processes, service):
    start_worker(processes, binaries, tmp_path, service, "auto", cuda=False)
    assert gpus_told(binaries, service) == []
    assert "GPUs are here that the engine cannot use" in processes.log("worker")


def test_engines_of_a_worker_with_one_gpu_see_no_other(binaries, tmp_path, processes, service):
    start_worker(processes, binaries, tmp_path, service, "cuda:1")
    cli(binaries, service["tenant"], "submit", EXAMPLES / "stories260k", "--id", "other", "--method", "rtn", "--group-size", -1,
        "--device", "cuda:1")
    wait_for(lambda: "device cuda:1 is asked for, 1 GPUs are usable here" in processes.log("worker"), 60, "the engine's answer")


def test_a_job_runs_on_a_gpu(binaries, tmp_path, processes, service):
    start_worker(processes, binaries, tmp_path, service, "cuda:1")
    submit(binaries, service["tenant"], "on-a-gpu", "awq", "--device", "cuda")
    cli(binaries, service["tenant"], "pull", "on-a-gpu", tmp_path / "artifact")
    manifest = json.loads((tmp_path / "artifact/manifest.json").read_text())
    assert manifest["device"] == "cuda:0", manifest
