"""F7 to F9: PostgreSQL is cut off, restarted, read-only, full, out of connections, or commits and does not say so."""
import contextlib
import ctypes
import signal
import statistics
import threading
import time
import uuid

import pytest

from api import errors
from fleet import QUICK, call_in_parallel, reach_store_by
from link import Link
from machine import fill
from postgres import PASSWORD, Postgres
from service import wait_for
from test_identity import BEATS
from test_servers import COMMIT, INSERT
from test_workers import engine_at, waiting_in

SLOW = "stage QUANTIZING\n" + "block\nsleep 300\n" * 4 + "artifact\ncomplete\n"


def run_through(fleet, name, fault, jobs=6, seconds=60):
    """Submits jobs while fault() happens; all of them end well."""
    stop = threading.Event()
    names = []

    def submit_on():
        while not stop.is_set() and len(names) < 40:
            names.append(f"{name}-{len(names)}")
            fleet.submit_for_sure(names[-1], SLOW if len(names) == 1 else QUICK, seconds)
            time.sleep(0.05)

    thread = threading.Thread(target=submit_on)
    thread.start()
    wait_for(lambda: len(names) >= 2, 20, "the first jobs")
    try:
        fault()
    finally:
        wait_for(lambda: len(names) >= jobs or not thread.is_alive(), seconds, f"{jobs} jobs")
        stop.set()
        thread.join()
    for job in names:
        fleet.wait_end(job, seconds=seconds)
        assert fleet.state(job) == "SUCCEEDED", fleet.get(job)


def test_f07_backends_killed(fleet, session_postgres):
    """pg_terminate_backend on every connection, again and again."""
    def fault():
        for _ in range(8):
            session_postgres.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                                 f" WHERE datname = '{fleet.database}' AND pid <> pg_backend_pid()")
            time.sleep(0.15)

    run_through(fleet, "f07-backends", fault, jobs=10)


def test_f07_read_only(fleet, session_postgres):
    """Writes are refused with STORE_UNAVAILABLE, reads go on, nothing is lost."""
    def fault():
        session_postgres.sql("ALTER SYSTEM SET default_transaction_read_only = on", "SELECT pg_reload_conf()")
        try:
            with pytest.raises(errors.ServerUnavailable) as refused:
                wait_for(lambda: not fleet.submit(f"f07-refused-{uuid.uuid4().hex[:8]}"), 10, "a refusal")
            assert refused.value.reason == "STORE_UNAVAILABLE"
            fleet.get("f07-read-only-0")
        finally:
            session_postgres.sql("SET default_transaction_read_only = off",
                                 "ALTER SYSTEM RESET default_transaction_read_only", "SELECT pg_reload_conf()")

    run_through(fleet, "f07-read-only", fault)


def test_f07_disk_full(make_fleet, small_disk):
    """No room for PostgreSQL's tables, log of writes and messages: submits are refused, what was acknowledged is kept."""
    folder = small_disk("96m")
    postgres = Postgres(folder=folder)
    try:
        fleet = make_fleet(postgres=postgres.start(), servers=2, ttl_s=6).start(workers=2)
        fleet.submit("f07-before")
        fleet.wait_end("f07-before")
        filler = folder / "filler"
        fill(filler)
        fleet.expect_full("f07-full", method="gptq")
        filler.unlink()
        if postgres.process.poll() is not None:  # it gives up when it cannot write its log
            postgres.start()
        fleet.submit_for_sure("f07-after")
        fleet.wait_end("f07-after", seconds=60)
        assert fleet.state("f07-before") == "SUCCEEDED"
        for record in [r for r in fleet.history.records if r["call"] == "submit" and "error" not in r]:
            if record["job"].startswith("f07-full"):
                fleet.cancel(record["job"])
        fleet.check()
    finally:
        fleet.stop()
        postgres.remove()


@pytest.mark.parametrize("how, down_s, ttl_s", [
    pytest.param(signal.SIGKILL, 1, 15, id="kill", marks=pytest.mark.full),
    pytest.param(signal.SIGINT, 1, 15, id="fast-stop", marks=pytest.mark.full),
    pytest.param(signal.SIGQUIT, 12, 6, id="down-for-two-leases"),
    pytest.param(signal.SIGQUIT, 60, 30, id="down-60s", marks=pytest.mark.full)])
