#!/usr/bin/env python3
"""Memory of quantryd and quantry-worker, and jobs an hour, under a steady stream of synthetic jobs.

    .deps/venv/bin/python benchmarks/soak.py --minutes 60                                           # memory
    .deps/venv/bin/python benchmarks/soak.py --minutes 10 --servers 4 --workers 50 --rate 0         # jobs an hour

One server is on SQLite, several are on one PostgreSQL. Jobs take the engine milliseconds (four blocks with checkpoints, an
artifact); they stay in the store. Prints a line each --every seconds (seconds, jobs that ended, MiB of each server and of all
workers) and a last one as JSON: for server a and for the largest worker the MiB at the first and the last line, and the growth an
hour over the second half.
"""
import argparse
import json
import pathlib
import sys
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests/support"), str(ROOT / "tests/faults")]

from fleet import Fleet  # noqa: E402
from postgres import Postgres  # noqa: E402
from quantry.v1 import admin_service_pb2  # noqa: E402
from service import find_bin, resident_mib  # noqa: E402

CLIENTS = 4


class Stream:
    """Submits jobs until stop(), `rate` a second; 0: so that each slot always finds more waiting."""

    def __init__(self, fleet, rate, slots):
        self.fleet, self.rate, self.slots = fleet, rate, slots
        self.submitted = self.ended = 0
        self.failures = []
        self._began, self._lock, self._stop = time.monotonic(), threading.Lock(), threading.Event()
        self._threads = [threading.Thread(target=self._submit, args=(list(fleet.servers)[i % len(fleet.servers)],))
                         for i in range(CLIENTS)]
        for thread in self._threads:
            thread.start()

    def _due(self):
        """The number of the next job, when its time has come."""
        with self._lock:
            allowed = self.rate * (time.monotonic() - self._began) if self.rate else self.ended + 4 * self.slots
            if self.submitted >= allowed:
                return None
            self.submitted += 1
            return self.submitted

    def _submit(self, server):
        while not self._stop.is_set():
            number = self._due()
            if number is None:
                self._stop.wait(0.02)
                continue
            try:
                self.fleet.submit(f"soak-{number}", server=server)
            except Exception as error:  # told at the end
                self.failures.append(f"soak-{number}: {error}")

    def look(self):
        """Counts of jobs by state."""
        tenant = self.fleet.api("a")
        jobs = tenant.call(tenant.admin.GetQueueStats, admin_service_pb2.GetQueueStatsRequest()).jobs
        counts = {state.removeprefix("JOB_STATE_"): jobs[state] for state in jobs}
        self.ended = sum(counts.get(state, 0) for state in ("SUCCEEDED", "FAILED", "CANCELLED"))
        return counts

    def stop(self):
        self._stop.set()
        for thread in self._threads:
            thread.join()


def memory(fleet):
    return ({name: resident_mib(server.process.pid) for name, server in fleet.servers.items()},
            {name: resident_mib(worker.process.pid) for name, worker in fleet.workers.items()})


def growth(rows):
    """MiB an hour over the second half of (seconds, MiB): a line of least squares."""
    rows = rows[len(rows) // 2:]
    middle, mean = (sum(column) / len(rows) for column in zip(*rows))
    spread = sum((at - middle) ** 2 for at, _ in rows)
    return 3600 * sum((at - middle) * (mib - mean) for at, mib in rows) / spread if spread else 0.0


def summary(rows):
    return {"first_mib": round(rows[0][1], 1), "last_mib": round(rows[-1][1], 1), "mib_an_hour": round(growth(rows), 1)}


def soak(fleet, stream, minutes, every):
    began = time.monotonic()
    server_rows, worker_rows, counts, told = [], [], {}, 0.0
    while (passed := time.monotonic() - began) < 60 * minutes:
        counts = stream.look()
        if passed >= told:
            servers, workers = memory(fleet)
            server_rows.append((passed, servers["a"]))
            worker_rows.append((passed, max(workers.values())))
            print(f"{passed:7.0f} s {stream.ended:8} jobs   servers " + " ".join(f"{mib:.1f}" for mib in servers.values()) +
                  f"   workers {sum(workers.values()):.1f}", flush=True)
            told += every
        time.sleep(0.25)
    passed = time.monotonic() - began
    return {"minutes": round(passed / 60, 2), "jobs": counts, "jobs_an_hour": round(counts.get("SUCCEEDED", 0) * 3600 / passed),
            "server_a": summary(server_rows), "largest_worker": summary(worker_rows)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--servers", type=int, default=1, help="1: SQLite; 2 to 8: PostgreSQL")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--slots", type=int, default=1, help="of each worker")
    parser.add_argument("--rate", type=float, default=2, help="jobs a second; 0: as many as the workers do")
    parser.add_argument("--every", type=float, default=30, help="seconds between two lines")
    options = parser.parse_args()
    folder = pathlib.Path(tempfile.mkdtemp(prefix="quantry_soak_"))
    postgres = Postgres() if options.servers > 1 else None
    fleet = None
    try:
        fleet = Fleet(folder, find_bin(), servers=options.servers, postgres=postgres and postgres.start(), ttl_s=30)
        fleet.start(workers=options.workers, slots=options.slots)
        stream = Stream(fleet, options.rate, options.workers * options.slots)
        try:
            figures = soak(fleet, stream, options.minutes, options.every)
        finally:
            stream.stop()
        print(json.dumps({**figures, "submits_refused": len(stream.failures)}))
        for line in stream.failures[:5]:
            print(line, file=sys.stderr)
    finally:
        if fleet:
            fleet.stop()
        if postgres:
            postgres.remove()


if __name__ == "__main__":
    main()
