#!/usr/bin/env python3
"""A random run: many jobs, everything is killed, frozen or restarted now and then, PostgreSQL too; then the history is judged.

    .deps/venv/bin/python tests/faults/chaos.py --seed 7 --jobs 2000

The seed decides what each job does, what its client does with it, and which fault comes when; how these meet is up to the
machine, so a replay gives the same faults and not the same microseconds. Exit status 1: the promise was broken, the history
is kept and named. The last line is the run's figures as JSON.
"""
import argparse
import json
import pathlib
import queue
import random
import signal
import sys
import tempfile
import threading
import time

HERE = pathlib.Path(__file__).resolve().parent
if __name__ == "__main__":
    sys.path[:0] = [str(HERE.parent / "support"), str(HERE)]

from api import errors, state_name  # noqa: E402
from fleet import QUICK, Fleet, kill  # noqa: E402
from history import ENDED  # noqa: E402
from postgres import Postgres  # noqa: E402
from quantry.v1 import admin_service_pb2  # noqa: E402
from service import find_bin, wait_for  # noqa: E402

END = "block\nblock\nartifact\ncomplete\n"
# What a job does, and how often among a hundred.
SCRIPTS = [
    (62, QUICK),
    (10, "block\nsleep 40\nblock\nsleep 40\n" + END),
    (6, "block\nblock\nepoch 1 signal 11\n" + END),
    (4, "block\nepoch 1 signal 9\nblock\n" + END),
    (3, "garbage\nblock\nnan\nblock\n" + END),
    (3, "block\nsignal 6\n"),
    (3, "error USER INVALID_CHECKPOINT the weights are nonsense\n"),
    (5, "block\nhang\n"),  # its client cancels it
    (4, ""),  # a puppet's
]
TTL_S = 3


class Plan:
    """Everything a seed decides."""

    def __init__(self, seed, servers, workers, seconds):
        draw = random.Random(f"faults {seed}")
        kinds = [("engine", 5), ("worker", 4), ("pause worker", 3), ("server", 3), ("pause server", 2), ("drain worker", 2),
                 ("drain server", 1), ("backends", 2), ("postgres fast", 1), ("postgres crash", 1)]
        self.faults, at = [], 0.5
        while at < seconds:
            kind = draw.choices([k for k, _ in kinds], [w for _, w in kinds])[0]
            target = draw.choice(servers if "server" in kind else workers)
            self.faults.append((at, kind, target, draw.uniform(0.1, 1.5 * TTL_S if "pause" in kind else 1)))
            at += draw.uniform(0.1, 1.2)
        self.seed = seed

    def job(self, number):
        """(script, random source of its client)."""
        draw = random.Random(f"job {self.seed} {number}")
        script = draw.choices([s for _, s in SCRIPTS], [w for w, _ in SCRIPTS])[0]
        return script, draw


