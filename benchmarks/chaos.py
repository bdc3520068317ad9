#!/usr/bin/env python3
"""Jobs an hour through several servers and many workers, at peace or while everything is killed now and then.

    .deps/venv/bin/python benchmarks/chaos.py --minutes 10 --quiet          # throughput
    .deps/venv/bin/python benchmarks/chaos.py --minutes 60 --seed 7         # what became of the promise

Four servers on one PostgreSQL and one object store, 50 workers with the synthetic engine, clients that keep --depth jobs queued.
Lease 10 s, beat 3 s, sweep 2 s: what 50 workers do beside their jobs then costs two cores little.

--quiet: plain jobs, no faults. Otherwise jobs, clients and puppets of tests/faults/chaos.py and the faults of KILLS in
tests/faults/injector.py, about one in --gap seconds; artifacts go through a proxy that makes the object store fail.

Afterwards all jobs come to their end, every artifact is read and the history of all calls is judged (tests/faults/history.py).
The last line is one JSON. `jobs_an_hour`: those that SUCCEEDED while the clients submitted. `submit_ms`: from a client's first
try to the acknowledgement, repeats among it; one process makes all the clients, so these are upper bounds. `queue_lowest`: fewest
jobs queued; at 0 the workers may have waited for clients. `faults` counts what was injected, `store_requests_failed` the
requests it hit. Exit status 1: the promise was broken, or the run itself failed; its folder is kept and named.
"""
import argparse
import json
import pathlib
import random
import shutil
import sys
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests/support"), str(ROOT / "tests/faults")]

import injector  # noqa: E402
import object_store  # noqa: E402
import totals  # noqa: E402
from api import errors  # noqa: E402
from chaos import Plan, Run  # noqa: E402  tests/faults/chaos.py
from commit import commit  # noqa: E402
from fault_proxy import FaultProxy  # noqa: E402
from fleet import Fleet  # noqa: E402
from postgres import Postgres  # noqa: E402
from quantry.v1 import admin_service_pb2  # noqa: E402
from service import find_bin, wait_for  # noqa: E402

TTL_S = 10
BEATS = ["--heartbeat-interval-s=3", "--sweep-interval-s=2"]
WATCHED = 0.05  # of the jobs, with --quiet


class Load(Run):
    """A Run that goes on for a time and not for a number of jobs."""

    PATIENCE_S = 600  # the machine may be much too small for what is asked of it

    def __init__(self, fleet, options, faults, proxy):
        quiet = options.quiet
        super().__init__(fleet, Plan(options.seed, faults), 0, clients=4 if quiet else 16, pause_s=0, puppets=0 if quiet else 6,
                         proxy=proxy)
        self.options, self.number, self.room, self.lowest = options, 0, options.depth, None
        self.done = 0
        self.ends = time.monotonic() + 60 * options.minutes

    def take(self):
        """The next job's number, once fewer than `depth` are queued."""
        while time.monotonic() < self.ends:
            with self.lock:
                if self.room > 0:
                    self.room -= 1
                    self.number += 1
                    return self.number
            time.sleep(0.02)
        return None

    def one(self, number):
        if not self.options.quiet:
            super().one(number)
            return
        job = f"job-{number}"
        self.fleet.submit_for_sure(job, seconds=self.PATIENCE_S)
        if self.plan.job(number)[1].random() < WATCHED:
            self.watches.append(self.fleet.watch(job, list(self.fleet.servers)[number % len(self.fleet.servers)]))

    def look(self):
        """A few times a second how many wait and how many are done, while it lasts."""
        filled = False
        while time.monotonic() < self.ends:
            try:
                tenant = self.fleet.api(random.choice(list(self.fleet.servers)))
                jobs = tenant.call(tenant.admin.GetQueueStats, admin_service_pb2.GetQueueStatsRequest(), timeout=2).jobs
                counts = {state.removeprefix("JOB_STATE_"): jobs[state] for state in jobs}
                queued, self.done = counts.get("QUEUED", 0), counts.get("SUCCEEDED", 0)
                filled = filled or queued >= self.options.depth // 2
                with self.lock:
                    self.room = self.options.depth - queued
                    if filled:
                        self.lowest = queued if self.lowest is None else min(self.lowest, queued)
            except errors.QuantryError:
                pass  # a fault; the next look may succeed
            time.sleep(0.25)

    def go(self, seconds):
        looking = threading.Thread(target=self.look)
        looking.start()
        figures = super().go(seconds)
        looking.join()
        options = self.options
        return {**figures, "quiet": options.quiet, "minutes": options.minutes, "servers": options.servers, "workers": options.workers,
                "store": options.store, "jobs_an_hour": round(self.done / options.minutes * 60),
                "submit_ms": spread(submit_times(self.fleet.history.records)), "queue_lowest": self.lowest,
                "store_requests_failed": self.injector.store_requests()}


