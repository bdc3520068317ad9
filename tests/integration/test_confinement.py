"""The engine is confined, and its results are the same (docs/operations/confinement.md)."""
import os
import pathlib
import re
import shutil
import subprocess
import tempfile

import pytest

from conftest import Server, submit_args, wait_for
from test_main_job import file_hashes


def status_fields(pid):
    try:
        lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


def run_seen(server, stories, name):
    """Runs a job; returns it and the engine's /proc status, taken while it worked."""
    server.json(*submit_args(stories, "--id", name, samples=48, length=256))

    def engine():
        pids = server.engine_pids()
        fields = status_fields(pids[0]) if pids else {}
        # The child is quantryd's worker until its filter and its program are in place.
        return fields if fields.get("Name") == "quantry-engine" and int(fields["Threads"]) else None

    seen = wait_for(engine, 60, "the engine")
    return server.json("watch", name), seen


def test_confined_engines_give_the_same_bytes(make_server, stories):
    confined = make_server(name="confined").start()
    job, seen = run_seen(confined, stories, "confined")
    assert job["state"] == "SUCCEEDED"
    assert seen["NoNewPrivs"] == "1" and seen["Seccomp"] == "2"
    assert int(seen["CapEff"], 16) == 0 and int(seen["CapPrm"], 16) == 0
    assert "engine_confinement" in confined.log_text() and "seccomp" in confined.log_text()

    free = make_server("--engine-confinement=false", name="free").start()
    plain, seen = run_seen(free, stories, "free")
    assert seen["Seccomp"] == status_fields("self")["Seccomp"]
    assert file_hashes(job) == file_hashes(plain)


def others_may_reach(path):
    return all(parent.stat().st_mode & 1 for parent in [path, *path.parents] if parent.is_dir())


def for_others(binaries, folder):
    """The binaries where another account may start them: as they are, or copies in `folder`."""
    if others_may_reach(binaries.resolve()):
        return binaries
    copies = folder / "bin"
    copies.mkdir()
    for name in ("quantryd", "quantry-worker", "quantry-engine", "quantry"):
        shutil.copy(binaries / name, copies)
    linked = subprocess.run(["ldd", copies / "quantry-engine"], capture_output=True, text=True, check=True).stdout
    for library in re.findall(r"=> (/\S+)", linked):
        if not others_may_reach(pathlib.Path(library).resolve()):
            pytest.skip(f"{library} cannot be reached by another account")
    return copies


@pytest.fixture
def open_folder():
    folder = pathlib.Path(tempfile.mkdtemp(prefix="quantry-account-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_engines_as_another_account(binaries, stories, open_folder, tmp_path):
    data = open_folder / "data"
    data.mkdir()
    data.chmod(0o711)  # as the refusal below asks for
    server = Server(for_others(binaries, open_folder), data, "--engine-user=nobody").start()
    try:
        job, seen = run_seen(server, stories, "other")
        assert job["state"] == "SUCCEEDED"
        assert seen["Uid"].split()[0] != "0"
    finally:
        server.stop()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.parametrize("flags, warned", [([], True), (["--engine-user=root"], False)], ids=["not chosen", "chosen"])
def test_engines_as_root_are_told_of(make_server, stories, flags, warned):
    server = make_server(*flags).start()
    job, seen = run_seen(server, stories, "as-root")
    assert job["state"] == "SUCCEEDED"
    assert seen["Uid"].split()[0] == "0" and int(seen["CapEff"], 16) == 0
    assert ("engines run as root" in server.log_text() and "--engine-user" in server.log_text()) == warned


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_an_account_that_cannot_reach_the_work_folder_is_refused(binaries, tmp_path):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    done = subprocess.run([binaries / "quantry-worker", "--engine-user=nobody", f"--work-dir={closed}/work",
                           "--server=127.0.0.1:1", "--admin-listen=127.0.0.1:0"], capture_output=True, text=True, timeout=30)
    assert done.returncode == 1
    assert "may not enter" in done.stderr and "chmod o+x" in done.stderr