class Run:
    def __init__(self, fleet, plan, jobs, clients, pause_s):
        self.fleet, self.plan, self.clients, self.pause_s = fleet, plan, clients, pause_s
        self.numbers = queue.Queue()
        for number in range(jobs):
            self.numbers.put(number)
        self.total = jobs
        self.stop = threading.Event()
        self.done = 0
        self.counts = {}
        self.failures = []
        self.watches = []

    def surely(self, function, *arguments, seconds=120, **named):
        """Repeats at any server until it is answered."""
        names = list(self.fleet.servers)
        deadline = time.monotonic() + seconds
        while True:
            try:
                return function(*arguments, server=random.choice(names), **named)
            except errors.ServerUnavailable:
                assert time.monotonic() < deadline, f"{function.__name__}{arguments} was not answered within {seconds} s"
                time.sleep(0.1)

    def client(self):
        while True:
            try:
                number = self.numbers.get_nowait()
            except queue.Empty:
                return
            try:
                self.one(number)
            except Exception as error:  # told at the end; the others go on
                self.failures.append(f"job {number}: {type(error).__name__}: {error}")
            self.done += 1

    def one(self, number):
        script, draw = self.plan.job(number)
        time.sleep(draw.uniform(0, 2 * self.pause_s))
        job = f"job-{number}"
        hangs, puppets = script.endswith("hang\n"), script == ""
        self.fleet.submit_for_sure(job, script or QUICK, 120, method="gptq" if puppets else "awq")
        if draw.random() < 0.15:
            self.watches.append(self.fleet.watch(job, draw.choice(list(self.fleet.servers))))
        for _ in range(draw.choice([0, 0, 1, 2])):
            time.sleep(draw.uniform(0, 0.3))
            self.surely(self.fleet.get, job)
        if hangs or draw.random() < 0.08:
            time.sleep(draw.uniform(0, 0.5))
            try:
                self.surely(self.fleet.cancel, job)
            except errors.Conflict as refused:
                assert refused.reason == "JOB_ALREADY_ENDED", refused
            if not hangs and draw.random() < 0.5:
                self.retry(job)

    def retry(self, job):
        wait_for(lambda: state_name(self.surely(self.fleet.get, job).state) in ENDED, 120, f"the end of {job}")
        try:
            self.surely(self.fleet.retry, job, request_id=f"00000000-0000-4000-8000-{int(job[4:]):012d}")
        except errors.Conflict as refused:
            assert refused.reason == "JOB_NOT_RETRYABLE", refused

    def puppets(self):
        """Takes jobs as a worker that often falls asleep past its lease and then writes all the same."""
        draw = random.Random(f"puppet {self.plan.seed}")
        names = list(self.fleet.servers)
        number = 0
        while not self.stop.is_set():
            number += 1
            try:
                puppet = self.fleet.puppet(f"puppet-{number % 5}", draw.choice(names))
                lease = self.fleet.acquire(puppet, 1)
                if lease is None:
                    continue
                digest = self.fleet.put_artifact(lease)
                if draw.random() < 0.4:
                    time.sleep(TTL_S + 2)
                what = draw.choice(["complete", "complete", "complete", "fail", "release", "checkpoint"])
                for _ in range(draw.choice([1, 2])):
                    self.fleet.write(puppet, what, lease, *([digest] if what == "complete" else []))
            except errors.QuantryError:
                time.sleep(0.05)

    def faults(self):
        began = time.monotonic()
        for at, kind, target, length in self.plan.faults:
            if self.stop.wait(max(0, began + at - time.monotonic())):
                return
            try:
                self.fault(kind, target, length)
            except Exception as error:
                self.failures.append(f"fault {kind} {target}: {type(error).__name__}: {error}")
            self.counts[kind] = self.counts.get(kind, 0) + 1

    def fault(self, kind, target, length):
        fleet, postgres = self.fleet, self.fleet.postgres
        if kind == "engine":
            for pid in fleet.workers[target].engines()[:1]:
                kill(pid)
        elif kind.endswith("worker") or kind.endswith("server"):
            one = (fleet.workers if kind.endswith("worker") else fleet.servers)[target]
            if kind.startswith("pause"):
                kill(one.process.pid, signal.SIGSTOP)
                self.stop.wait(length)
                kill(one.process.pid, signal.SIGCONT)
                return
            one.stop(signal.SIGTERM if kind.startswith("drain") else signal.SIGKILL)
            self.stop.wait(length)
            one.start()
        elif kind == "backends":
            postgres.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                         f" WHERE datname = '{fleet.database}' AND pid <> pg_backend_pid()")
        else:
            postgres.stop(signal.SIGINT if kind.endswith("fast") else signal.SIGQUIT)
            self.stop.wait(length)
            postgres.start()

    def go(self, seconds):
        """Until all jobs were submitted; then peace, until all have ended; then judgement. The figures."""
        began = time.monotonic()
        clients = [threading.Thread(target=self.client) for _ in range(self.clients)]
        others = [threading.Thread(target=self.puppets), threading.Thread(target=self.faults)]
        for thread in clients + others:
            thread.start()
        for thread in clients:
            thread.join()
        self.stop.set()
        for thread in others:
            thread.join()
        self.fleet.heal_processes()
        self.peace(seconds)
        for watch in self.watches:
            watch.wait(60)
        self.fleet.collect()
        figures = {"seed": self.plan.seed, **self.fleet.history.counts(), "faults": self.counts,
                   "watch_breaks": sum(watch.breaks for watch in self.watches), "harness_failures": len(self.failures),
                   "seconds": round(time.monotonic() - began, 1)}
        return figures

    def peace(self, seconds):
        last = self.fleet.puppet("puppet-last")
        deadline = time.monotonic() + seconds
        tenant = self.fleet.api("a")
        while True:
            jobs = tenant.call(tenant.admin.GetQueueStats, admin_service_pb2.GetQueueStatsRequest()).jobs
            if not any(jobs[state] for state in jobs if state.removeprefix("JOB_STATE_") in ("QUEUED", "RUNNING", "CANCELLING")):
                return
            assert time.monotonic() < deadline, f"jobs do not end: {dict(jobs)}"
            while (lease := self.fleet.acquire(last, 0)) is not None:
                try:
                    self.fleet.write(last, "complete", lease, self.fleet.put_artifact(lease))
                except errors.QuantryError:
                    pass
            time.sleep(0.2)


def run(folder, postgres, seed, jobs, servers=2, workers=3, slots=2, seconds=600, clients=8, pause_s=0.3):
    """One run; (figures, violations, failures of the harness). What it needs to be looked at stays in `folder`."""
    fleet = Fleet(folder, find_bin(), servers=servers, postgres=postgres, ttl_s=TTL_S)
    try:
        fleet.start(workers=0)
        names = list(fleet.servers)
        for number in range(workers):
            # One of them knows all servers, the others one each.
            address = fleet.everyone() if number == 0 else None
            fleet.worker(f"w{number + 1}", names[number % servers], address=address, slots=slots)
        plan = Plan(seed, names, list(fleet.workers), seconds)
        one = Run(fleet, plan, jobs, clients, pause_s)
        figures = one.go(seconds)
        violations = fleet.history.check()
        if violations or one.failures:
            fleet.history.write(fleet.folder / "history.jsonl")
        return figures, violations, one.failures
    finally:
        fleet.stop()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=None, help="default: drawn and printed")
    parser.add_argument("--runs", type=int, default=1, help="with the seeds from --seed on")
    parser.add_argument("--jobs", type=int, default=500)
    parser.add_argument("--servers", type=int, default=3)
    parser.add_argument("--workers", type=int, default=4)
    options = parser.parse_args()
    seed = random.SystemRandom().randrange(1 << 31) if options.seed is None else options.seed
    broken = False
    for number in range(options.runs):
        folder = pathlib.Path(tempfile.mkdtemp(prefix=f"quantry_chaos_{seed + number}_"))
        postgres = Postgres()
        try:
            postgres.start()
            print(f"seed {seed + number}, files in {folder}", flush=True)
            figures, violations, failures = run(folder, postgres, seed + number, options.jobs, options.servers, options.workers)
        finally:
            postgres.remove()
        for line in [*violations[:20], *failures[:20]]:
            print(line)
        print(json.dumps(figures), flush=True)
        broken |= bool(violations or failures)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
