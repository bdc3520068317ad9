"""F10, F11, F14: partitions, bad lines, wrong clocks."""
import contextlib
import os
import pathlib
import subprocess
import sys
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


@pytest.fixture
def store_line(make_fleet, session_postgres):
    """Two servers on one store, no worker yet; the line from the first to the store."""
    with Link(f"127.0.0.1:{session_postgres.port}") as link:
        fleet = make_fleet(postgres=session_postgres, servers=2)
        reach_store_by(link, fleet.servers["a"], session_postgres)
        yield fleet.start(workers=0), link


def run_on(fleet, server, job):
    fleet.submit(job, server=server)
    fleet.wait_end(job, server=server)


def heal_and_check(fleet, link):
    link.heal()
    wait_for(lambda: fleet.submit_for_sure("f10-healed"), 10, "the server to be back")
    fleet.wait_end("f10-healed")
    fleet.check()


def test_f10_server_cut_off_from_the_store(store_line):
    """It says STORE_UNAVAILABLE and is not ready; the other server goes on; healed, it serves again."""
    fleet, link = store_line
    fleet.worker("w1", "b")
    run_on(fleet, "a", "f10-before")
    link.cut()
    with pytest.raises(errors.ServerUnavailable) as refused:
        fleet.submit("f10-refused")
    assert refused.value.reason == "STORE_UNAVAILABLE"
    run_on(fleet, "b", "f10-other")
    heal_and_check(fleet, link)


def test_f10_a_worker_leaves_a_server_that_is_cut_off(store_line):
    """Behind a load balancer: what stands stays where it is, a new connection leads to the server that is ready."""
    fleet, link = store_line
    with Link(fleet.servers["a"].worker_address) as balancer:
        fleet.worker("w1", address=balancer.address)
        run_on(fleet, "b", "f10-there")
        link.cut()
        balancer.lead_to(fleet.servers["b"].worker_address)
        run_on(fleet, "b", "f10-elsewhere")
        heal_and_check(fleet, link)


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


# An HTTP/2 ping of a server: seconds until it is answered.
PING = """
import socket, sys, time
peer = socket.create_connection(sys.argv[1].rsplit(":", 1), timeout=30)
peer.sendall(b"PRI * HTTP/2.0\\r\\n\\r\\nSM\\r\\n\\r\\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
began, data = time.monotonic(), b""
peer.sendall(bytes([0, 0, 8, 6, 0, 0, 0, 0, 0]) + b"how late")
while b"how late" not in data:
    part = peer.recv(4096)
    assert part, "the server hung up"
    data += part
print(time.monotonic() - began)
"""


def round_trip(server, address):
    return float(subprocess.check_output([*server.run, sys.executable, "-c", PING, address], timeout=60))


@contextlib.contextmanager
def late(make_fleet, namespace):
    """200 ms each way between the server and everyone else: real packets where the kernel has netem, else by relays before both ports."""
    with contextlib.ExitStack() as links:
        if namespace.impair("delay", "200ms"):
            fleet = make_fleet(run=namespace.run, ttl_s=6).start(workers=1)
            server = fleet.servers["a"]
        else:
            fleet = make_fleet(ttl_s=6).start(workers=0)
            server = fleet.servers["a"]
            for port in ("address", "worker_address"):
                link = links.enter_context(Link(getattr(server, port)))
                link.delay_s = 0.2
                setattr(server, port, link.address)
            fleet.worker("w1")
        trips = [round_trip(server, address) for address in (server.address, server.worker_address)]
        assert min(trips) >= 0.4, trips
        yield fleet
        print(f"round trips: {trips} s")


@contextlib.contextmanager
def lossy(make_fleet, namespace):
    """5 % of the packets of a loopback with all roles behind it."""
    namespace.lose(5)
    yield make_fleet(run=namespace.run, ttl_s=6).start(workers=1)
    print(f"{namespace.lost()} packets lost")
    assert namespace.lost() > 0


@contextlib.contextmanager
def narrow(make_fleet, namespace):
    """256 kbit/s for all of them together."""
    namespace.throttle("256kbit")
    yield make_fleet(run=namespace.run, ttl_s=6).start(workers=1)
    print(f"throttled {namespace.throttled()} times")
    assert namespace.throttled() > 0


@pytest.mark.parametrize("line", [
    pytest.param(late, id="200ms"), pytest.param(lossy, id="5-percent-lost"), pytest.param(narrow, id="256kbit")])
def test_f11_bad_line(make_fleet, namespace, tmp_path, line):
    """A job, then another one while an artifact of 200 kB is pulled over the same line: each ends with its first attempt."""
    with line(make_fleet, namespace) as fleet:
        submit_in(fleet, "f11-large", "stage QUANTIZING\n" + "block\nsleep 100\n" * 4 + "fill 200000\nartifact\ncomplete\n")
        assert in_namespace(fleet, "watch", "f11-large")["state"] == "SUCCEEDED"
        submit_in(fleet, "f11-meanwhile", "stage QUANTIZING\n" + "block\nsleep 500\n" * 4 + "artifact\ncomplete\n")
        in_namespace(fleet, "pull", "f11-large", tmp_path / "pulled")
        assert in_namespace(fleet, "watch", "f11-meanwhile")["state"] == "SUCCEEDED"
        assert [int(in_namespace(fleet, "get", job)["epoch"]) for job in ("f11-large", "f11-meanwhile")] == [1, 1]


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
