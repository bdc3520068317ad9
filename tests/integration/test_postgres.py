"""Several quantryd on one PostgreSQL: servers and the database die, jobs go on."""
import json
import os
import pathlib
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
import urllib.request

import pytest

from conftest import submit_args, wait_for
from test_faults import blocks_done
from test_main_job import file_hashes

PASSWORD = "it's a \\ secret"


def bin_folder():
    """Debian keeps the server's programs out of PATH."""
    found = sorted(pathlib.Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        pytest.fail("no PostgreSQL server on this machine: run scripts/bootstrap")
    return found[-1].parent


def user_for_server():
    """PostgreSQL refuses to run as root: arguments of subprocess for another user."""
    if os.getuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
            return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
        except KeyError:
            pass
    pytest.fail("no user to run PostgreSQL as")


class Postgres:
    """A cluster in a temporary folder, on a loopback port, with passwords on."""

    def __init__(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="quantry_pg_"))
        self.user = user_for_server()
        if self.user:
            os.chown(self.folder, self.user["user"], self.user["group"])
        password = self.folder / "password"
        password.write_text(PASSWORD + "\n")
        password.chmod(0o644)
        subprocess.run([bin_folder() / "initdb", "-D", self.folder / "data", "-U", "quantry", "-A", "scram-sha-256",
                        f"--pwfile={password}", "-E", "UTF8", "--locale=C", "--no-sync"],
                       check=True, capture_output=True, cwd="/", timeout=60, **self.user)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.uri = f"postgresql://quantry@127.0.0.1:{self.port}/postgres"
        self.process = None

    def start(self):
        self.log = open(self.folder.parent / (self.folder.name + ".log"), "ab")
        self.process = subprocess.Popen(
            [bin_folder() / "postgres", "-D", self.folder / "data", "-h", "127.0.0.1", "-p", str(self.port),
             "-k", self.folder], stdout=self.log, stderr=self.log, cwd="/", **self.user)
        wait_for(lambda: subprocess.run([bin_folder() / "pg_isready", "-h", "127.0.0.1", "-p", str(self.port)],
                                        capture_output=True).returncode == 0, 30, "PostgreSQL")
        return self

    def stop(self, how=signal.SIGINT):  # SIGINT: fast; SIGQUIT: immediate, as a crash
        if self.process and self.process.poll() is None:
            self.process.send_signal(how)
            self.process.wait(timeout=30)
        self.log.close()

    def remove(self):
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)
        pathlib.Path(self.log.name).unlink(missing_ok=True)


@pytest.fixture
def postgres():
    server = Postgres()
    try:
        yield server.start()
    finally:
        server.remove()


@pytest.fixture
def cluster(make_server, postgres, tmp_path, binaries):
    """Two servers without workers of their own, and start_worker(server)."""
    password = tmp_path / "password"
    password.write_text(PASSWORD + "\n")
    password.chmod(0o600)
    workers = []

    class Cluster:
        database = postgres
        flags = [f"--job-store={postgres.uri}", f"--job-store-password-file={password}", "--embedded=false",
                 f"--blob-dir={tmp_path}/shared/blobs", f"--artifact-root=file://{tmp_path}/shared/artifacts",
                 "--lease-ttl-s=9", "--heartbeat-interval-s=1", "--sweep-interval-s=1"]

        def start_worker(self, server, name="w1"):
            address = (server.data_dir / "run/worker").read_text().strip()
            log = open(tmp_path / f"{name}.log", "ab")
            workers.append(subprocess.Popen(
                [binaries / "quantry-worker", f"--server={address}", f"--work-dir={tmp_path}/{name}",
                 f"--worker-id={name}", "--admin-listen=127.0.0.1:0", "--min-free-disk-bytes=1"],
                stdout=log, stderr=log))

    found = Cluster()
    found.a = make_server(*found.flags, name="a").start()
    found.b = make_server(*found.flags, name="b").start()
    yield found
    for worker in workers:
        worker.terminate()
    for worker in workers:
        worker.wait(timeout=30)


def some_blocks(stories, name):
    """A job that has blocks to go when its first one is done."""
    return submit_args(stories, "--id", name, samples=64, length=128)


def sequences(server, job):
    lines = server.cli("events", job, "--output", "json", check=0).stdout.splitlines()
    return [int(json.loads(line)["sequence"]) for line in lines]


def assert_whole_history(server, job):
    found = sequences(server, job)
    assert found == list(range(1, len(found) + 1))


class Watch:
    """`quantry watch` in the background."""

    def __init__(self, server, job):
        self.thread = threading.Thread(target=self._run, args=(server, job))
        self.thread.start()

    def _run(self, server, job):
        self.done = server.cli("watch", job, "--output", "json", timeout=180)

    def result(self):
        self.thread.join(timeout=200)
        assert not self.thread.is_alive()
        assert self.done.returncode == 0, self.done.stderr
        return json.loads(self.done.stdout)


