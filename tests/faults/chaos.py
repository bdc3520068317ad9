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
import random
import sys
import tempfile
import threading
import time

HERE = pathlib.Path(__file__).resolve().parent
if __name__ == "__main__":
    sys.path[:0] = [str(HERE.parent / "support"), str(HERE)]

import injector  # noqa: E402
import totals  # noqa: E402
from api import errors, state_name  # noqa: E402
from fleet import QUICK, Fleet  # noqa: E402
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
    """Everything a seed decides. `faults`: of injector.plan."""

    def __init__(self, seed, faults):
        self.seed, self.faults = seed, faults

    def job(self, number):
        """(script, random source of its client)."""
        draw = random.Random(f"job {self.seed} {number}")
        script = draw.choices([s for _, s in SCRIPTS], [w for w, _ in SCRIPTS])[0]
        return script, draw


class Run:
    """`pause_s`: what a client waits between two jobs, on average. `puppets`: how many threads of them."""

    PATIENCE_S = 120  # of a client, with each call and with a job's end

    def __init__(self, fleet, plan, jobs, clients, pause_s, puppets=1, proxy=None):
        self.fleet, self.plan, self.clients, self.pause_s = fleet, plan, clients, pause_s
        self.numbers = iter(range(jobs))
        self.total, self.puppet_threads = jobs, puppets
        self.stop, self.lock = threading.Event(), threading.Lock()
        self.failures = []
        self.injector = injector.Injector(fleet, plan.faults, self.failures, proxy)
        self.watches = []

    def surely(self, function, *arguments, **named):
        """Repeats at any server until it is answered."""
        names = list(self.fleet.servers)
        deadline = time.monotonic() + self.PATIENCE_S
        while True:
            try:
                return function(*arguments, server=random.choice(names), **named)
            except errors.ServerUnavailable:
                assert time.monotonic() < deadline, f"{function.__name__}{arguments} was not answered within {self.PATIENCE_S} s"
                time.sleep(0.1)

    def take(self):
        """The number of the next job; None: there is none."""
        with self.lock:
            return next(self.numbers, None)

    def client(self):
        while (number := self.take()) is not None:
            try:
                self.one(number)
            except Exception as error:  # told at the end; the others go on
                self.failures.append(f"job {number}: {type(error).__name__}: {error}")

    def one(self, number):
        script, draw = self.plan.job(number)
        time.sleep(draw.uniform(0, 2 * self.pause_s))
        job = f"job-{number}"
        hangs, puppets = script.endswith("hang\n"), script == ""
        self.fleet.submit_for_sure(job, script or QUICK, self.PATIENCE_S, method="gptq" if puppets else "awq")
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
        wait_for(lambda: state_name(self.surely(self.fleet.get, job).state) in ENDED, self.PATIENCE_S, f"the end of {job}")
        try:
            self.surely(self.fleet.retry, job, request_id=f"00000000-0000-4000-8000-{int(job[4:]):012d}")
        except errors.Conflict as refused:
            assert refused.reason == "JOB_NOT_RETRYABLE", refused

    def puppets(self, thread):
        """Takes jobs as a worker that often falls asleep past its lease and then writes all the same."""
        draw = random.Random(f"puppet {self.plan.seed}" + (f" {thread}" if thread else ""))
        names = list(self.fleet.servers)
        number = 0
        while not self.stop.is_set():
            number += 1
            try:
                with self.fleet.passing_puppet(f"puppet-{5 * thread + number % 5}", draw.choice(names)) as puppet:
                    self.puppet_job(puppet, draw)
            except errors.QuantryError:
                time.sleep(0.05)

    def puppet_job(self, puppet, draw):
        lease = self.fleet.acquire(puppet, 1)
        if lease is None:
            return
        digest = self.fleet.put_artifact(lease)
        if draw.random() < 0.4:
            time.sleep(self.fleet.ttl_s + 2)
        what = draw.choice(["complete", "complete", "complete", "fail", "release", "checkpoint"])
        for _ in range(draw.choice([1, 2])):
            self.fleet.write(puppet, what, lease, *([digest] if what == "complete" else []))

    def go(self, seconds):
        """Until all jobs were submitted; then peace, until all have ended; then judgement. The figures."""
        began = time.monotonic()
        clients = [threading.Thread(target=self.client) for _ in range(self.clients)]
        others = [threading.Thread(target=self.puppets, args=(i,)) for i in range(self.puppet_threads)]
        others.append(threading.Thread(target=self.injector.run, args=(self.stop,)))
        for thread in clients + others:
            thread.start()
        for thread in clients:
            thread.join()
        self.stop.set()
        for thread in others:
            thread.join()  # the store is well again, PostgreSQL runs
        self.fleet.heal_processes()
        self.peace(seconds)
        for watch in self.watches:
            watch.wait(60)
        self.fleet.collect()
        totals.note(self.fleet.history, self.plan.seed)
        return {"seed": self.plan.seed, **self.fleet.history.counts(), "faults": self.injector.counts,
                "watch_breaks": sum(watch.breaks for watch in self.watches), "harness_failures": len(self.failures),
                "seconds": round(time.monotonic() - began, 1), "jobs_an_hour": round(self.total * 3600 / (time.monotonic() - began))}

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
        plan = Plan(seed, injector.plan(seed, names, list(fleet.workers), seconds, injector.PROCESSES, 1.5 * TTL_S))
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