def submit_times(records):
    """Seconds from the first try of each request to its acknowledgement."""
    began, took = {}, {}
    for record in records:
        if record["call"] == "submit":
            request = record["request_id"]
            began.setdefault(request, record["began"])
            if "error" not in record:
                took.setdefault(request, record["ended"] - began[request])
    return sorted(took.values())


def spread(times):
    return {name: round(1000 * times[min(len(times) - 1, int(share * len(times)))], 1)
            for name, share in (("p50", 0.5), ("p99", 0.99), ("max", 1))} if times else {}


def run(folder, postgres, address, proxy, options):
    """Prints the figures; whether something is wrong."""
    fleet = Fleet(folder / "fleet", find_bin(), servers=options.servers, postgres=postgres, ttl_s=TTL_S,
                  env=object_store.CREDENTIALS, bucket=object_store.client(address),
                  flags=[*BEATS, f"--artifact-root={object_store.artifact_root(proxy.address if proxy else address)}"])
    try:
        fleet.start(workers=options.workers)
        wait_for(lambda: all("registered" in worker.log_text() for worker in fleet.workers.values()), 120, "the workers")
        faults = [] if options.quiet else injector.plan(
            options.seed, list(fleet.servers), list(fleet.workers), 60 * options.minutes, injector.KILLS, 1.5 * TTL_S,
            (0.5 * options.gap, 1.5 * options.gap))
        load = Load(fleet, options, faults, proxy)
        figures = load.go(1800)
        violations = fleet.history.check()
        for line in [*violations[:20], *load.failures[:20]]:
            print(line)
        print(json.dumps(figures), flush=True)
        broken = bool(totals.broken(figures) or load.failures)
        if broken:
            fleet.history.write(folder / "history.jsonl")
        return broken
    finally:
        fleet.stop()


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10, help="how long jobs are submitted")
    parser.add_argument("--seed", type=int, default=None, help="of faults and jobs; default: drawn and printed")
    parser.add_argument("--quiet", action="store_true", help="no faults: throughput")
    parser.add_argument("--servers", type=int, default=4, help="2 to 8")
    parser.add_argument("--workers", type=int, default=50)
    parser.add_argument("--depth", type=int, default=None, help="jobs kept queued; default: twice the workers")
    parser.add_argument("--gap", type=float, default=1.5, help="seconds between two faults, on average")
    parser.add_argument("--store", choices=("seaweedfs", "moto"), default="seaweedfs", help="the object store")
    options = parser.parse_args()
    options.depth = options.depth or 2 * options.workers
    options.seed = random.SystemRandom().randrange(1 << 31) if options.seed is None else options.seed
    return options


def main():
    options = parse()
    folder = pathlib.Path(tempfile.mkdtemp(prefix=f"quantry_chaos_{options.seed}_"))
    print(f"commit {commit()}, seed {options.seed}, files in {folder}", flush=True)
    postgres = Postgres()
    try:
        with getattr(object_store, options.store)(folder) as address:
            if options.quiet:
                broken = run(folder, postgres.start(), address, None, options)
            else:
                with FaultProxy(address) as proxy:
                    broken = run(folder, postgres.start(), address, proxy, options)
    finally:
        postgres.remove()
    if broken:
        return 1
    shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
