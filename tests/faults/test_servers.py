"""F5, F6, F15, F18, F19: servers die, repeat, are asked twice, watched by sleepers, upgraded."""
import signal
import sqlite3
import threading
import time
import uuid

import pytest

from api import Tenant, errors, name_of
from fleet import QUICK, call_in_parallel, kill, reach_store_by
from link import Link
from quantry.v1 import quantization_service_pb2, worker_service_pb2
from service import resident_mib, wait_for
from test_workers import waiting_in

COMMIT = b"COMMIT\x00"
INSERT = b"INSERT INTO jobs"  # prepared by the first submit of a connection


def found_at_b(fleet):
    try:
        return fleet.get("job-f05", "b")
    except errors.NotFound:
        return None


@pytest.mark.parametrize("point", ["before-commit", "after-commit"])
def test_f05_kill_server_at_the_commit(make_fleet, session_postgres, point):
    """SIGKILL as COMMIT is about to reach PostgreSQL, or has: a repeat of the submit finds the one job or makes it."""
    with Link(f"127.0.0.1:{session_postgres.port}") as link:
        fleet = make_fleet(postgres=session_postgres, servers=2)
        through = fleet.servers["a"]
        reach_store_by(link, through, session_postgres)
        fleet.start(workers=0)
        request_id = str(uuid.uuid4())
        link.when("there", [INSERT, COMMIT], lambda: kill(through.process.pid), forward=point == "after-commit")
        with pytest.raises(errors.ServerUnavailable):
            fleet.submit("job-f05", request_id=request_id)
        through.process.wait(timeout=5)
        if point == "after-commit":
            committed = wait_for(lambda: found_at_b(fleet), 5, "the commit to be seen").uid
        else:
            with pytest.raises(errors.NotFound):
                fleet.get("job-f05", "b")
            committed = None
        found = fleet.submit("job-f05", server="b", request_id=request_id)
        assert committed in (None, found.uid)
        through.start()
        assert fleet.submit("job-f05", server="a", request_id=request_id).uid == found.uid
        fleet.worker("w1", "b")
        fleet.wait_end("job-f05")
        fleet.check()


def test_f05_kill_server_mid_stream(fleet, tmp_path):
    """Its watches go on at another server: no event is missed, none comes twice."""
    fleet.submit("f05-watch", f"block\nblock\ntouch {tmp_path}/at\nwait {tmp_path}/go\nblock\nblock\nartifact\ncomplete\n")
    watch = fleet.watch("f05-watch")
    watch.attached.wait(10)
    wait_for((tmp_path / "at").exists, 20, "two blocks")
    fleet.servers["a"].stop(signal.SIGKILL)
    wait_for(lambda: watch.resumes, 10, "the watch to go on at the other server")
    assert watch.resumes[0] < 5
    (tmp_path / "go").touch()
    fleet.servers["a"].start()
    assert watch.wait() == "SUCCEEDED"
    assert fleet.get("f05-watch").worker  # and the promise is checked by the fixture


def test_f06_kill_the_only_server(make_fleet, tmp_path):
    """Started again on its SQLite file: every acknowledged job is there, the running one goes on undisturbed."""
    fleet = make_fleet(ttl_s=6).start(workers=1)
    fleet.submit("f06-runs", waiting_in(tmp_path))
    watch = fleet.watch("f06-runs")
    wait_for((tmp_path / "at").exists, 20, "a block")
    stop = threading.Event()
    taken = []

    def submit_on():
        while not stop.is_set():
            try:
                fleet.submit(f"f06-{len(taken)}", timeout=5)
                taken.append(1)
            except errors.QuantryError:
                return

    thread = threading.Thread(target=submit_on)
    thread.start()
    wait_for(lambda: len(taken) >= 10, 20, "ten acknowledged jobs")
    fleet.servers["a"].stop(signal.SIGKILL)
    thread.join()
    stop.set()
    fleet.servers["a"].start()
    (tmp_path / "go").touch()
    assert watch.wait() == "SUCCEEDED"
    assert fleet.get("f06-runs").epoch == 1
    for number in range(len(taken)):
        fleet.wait_end(f"f06-{number}", seconds=60)
    fleet.check()


