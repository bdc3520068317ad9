"""Faults by a seed: which comes when and to whom, and how each is done.

    engine, worker, server        SIGKILL; workers and servers are started again up to a second later
    pause worker, pause server    SIGSTOP, then SIGCONT
    drain worker, drain server    SIGTERM, then started again
    backends                      every connection to PostgreSQL is ended
    postgres fast, postgres crash stopped as by its operator, as by a power cut; started again
    store KIND                    one to ten requests to the object store fail so (tests/support/fault_proxy.py)
    store away                    all of them answer 503, for up to five seconds
"""
import collections
import random
import signal
import time

from fleet import kill

# What is drawn from, and how often.
PROCESSES = [("engine", 5), ("worker", 4), ("pause worker", 3), ("server", 3), ("pause server", 2), ("drain worker", 2),
             ("drain server", 1), ("backends", 2), ("postgres fast", 1), ("postgres crash", 1)]
KILLS = [("engine", 4), ("worker", 6), ("pause worker", 2), ("server", 4), ("backends", 1), ("postgres fast", 1),
         ("postgres crash", 1), ("store 500", 2), ("store 503", 2), ("store reset", 2), ("store late-500", 2), ("store away", 1)]


def plan(seed, servers, workers, seconds, kinds, longest_pause_s, gap_s=(0.1, 1.2)):
    """[(seconds from the start, kind, target, length)]"""
    draw = random.Random(f"faults {seed}")
    faults, at = [], 0.5
    while at < seconds:
        kind = draw.choices([k for k, _ in kinds], [w for _, w in kinds])[0]
        target = draw.choice(servers if "server" in kind else workers)
        faults.append((at, kind, target, draw.uniform(0.1, longest_pause_s if "pause" in kind else 1)))
        at += draw.uniform(*gap_s)
    return faults


class Injector:
    """Does a plan's faults to a fleet, one after the other.

    `failures` gets what went wrong with the injecting. `proxy`: the FaultProxy its artifacts go through.
    """

    def __init__(self, fleet, faults, failures, proxy=None):
        self.fleet, self.faults, self.failures, self.proxy = fleet, faults, failures, proxy
        self.counts = collections.Counter()

    def run(self, stop):
        """Until all are done or `stop` is set; afterwards everything it stopped was started again, and the store is well."""
        began = time.monotonic()
        for at, kind, target, length in self.faults:
            if stop.wait(max(0, began + at - time.monotonic())):
                break
            try:
                self._do(kind, target, length, stop)
            except Exception as error:
                self.failures.append(f"fault {kind} {target}: {type(error).__name__}: {error}")
            self.counts[kind] += 1
        for fault in self.proxy.faults if self.proxy else []:
            fault.left = 0

    def store_requests(self):
        """How many requests each kind of store fault hit."""
        hits = collections.Counter()
        for fault in self.proxy.faults if self.proxy else []:
            hits[fault.kind] += fault.hits
        return hits

    def _do(self, kind, target, length, stop):
        if kind == "engine":
            for pid in self.fleet.workers[target].engines()[:1]:
                kill(pid)
        elif kind.endswith("worker") or kind.endswith("server"):
            self._process(kind, (self.fleet.workers if kind.endswith("worker") else self.fleet.servers)[target], length, stop)
        elif kind.startswith("store"):
            self._store(kind.partition(" ")[2], length, stop)
        elif kind == "backends":
            self.fleet.postgres.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                                    f" WHERE datname = '{self.fleet.database}' AND pid <> pg_backend_pid()")
        else:
            self.fleet.postgres.stop(signal.SIGINT if kind.endswith("fast") else signal.SIGQUIT)
            stop.wait(length)
            self.fleet.postgres.start()

    @staticmethod
    def _process(kind, one, length, stop):
        if kind.startswith("pause"):
            kill(one.process.pid, signal.SIGSTOP)
            stop.wait(length)
            kill(one.process.pid, signal.SIGCONT)
            return
        one.stop(signal.SIGTERM if kind.startswith("drain") else signal.SIGKILL)
        stop.wait(length)
        one.start()

    def _store(self, kind, length, stop):
        if kind != "away":
            self.proxy.fail(kind, method="GET,PUT,HEAD", times=max(1, round(10 * length)))
            return
        fault = self.proxy.fail("503")
        stop.wait(5 * length)
        fault.left = 0
