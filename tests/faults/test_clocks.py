"""F14 on one SQLite server, whose own clock decides."""
import os
import signal
import time

import pytest

from fleet import alive
from service import wait_for
from test_network import faketime_library
from test_workers import engine_at, stopping_at


@pytest.mark.parametrize("step", ["+25h", "-1h"])
@pytest.mark.parametrize("worker", ["lives", "dies"])
def test_f14_sqlite_server_steps(make_fleet, tmp_path, step, worker):
    """The only server's clock jumps under a running job. A worker that lives keeps its attempt; the job of one that died is given
    to another one after about a lease, as without the jump."""
    clock = tmp_path / "clock"
    clock.write_text("+0\n")
    fleet = make_fleet()
    fleet.servers["a"].env = {**os.environ, "LD_PRELOAD": str(faketime_library()), "FAKETIME_DONT_FAKE_MONOTONIC": "1",
                              "FAKETIME_NO_CACHE": "1", "FAKETIME_TIMESTAMP_FILE": str(clock)}
    fleet.start(workers=1)
    if worker == "lives":
        fleet.submit("f14-lives", f"block\ntouch {tmp_path}/at\nwait {tmp_path}/go\nblock\nblock\nblock\nartifact\ncomplete\n")
        engine_at(tmp_path / "at")
        clock.write_text(step + "\n")
        time.sleep(5)  # longer than a lease
        (tmp_path / "go").touch()
        assert fleet.wait_end("f14-lives").epoch == 1, "the step took the job away"
        fleet.submit("f14-after")
        fleet.wait_end("f14-after")
        fleet.check()
        return
    fleet.submit("f14-dies", stopping_at(tmp_path / "at"))
    pid = engine_at(tmp_path / "at")
    fleet.wait_block("f14-dies", 2)
    clock.write_text(step + "\n")
    fleet.workers["w1"].stop(signal.SIGKILL)
    wait_for(lambda: not alive(pid), 10, "the engine to go")
    fleet.worker("w2")
    wait_for(lambda: fleet.get("f14-dies").epoch == 2, 20, "the job to be given to the other worker")
    fleet.wait_end("f14-dies")
    fleet.check()
