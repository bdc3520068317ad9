"""Every command the pages show is run here as it is written, or the table says which test or step runs it.

What changes on the way: names of jobs and hosts, absolute folders, and the size of the work.
"""
import json
import os
import re
import shutil
import subprocess

import pytest

from conftest import ROOT, EXAMPLES, check_flags
from doc_commands import COMMANDS, PAGES
from random_models import write_random_model
from service import Server

# Command -> who runs it: "FILE::TEST", a step of scripts/test, or why nobody does.
ELSEWHERE = [
    (r"scripts/(bootstrap|test)\b", "a step of CI"),
    (r"scripts/quickstart$", "a step of CI"),
    (r"scripts/quickstart path/to/model path/to/text.txt", "tests/operations/test_quickstart.py::test_a_model_and_a_text_of_your_own"),
    (r"cmake --preset|ctest --preset|export PATH=", "a step of CI"),
    (r"scripts/fuzz", "a step of CI"),
    (r"\S+python benchmarks/(watch_load|soak|chaos).py", "tests/operations/test_commands.py::test_the_benchmarks_of_servers"),
    (r"\S+python benchmarks/service.py", "tests/operations/test_commands.py::test_all_of_the_service_in_one_run"),
    (r"\S+python benchmarks/profile_step.py", "tests/operations/test_commands.py::test_the_profile_of_a_step"),
    (r"pip install|python3 -m venv venv", "client/python/tests/test_wheel.py::test_installed"),
    (r"python -m quantry.reader", "client/python/tests/test_reader.py::test_summary"),
    (r"quantry-engine run --job", "tests/integration/test_ptq161.py::test_outputs_are_verified_and_take_the_bits_they_should"),
    (r"oras cp|skopeo copy", "needs a registry; another reader of the layout: tests/operations/test_oci.py::test_skopeo_reads_and_copies_an_export"),
    (r"quantry-worker starts …", "a line of the log, no command"),
    (r"cp deploy/docker/env.example", "tests/operations/test_compose.py::test_secrets_have_no_default"),
    (r"docker compose", "needs Docker; the same commands: tests/operations/test_compose.py::test_the_commands_work_together"),
    (r"docker build -f integrations/Dockerfile", "needs Docker; the file: tests/operations/test_docker.py::test_hadolint"),
    (r"kubectl|\$EDITOR deploy/kubernetes", "needs a cluster; what it applies: tests/operations/test_kubernetes.py::test_schemas"),
    (r"install -d (-m 0755 /srv/models|/opt/quantry/share)", "tests/operations/test_systemd.py::test_the_programs_start_with_the_files_as_installed"),
    (r"install -D? ?.*(systemd|quantryd|quantry\{d)|systemctl enable", "needs the machine's systemd; the units: "
     "tests/operations/test_systemd.py::test_systemd_accepts_the_unit"),
    (r"aws s3api", "needs a bucket; the file: tests/operations/test_s3_lifecycle.py::test_the_lifecycle_rule_is_taken"),
    (r"sbatch", "needs Slurm; the script: tests/operations/test_slurm.py::test_it_runs_a_job_and_ends_when_idle"),
    (r"curl .*/v1/traces", "needs a collector; OpenTelemetry's own reader: tests/integration/test_tracing.py::test_the_protocols_own_messages_read_a_trace"),
    (r"QUANTRY_FAULT_SEED=7 \S+python -m pytest tests/faults/test_random.py", "the fault step; tests/faults/test_random.py::test_random_faults"),
    (r"QUANTRY_FULL=1 QUANTRY_FAULT_TOTALS=totals.jsonl \S+python -m pytest tests/faults", "the fault step; tests/faults/test_history.py::test_totals"),
    (r"\S+python tests/faults/totals.py", "tests/faults/test_history.py::test_totals"),
    (r"\S+python tests/faults/chaos.py", "tests/faults/test_random.py::test_random_faults"),
    (r"\S+python -c 'import sys; sys.path.insert\(0, \"tests/faults\"\)", "tests/faults/test_history.py::test_a_history_survives_its_file"),
    (r"deploy/grafana/check-grafana", "needs Grafana; its API here: tests/operations/test_check_grafana.py::test_all_is_there"),
    (r"python -m quantry.integrations.hub", "client/python/tests/test_hub.py::test_the_command"),
    (r"openssl|make |make\(\)|\}$|quantryd --tls-cert-file=server.pem|quantry-worker --server=HOST|quantry login HOST",
     "tests/operations/test_commands.py::test_the_certificates_of_the_security_page"),
]
RUN = r"quantry (submit|quote|list|pull|report|compare|export)\b|quantry-engine (eval|generate)|quantry_submit_load|quantryd token create"
CHECKED = r"(quantryd|quantry-worker) --"  # they would not end: --check-config
PYTHON = {  # page: who runs its blocks of Python
    "README.md": "client/python/tests/test_docs.py::test_readme_of_the_project",
    "client/python/README.md": "client/python/tests/test_docs.py::test_readme",
    "docs/python.md": "client/python/tests/test_docs.py::test_data_frames",
    "integrations/README.md": "client/python/tests/test_mlflow.py::test_log_job",
}
SMALLER = {"--calibration": {"--calibration-samples": 4, "--calibration-length": 32},
           "--evaluation": {"--evaluation-length": 32, "--evaluation-windows": 2},
           "--preprocessing-corpus": {"--preprocessing-steps": 2, "--preprocessing-length": 32},
           "tesseraq": {"--steps-per-stage": 2}, "--mode start": {"--jobs": 1}, "--rate": {"--rate": 20, "--seconds": 1}}