def test_f07_down(make_fleet, own_postgres, tmp_path, how, down_s, ttl_s):
    """No job fails for it and no lease is lost, however long PostgreSQL is away: a worker that a server tells so goes on."""
    fleet = make_fleet(postgres=own_postgres, servers=2, ttl_s=ttl_s).start(workers=2)
    fleet.submit("f07-leased", waiting_in(tmp_path))
    engine_at(tmp_path / "at")
    server = {"w1": "a", "w2": "b"}[fleet.get("f07-leased").worker]
    beats = fleet.metric(server, BEATS)  # until the first one a lease is 15 s, whatever --lease-ttl-s says
    wait_for(lambda: fleet.metric(server, BEATS) >= beats + 2, 20, "heartbeats")

    def fault():
        own_postgres.stop(how)
        with pytest.raises(errors.ServerUnavailable) as refused:
            fleet.get("f07-down-0")
        assert refused.value.reason in ("STORE_UNAVAILABLE", "")
        time.sleep(down_s)
        own_postgres.start()

    run_through(fleet, "f07-down", fault, seconds=180)
    time.sleep(2)  # sweeps that would judge the lease by its old end
    assert fleet.get("f07-leased").worker_losses == 0
    (tmp_path / "go").touch()
    found = fleet.wait_end("f07-leased", seconds=60)
    assert (found.epoch, found.worker_losses) == (1, 0), found
    assert fleet.state("f07-leased") == "SUCCEEDED"
    fleet.check()


