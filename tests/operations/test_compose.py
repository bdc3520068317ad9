"""The compose file: schema, hardening, flags that exist; then its commands run for real, without containers."""
import json
import os
import re
import signal
import subprocess
import sys
import time

import compose_spec
import pytest
import yaml

from conftest import DEPLOY, EXAMPLES, check_flags, cli, free_ports, http_get, run_tool, tool, tool_environment, wait_for
from postgres import PASSWORD, Postgres, bin_folder

FILE = DEPLOY / "docker/compose.yml"
PROXY = DEPLOY / "docker/haproxy.cfg"
ENVIRONMENT = dict(line.split("=", 1) for line in (DEPLOY / "docker/env.example").read_text().splitlines()
                   if line and not line.startswith("#"))


def interpolate(text, environment):
    """${NAME:-default}, ${NAME:?message}, as docker compose does."""
    def value(match):
        name, operator, rest = match.groups()
        if environment.get(name):
            return environment[name]
        assert operator == ":-", f"{name} is not set: {rest}"
        return rest
    return re.sub(r"\$\{(\w+)(:[-?])?([^}]*)\}", value, text)


def load(path=FILE, environment=ENVIRONMENT):
    return yaml.safe_load(interpolate(path.read_text(), environment))


SERVICES = load()["services"]
OURS = {"quantryd-1": "quantryd", "quantryd-2": "quantryd", "worker": "quantry-worker"}


@pytest.mark.parametrize("name", ["compose.yml", "compose.cuda.yml"])
def test_schema(name):
    plain = {key: value for key, value in load(FILE.parent / name).items() if not key.startswith("x-")}
    compose = compose_spec.PyCompose.from_yaml(yaml.safe_dump(plain))
    compose.validate()
    assert compose.service_names


@pytest.mark.parametrize("broken", [{"services": {"a": {"image": "x:1", "ports": {"no": "map"}}}}, {"services": {"a": {"image": ["x"]}}},
                                    {"services": {"a": {"image": "x:1", "networks": ["nowhere"]}}}])
def test_the_schema_check_can_fail(broken):
    with pytest.raises(Exception):
        compose = compose_spec.PyCompose.from_yaml(yaml.safe_dump(broken))
        compose.validate()


def test_secrets_have_no_default():
    for name in ("QUANTRY_S3_SECRET", "QUANTRY_DATABASE_PASSWORD", "QUANTRY_GRAFANA_PASSWORD"):
        with pytest.raises(AssertionError):
            load(environment={key: value for key, value in ENVIRONMENT.items() if key != name})


@pytest.mark.parametrize("name", SERVICES)
def test_service_is_hardened(name):
    service = SERVICES[name]
    assert service["cap_drop"] == ["ALL"] and service["read_only"] is True
    assert "no-new-privileges:true" in service["security_opt"]
    assert re.fullmatch(r"[\w./-]+:v?\d+(\.\d+)+", service["image"]), "a pinned tag"
    assert service.get("user", "10001") not in ("0", "root", "0:0")
    assert "privileged" not in service and "ports" not in service


def test_everything_binds_loopback():
    for name, service in SERVICES.items():
        for address in re.findall(r"(?:listen|bind|address(?:es)?|-ip)=(\S+?)(?::\d+)?$", "\n".join(service.get("command", ())), re.M):
            assert address == "127.0.0.1", name
    assert SERVICES["grafana"]["environment"]["GF_SERVER_HTTP_ADDR"] == "127.0.0.1"
    binds = re.findall(r"^\s+bind (\S+):\d+$", PROXY.read_text(), re.M)
    assert binds == ["127.0.0.1"] * 3


@pytest.mark.parametrize("name", OURS)
def test_flags_exist(binaries, tmp_path, name):
    for command in [SERVICES[name]["command"]] + ([load(FILE.parent / "compose.cuda.yml")["services"]["worker"]["command"]]
                                                  if name == "worker" else []):
        check_flags(binaries, OURS[name], command, tmp_path, SERVICES[name]["environment"])


def test_the_servers_share_what_they_must():
    one, two = SERVICES["quantryd-1"], SERVICES["quantryd-2"]
    assert one["environment"] == two["environment"] and not set(one["command"][1:]) & set(two["command"][1:])
    for place in ("ARTIFACT_ROOT", "BLOB_ROOT"):
        assert one["environment"][f"QUANTRY_{place}"].startswith("s3://quantry/")
    mounts = [{volume.split(":")[0] for volume in service["volumes"]} for service in (one, two, SERVICES["worker"])]
    assert mounts[0] & mounts[1] == mounts[0] & mounts[2] == {ENVIRONMENT["QUANTRY_MODELS"]}, "no other folder is shared"


def test_grace_periods_cover_the_drain():
    drain = int(re.search(r"--drain-timeout-s=(\d+)", " ".join(SERVICES["worker"]["command"])).group(1))
    assert int(SERVICES["worker"]["stop_grace_period"].removesuffix("s")) > drain
    assert all(int(SERVICES[name]["stop_grace_period"].removesuffix("s")) > 25 for name in ("quantryd-1", "quantryd-2"))


