#!/usr/bin/env python3
"""What many watches cost one server, and how long a change of a job's state takes to reach all of them.

    .deps/venv/bin/python benchmarks/watch_load.py [--streams 10000] [--jobs 1]

Starts a quantryd without workers (SQLite, loopback), queues the jobs, and quantry_watch_load, which opens the streams, a hundred
a connection, and cancels one job after the other once all streams have their snapshot. Prints JSON:
  kib_a_stream    growth of the server's resident memory, over the streams
  attach_s        until the last stream had its snapshot
  reach_*_s       from just before the cancels until a stream had its job's CANCELLED: the median, 99 % and the last of them
  ended_s         until the last stream had ended
  server_cpu_s    what the server used of the CPUs for that, from the cancels on; client_cpu_s: what the streams used
Streams and server share the machine's cores.
"""
import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests/support"), str(ROOT / "tests/faults")]

from api import name_of  # noqa: E402
from fleet import Fleet  # noqa: E402
from service import find_bin, resident_mib  # noqa: E402


def cpu_s(pid):
    """What a process has used of the CPUs."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def read_line(process):
    line = process.stdout.readline()
    assert line, f"quantry_watch_load ended with {process.wait(timeout=60)}"
    return json.loads(line)


def measure(fleet, jobs, count):
    server = fleet.servers["a"]
    pid = server.process.pid
    before = resident_mib(pid)
    command = [find_bin() / "quantry_watch_load", f"--server={server.address}", f"--streams={count}",
               *(f"--job={name_of(job)}" for job in jobs)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as streams:
        found = read_line(streams)
        time.sleep(2)  # what attaching alone needed is given back
        watching, used = resident_mib(pid), cpu_s(pid)
        streams.stdin.write("go\n")
        streams.stdin.flush()
        found |= read_line(streams)
        found["server_cpu_s"] = cpu_s(pid) - used
    return {"streams": count, "jobs": len(jobs), "kib_a_stream": round((watching - before) * 1024 / count, 1),
            "server_mib": round(watching, 1), **{key: round(value, 3) for key, value in found.items()}}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=10_000)
    parser.add_argument("--jobs", type=int, default=1, help="the streams are spread over so many")
    options = parser.parse_args()
    fleet = Fleet(pathlib.Path(tempfile.mkdtemp(prefix="quantry_watch_")), find_bin())
    try:
        fleet.start(workers=0)
        jobs = [f"watched-{number}" for number in range(options.jobs)]
        for job in jobs:
            fleet.submit(job)
        print(json.dumps(measure(fleet, jobs, options.streams)))
    finally:
        fleet.stop()


if __name__ == "__main__":
    main()
