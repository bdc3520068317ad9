"""Units: systemd's own verification, exposure at most 2.0, configuration that the programs take."""
import re
import subprocess

import pytest

from conftest import DEPLOY, ROOT, free_ports, http_get, run_tool, wait_for

SYSTEMD = DEPLOY / "systemd"
UNITS = {"quantryd": [], "quantry-worker": [], "quantry-exporter": []}
EXPOSURES = [(unit, drop_ins) for unit, choices in {
    "quantryd": [(), ("object-store",)], "quantry-worker": [(), ("object-store",), ("gpu",), ("object-store", "gpu")],
    "quantry-exporter": [(), ("exporter-token",)]}.items() for drop_ins in choices]
LIMIT = 2.0


def install(unit, folder, drop_ins=(), bin_dir=None):
    text = (SYSTEMD / f"{unit}.service").read_text()
    if bin_dir:
        text = text.replace("/opt/quantry/bin/quantry_exporter.py", str(DEPLOY / "exporter/quantry_exporter.py"))
        text = text.replace("/opt/quantry/bin", str(bin_dir))
    (folder / f"{unit}.service").write_text(text)
    for name in drop_ins:
        target = folder / f"{unit}.service.d"
        target.mkdir(exist_ok=True)
        (target / f"{name}.conf").write_text((SYSTEMD / "drop-ins" / f"{name}.conf").read_text())
    return folder / f"{unit}.service"


def exposure(path):
    done = run_tool("systemd-analyze", "security", "--offline=true", "--no-pager", path)
    (level,) = re.findall(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)
    return float(level)


@pytest.mark.parametrize("unit,drop_ins", EXPOSURES)
def test_exposure(tmp_path, unit, drop_ins):
    assert exposure(install(unit, tmp_path, drop_ins)) <= LIMIT


def test_a_bare_unit_is_exposed(tmp_path):
    (tmp_path / "bare.service").write_text("[Service]\nExecStart=/bin/true\n")
    assert exposure(tmp_path / "bare.service") > 9


@pytest.mark.parametrize("unit", UNITS)
def test_systemd_accepts_the_unit(tmp_path, binaries, unit):
    for name in UNITS:  # units it orders itself after
        install(name, tmp_path, bin_dir=binaries)
    drop_ins = {"quantry-worker": ("gpu", "object-store"), "quantry-exporter": ("exporter-token",)}.get(unit, ())
    path = install(unit, tmp_path, drop_ins, bin_dir=binaries)
    done = run_tool("systemd-analyze", "verify", "--man=no", path)
    assert done.returncode == 0 and not done.stderr.strip(), done.stderr


def test_a_wrong_directive_is_seen(tmp_path, binaries):
    path = install("quantryd", tmp_path, bin_dir=binaries)
    path.write_text(path.read_text().replace("ProtectClock=yes", "ProtectClocks=yes"))
    assert "ProtectClocks" in run_tool("systemd-analyze", "verify", "--man=no", path).stderr


@pytest.mark.parametrize("program,config,unit", [("quantryd", "quantryd.json", "quantryd"), ("quantry-worker", "worker.json", "quantry-worker")])
def test_the_configuration_file_is_one(binaries, tmp_path, program, config, unit):
    here = tmp_path / config
    here.write_text((SYSTEMD / config).read_text().replace("/srv/models", f"{tmp_path}/models"))
    done = run_tool(binaries / program, f"--config={here}", "--check-config")
    assert program != "quantryd" or (done.returncode == 2 and f"--local-roots: wanted a readable folder at '{tmp_path}/models'" in done.stderr), done
    (tmp_path / "models").mkdir()
    done = run_tool(binaries / program, f"--config={here}", "--check-config")
    assert done.returncode == 0, done.stderr
    text = (SYSTEMD / f"{unit}.service").read_text()
    assert f"--config=/etc/quantry/{config}" in text
    drain = re.search(r'"drain_timeout_s": (\d+)', (SYSTEMD / config).read_text())
    assert int(re.search(r"TimeoutStopSec=(\d+)", text).group(1)) > int(drain.group(1) if drain else 25)


def test_the_programs_start_with_the_files_as_installed(binaries, tmp_path, processes):
    """Folders of /srv are the ones that the documented steps make."""
    page = (ROOT / "docs/operations/deployment.md").read_text().split("\n## systemd\n")[1].split("\n## ")[0]
    for step in re.findall(r"^install -d [^#\n]*", page, re.M):
        subprocess.run(["bash", "-ec", step.replace(" /", f" {tmp_path}/")], check=True, timeout=10, cwd=ROOT)
    assert (tmp_path / "opt/quantry/share/docs/operations/README.md").exists(), "the units name it"
    tenant, worker, admin, worker_admin = free_ports(4)
    for program, config, flags, probe in (
            ("quantryd", "quantryd.json", [f"--data-dir={tmp_path}/data", f"--listen=127.0.0.1:{tenant}", f"--worker-listen=127.0.0.1:{worker}",
                                           f"--admin-listen=127.0.0.1:{admin}"], admin),
            ("quantry-worker", "worker.json", [f"--server=127.0.0.1:{worker}", f"--work-dir={tmp_path}/work", f"--admin-listen=127.0.0.1:{worker_admin}"],
             worker_admin)):
        (tmp_path / config).write_text((SYSTEMD / config).read_text().replace('"/srv', f'"{tmp_path}/srv'))
        process = processes.start(program, [binaries / program, f"--config={tmp_path / config}", *flags])
        wait_for(lambda: process.poll() is not None or http_get(f"http://127.0.0.1:{probe}/readyz"), 30, program)  # noqa: B023
        assert process.poll() is None, processes.log(program)


def test_sysusers_file_names_the_units_user():
    assert re.search(r"^u quantry ", (SYSTEMD / "quantry.sysusers").read_text(), re.M)
    for unit in ("quantryd", "quantry-worker"):
        assert "\nUser=quantry\n" in (SYSTEMD / f"{unit}.service").read_text()
