#!/usr/bin/env python3
"""How long quantry takes to come back, with the settings users have (lease 30 s, beat 5 s, sweep 5 s).

    .deps/venv/bin/python benchmarks/recovery.py [--rounds N] [--postgres-s N] [--store-s N] [--engine real]

Two servers on one PostgreSQL, two workers with the synthetic engine, loopback. Prints a line a measurement:
  worker killed    SIGKILL of a worker -> its job runs at the other one
  worker restarted the same, but the worker is started again at once under its name
  server killed    SIGKILL of the server a watch is attached to -> first message at the other server
  server restarted SIGKILL of the only server (SQLite) and start -> first message of the watch
  postgres 60 s    PostgreSQL away for 60 s -> first submit that is acknowledged; jobs that failed or moved meanwhile
  store 5 min      the object store of the artifacts away for 300 s -> a job queued meanwhile has its artifact; what became of jobs
                   that went on with a block and that wanted to write their artifact meanwhile (moto behind a relay, SQLite)
  cancel           acknowledged cancel -> no process of the engine left, for an engine that ends on SIGTERM and one that ignores it;
                   with --engine real this alone: quantry-engine quantizing examples/stories260k with tesseraq, one server and its worker
"""
import argparse
import pathlib
import signal
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests/support"), str(ROOT / "tests/faults")]

from api import Tenant  # noqa: E402
from commit import commit  # noqa: E402
from fleet import QUICK, Fleet, alive  # noqa: E402
from history import ENDED  # noqa: E402
from link import Link  # noqa: E402
from object_store import CREDENTIALS, artifact_root, moto  # noqa: E402
from postgres import Postgres  # noqa: E402
from quantry.v1 import job_pb2  # noqa: E402
from service import EXAMPLES, Server, find_bin, submit_args, wait_for  # noqa: E402

# As quantryd has them: later flags beat Fleet's.
USUAL = ["--lease-ttl-s=30", "--heartbeat-interval-s=5", "--sweep-interval-s=5"]


def until(condition, seconds, what, every=0.01):
    """Seconds until the condition holds."""
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        if condition():
            return time.monotonic() - began
        time.sleep(every)
    raise AssertionError(f"waited {seconds} s for {what}")


def hanging(path, before=""):
    return f"{before}block\nepoch 1 touch {path}\nepoch 1 hang\ntouch {path}.again\nblock\nblock\nblock\nartifact\ncomplete\n"


def start_job(fleet, folder, name, before=""):
    at = folder / name
    fleet.submit(name, hanging(at, before))
    wait_for(lambda: at.exists() and at.read_text(), 30, "the engine")
    fleet.wait_block(name)
    return at, int(at.read_text())


def worker_killed(fleet, folder, name, restart):
    at, _ = start_job(fleet, folder, name)
    victim = fleet.workers[fleet.get(name).worker]
    victim.stop(signal.SIGKILL)
    if restart:
        victim.start()
    again = pathlib.Path(f"{at}.again")
    took = until(again.exists, 90, "the job to run again")
    fleet.wait_end(name)
    if not restart:
        victim.start()
    return took


def server_killed(fleet, folder, name):
    at, _ = start_job(fleet, folder, name)
    watch = fleet.watch(name, "a")
    watch.attached.wait(10)
    fleet.servers["a"].stop(signal.SIGKILL)
    wait_for(lambda: watch.resumes, 60, "the watch")
    fleet.servers["a"].start()
    fleet.cancel(name)
    fleet.wait_end(name, seconds=60)
    watch.wait()
    return watch.resumes[0]


def server_restarted(folder, name, binaries):
    fleet = Fleet(folder / "alone" / name, binaries, flags=USUAL)
    try:
        fleet.start(workers=1)
        start_job(fleet, folder, name)
        watch = fleet.watch(name)
        watch.attached.wait(10)
        fleet.servers["a"].stop(signal.SIGKILL)
        fleet.servers["a"].start()
        wait_for(lambda: watch.resumes, 60, "the watch")
        assert fleet.get(name).epoch == 1
        fleet.cancel(name)
        watch.wait()
        fleet.check()
        return watch.resumes[0]
    finally:
        fleet.stop()


def postgres_away(fleet, folder, postgres, seconds):
    names = [f"away-{number}" for number in range(2)]
    for name in names:
        start_job(fleet, folder, name)
    postgres.stop(signal.SIGINT)
    time.sleep(seconds)
    postgres.start()
    began = time.monotonic()
    fleet.submit_for_sure("away-after", seconds=60)
    back = time.monotonic() - began
    time.sleep(42)  # a lease and two sweeps: who gave up meanwhile says nothing
    moved = sum(fleet.get(name).epoch != 1 for name in names)
    failed = sum(fleet.state(name) == "FAILED" for name in names)
    for name in names:
        if fleet.state(name) not in ENDED:
            fleet.cancel(name)
        fleet.wait_end(name, seconds=60)
    fleet.wait_end("away-after", seconds=60)
    return back, moved, failed


