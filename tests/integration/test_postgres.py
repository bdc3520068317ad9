"""Several quantryd on one PostgreSQL: servers and the database die, jobs go on."""
import json
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request

import pytest

from conftest import submit_args, wait_for
from postgres import PASSWORD, running_postgres
from test_faults import blocks_done
from test_main_job import file_hashes


@pytest.fixture
def postgres():
    with running_postgres() as server:
        yield server


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
    wait_for(lambda: not ready(cluster.a), 10, "the server to notice")
    time.sleep(2)
    cluster.database.start()
    wait_for(lambda: ready(cluster.a) and ready(cluster.b), 20, "the servers to be ready again")
    assert watch.result()["state"] == "SUCCEEDED"
    assert_whole_history(cluster.b, "patient")


def test_a_frozen_postgres_is_no_reason_to_kill_servers(cluster):
    """Liveness goes on answering while the database says nothing, not even no."""
    def answer(path):
        try:
            return urllib.request.urlopen(f"http://{cluster.a.admin}{path}", timeout=3).status
        except urllib.error.HTTPError as error:
            return f"{error.code} {error.read().decode()}"

    with cluster.database.frozen():
        wait_for(lambda: "the store: no answer for" in str(answer("/readyz")), 30, "the server to notice")
        assert answer("/livez") == 200
    wait_for(lambda: ready(cluster.a), 20, "the server to be ready again")


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