def test_f15_duplicate_submit(fleet):
    """64 at once with one request id, at both servers: one job. The id again with another payload is refused."""
    request_id = str(uuid.uuid4())
    spec = fleet.spec()
    before = time.monotonic()

    def submit(i):
        name = "ab"[i % 2]
        found = fleet.api(name).submit("job-f15", spec, request_id, timeout=20)
        fleet.history.add("submit", "job-f15", before, request_id=request_id, uid=found.uid)
        return found.uid

    answers = call_in_parallel(64, submit)
    assert len(set(map(str, answers))) == 1, answers
    with pytest.raises(errors.Conflict) as refused:
        fleet.api("b").submit("f15-other", fleet.spec(QUICK + "\n"), request_id)
    assert refused.value.reason == "REQUEST_ID_REUSED"
    with pytest.raises(errors.Conflict) as refused:
        fleet.api("b").submit("job-f15", spec, str(uuid.uuid4()))
    assert refused.value.reason == "JOB_ID_TAKEN"
    fleet.wait_end("job-f15")


@pytest.mark.parametrize("watchers", [pytest.param(200, id="200"), pytest.param(10_000, id="10000", marks=pytest.mark.full)])
def test_f18_watchers_that_never_read(make_fleet, tmp_path, watchers):
    """Each costs the server little, however much happens; who reads sees everything."""
    fleet = make_fleet().start(workers=1)
    noise = "".join(f"stage {'QUANTIZING' if i % 2 else 'CALIBRATING'}\n" for i in range(400 if watchers <= 200 else 20))
    fleet.submit("job-f18", f"touch {tmp_path}/at\nwait {tmp_path}/go\n{noise}block\nblock\nblock\nblock\nartifact\ncomplete\n")
    wait_for((tmp_path / "at").exists, 20, "the engine")
    reader = fleet.watch("job-f18")
    reader.attached.wait(10)
    server = fleet.servers["a"].process.pid
    before = resident_mib(server)
    request = quantization_service_pb2.WatchQuantizationJobRequest(name=name_of("job-f18"))
    channels = [Tenant(fleet.servers["a"].address) for _ in range(max(1, watchers // 100))]
    sleepers = [channels[i % len(channels)].jobs.WatchQuantizationJob(request) for i in range(watchers)]
    metric = "quantry_watch_streams"
    wait_for(lambda: fleet.metric("a", metric) >= watchers + 1, 120, f"{watchers} streams")
    (tmp_path / "go").touch()
    assert reader.wait(120) == "SUCCEEDED"
    grown = resident_mib(server) - before
    assert grown < 24 + watchers * 48 / 1024, f"{grown:.0f} MiB for {watchers} watchers"
    for sleeper in sleepers:
        sleeper.cancel()
    wait_for(lambda: fleet.metric("a", metric) == 0, 60, "the streams to end")
    for channel in channels:
        channel.close()
    fleet.check()


def with_unknown_field(message):
    """As a newer client would send it: one more field, number 4000."""
    return message.SerializeToString() + b"\x82\xfa\x01\x05hello"


def test_f19_other_versions(fleet):
    """A newer worker's unknown fields do no harm; an old worker that says nothing new is served."""
    puppet = fleet.puppet("newer")
    stub = puppet.channel.unary_unary("/quantry.v1.WorkerService/RegisterWorker", request_serializer=with_unknown_field,
                                      response_deserializer=worker_service_pb2.RegisterWorkerResponse.FromString)
    puppet.session = stub(worker_service_pb2.RegisterWorkerRequest(worker=puppet.info), timeout=10).session
    fleet.submit("f19-newer", method="gptq")
    lease = fleet.acquire(puppet)
    beat = puppet.channel.unary_unary("/quantry.v1.WorkerService/Heartbeat", request_serializer=with_unknown_field,
                                      response_deserializer=worker_service_pb2.HeartbeatResponse.FromString)
    request = worker_service_pb2.HeartbeatRequest(session=puppet.session, jobs=[
        worker_service_pb2.JobBeat(job=lease.job, epoch=lease.epoch)])
    assert beat(request, timeout=10).jobs[0].directive == worker_service_pb2.DIRECTIVE_CONTINUE
    fleet.write(puppet, "complete", lease, fleet.put_artifact(lease))

    fleet.submit("f19-older", method="gptq")
    old = fleet.puppet("older")
    old.info.Clear()
    old.info.worker_id, old.info.incarnation = "older", str(uuid.uuid4())
    old.info.methods.append("gptq")
    old.register()
    lease = fleet.acquire(old)
    fleet.write(old, "complete", lease, fleet.put_artifact(lease))


# What each schema of SQLite added (server/jobs/sqlite/schema.cc), taken away again. A new one needs its row.
BACK = {
    8: ["DROP TABLE turns"],
    7: ["DROP INDEX queue_claimable", "DROP INDEX queue_running", "DROP INDEX jobs_claimed", "ALTER TABLE queue DROP COLUMN tenant",
        "ALTER TABLE jobs DROP COLUMN last_claim",
        "CREATE INDEX queue_claimable ON queue (method, gpu_count, rank) WHERE state = 1"],
    6: ["DROP INDEX artifacts_bytes"],  # its columns go with the table
    5: ["DROP INDEX jobs_ended"],
    4: ["DROP INDEX jobs_by_digest", "DROP INDEX jobs_waiting_for", "DROP INDEX jobs_sharing",
        *(f"ALTER TABLE jobs DROP COLUMN {column}" for column in ("engine_version", "waits_for", "shared_artifact", "result_of"))],
    3: ["ALTER TABLE job_payloads DROP COLUMN traceparent"],
    2: ["DROP TABLE queue_pause", "DROP TABLE quotas", "ALTER TABLE workers DROP COLUMN refusal",
        "ALTER TABLE jobs DROP COLUMN retry_id"],
}


def test_f19_schema_upgrade_with_live_leases(make_fleet, tmp_path):
    """A database of the first schema, a job running in it: the new server takes it over, the worker never notices.
    A schema newer than the server is refused by name."""
    fleet = make_fleet(ttl_s=20).start(workers=1)
    fleet.submit("job-f19", waiting_in(tmp_path))
    wait_for((tmp_path / "at").exists, 20, "a block")
    fleet.submit("f19-queued", QUICK)
    server = fleet.servers["a"]
    server.stop(signal.SIGKILL)
    database = server.data_dir / "quantry.db"
    with sqlite3.connect(database) as db:
        newest = db.execute("PRAGMA user_version").fetchone()[0]
        for version in range(newest, 1, -1):
            for change in BACK[version]:
                db.execute(change)
        db.execute("PRAGMA user_version = 1")
    db.close()
    server.start()
    with sqlite3.connect(database) as db:
        assert db.execute("SELECT q.tenant = j.tenant FROM queue q JOIN jobs j USING (pk)").fetchall() == [(1,), (1,)]
    db.close()
    (tmp_path / "go").touch()
    assert fleet.wait_end("job-f19").epoch == 1
    fleet.wait_end("f19-queued")
    fleet.check()
    server.stop()
    with sqlite3.connect(database) as db:
        assert db.execute("PRAGMA user_version").fetchone()[0] == newest
        db.execute("PRAGMA user_version = 99")
    db.close()
    assert server.start(expect_failure=True) != 0
    assert "99" in server.log_text() and "newer quantryd" in server.log_text()
