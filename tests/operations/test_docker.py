"""Images without a container engine: lint, contents against what the programs need, entry points, health checks."""
import json
import re
import shlex
import subprocess

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from conftest import DEPLOY, ROOT, check_flags, run_tool, start_service

DOCKER = DEPLOY / "docker"
TEXT = (DOCKER / "Dockerfile").read_text()


def stages():
    """Instructions of each build stage, continuation lines joined: {name: [(instruction, rest)]}."""
    joined = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", TEXT, flags=re.M))
    found, current = {}, None
    for line in filter(None, map(str.strip, joined.splitlines())):
        word, rest = line.split(None, 1)
        if word == "FROM":
            base, _, name = rest.split()
            current = found[name] = [("FROM", base)]
        elif current is not None:
            current.append((word, rest))
    return found


STAGES = stages()
TARGETS = ["server", "worker", "worker-cuda", "exporter"]


def last(stage, word):
    """The instruction in force, inherited ones included."""
    while stage in STAGES:
        own = [rest for name, rest in STAGES[stage] if name == word]
        if own:
            return own[-1]
        stage = STAGES[stage][0][1]
    return None


def test_hadolint():
    done = run_tool("hadolint", "-c", ROOT / ".hadolint.yaml", DOCKER / "Dockerfile")
    assert done.returncode == 0, done.stdout


def test_hadolint_sees_a_bad_file(tmp_path):
    (tmp_path / "Dockerfile").write_text("FROM debian\nRUN cd /tmp && sudo apt-get install x\n")
    assert run_tool("hadolint", tmp_path / "Dockerfile").returncode != 0


def test_shell_scripts():
    done = run_tool("shellcheck", DOCKER / "collect-runtime", DOCKER / "healthcheck", DEPLOY / "slurm/quantry-worker.sbatch")
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("target", TARGETS)
def test_target_is_small_and_unprivileged(target):
    assert last(target, "USER") == "10001:10001"
    assert last(target, "HEALTHCHECK") and last(target, "ENTRYPOINT") and last(target, "CMD")
    chain, stage = [], target
    while stage in STAGES:
        chain.append(stage)
        stage = STAGES[stage][0][1]
    assert "build" not in chain and stage == "${DEBIAN_IMAGE}"  # multi-stage: no compiler comes along


def test_bases_are_pinned():
    (image,) = re.findall(r"^ARG DEBIAN_IMAGE=(\S+)$", TEXT, re.M)
    assert re.fullmatch(r"debian:12\.\d+-slim", image)
    bases = {instructions[0][1] for instructions in STAGES.values()}
    assert bases <= {"${DEBIAN_IMAGE}", *STAGES}
    for line in (DOCKER / "cuda-wheels.txt").read_text().splitlines():
        assert line.startswith("#") or re.fullmatch(r"[a-z0-9-]+==[\d.]+ --hash=sha256:[0-9a-f]{64}", line)


@pytest.mark.parametrize("target,program", [("server", "quantryd"), ("worker", "quantry-worker"), ("worker-cuda", "quantry-worker")])
def test_entry_point_is_one_the_program_takes(binaries, tmp_path, target, program):
    entry, defaults = (eval(last(target, word)) for word in ("ENTRYPOINT", "CMD"))
    assert entry == ["tini", "--", program]
    check_flags(binaries, program, defaults, tmp_path)


def test_files_that_are_copied_exist():
    for name, instructions in STAGES.items():
        for word, rest in instructions:
            if word == "COPY" and "--from=" not in rest:
                sources = [part for part in shlex.split(rest) if not part.startswith("--")][:-1]
                assert all((ROOT / source).exists() for source in sources), f"{name}: {rest}"


def libraries(binary):
    done = subprocess.run(["ldd", binary], capture_output=True, text=True, timeout=20, check=True)
    return re.findall(r"=> (/\S+)", done.stdout)