def test_any_server_answers_any_worker_and_any_watch(cluster, stories):
    cluster.start_worker(cluster.b)
    cluster.a.json(*submit_args(stories, "--id", "shared"))
    job = Watch(cluster.a, "shared").result()
    assert job["state"] == "SUCCEEDED"
    assert file_hashes(cluster.b.json("watch", "shared")) == file_hashes(job)
    assert_whole_history(cluster.a, "shared")
    assert sequences(cluster.a, "shared") == sequences(cluster.b, "shared")
    assert [w["worker"]["worker_id"] if "worker" in w else w["worker_id"] for w in workers_of(cluster.a)] == ["w1"]


def workers_of(server):
    listed = server.json("workers")
    return listed["workers"] if isinstance(listed, dict) else listed


def test_the_watched_server_killed(cluster, stories):
    cluster.start_worker(cluster.b)
    cluster.a.json(*some_blocks(stories, "survivor"))
    watch = Watch(cluster.a, "survivor")
    wait_for(lambda: blocks_done(cluster.b, "survivor") >= 1, 60, "a block")
    seen = sequences(cluster.a, "survivor")
    cluster.a.stop(signal.SIGKILL)
    assert cluster.b.json("watch", "survivor")["state"] == "SUCCEEDED"
    after = [int(json.loads(line)["sequence"]) for line in cluster.b.cli(
        "events", "survivor", "--after", seen[-1], "--output", "json", check=0).stdout.splitlines()]
    assert seen + after == list(range(1, len(seen + after) + 1))
    cluster.a.start()  # the watch at A re-attaches by itself
    assert watch.result()["state"] == "SUCCEEDED"
    assert int(cluster.b.json("get", "survivor")["epoch"]) == 1, "its worker was not disturbed"


@pytest.mark.full
def test_the_workers_server_killed(cluster, stories):
    """The worker is cut off and gives up; another one at the other server goes on."""
    cluster.start_worker(cluster.b)
    cluster.a.json(*some_blocks(stories, "orphan"))
    wait_for(lambda: blocks_done(cluster.a, "orphan") >= 1, 60, "a block")
    cluster.b.stop(signal.SIGKILL)
    cluster.start_worker(cluster.a, "w2")
    job = cluster.a.json("watch", "orphan")
    assert job["state"] == "SUCCEEDED"
    assert_whole_history(cluster.a, "orphan")


def ready(server):
    try:
        return urllib.request.urlopen(f"http://{server.admin}/readyz", timeout=5).status == 200
    except OSError:
        return False


@pytest.mark.parametrize("how", [pytest.param(signal.SIGINT, id="fast"),
                                 pytest.param(signal.SIGQUIT, id="crash", marks=pytest.mark.full)])
def test_postgres_restarted(cluster, stories, how):
    cluster.start_worker(cluster.b)
    cluster.a.json(*some_blocks(stories, "patient"))
    watch = Watch(cluster.a, "patient")
    wait_for(lambda: blocks_done(cluster.a, "patient") >= 1, 60, "a block")
    cluster.database.stop(how)
    refused = cluster.a.cli("get", "patient", timeout=60)
    assert refused.returncode != 0
    assert "STORE_UNAVAILABLE" in refused.stderr and "PostgreSQL" in refused.stderr, refused.stderr
    assert not ready(cluster.a)
    time.sleep(2)
    cluster.database.start()
    wait_for(lambda: ready(cluster.a) and ready(cluster.b), 20, "the servers to be ready again")
    assert watch.result()["state"] == "SUCCEEDED"
    assert_whole_history(cluster.b, "patient")


def test_wrong_passwords_and_absent_databases_are_named(make_server, postgres, tmp_path):
    wrong = tmp_path / "wrong"
    wrong.write_text("not this\n")
    wrong.chmod(0o600)
    cases = [
        ([f"--job-store={postgres.uri}", f"--job-store-password-file={wrong}"], "password authentication failed"),
        ([f"--job-store={postgres.uri}"], "no password supplied"),
        (["--job-store=postgresql://quantry@127.0.0.1:1/postgres"], "cannot be reached"),
        (["--job-store=postgresql://quantry:secret@127.0.0.1/postgres"], "--job-store-password-file"),
    ]
    for number, (flags, wanted) in enumerate(cases):
        server = make_server(*flags, name=f"refused-{number}")
        assert server.start(expect_failure=True) != 0
        assert wanted in server.log_text()
        assert "not this" not in server.log_text() and "secret" not in server.log_text()