def test_mounted_files_and_volumes_exist():
    for service in SERVICES.values():
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            if source.startswith(".") and source != ENVIRONMENT["QUANTRY_MODELS"]:
                assert (FILE.parent / source).exists(), source
            elif not source.startswith("."):
                assert source in load()["volumes"], source
    for service in (s for s in SERVICES.values() if "build" in s):
        context = FILE.parent / service["build"]["context"]
        assert (context / service["build"]["dockerfile"]).exists()


def test_prometheus_scrapes_what_runs(tmp_path):
    config = yaml.safe_load((FILE.parent / "prometheus.yml").read_text())
    targets = {job["job_name"]: job["static_configs"][0]["targets"] for job in config["scrape_configs"]}
    assert targets == {"quantryd": ["127.0.0.1:7082", "127.0.0.1:7092"], "quantry-worker": ["127.0.0.1:7073"],
                       "quantry-exporter": ["127.0.0.1:7074"]}
    for name in ("quantryd-1", "quantryd-2"):
        (admin,) = [arg.split("=")[1] for arg in SERVICES[name]["command"] if arg.startswith("--admin-listen")]
        assert admin in targets["quantryd"]
    assert "--listen=127.0.0.1:7074" in SERVICES["exporter"]["command"]
    for volume in SERVICES["prometheus"]["volumes"][:2]:  # side by side, as in the container
        source = FILE.parent / volume.split(":")[0]
        (tmp_path / source.name).write_bytes(source.read_bytes())
    done = run_tool("promtool", "check", "config", tmp_path / "prometheus.yml")
    assert done.returncode == 0 and "rules found" in done.stdout, done.stdout + done.stderr


class Rewrite:
    """The compose file's commands for this machine: other ports, folders below a temporary one."""

    PORTS = (7070, 7071, 7072, 7073, 7074, 7080, 7081, 7082, 7090, 7091, 7092, 7432, 8333)

    def __init__(self, folder):
        self.folder = folder
        self.ports = {str(port): str(free) for port, free in zip(self.PORTS, free_ports(len(self.PORTS)))}

    def arg(self, text):
        text = re.sub(r"(?<=127\.0\.0\.1:)\d+|(?<=port[= ])\d{4}\b", lambda match: self.ports[match[0]], text)
        return re.sub(r"(^|=)/", rf"\1{self.folder}/", text)

    def command(self, name):
        return [self.arg(arg) for arg in SERVICES[name]["command"]]

    def environment(self, name):
        return {**os.environ, **{key: self.arg(value) for key, value in SERVICES[name]["environment"].items()}}

    def address(self, port):
        return f"127.0.0.1:{self.ports[str(port)]}"


class Stack:
    """What compose would start, without containers: each service's own command."""

    def __init__(self, binaries, folder, processes, database):
        self.binaries, self.folder, self.processes = binaries, folder, processes
        self.rewrite, self.servers, self.database = Rewrite(folder), {}, database
        while int(self.rewrite.ports["8333"]) > 55000:  # SeaweedFS also listens on port + 10000
            self.rewrite = Rewrite(folder)
        self.rewrite.ports["7432"] = str(database.port)
        for name in ("data", "var/lib", "models"):
            (folder / name).mkdir(parents=True)

    def start_store(self):
        # SeaweedFS's other ports are fixed in the file; here they must not clash.
        ports = free_ports(3)
        while max(ports) > 55000:
            ports = free_ports(3)
        others = [f"-{name}.port={port}" for name, port in zip(("master", "volume", "filer"), ports)]
        self.processes.start("s3", [tool("weed"), *self.rewrite.command("s3"), *others, "-master.volumeSizeLimitMB=64", "-volume.max=4"],
                             env=self.rewrite.environment("s3"), stop=signal.SIGKILL)  # its own shutdown takes half a minute
        wait_for(lambda: "S3 API Server" in self.processes.log("s3"), 40, "SeaweedFS")

    def start_server(self, name):
        """As in its container: a data folder of its own at the path all of them have."""
        command = [arg.replace("--data-dir=", "--data-dir=" + str(self.folder / name)) for arg in SERVICES[name]["command"]]
        command = [self.rewrite.arg(arg) if "127.0.0.1" in arg else arg for arg in command]
        environment = {**self.rewrite.environment(name), "PGPASSWORD": PASSWORD, "QUANTRY_LEASE_TTL_S": "6",
                       "QUANTRY_HEARTBEAT_INTERVAL_S": "1", "QUANTRY_SWEEP_INTERVAL_S": "1"}
        self.servers[name] = self.processes.start(name, [self.binaries / "quantryd", *command], env=environment)

    def start_proxy(self):
        path = self.folder / "haproxy.cfg"
        path.write_text(self.rewrite.arg(PROXY.read_text()))
        checked = subprocess.run([tool("haproxy"), "-c", "-f", path], capture_output=True, text=True, timeout=20, env=tool_environment())
        assert checked.returncode == 0 and "[WARNING]" not in checked.stderr, checked.stderr
        self.processes.start("proxy", [tool("haproxy"), *SERVICES["proxy"]["command"][1:-1], path], env=tool_environment())
        wait_for(lambda: http_get(f"http://{self.rewrite.address(7072)}/readyz"), 30, "the proxy:\n" + self.processes.log("quantryd-1"))

    def start_rest(self):
        self.processes.start("worker", [self.binaries / "quantry-worker", *self.rewrite.command("worker"), "--threads=1",
                                        "--admin-listen=" + self.rewrite.address(7073)], env=self.rewrite.environment("worker"))
        self.processes.start("exporter", [sys.executable, DEPLOY / "exporter/quantry_exporter.py", *self.rewrite.command("exporter"),
                                          f"--quantry={self.binaries / 'quantry'}", "--interval=0"])
        wait_for(lambda: http_get(f"http://{self.rewrite.address(7073)}/readyz"), 20, "the worker")

    def job(self, name):
        return json.loads(cli(self.binaries, self.rewrite.address(7070), "get", name, "--output", "json"))

    def submit_long_job(self):
        cli(self.binaries, self.rewrite.address(7070), "submit", EXAMPLES / "stories260k", "--id", "long-job", "--method", "tesseraq", "--group-size", -1,
            "--stages", 6, "--steps-per-stage", 50, "--calibration", EXAMPLES / "text/calibration.txt", "--calibration-samples", 8,
            "--calibration-length", 64)
        return self.processes.start("watch", [self.binaries / "quantry", "--server", self.rewrite.address(7070), "watch", "long-job"])

    def wait_for_a_block(self):
        """With both servers ready, until the job has a block more than now."""
        for admin in (7082, 7092):
            wait_for(lambda: http_get(f"http://{self.rewrite.address(admin)}/readyz"), 30, "both servers")  # noqa: B023
        before = self.job("long-job")["progress"].get("blocks_done", 0)
        wait_for(lambda: self.job("long-job")["progress"].get("blocks_done", 0) > before, 60, "a block")

    def kill(self, name):
        self.wait_for_a_block()
        self.servers[name].kill()
        self.servers[name].wait(timeout=10)


