"""F10, F11, F14: partitions, bad lines, wrong clocks."""
import os
import pathlib
import time

import pytest

from api import errors
from fleet import QUICK, alive, reach_store_by
from history import ENDED
from link import Link
from machine import Namespace
from service import ROOT, wait_for
from test_workers import engine_at, stopping_at, waiting_in


def test_f10_worker_cut_off_for_less_than_a_lease(fleet, far_worker, tmp_path):
    """One way: nobody notices."""
    fleet.submit("f10-short", waiting_in(tmp_path))
    engine_at(tmp_path / "at")
    far_worker.hold("back")
    time.sleep(1.2)
    far_worker.release()
    (tmp_path / "go").touch()
    assert fleet.wait_end("f10-short").epoch == 1


@pytest.mark.full
def test_f10_worker_cut_off_for_longer(fleet, far_worker, tmp_path):
    """Both ways: the job runs elsewhere, once."""
    fleet.submit("f10-long", stopping_at(tmp_path / "at"))
    pid = engine_at(tmp_path / "at")
    far_worker.cut()
    fleet.heal_processes()
    found = fleet.wait_end("f10-long")
    assert found.epoch == 2 and found.worker != "far" and found.worker_losses == 1
    wait_for(lambda: not alive(pid), 10, "the engine on the other side to be stopped")
    far_worker.heal()
    fleet.submit("f10-after")
    fleet.wait_end("f10-after")


@pytest.mark.full
def test_f10_flapping(fleet, far_worker):
    """A line that breaks every 300 ms: all jobs end, none of them twice."""
    for number in range(20):
        fleet.submit(f"f10-flap-{number}")
    for _ in range(40):
        time.sleep(0.3)
        far_worker.reset()
    for number in range(20):
        fleet.wait_end(f"f10-flap-{number}", seconds=60)


def test_f10_server_cut_off_from_the_store(make_fleet, session_postgres):
    """It says STORE_UNAVAILABLE and is not ready; the other server goes on; healed, it serves again."""
    with Link(f"127.0.0.1:{session_postgres.port}") as link:
        fleet = make_fleet(postgres=session_postgres, servers=2)
        server = fleet.servers["a"]
        reach_store_by(link, server, session_postgres)
        fleet.start(workers=0)
        fleet.worker("w1", "b")
        fleet.submit("f10-before")
        fleet.wait_end("f10-before")
        link.cut()
        with pytest.raises(errors.ServerUnavailable) as refused:
            fleet.submit("f10-refused")
        assert refused.value.reason == "STORE_UNAVAILABLE"
        fleet.submit("f10-other", server="b")
        fleet.wait_end("f10-other", server="b")
        link.heal()
        wait_for(lambda: fleet.submit_for_sure("f10-healed"), 10, "the server to be back")
        fleet.wait_end("f10-healed")
        fleet.check()


def test_f10_connections_that_reach_their_age(make_fleet, session_postgres):
    """Every second or two all connections end (GOAWAY, then what is left of streams): leases are kept, watches resumed, no call fails."""
    fleet = make_fleet(postgres=session_postgres, servers=2, flags=["--max-connection-age-s=1"])
    fleet.start(workers=2)
    fleet.submit("f10-aged", "stage QUANTIZING\n" + "block\nsleep 1500\n" * 5 + "artifact\ncomplete\n")
    watch = fleet.watch("f10-aged")
    while fleet.state("f10-aged") not in ENDED:
        time.sleep(0.1)
    assert watch.wait() == "SUCCEEDED" and watch.breaks >= 2
    assert fleet.get("f10-aged").epoch == 1
    fleet.check()


@pytest.fixture
def namespace():
    space = Namespace()
    yield space
    space.remove()


def in_namespace(fleet, *arguments, timeout=120):
    return fleet.servers["a"].json(*arguments, timeout=timeout)


def submit_in(fleet, job, script=QUICK):
    """By the CLI: a test's own process is in another network."""
    spec = fleet.spec(script)
    return in_namespace(fleet, "submit", spec.model.local_path, "--method", "awq", "--bits", 4, "--group-size", 128, "--id", job,
                        "--calibration", spec.calibration.source.local_path)