SECRETS = {"--principals-file": "", "--hub-token-file": "hf_x\n", "--job-store-password-file": "x\n"}
NAMES = ("my-job", "rtn-w4", "awq-w4")


def smaller(command):
    for sign, flags in SMALLER.items():
        if not re.search(rf"(?<!\S){sign}(?!\S)", command):
            continue
        for flag, value in flags.items():
            command, replaced = re.subn(rf"(?<!\S){flag} \S+", f"{flag} {value}", command)
            command += "" if replaced else f" {flag} {value}"
    return command


def shell(command, folder, environment):
    done = subprocess.run(["bash", "-ec", f"set -o pipefail\n{command}"], cwd=folder, env=environment, capture_output=True, text=True,
                          errors="replace", timeout=120)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


class Desk:
    """Where a reader types: a server, a model, texts, finished jobs and their artifacts."""

    def __init__(self, binaries, folder):
        self.folder, self.server = folder, Server(binaries, folder / "data", local_roots=[EXAMPLES], env={"QUANTRY_EMBEDDED_SLOTS": "1"}).start()
        self.environment = {**os.environ, "PATH": f"{binaries}:{os.environ['PATH']}", "QUANTRY_SERVER": self.server.address}
        write_random_model(folder / "model", "llama", hidden_size=128, intermediate_size=256, num_hidden_layers=1, vocab_size=512,
                           max_position_embeddings=4096)
        shutil.copy(EXAMPLES / "stories260k/tokenizer.json", folder / "model")
        for name in ("MODEL", "my-model"):
            (folder / name).symlink_to("model")
        for name, source in (("train.txt", "calibration"), ("test.txt", "evaluation")):
            (folder / name).write_text((EXAMPLES / f"text/{source}.txt").read_text()[:20_000])
        for name in ("first", "second", *NAMES):
            self.run(f"quantry submit model --id {name}-job --method rtn --bits 4 --group-size 64 --calibration train.txt --evaluation test.txt "
                     "--format compressed-tensors --format quantry --trace --reuse-result --wait")
        for name in ("model-w4", "artifact"):
            self.run(f"quantry pull JOB {name}")

    def run(self, command):
        command = re.sub(r"\bOTHER_JOB\b", "second-job", re.sub(r"\bJOB\b", "first-job", command))
        for name in NAMES:
            command = re.sub(rf"(?<=\s){name}(-job)?(?=\s|$)", f"{name}-job", command)
        command = smaller(command.replace("127.0.0.1:7070", self.server.address).replace("$PWD/", f"{ROOT}/").replace("/etc/quantry", "."))
        if command.startswith("quantry submit") and "--wait" not in command:
            command += " --wait"
        return shell(command, self.folder, self.environment)


@pytest.fixture(scope="module")
def desk(binaries, tmp_path_factory):
    made = Desk(binaries, tmp_path_factory.mktemp("desk"))
    yield made
    made.server.stop()


def find_elsewhere(command):
    return next((where for pattern, where in ELSEWHERE if re.match(pattern, command.text)), None)


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_documented_command(binaries, request, tmp_path, command):
    if find_elsewhere(command):
        return
    if re.match(RUN, command.text):
        program = command.text.split()[0]
        if not (binaries / program).exists():
            pytest.skip(f"{program} is not built")
        request.getfixturevalue("desk").run(command.text)
        return
    assert re.match(CHECKED, command.text), f"{command} is run by nothing: run it here, or say in ELSEWHERE who does"
    program, *flags = command.text.replace("$PWD", str(ROOT)).rstrip(" &.…").split()
    check_flags(binaries, program, with_files(flags, tmp_path), tmp_path)


def with_files(flags, folder):
    """A server looks into its files before it says that a configuration is good."""
    for flag in flags:
        name, _, value = flag.partition("=/")
        if name in SECRETS:
            (folder / value).parent.mkdir(parents=True, exist_ok=True)
            (folder / value).touch(mode=0o600)
            (folder / value).write_text(SECRETS[name])
    return flags