def check_settings(database, command):
    """Each `-c NAME=VALUE` is one PostgreSQL understands."""
    assert command[0] == "postgres" and command[1::2] == ["-c"] * len(command[2::2])
    for setting in command[2::2]:
        name, value = setting.split("=")
        shown = subprocess.run([bin_folder() / "postgres", "-D", database.folder / "data", "-c", setting, "-C", name], capture_output=True,
                               text=True, timeout=20, cwd="/", **database.user)
        assert shown.stdout.strip() == value, shown.stderr


@pytest.fixture
def stack(binaries, tmp_path, processes):
    database = Postgres()
    try:
        database.start().sql("CREATE DATABASE quantry")
        check_settings(database, SERVICES["database"]["command"])
        made = Stack(binaries, tmp_path, processes, database)
        made.start_store()
        for name in ("quantryd-1", "quantryd-2"):
            made.start_server(name)
        made.start_proxy()
        made.start_rest()
        yield made
    finally:
        processes.stop()
        database.remove()


def test_the_commands_work_together(stack, binaries, tmp_path):
    """A job through the balancer whose artifact lies in S3; one server is killed while another runs, then the other."""
    address = stack.rewrite.address(7070)
    cli(binaries, address, "submit", EXAMPLES / "stories260k", "--id", "compose-job", "--method", "rtn", "--group-size", -1, "--calibration",
        EXAMPLES / "text/calibration.txt", "--calibration-samples", 4, "--calibration-length", 64, "--wait")
    assert stack.job("compose-job")["artifact"]["uri"].startswith("s3://quantry/artifacts/default/")
    cli(binaries, address, "pull", "compose-job", tmp_path / "pulled")
    assert (tmp_path / "pulled/manifest.json").exists()
    text = http_get(f"http://{stack.rewrite.address(7074)}/metrics")
    assert 'quantry_result_bitwidth{' in text and "quantry_exporter_up 1.0" in text
    watch = stack.submit_long_job()
    stack.kill("quantryd-1")
    stack.start_server("quantryd-1")
    stack.kill("quantryd-2")
    assert watch.wait(timeout=120) == 0, stack.processes.log("watch")
    job = stack.job("long-job")
    assert job["state"] == "SUCCEEDED" and job["user_failures"] == 0


def test_a_job_goes_on_while_the_database_is_away(stack):
    """Longer than its lease: the balancer, to which no server is ready, still lets the worker hear why."""
    stack.submit_long_job()
    stack.wait_for_a_block()
    stack.database.stop()
    time.sleep(15)
    stack.database.start()
    wait_for(lambda: http_get(f"http://{stack.rewrite.address(7072)}/readyz"), 60, "a server to be ready")
    wait_for(lambda: stack.job("long-job")["state"] not in ("QUEUED", "RUNNING"), 120, "the end")
    job = stack.job("long-job")
    assert (job["state"], int(job["epoch"]), int(job.get("worker_losses", 0))) == ("SUCCEEDED", 1, 0), job