def store_away(folder, binaries, seconds):
    """Seconds until the job queued meanwhile has ended, and how all of them did."""
    with moto(folder) as store, Link(store) as link:
        fleet = Fleet(folder / "stored", binaries, env=CREDENTIALS, flags=[*USUAL, f"--artifact-root={artifact_root(link.address)}"])
        try:
            fleet.start(workers=2)
            for name in ("works", "ends"):
                fleet.submit(f"store-{name}", f"block\ntouch {folder}/{name}\nwait {folder}/{name}.go\n{QUICK.replace('block', '', 1)}")
                wait_for((folder / name).exists, 30, "the engine")
                fleet.wait_block(f"store-{name}")
            link.cut()
            (folder / "ends.go").touch()
            fleet.submit("store-meanwhile")
            time.sleep(seconds)
            link.heal()
            began = time.monotonic()
            (folder / "works.go").touch()
            jobs = [f"store-{name}" for name in ("meanwhile", "works", "ends")]
            back = {}
            until(lambda: back.update({job: time.monotonic() - began for job in jobs if job not in back and
                                       fleet.state(job) in ENDED}) or len(back) == len(jobs), 600, "the jobs to end", every=0.1)
            return [(job, back[job], fleet.state(job), fleet.get(job)) for job in jobs]
        finally:
            fleet.stop()


def cancel(fleet, folder, name, before=""):
    _, pid = start_job(fleet, folder, name, before)
    fleet.cancel(name)
    took = until(lambda: not alive(pid), 60, "the engine to be gone")
    fleet.wait_end(name, seconds=60)
    return took


def real_cancels(folder, binaries, rounds):
    """Seconds of each; at another moment of the quantizing stage each time."""
    server = Server(binaries, folder / "real", local_roots=[EXAMPLES]).start()
    tenant = Tenant(server.address)
    try:
        for number in range(rounds):
            job = f"real-{number}"
            server.json(*submit_args(EXAMPLES / "stories260k", "--id", job, method="tesseraq", bits=2, samples=128, length=256))
            wait_for(lambda: tenant.get(job).progress.stage == job_pb2.STAGE_QUANTIZING, 120, "the quantizing stage")
            time.sleep(0.3 * number)
            assert tenant.get(job).progress.stage == job_pb2.STAGE_QUANTIZING, "the job was too quick"
            pids = server.engine_pids()
            assert pids
            tenant.cancel(job)
            yield until(lambda: not any(map(alive, pids)), 60, "the engine to be gone")
            wait_for(lambda: tenant.get(job).state == job_pb2.JOB_STATE_CANCELLED, 60, "the end of the job")
            assert not server.engine_pids()
    finally:
        tenant.close()
        server.stop()


def tell(what, times):
    times = sorted(times)
    print(f"{what:34} median {times[len(times) // 2]:6.2f} s   worst {times[-1]:6.2f} s   ({len(times)} runs)", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--postgres-s", type=int, default=60, help="how long PostgreSQL is away; 0: not at all")
    parser.add_argument("--store-s", type=int, default=300, help="how long the object store is away; 0: not at all")
    parser.add_argument("--engine", choices=["synthetic", "real"], default="synthetic", help="real: cancels of quantry-engine alone")
    options = parser.parse_args()
    print(f"commit {commit()}", flush=True)
    folder = pathlib.Path(tempfile.mkdtemp(prefix="quantry_recovery_"))
    binaries = find_bin()
    if options.engine == "real":
        return tell("cancel, quantry-engine", real_cancels(folder, binaries, options.rounds))
    postgres = Postgres()
    fleet = Fleet(folder / "fleet", binaries, servers=2, postgres=postgres.start(), flags=USUAL)
    try:
        fleet.start(workers=2)
        rounds = range(options.rounds)
        tell("worker killed", [worker_killed(fleet, folder, f"killed-{i}", False) for i in rounds])
        tell("worker killed, started again", [worker_killed(fleet, folder, f"again-{i}", True) for i in rounds])
        tell("server killed, watch goes on", [server_killed(fleet, folder, f"watched-{i}") for i in rounds])
        tell("cancel", [cancel(fleet, folder, f"cancel-{i}") for i in rounds])
        tell("cancel, engine ignores SIGTERM", [cancel(fleet, folder, f"deaf-{i}", "ignore-term\n") for i in rounds])
        tell("only server killed and started", [server_restarted(folder, f"restart-{i}", binaries) for i in rounds])
        if options.postgres_s:
            back, moved, failed = postgres_away(fleet, folder, postgres, options.postgres_s)
            print(f"PostgreSQL away for {options.postgres_s} s: first submit {back:.2f} s after it is back; "
                  f"{moved} of 2 running jobs moved, {failed} failed", flush=True)
        fleet.check()
    finally:
        fleet.stop()
        postgres.remove()
    if options.store_s:
        for job, back, state, found in store_away(folder, binaries, options.store_s):
            print(f"object store away for {options.store_s} s: {job} {state} {found.state_reason} {back:.2f} s after it is back, "
                  f"{found.epoch} attempts", flush=True)


if __name__ == "__main__":
    main()