@pytest.mark.parametrize("direction", ["to the server", "from the server"])
@pytest.mark.full
def test_f10_packets_dropped_one_way(make_fleet, namespace, tmp_path, direction):
    """Real packets of the worker's port, dropped one way for longer than a lease."""
    fleet = make_fleet(run=namespace.run).start(workers=1)
    port = fleet.servers["a"].worker_port
    submit_in(fleet, "f10-packets", stopping_at(tmp_path / "at"))
    pid = engine_at(tmp_path / "at")
    namespace.cut(**({"to": port} if direction == "to the server" else {"of": port}))
    wait_for(lambda: not alive(pid), 15, "the worker to stop its engine")
    wait_for(lambda: in_namespace(fleet, "get", "f10-packets")["state"] == "QUEUED", 15, "the job to be taken away")
    namespace.heal()
    job = in_namespace(fleet, "watch", "f10-packets")
    assert job["state"] == "SUCCEEDED"
    assert int(in_namespace(fleet, "get", "f10-packets")["epoch"]) >= 2


@pytest.mark.parametrize("line", [
    pytest.param(lambda space: space.impair("delay", "200ms"), id="200ms"),
    pytest.param(lambda space: space.impair("loss", "5%"), id="5-percent-lost"),
    pytest.param(lambda space: space.throttle("256kbit"), id="256kbit")])
@pytest.mark.full
def test_f11_bad_line(make_fleet, namespace, tmp_path, line):
    """Every packet of the loopback, all roles behind it: the job ends with its first attempt."""
    fleet = make_fleet(run=namespace.run, ttl_s=6).start(workers=1)
    line(namespace)
    submit_in(fleet, "job-f11", "stage QUANTIZING\n" + "block\nsleep 100\n" * 4 + "artifact\ncomplete\n")
    assert in_namespace(fleet, "watch", "job-f11")["state"] == "SUCCEEDED"
    assert int(in_namespace(fleet, "get", "job-f11")["epoch"]) == 1
    in_namespace(fleet, "pull", "job-f11", tmp_path / "pulled")


def faketime_library():
    folders = [ROOT / ".deps/tools/usr/lib", pathlib.Path("/usr/lib")]
    found = [path for folder in folders for path in folder.glob("*/faketime/libfaketimeMT.so.1")]
    if not found:
        pytest.skip("no libfaketime: run scripts/bootstrap")
    return found[0]


@pytest.mark.full
def test_f14_clocks(make_fleet, session_postgres, tmp_path):
    """One worker an hour ahead, one an hour behind that jumps back a day mid-job, one server an hour ahead: the database's
    clock decides, so nothing changes."""
    library = faketime_library()
    clock = tmp_path / "clock"
    clock.write_text("-1h\n")

    def wrong(text=None):
        base = {"LD_PRELOAD": str(library), "FAKETIME_DONT_FAKE_MONOTONIC": "1", "FAKETIME_NO_CACHE": "1"}
        return {**base, "FAKETIME": text} if text else {**base, "FAKETIME_TIMESTAMP_FILE": str(clock)}

    fleet = make_fleet(postgres=session_postgres, servers=2)
    fleet.servers["b"].env = {**os.environ, **wrong("+1h")}
    fleet.start(workers=0)
    fleet.worker("ahead", "a", env=wrong("+1h"))
    fleet.worker("behind", "b", env=wrong())
    for number in range(2):
        fleet.submit(f"f14-{number}", f"block\ntouch {tmp_path}/{number}\nwait {tmp_path}/go\nblock\nblock\nblock\nartifact\ncomplete\n",
                     server="ab"[number])
    for number in range(2):
        wait_for((tmp_path / str(number)).exists, 20, f"engine {number}")
    assert {fleet.get(f"f14-{number}").worker for number in range(2)} == {"ahead", "behind"}
    clock.write_text("-25h\n")
    time.sleep(4)  # longer than a lease
    (tmp_path / "go").touch()
    for number in range(2):
        found = fleet.wait_end(f"f14-{number}")
        assert found.epoch == 1, "a clock took the job away"
    fleet.check()