def test_the_certificates_of_the_security_page(binaries, tmp_path):
    """The whole block: certificates are made, the server and a worker start with them, and the CLI logs in."""
    block = [command.text for command in COMMANDS if command.page == "docs/security.md" and find_elsewhere(command)]
    script = [text for text in block if not text.startswith("quantry")]
    server, worker, login = (text for text in block if text.startswith("quantry"))
    shell("\n".join(script), tmp_path, dict(os.environ))
    flags = [flag.replace("=", f"={tmp_path}/") for flag in server.split()[1:] if "-file=" in flag]
    running = Server(binaries, tmp_path / "data", "--embedded=false", *flags).start()
    try:
        flags = [flag.replace("-file=", "-file=/").replace("HOST:7071", running.worker_address) for flag in worker.split()[1:]]
        check_flags(binaries, "quantry-worker", flags, tmp_path)
        environment = {**os.environ, "PATH": f"{binaries}:{os.environ['PATH']}", "XDG_CONFIG_HOME": str(tmp_path / "config")}
        shell(login.replace("HOST:7070", running.address), tmp_path, environment)
        assert json.loads(shell("quantry list --output json", tmp_path, environment)) == []
    finally:
        running.stop()


@pytest.mark.parametrize("script, flags", [("watch_load", ["--streams=40"]), ("soak", ["--minutes=0.15", "--every=3", "--workers=1"]),
                                           ("chaos", ["--minutes=0.1", "--seed=1", "--servers=2", "--workers=2", "--store=moto"])])
def test_the_benchmarks_of_servers(binaries, script, flags):
    """Short: that they run and print their JSON, not their figures."""
    done = subprocess.run([ROOT / ".deps/venv/bin/python", ROOT / f"benchmarks/{script}.py", *flags], capture_output=True, text=True,
                          env={**os.environ, "QUANTRY_BIN": str(binaries)}, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout.strip().splitlines()[-1])


def test_all_of_the_service_in_one_run(binaries):
    """The quick parts, that each heading has its figures; a part that does not exist is told before any runs."""
    def run(*flags):
        return subprocess.run([ROOT / ".deps/venv/bin/python", ROOT / "benchmarks/service.py", *flags], capture_output=True, text=True,
                              env={**os.environ, "QUANTRY_BIN": str(binaries)}, timeout=300, check=False)

    done = run("--parts=disk,store", "--depths=20")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "failed: none" in done.stdout and done.stdout.count("fdatasync after 8 KiB") == 3
    assert all(f"### job store: {store}, 20 jobs" in done.stdout for store in ("SQLite", "PostgreSQL"))
    refused = run("--parts=disk,stroe")
    assert refused.returncode == 2 and "no part stroe; there are disk, store" in refused.stderr


def test_a_step_of_no_such_size_names_those_there_are(binaries):
    def run(*flags):
        return subprocess.run([binaries / "quantry_reconstruction_step", *flags], capture_output=True, text=True, timeout=60, check=False)

    sizes = "stories260k, tiny1m, SmolLM2-135M"
    assert sizes in run("--help").stdout
    for flags, message in [(["--size", "tiny2m"], f"'tiny2m' is none of {sizes}"), (["--soft", "30"], "--soft is a share"),
                           (["--sise", "tiny1m"], "threads: wanted a number")]:
        refused = run(*flags)
        assert refused.returncode == 2 and message in refused.stderr and refused.stdout == ""
    shown = run("--size", "stories260k", "--soft", "0.005", "--compute-dtype", "bfloat16", "1", "1").stdout
    assert "0.5 % soft" in shown and "at::mm fp32" in shown and len(shown.splitlines()) == 1


def test_the_profile_of_a_step(binaries, tmp_path):
    if not shutil.which("perf") or subprocess.run(["perf", "record", "-o", tmp_path / "perf.data", "true"], capture_output=True).returncode:
        pytest.skip("perf is not there, or may not be used")
    subprocess.run([ROOT / ".deps/venv/bin/python", ROOT / "benchmarks/profile_step.py", "--bin", binaries, "--output", tmp_path / "profiles",
                    "--seconds=0.5"], timeout=300, check=True)
    written = {path.name: path.read_text() for path in (tmp_path / "profiles").iterdir()}
    shipped = {path.name for path in (ROOT / "benchmarks/profiles").iterdir()}
    assert written.keys() == {name for name in shipped if os.environ.get("QUANTRY_SMOLLM2") or not name.startswith("ptq161-step-SmolLM2")}
    for name, text in written.items():
        assert "percent  where" in text and ("SoftRounding" if name.startswith("tesseraq") else "SignForwardBlock") in text, name


def where_of(text):
    """(file, test) that an entry names, or None."""
    match = re.search(r"(\S+\.py)::(\w+)", text)
    return match and match.groups()


@pytest.mark.parametrize("where", sorted({where for _, where in ELSEWHERE if where_of(where)} | set(PYTHON.values())))
def test_whoever_is_said_to_run_it_exists(where):
    path, test = where_of(where)
    assert f"def {test}" in (ROOT / path).read_text()


def test_the_table_has_no_row_too_many():
    for pattern, _ in ELSEWHERE:
        assert any(re.match(pattern, command.text) for command in COMMANDS), pattern


def test_every_page_with_python_is_in_the_table():
    pages = {str(page.relative_to(ROOT)) for page in PAGES if re.search(r"^```python", page.read_text(), re.M)}
    assert pages == set(PYTHON)
