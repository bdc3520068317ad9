"""F14 where the clock that decides steps: the one of the only SQLite server, the one of PostgreSQL."""
import os
import pathlib
import signal
import tempfile
import time

import pytest

from fleet import alive
from postgres import running_postgres
from service import wait_for
from test_network import faketime_library
from test_workers import engine_at, stopping_at, waiting_in


def stepping(clock):
    """Variables under which a process's wall clock follows the file `clock`."""
    return {"LD_PRELOAD": str(faketime_library()), "FAKETIME_DONT_FAKE_MONOTONIC": "1", "FAKETIME_NO_CACHE": "1",
            "FAKETIME_TIMESTAMP_FILE": str(clock)}


@pytest.fixture
def stepping_postgres():
    """A PostgreSQL and the file its clock follows, in a folder that its user may read."""
    with tempfile.TemporaryDirectory(prefix="quantry_clock_") as folder:
        os.chmod(folder, 0o755)
        clock = pathlib.Path(folder) / "clock"
        clock.write_text("+0\n")
        clock.chmod(0o644)
        with running_postgres(env=stepping(clock)) as server:
            yield server, clock


def step_as_worker_dies(fleet, clock, step, at, other="a", patience_s=20):
    """The clock steps and w1 dies in the middle of a job; w2, at the server `other`, gets it within patience_s and ends it."""
    fleet.submit("f14-dies", stopping_at(at))
    pid = engine_at(at)
    fleet.wait_block("f14-dies", 2)
    clock.write_text(step + "\n")
    fleet.workers["w1"].stop(signal.SIGKILL)
    wait_for(lambda: not alive(pid), 10, "the engine to go")
    fleet.worker("w2", other)
    wait_for(lambda: fleet.get("f14-dies").epoch == 2, patience_s, "the job to be given to the other worker")
    fleet.wait_end("f14-dies")
    fleet.check()


@pytest.mark.parametrize("step", ["+25h", "-1h"])
@pytest.mark.parametrize("worker", ["lives", "dies"])
def test_f14_sqlite_server_steps(make_fleet, tmp_path, step, worker):
    """The only server's clock jumps under a running job. A worker that lives keeps its attempt; the job of one that died is given
    to another one after about a lease, as without the jump."""
    clock = tmp_path / "clock"
    clock.write_text("+0\n")
    fleet = make_fleet()
    fleet.servers["a"].env = {**os.environ, **stepping(clock)}
    fleet.start(workers=1)
    if worker == "lives":
        fleet.submit("f14-lives", waiting_in(tmp_path))
        engine_at(tmp_path / "at")
        clock.write_text(step + "\n")
        time.sleep(5)  # longer than a lease
        (tmp_path / "go").touch()
        assert fleet.wait_end("f14-lives").epoch == 1, "the step took the job away"
        fleet.submit("f14-after")
        fleet.wait_end("f14-after")
        fleet.check()
        return
    step_as_worker_dies(fleet, clock, step, tmp_path / "at")


@pytest.mark.full
def test_f14_database_steps_under_beats(make_fleet, stepping_postgres):
    """The database's clock steps forward five times and back five times while workers beat through two servers, which notice
    seconds apart: nobody loses a lease."""
    postgres, clock = stepping_postgres
    fleet = make_fleet(postgres=postgres, servers=2, ttl_s=5)
    fleet.start(workers=0)
    leases = {}
    for server in "ab":
        fleet.submit(f"f14-{server}", method="gptq", server=server)
        leases[server] = fleet.acquire(fleet.puppet(f"f14-puppet-{server}", server))
    for hours in [*range(1, 6), *range(4, -1, -1)]:
        clock.write_text(f"+{hours}h\n")
        for _ in range(8):  # longer than a server carries on a reading
            for server, puppet in zip("ab", fleet.puppets):
                puppet.beat(leases[server])
            time.sleep(1)
    for server in "ab":
        assert fleet.get(f"f14-{server}").epoch == 1, "a step took the job away"


@pytest.mark.full
@pytest.mark.parametrize("step", ["+1h", "-1h"])
def test_f14_database_steps_and_workers_die(make_fleet, stepping_postgres, tmp_path, step):
    """Silent workers lose their jobs after about a lease, whatever the database's clock did."""
    postgres, clock = stepping_postgres
    fleet = make_fleet(postgres=postgres, servers=2, ttl_s=5).start(workers=1)
    step_as_worker_dies(fleet, clock, step, tmp_path / "at", other="b", patience_s=25)
