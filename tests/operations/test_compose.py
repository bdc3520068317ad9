"""The compose file: schema, hardening, flags that exist; then its commands run for real, without containers."""
import json
import os
import re
import signal
import sys

import compose_spec
import pytest
import yaml

from conftest import DEPLOY, EXAMPLES, check_flags, cli, free_ports, http_get, tool, wait_for

FILE = DEPLOY / "docker/compose.yml"
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
OURS = {"quantryd": "quantryd", "worker": "quantry-worker"}


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
    for name in ("QUANTRY_S3_SECRET", "QUANTRY_GRAFANA_PASSWORD"):
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
        for address in re.findall(r"(?:listen|bind|listen-address|-ip)=(\S+?)(?::\d+)?$", "\n".join(service.get("command", ())), re.M):
            assert address == "127.0.0.1", name
    assert SERVICES["grafana"]["environment"]["GF_SERVER_HTTP_ADDR"] == "127.0.0.1"


@pytest.mark.parametrize("name", OURS)
def test_flags_exist(binaries, tmp_path, name):
    for command in [SERVICES[name]["command"]] + ([load(FILE.parent / "compose.cuda.yml")["services"]["worker"]["command"]]
                                                  if name == "worker" else []):
        check_flags(binaries, OURS[name], command, tmp_path)


def test_grace_periods_cover_the_drain():
    drain = int(re.search(r"--drain-timeout-s=(\d+)", " ".join(SERVICES["worker"]["command"])).group(1))
    assert int(SERVICES["worker"]["stop_grace_period"].removesuffix("s")) > drain
    assert int(SERVICES["quantryd"]["stop_grace_period"].removesuffix("s")) > 25


def test_mounted_files_and_volumes_exist():
    for service in SERVICES.values():
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            if source.startswith("../"):
                assert (FILE.parent / source).exists(), source
            elif not source.startswith("./"):
                assert source in load()["volumes"], source
    for service in (s for s in SERVICES.values() if "build" in s):
        context = FILE.parent / service["build"]["context"]
        assert (context / service["build"]["dockerfile"]).exists()


def test_prometheus_scrapes_what_runs():
    config = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())
    targets = {job["job_name"]: job["static_configs"][0]["targets"] for job in config["scrape_configs"]}
    assert targets == {"quantryd": ["127.0.0.1:7072"], "quantry-worker": ["127.0.0.1:7073"], "quantry-exporter": ["127.0.0.1:7074"]}
    assert "--listen=127.0.0.1:7074" in SERVICES["exporter"]["command"]


class Rewrite:
    """The compose file's commands for this machine: other ports, folders below a temporary one."""

    def __init__(self, folder):
        self.folder = folder
        self.ports = {str(port): str(free) for port, free in zip((7070, 7071, 7072, 7073, 7074, 8333), free_ports(6))}

    def arg(self, text):
        text = re.sub(r"127\.0\.0\.1:(\d+)|(?<=port=)(\d{4})$",
                      lambda m: m[0].replace(m[1] or m[2], self.ports.get(m[1] or m[2], m[1] or m[2])), text)
        return text.replace("=/", f"={self.folder}/")

    def command(self, name):
        return [self.arg(arg) for arg in SERVICES[name]["command"]]

    def address(self, port):
        return f"127.0.0.1:{self.ports[str(port)]}"


def test_the_commands_work_together(binaries, tmp_path, processes):
    """SeaweedFS, quantryd, worker and exporter as compose would start them; a job whose artifact lies in S3."""
    rewrite = Rewrite(tmp_path)
    for folder in ("data", "var/lib", "models"):
        (tmp_path / folder).mkdir(parents=True)
    secrets = {**os.environ, **SERVICES["quantryd"]["environment"]}
    # SeaweedFS's other ports are fixed in the file; here they must not clash.
    master, volume, filer = free_ports(3)
    while max(master, volume, filer, int(rewrite.ports["8333"])) > 55000:  # it also listens on port + 10000
        master, volume, filer = free_ports(3)
        rewrite = Rewrite(tmp_path)
    processes.start("s3", [tool("weed"), *rewrite.command("s3"), f"-master.port={master}", f"-volume.port={volume}",
                           f"-filer.port={filer}", "-master.volumeSizeLimitMB=64", "-volume.max=4"], env=secrets,
                    stop=signal.SIGKILL)  # its own shutdown takes half a minute
    wait_for(lambda: "S3 API Server" in processes.log("s3"), 40, "SeaweedFS")
    admin = ["--admin-listen=" + rewrite.address(7072)]
    listen = ["--listen=" + rewrite.address(7070), "--worker-listen=" + rewrite.address(7071)]
    server = [binaries / "quantryd", *rewrite.command("quantryd"), *listen, *admin]
    processes.start("quantryd", server, env=secrets)
    wait_for(lambda: http_get(f"http://{rewrite.address(7072)}/readyz"), 30, "quantryd:\n" + processes.log("quantryd"))
    processes.start("worker", [binaries / "quantry-worker", *rewrite.command("worker"), "--threads=1",
                               "--admin-listen=" + rewrite.address(7073)], env=secrets)
    processes.start("exporter", [sys.executable, DEPLOY / "exporter/quantry_exporter.py", *rewrite.command("exporter"),
                                 f"--quantry={binaries / 'quantry'}", "--interval=0"])
    wait_for(lambda: http_get(f"http://{rewrite.address(7073)}/readyz"), 20, "the worker")
    cli(binaries, rewrite.address(7070), "submit", EXAMPLES / "stories260k", "--id", "compose-job", "--method", "rtn",
        "--group-size", -1, "--calibration", EXAMPLES / "text/calibration.txt", "--calibration-samples", 4,
        "--calibration-length", 64, "--wait")
    job = json.loads(cli(binaries, rewrite.address(7070), "get", "compose-job", "--output", "json"))
    assert job["artifact"]["uri"].startswith("s3://quantry/artifacts/default/")
    cli(binaries, rewrite.address(7070), "pull", "compose-job", tmp_path / "pulled")
    assert (tmp_path / "pulled/manifest.json").exists()
    text = http_get(f"http://{rewrite.address(7074)}/metrics")
    assert 'quantry_result_bitwidth{' in text and "quantry_exporter_up 1.0" in text