def test_runtime_packages_hold_every_library(binaries):
    """Each shared library outside .deps belongs to a listed package, and none is listed for nothing."""
    listed = {line for line in (DOCKER / "runtime-packages").read_text().splitlines() if not line.startswith("#")}
    paths = {path for program in ("quantryd", "quantry-worker", "quantry-engine", "quantry")
             for path in libraries(binaries / program) if "/.deps/" not in path}
    # dpkg knows a file below /lib or below /usr/lib, whichever its package says.
    spellings = {re.sub("^(/usr)?/lib/", prefix, path) for path in paths for prefix in ("/lib/", "/usr/lib/")}
    done = subprocess.run(["dpkg", "-S", *spellings], capture_output=True, text=True, timeout=60)
    needed = set(re.findall(r"^([^:]+):", done.stdout, re.M))
    essential = {"libc6", "libgcc-s1", "zlib1g"}  # of debian:slim
    assert needed - essential <= listed, needed - essential - listed
    assert listed - needed <= {"ca-certificates", "tini"}, listed - needed


def test_collect_runtime_takes_programs_and_their_libraries(binaries, tmp_path):
    done = subprocess.run([DOCKER / "collect-runtime", binaries, tmp_path, "quantryd", "quantry"], capture_output=True, text=True,
                          timeout=120)
    assert done.returncode == 0, done.stderr
    wanted = {path for program in ("quantryd", "quantry") for path in libraries(binaries / program) if "/.deps/" in path}
    got = {"/" + str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert got == wanted | {"/opt/quantry/bin/quantryd", "/opt/quantry/bin/quantry"} and wanted


def test_collect_runtime_refuses_what_is_not_there(binaries, tmp_path):
    done = subprocess.run([DOCKER / "collect-runtime", binaries, tmp_path, "no-such-program"], capture_output=True, timeout=60)
    assert done.returncode != 0


def bill_of(image, folder):
    """What the Dockerfile writes for this image, but of the packages of this machine."""
    (materials,) = (rest for word, rest in STAGES["materials"] if word == "RUN")
    names = [line for line in (DOCKER / "runtime-packages").read_text().splitlines() if not line.startswith("#")]
    listed = subprocess.run(["dpkg-query", "-W", "-f", "${Package} ${Version} ${Architecture}\\n", *names], capture_output=True,
                            text=True, timeout=60)
    script = re.sub(r"/out(?=/)", str(folder), materials).replace("mkdir ", "mkdir -p ")
    for name in ("packages", "packages-python"):
        (folder / name).write_text(listed.stdout)
    done = subprocess.run(["bash", "-euc", script], cwd=ROOT, env={"PATH": "/usr/bin:/bin", "VERSION": "0.1.0"}, capture_output=True,
                          text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return (folder / f"sbom/{image}.cdx.json").read_text()


@pytest.mark.parametrize("image", TARGETS)
def test_bill_of_materials(tmp_path, image):
    text = bill_of(image, tmp_path)
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    parts = {part["purl"].split("?")[0].split("@")[0]: part for part in json.loads(text)["components"]}
    assert parts["pkg:deb/debian/libsqlite3-0"]["version"]
    pinned = [ROOT / "scripts/wheels.txt"] if image != "exporter" else []
    pinned += [DOCKER / "cuda-wheels.txt"] if image == "worker-cuda" else []
    for name, version, sha in [row for file in pinned for row in re.findall(r"^(\S+)==(\S+) --hash=sha256:(\w+)", file.read_text(), re.M)]:
        assert (parts[f"pkg:pypi/{name}"]["version"], parts[f"pkg:pypi/{name}"]["hashes"][0]["content"]) == (version, sha)
    assert ("pkg:cargo/tokenizers" in parts) == (image != "exporter")
    assert text == bill_of(image, tmp_path)
    assert last(image, "COPY") and f"COPY --from=materials /out/sbom/{image}.cdx.json /usr/share/quantry/sbom.cdx.json\n" in TEXT


def test_a_bill_that_is_none_is_seen(tmp_path):
    broken = {**json.loads(bill_of("exporter", tmp_path)), "components": [{"name": "x"}]}
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(broken)) is not None
    command = [DOCKER / "sbom", "--name", "x", "--version", "1", "--packages", tmp_path / "none"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    assert done.returncode == 1 and done.stderr.startswith("sbom: ") and "Traceback" not in done.stderr


def test_health_checks(binaries, tmp_path, processes):
    service = start_service(processes, binaries, tmp_path)

    def check(address, path):
        return subprocess.run([DOCKER / "healthcheck", address, path], capture_output=True, timeout=20).returncode

    for address in (service["admin"], service["worker_admin"]):
        assert check(address, "/livez") == 0 and check(address, "/readyz") == 0
        assert check(address, "/nothing") != 0
    processes.stop()
    assert check(service["admin"], "/livez") != 0
