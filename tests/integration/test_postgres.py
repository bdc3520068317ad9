"""Several quantryd on one PostgreSQL: servers and the database die, jobs go on."""
import json
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request

import api
import pytest

from conftest import EXAMPLES, submit_args, wait_for
from postgres import PASSWORD, running_postgres
from test_faults import blocks_done
from quantry.v1 import job_pb2
from test_main_job import file_hashes
from valid_requests import ValidRequests


@pytest.fixture
def postgres():
    with running_postgres() as server:
        yield server


@pytest.fixture
def store_flags(postgres, tmp_path):
    """Of servers that share it, without workers of their own."""
    password = tmp_path / "password"
    password.write_text(PASSWORD + "\n")
    password.chmod(0o600)
    return [f"--job-store={postgres.uri}", f"--job-store-password-file={password}", "--embedded=false",
            f"--blob-dir={tmp_path}/shared/blobs", f"--artifact-root=file://{tmp_path}/shared/artifacts"]


@pytest.fixture
def cluster(make_server, postgres, store_flags, tmp_path, binaries):
    """Two servers without workers of their own, and start_worker(server)."""
    workers = []

    class Cluster:
        database = postgres
        flags = [*store_flags, "--lease-ttl-s=9", "--heartbeat-interval-s=1", "--sweep-interval-s=1"]

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


# Notes at each commit what it waits for; the table's own writes are part of it.
NOTE_COMMITS = """
CREATE TABLE seen (place TEXT, setting TEXT);
CREATE FUNCTION note_commit() RETURNS trigger LANGUAGE plpgsql AS
  $$ BEGIN INSERT INTO seen VALUES (TG_TABLE_NAME, current_setting('synchronous_commit')); RETURN NULL; END $$;
""" + "".join(f"""
CREATE CONSTRAINT TRIGGER note AFTER INSERT OR UPDATE OR DELETE ON {table} DEFERRABLE INITIALLY DEFERRED
  FOR EACH ROW EXECUTE FUNCTION note_commit();
""" for table in ("jobs", "queue", "job_events", "job_progress", "job_checkpoints", "artifacts"))


@pytest.fixture
def quiet(make_server, postgres, store_flags):
    """A server that writes nothing by itself, with a tenant and a puppet worker that make valid requests to it."""
    postgres.sql("ALTER DATABASE postgres SET synchronous_commit = off")  # the server's own word counts
    server = make_server(*store_flags, "--sweep-interval-s=10", local_roots=[EXAMPLES]).start()
    found = ValidRequests(api.Tenant(server.address, timeout=30), api.PuppetWorker(server.worker_address, "puppet"))
    yield found
    found.tenant.close()
    found.worker.close()


def test_only_progress_is_committed_before_it_is_on_disk(postgres, quiet):
    """What a call promised survives a crash of PostgreSQL's machine: its commit waits for the disk."""
    postgres.sql(NOTE_COMMITS)

    def commits(call):
        """({tables written}, {synchronous_commit of these commits}), and what the call answered."""
        postgres.sql("TRUNCATE seen")
        answer = call()
        rows = [row.split("|") for row in postgres.sql("SELECT DISTINCT place, setting FROM seen").splitlines()]
        return {place for place, _ in rows}, {setting for _, setting in rows}, answer

    def beat(number, events=()):
        progress = job_pb2.JobProgress(stage=job_pb2.STAGE_QUANTIZING, steps_done=number)
        return quiet.worker.beat(lease, events, progress=progress)

    event = job_pb2.JobEvent(log=job_pb2.LogLine(message="said"))
    wrote, waited, job = commits(quiet.submit)
    assert {"jobs", "queue", "job_events"} <= wrote and waited == {"on"}
    wrote, waited, lease = commits(quiet.worker.acquire)
    assert "queue" in wrote and waited == {"on"} and lease.job == api.name_of(job)
    wrote, waited, directive = commits(lambda: beat(1))
    assert wrote == {"queue", "job_progress"} and waited == {"off"} and directive == "CONTINUE"
    wrote, waited, _ = commits(lambda: beat(2, [event]))
    assert "job_events" in wrote and waited == {"on"}
    wrote, waited, _ = commits(lambda: quiet.worker.checkpoint(lease))
    assert "job_checkpoints" in wrote and waited == {"on"}
    wrote, waited, _ = commits(lambda: quiet.worker.complete(lease, quiet.put_artifact(lease)))
    assert {"artifacts", "jobs", "job_events"} <= wrote and waited == {"on"}

    lease = quiet.leased()
    wrote, waited, state = commits(lambda: quiet.worker.fail(lease, retryable=False))
    assert "jobs" in wrote and waited == {"on"} and state == "FAILED"
    wrote, waited, _ = commits(lambda: quiet.tenant.retry(lease.job.rpartition("/")[2]))
    assert "jobs" in wrote and waited == {"on"}
    wrote, waited, _ = commits(lambda: quiet.tenant.cancel(lease.job.rpartition("/")[2]))
    assert "jobs" in wrote and waited == {"on"}


def test_a_statement_that_hangs_is_given_up(postgres, quiet):
    """Behind another session's lock, and in a statement that takes long: STORE_UNAVAILABLE after lock_timeout and
    statement_timeout (docs/operations/postgresql.md); who needs other rows is not held up."""
    locked, slow, free = quiet.submit(), quiet.submit(), quiet.submit()
    postgres.sql("CREATE FUNCTION nap() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(60); RETURN NEW; END $$",
                 "CREATE TRIGGER nap BEFORE UPDATE ON jobs FOR EACH ROW"
                 f" WHEN (OLD.id = '{slow}') EXECUTE FUNCTION nap()")
    holder = postgres.session("BEGIN", f"UPDATE jobs SET version = version WHERE id = '{locked}'")
    wait_for(lambda: postgres.sql("SELECT count(*) FROM pg_locks WHERE locktype = 'transactionid' AND mode = 'ExclusiveLock'"
                                  " AND granted AND pid IN (SELECT pid FROM pg_stat_activity WHERE state = 'idle in transaction')")
             != "0", 10, "the lock")
    ended = {}

    def cancel(job):
        began = time.monotonic()
        with pytest.raises(api.errors.ServerUnavailable) as refused:
            quiet.tenant.cancel(job)
        ended[job] = time.monotonic() - began, refused.value.reason, refused.value.metadata["sqlstate"]

    threads = [threading.Thread(target=cancel, args=(job,)) for job in (locked, slow)]
    for thread in threads:
        thread.start()
    time.sleep(1)
    began = time.monotonic()
    quiet.tenant.cancel(free)
    assert time.monotonic() - began < 5
    for thread in threads:
        thread.join(timeout=60)
    assert {job: (reason, state) for job, (_, reason, state) in ended.items()} == {
        locked: ("STORE_UNAVAILABLE", "55P03"), slow: ("STORE_UNAVAILABLE", "57014")}
    assert all(7 < seconds < 20 for seconds, _, _ in ended.values()), ended

    holder.kill()
    holder.wait()
    postgres.sql("DROP TRIGGER nap ON jobs")
    for job in (locked, slow):
        quiet.tenant.cancel(job)
