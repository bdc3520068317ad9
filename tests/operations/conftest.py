"""Fixtures of the operations tests: tools, and one real run that a real Prometheus scrapes.

QUANTRY_BIN   folder with the binaries (default: build/release/bin, then build/dev/bin)
QUANTRY_TOOLS folder of unpacked Debian packages (default: .deps/tools, from scripts/bootstrap)
"""
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request

import pytest
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/support"))
from full_marker import pytest_collection_modifyitems, pytest_configure  # noqa: E402,F401  hooks
from service import find_bin  # noqa: E402
from tools import TOOLS, run_tool, tool, tool_environment  # noqa: E402,F401  for the tests, too

DEPLOY = ROOT / "deploy"
EXAMPLES = ROOT / "examples"


def free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def http_get(url, timeout=10):
    with urllib.request.urlopen(url, timeout=timeout) as answer:
        return answer.read().decode()


def wait_for(condition, seconds, what):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if value := condition():
                return value
        except OSError:
            pass
        time.sleep(0.1)
    raise AssertionError(f"waited {seconds} s for {what}")


class Processes:
    """Programs that end with the test; each writes its own log."""

    def __init__(self, folder):
        self.folder, self.running = pathlib.Path(folder), []

    def start(self, name, command, env=None, stop=signal.SIGTERM):
        log = open(self.folder / f"{name}.log", "ab")
        process = subprocess.Popen(list(map(str, command)), stdout=log, stderr=log, env=env or dict(os.environ))
        log.close()
        self.running.append((process, stop))
        return process

    def log(self, name):
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def stop(self):
        for process, stop in reversed(self.running):
            if process.poll() is None:
                process.send_signal(stop)
                try:
                    process.wait(timeout=30)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
        self.running.clear()


@pytest.fixture(scope="session")
def binaries():
    return find_bin()


@pytest.fixture
def processes(tmp_path):
    group = Processes(tmp_path)
    yield group
    group.stop()


def start_service(group, binaries, folder, worker=True, worker_environment=None, flags=()):
    """quantryd and one worker, on free loopback ports; their addresses by name."""
    tenant, worker_port, admin, worker_admin = free_ports(4)
    group.start("quantryd", [
        binaries / "quantryd", f"--data-dir={folder}/data", f"--listen=127.0.0.1:{tenant}",
        f"--worker-listen=127.0.0.1:{worker_port}", f"--admin-listen=127.0.0.1:{admin}", "--embedded=false",
        "--sweep-interval-s=1", "--heartbeat-interval-s=1", "--lease-ttl-s=6", *flags])
    wait_for(lambda: http_get(f"http://127.0.0.1:{admin}/readyz"), 40, "quantryd")
    addresses = {"tenant": f"127.0.0.1:{tenant}", "worker": f"127.0.0.1:{worker_port}", "admin": f"127.0.0.1:{admin}",
                 "worker_admin": f"127.0.0.1:{worker_admin}"}
    if worker:
        group.start("worker", [
            binaries / "quantry-worker", f"--server={addresses['worker']}", f"--work-dir={folder}/work",
            f"--admin-listen={addresses['worker_admin']}", "--worker-id=worker-1", "--threads=1", "--device=cpu"],
                    env=worker_environment)
        wait_for(lambda: http_get(f"http://{addresses['worker_admin']}/readyz"), 40, "the worker")
    return addresses


def cli(binaries, address, *args, timeout=120, check=0):
    done = subprocess.run([binaries / "quantry", "--server", address, *map(str, args)], capture_output=True, text=True,
                          timeout=timeout)
    assert done.returncode == check, f"quantry {args}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def submit(binaries, address, job_id, method, *extra):
    cli(binaries, address, "submit", EXAMPLES / "stories260k", "--id", job_id, "--method", method, "--bits", 4,
        "--group-size", -1, "--calibration", EXAMPLES / "text/calibration.txt", "--calibration-samples", 16,
        "--calibration-length", 64, "--evaluation", EXAMPLES / "text/evaluation.txt", "--evaluation-length", 64,
        "--evaluation-windows", 8, "--wait", *extra)


def known_flags(binaries, program):
    """Names of the flags `program --help` tells."""
    done = subprocess.run([binaries / program, "--help"], capture_output=True, text=True, timeout=20)
    return set(re.findall(r"^  --([a-z][a-z0-9-]*)", done.stdout, re.M))


def check_flags(binaries, program, args, folder, environment=None):
    """Every flag exists, and the program accepts their values: --check-config, folders replaced by real ones."""
    names = {arg.split("=")[0].removeprefix("--") for arg in args}
    assert names <= known_flags(binaries, program), names - known_flags(binaries, program)
    command = [binaries / program, "--check-config", *(arg.replace("=/", f"={folder}/") for arg in args)]
    environment = dict(environment or {})
    roots = [arg.split("=")[1] for arg in args if arg.startswith("--local-roots=")]
    if root := environment.get("QUANTRY_LOCAL_ROOTS"):
        roots.append(root)
        environment["QUANTRY_LOCAL_ROOTS"] = f"{folder}{root}"
    for root in roots:
        pathlib.Path(f"{folder}{root}").mkdir(parents=True, exist_ok=True)
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, env={**os.environ, **environment})
    assert done.returncode == 0, done.stderr


