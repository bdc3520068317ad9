"""A backup taken while jobs run is a data folder: the finished job is there, the running one ends again."""
import importlib.machinery
import importlib.util
import json
import pathlib
import re
import shutil
import sqlite3
import subprocess
import sys

from conftest import DEPLOY, EXAMPLES, Processes, cli, start_service, submit, wait_for

SCRIPT = DEPLOY / "backup/quantry-backup"


def back_up(*args):
    return subprocess.run([sys.executable, SCRIPT, *map(str, args)], capture_output=True, text=True, timeout=60)


def start_long_job(processes, binaries, address):
    submitted = processes.start("submit", [
        binaries / "quantry", "--server", address, "submit", EXAMPLES / "stories260k", "--id", "running", "--method", "tesseraq",
        "--group-size", "-1", "--stages", "3", "--steps-per-stage", "30", "--calibration", EXAMPLES / "text/calibration.txt",
        "--calibration-samples", "8", "--calibration-length", "64"])
    assert submitted.wait(timeout=30) == 0


def get(binaries, address, job):
    return json.loads(cli(binaries, address, "get", job, "--output", "json"))


def test_restore_of_a_live_backup(binaries, tmp_path):
    place, first, second = tmp_path / "place", Processes(tmp_path), Processes(tmp_path)
    place.mkdir()
    try:
        old = start_service(first, binaries, place)
        submit(binaries, old["tenant"], "done", "rtn")
        start_long_job(first, binaries, old["tenant"])
        wait_for(lambda: get(binaries, old["tenant"], "running")["progress"].get("blocks_done", 0) >= 1, 40, "a block")
        assert back_up(place / "data", tmp_path / "copy").returncode == 0
        wait_for(lambda: get(binaries, old["tenant"], "running")["state"] == "SUCCEEDED", 60, "the end, which the backup does not know")
        artifact = get(binaries, old["tenant"], "done")["artifact"]
    finally:
        first.stop()
    (place / "data").rename(tmp_path / "lost")
    (place / "work").rename(tmp_path / "lost-work")
    (tmp_path / "copy").rename(place / "data")
    try:
        new = start_service(second, binaries, place)
        assert get(binaries, new["tenant"], "done")["artifact"] == artifact
        cli(binaries, new["tenant"], "pull", "done", tmp_path / "pulled")  # every byte is checked
        wait_for(lambda: get(binaries, new["tenant"], "running")["state"] == "SUCCEEDED", 90, "the job to end again")
        assert re.search(r"running epoch=2 .*resume_blocks=[1-9]", second.log("worker")), "it started over"
        cli(binaries, new["tenant"], "pull", "running", tmp_path / "pulled-again")
        assert get(binaries, new["tenant"], "running")["user_failures"] == 0
    finally:
        second.stop()


def test_folders_that_go_meanwhile(tmp_path, monkeypatch):
    """A job is deleted while the files of another are copied."""
    loader = importlib.machinery.SourceFileLoader("quantry_backup", str(SCRIPT))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))
    loader.exec_module(module)
    data, copied = tmp_path / "data", []
    for job in "abc":
        (data / "artifacts/acme" / job).mkdir(parents=True)
        (data / "artifacts/acme" / job / "manifest.json").write_text(job)
    sqlite3.connect(data / "quantry.db").close()
    copy = module.shutil.copy2

    def copy2(source, target, **options):
        if not copied and str(source).endswith("manifest.json"):
            copied.append(pathlib.Path(source).parent)
            for other in set((data / "artifacts/acme").iterdir()) - set(copied):
                shutil.rmtree(other)
        return copy(source, target, **options)

    monkeypatch.setattr(module.shutil, "copy2", copy2)
    module.back_up(data, tmp_path / "to")
    monkeypatch.undo()
    kept = [path for path in (tmp_path / "to/artifacts/acme").glob("*/*")]
    assert [path.parent.name for path in kept] == [copied[0].name] and kept[0].read_text() == copied[0].name


def test_wrong_arguments(tmp_path):
    assert back_up().returncode == 2
    done = back_up(tmp_path, tmp_path / "to")
    assert done.returncode == 1 and "no quantry.db" in done.stderr and not (tmp_path / "to").exists()
    (tmp_path / "quantry.db").write_bytes(b"not a database, but long enough to look at" * 100)
    done = back_up(tmp_path, tmp_path / "to")
    assert done.returncode == 1 and not (tmp_path / "to").exists()
    (tmp_path / "there").mkdir()
    assert "exists" in back_up(tmp_path, tmp_path / "there").stderr