def again(call, seconds=20):
    """The repeat, as clients do it: until the store is there."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return call()
        except errors.ServerUnavailable:
            assert time.monotonic() < deadline, f"no answer within {seconds} s"
            time.sleep(0.1)


@contextlib.contextmanager
def all_connections_taken(postgres, database):
    """Idle sessions until PostgreSQL takes no more."""
    libpq = ctypes.CDLL("libpq.so.5")
    libpq.PQconnectdb.restype = ctypes.c_void_p
    libpq.PQstatus.argtypes = libpq.PQfinish.argtypes = [ctypes.c_void_p]
    text = f"host=127.0.0.1 port={postgres.port} user=quantry dbname={database} password='" + PASSWORD.replace(
        "\\", "\\\\").replace("'", "\\'") + "'"
    taken = []
    try:
        for _ in range(300):
            taken.append(libpq.PQconnectdb(text.encode()))
            if libpq.PQstatus(taken[-1]) != 0:
                break
        else:
            pytest.fail("300 connections and still room")
        yield len(taken) - 1
    finally:
        for connection in taken:
            libpq.PQfinish(connection)


def test_f08_no_connection_left(fleet, session_postgres):
    """What is connected works on and serves every call, also those that would have liked another connection. An old
    snapshot is held open meanwhile."""
    snapshot = session_postgres.session("BEGIN ISOLATION LEVEL REPEATABLE READ", "SELECT 1", database=fleet.database)

    def fault():
        with all_connections_taken(session_postgres, fleet.database) as taken:
            assert taken >= 50
            answers = call_in_parallel(32, lambda i: fleet.get("job-f08-0"))
            assert not [answer for answer in answers if isinstance(answer, Exception)]

    try:
        run_through(fleet, "job-f08", fault)
    finally:
        snapshot.kill()
        snapshot.wait()


@pytest.mark.full
def test_f08_old_snapshot(make_fleet, session_postgres):
    """No claim can pass over the rows of jobs that ended under it without a look: 10,000 cost milliseconds, not seconds."""
    fleet = make_fleet(postgres=session_postgres, servers=1).start(workers=0)
    fleet.submit("job-f08", method="gptq")
    session_postgres.copy_jobs("default", 12_000, database=fleet.database)
    puppet = fleet.puppet("w1")

    def claim_s():
        """The median of some."""
        took = []
        for _ in range(15):
            began = time.monotonic()
            lease = puppet.acquire()
            took.append(time.monotonic() - began)
            puppet.fail(lease, retryable=False)
        return statistics.median(took)

    before = claim_s()
    snapshot = session_postgres.session("BEGIN ISOLATION LEVEL REPEATABLE READ", "SELECT 1", database=fleet.database)
    try:
        wait_for(lambda: session_postgres.sql("SELECT 1 FROM pg_stat_activity WHERE backend_xmin IS NOT NULL AND state = 'idle in transaction'"
                                              f" AND datname = '{fleet.database}'"), 10, "the snapshot")
        session_postgres.sql("DELETE FROM queue WHERE pk IN (SELECT pk FROM queue WHERE state = 1 ORDER BY rank, pk LIMIT 10000)",
                             database=fleet.database)
        assert claim_s() < max(10 * before, 0.2)
    finally:
        snapshot.kill()
        snapshot.wait()


def test_f09_commit_that_reports_a_failure(make_fleet, session_postgres):
    """Each kind of call commits, its reply is lost on the way from PostgreSQL: the repeat changes nothing more."""
    with Link(f"127.0.0.1:{session_postgres.port}") as link:
        fleet = make_fleet(postgres=session_postgres, servers=2)
        server = fleet.servers["a"]
        reach_store_by(link, server, session_postgres)
        fleet.start(workers=0)

        def lose_reply(needle, call):
            """call() fails though it committed: what comes back after COMMIT is lost with its connection.

            One that met a connection broken before changed nothing, and is made again.
            """
            committed = link.when("there", [needle, COMMIT], link.hold)

            def lose():
                if committed.wait(60):
                    time.sleep(0.2)
                    link.reset()

            loser = threading.Thread(target=lose)
            loser.start()
            give_up = time.monotonic() + 60
            try:
                while True:
                    try:
                        return call()
                    except errors.ServerUnavailable:
                        if committed.is_set() or time.monotonic() > give_up:
                            raise
            finally:
                loser.join()
                assert committed.is_set(), f"no COMMIT after {needle}"

        request_id = str(uuid.uuid4())
        with pytest.raises(errors.ServerUnavailable):
            lose_reply(INSERT, lambda: fleet.submit("job-f09", request_id=request_id, method="gptq"))
        uid = again(lambda: fleet.submit("job-f09", request_id=request_id, method="gptq")).uid
        assert fleet.get("job-f09", "b").uid == uid

        puppet = again(lambda: fleet.puppet("job-f09", "a"))
        acquire_id = str(uuid.uuid4())
        with pytest.raises(errors.ServerUnavailable):
            lose_reply(b"UPDATE queue SET state = 2", lambda: fleet.acquire(puppet, 0, acquire_id))
        lease = again(lambda: fleet.acquire(puppet, 5, acquire_id))
        assert lease.epoch == 1, "the lease that was given is given again"

        digest = fleet.put_artifact(lease)
        with pytest.raises(errors.ServerUnavailable):
            lose_reply(b"INSERT INTO artifacts", lambda: fleet.write(puppet, "complete", lease, digest))
        again(lambda: fleet.write(puppet, "complete", lease, digest))
        assert fleet.state("job-f09", "b") == "SUCCEEDED"

        again(lambda: fleet.submit("f09-cancel", method="gptq"))
        with pytest.raises(errors.ServerUnavailable):
            lose_reply(b"UPDATE jobs SET state", lambda: fleet.cancel("f09-cancel"))
        assert fleet.state("f09-cancel", "b") == "CANCELLED"
        again(lambda: fleet.cancel("f09-cancel"))
        retry_id = str(uuid.uuid4())
        with pytest.raises(errors.ServerUnavailable):
            lose_reply(b"retry_id = retry_id", lambda: fleet.retry("f09-cancel", request_id=retry_id))
        again(lambda: fleet.retry("f09-cancel", request_id=retry_id))
        lease = again(lambda: fleet.acquire(puppet))
        with pytest.raises(errors.ServerUnavailable):
            lose_reply(b"user_failures = user_failures + 1",
                       lambda: fleet.write(puppet, "fail", lease, retryable=False))
        with pytest.raises(errors.Conflict) as refused:
            again(lambda: fleet.write(puppet, "fail", lease, retryable=False))
        assert refused.value.reason == "LEASE_LOST"
        assert again(lambda: fleet.get("f09-cancel")).user_failures == 1
        fleet.check("b")