class LiveRun:
    """What Prometheus saw while jobs ran."""

    def __init__(self, prometheus, start, end, job, texts):
        self.prometheus, self.start, self.end, self.job = prometheus, start, end, job
        self.texts = texts  # exposition text by process, taken while a job ran

    def query_range(self, expr, end=None):
        """Every finite sample of the run."""
        query = urllib.parse.urlencode({"query": expr, "start": self.start, "end": end or self.end, "step": "1s"})
        answer = json.loads(http_get(f"http://{self.prometheus}/api/v1/query_range?{query}"))
        assert answer["status"] == "success", answer
        values = [float(value) for series in answer["data"]["result"] for _, value in series["values"]]
        return [value for value in values if value - value == 0]

    def now(self, expr):
        return self.get(f"/api/v1/query?{urllib.parse.urlencode({'query': expr})}")["result"]

    def get(self, path):
        return json.loads(http_get(f"http://{self.prometheus}{path}"))["data"]


def scrape_config(folder, targets, patient=True):
    """deploy/prometheus/prometheus.yml with other ports and a second for a scrape. Not `patient`: alerts fire at once."""
    config = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    assert {job["job_name"] for job in config["scrape_configs"]} == set(targets)
    for job in config["scrape_configs"]:
        job["static_configs"] = [{"targets": [targets[job["job_name"]]]}]
    rules = yaml.safe_load((DEPLOY / "prometheus/rules.yml").read_text())
    for group in rules["groups"]:
        group["interval"] = "1s"
        for rule in group["rules"]:
            if "alert" in rule and not patient:
                rule["for"] = "0s"
    (folder / "rules.yml").write_text(yaml.safe_dump(rules))
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    return folder / "prometheus.yml"


@pytest.fixture(scope="session")
def live_run(binaries, tmp_path_factory):
    folder = tmp_path_factory.mktemp("live")
    group = Processes(folder)
    try:
        yield run_jobs(group, binaries, folder)
    finally:
        group.stop()


def with_imagined_gpus(folder):
    """An environment in which a worker finds an NVML and GPUs; it computes on the CPU all the same."""
    library = folder / "libnvidia-ml.so.1"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, pathlib.Path(__file__).parent / "fake_nvml.c"], check=True, timeout=60)
    return {**os.environ, "LD_LIBRARY_PATH": str(folder)}


def start_prometheus(group, folder, config, job=""):
    """The LiveRun of a Prometheus that answers."""
    address = f"127.0.0.1:{free_ports(1)[0]}"
    group.start("prometheus", [tool("prometheus"), f"--config.file={config}", f"--storage.tsdb.path={folder}/tsdb",
                               f"--web.listen-address={address}", "--log.level=warn"])
    start = time.time()
    wait_for(lambda: http_get(f"http://{address}/-/ready"), 20, "Prometheus")
    return LiveRun(address, start, start, job, {})


def run_jobs(group, binaries, folder):
    service = start_service(group, binaries, folder, worker_environment=with_imagined_gpus(folder))
    exporter = f"127.0.0.1:{free_ports(1)[0]}"
    group.start("exporter", [sys.executable, DEPLOY / "exporter/quantry_exporter.py", f"--listen={exporter}",
                             f"--server={service['tenant']}", f"--quantry={binaries / 'quantry'}", "--interval=0.5"])
    config = scrape_config(folder, {"quantryd": service["admin"], "quantry-worker": service["worker_admin"],
                                    "quantry-exporter": exporter})
    run = start_prometheus(group, folder, config, "live-tesseraq")
    wait_for(lambda: [t["health"] for t in run.get("/api/v1/targets")["activeTargets"]] == ["up"] * 3, 30, "the targets")
    time.sleep(2)  # a scrape before the first job, so that counters are seen to grow
    submit(binaries, service["tenant"], "live-awq", "awq")
    cli(binaries, service["tenant"], "get", "no-such-job", check=4)  # a call that does not end OK
    watch = group.start("submit", [
        binaries / "quantry", "--server", service["tenant"], "submit", EXAMPLES / "stories260k", "--id", run.job,
        "--method", "tesseraq", "--bits", "4", "--group-size", "-1", "--stages", "4", "--steps-per-stage", "30",
        "--calibration", EXAMPLES / "text/calibration.txt", "--calibration-samples", "16", "--calibration-length", "64",
        "--evaluation", EXAMPLES / "text/evaluation.txt", "--evaluation-length", "64", "--evaluation-windows", "8",
        "--wait"])
    wait_for(lambda: f'quantry_job_block_loss{{job_id="{run.job}"' in http_get(f"http://{service['worker_admin']}/metrics"), 60,
             "a block of the job")
    for process, address in (("quantryd", service["admin"]), ("worker", service["worker_admin"]), ("exporter", exporter)):
        run.texts[process] = http_get(f"http://{address}/metrics")
    assert watch.wait(timeout=90) == 0, group.log("submit")
    # The end is scraped, and the job's series are gone again.
    wait_for(lambda: run.now('quantry_jobs_finished_total{method="tesseraq"}') and not run.now("quantry_job_info"), 30, "the last scrapes")
    time.sleep(1)  # recording rules
    run.end = time.time()
    return run
