#!/usr/bin/env python3
"""What many watches cost one server, and how long a change of a job's state takes to reach all of them.

    .deps/venv/bin/python benchmarks/watch_load.py [--streams 10000] [--jobs 1]

Starts a quantryd without workers (SQLite, loopback), queues the jobs, opens the streams, a hundred a connection, and cancels one
job after the other once all streams have their snapshot. Prints JSON:
  kib_a_stream    growth of the server's resident memory, over the streams
  attach_s        until the last stream had its snapshot
  reach_*_s       from just before the cancels until a stream had its job's CANCELLED: the median and the last of them
Streams and server share the machine, and most of the time of reach_*_s is this program's: an upper bound.
"""
import argparse
import asyncio
import json
import pathlib
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests/support"), str(ROOT / "tests/faults")]

from api import OPTIONS, name_of  # noqa: E402  before grpc
from fleet import Fleet  # noqa: E402
from quantry.v1 import job_pb2, quantization_service_pb2, quantization_service_pb2_grpc  # noqa: E402
from service import find_bin, resident_mib  # noqa: E402

import grpc  # noqa: E402

STREAMS_A_CONNECTION = 100  # the server's limit


class Streams:
    def __init__(self, address, jobs, count):
        self.count = count
        connections = -(-count // STREAMS_A_CONNECTION)
        self.channels = [grpc.aio.insecure_channel(address, options=OPTIONS) for _ in range(connections)]
        self.all_attached = asyncio.Event()
        self.attached, self.seen = 0, []
        self.tasks = [asyncio.create_task(self._follow(self.channels[i % connections], jobs[i % len(jobs)])) for i in range(count)]

    async def _follow(self, channel, job):
        stub = quantization_service_pb2_grpc.QuantizationServiceStub(channel)
        request = quantization_service_pb2.WatchQuantizationJobRequest(name=name_of(job))
        async for message in stub.WatchQuantizationJob(request):
            kind = message.WhichOneof("kind")
            if kind == "snapshot":
                self.attached += 1
                if self.attached == self.count:
                    self.all_attached.set()
            elif kind == "event" and message.event.state_changed.to == job_pb2.JOB_STATE_CANCELLED:
                self.seen.append(time.monotonic())

    async def until_attached(self, seconds):
        """Fails with what a stream says when it breaks."""
        waiting = asyncio.create_task(self.all_attached.wait())
        done, _ = await asyncio.wait([waiting, *self.tasks], timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
        if waiting not in done:
            raise TimeoutError(f"{self.attached} of {self.count} streams attached within {seconds} s")

    async def finish(self):
        await asyncio.gather(*self.tasks)
        await asyncio.gather(*(channel.close() for channel in self.channels))


async def measure(fleet, jobs, count):
    server = fleet.servers["a"]
    pid = server.process.pid
    before, began = resident_mib(pid), time.monotonic()
    streams = Streams(server.address, jobs, count)
    await streams.until_attached(300)
    attached = time.monotonic() - began
    await asyncio.sleep(2)  # what attaching alone needed is given back
    watching = resident_mib(pid)
    began = time.monotonic()
    for job in jobs:
        await asyncio.to_thread(fleet.cancel, job)
    await streams.finish()
    reached = sorted(at - began for at in streams.seen)
    assert len(reached) == count, f"{len(reached)} of {count} streams saw their job's end"
    return {"streams": count, "jobs": len(jobs), "kib_a_stream": round((watching - before) * 1024 / count, 1),
            "server_mib": round(watching, 1), "attach_s": round(attached, 2), "reach_median_s": round(reached[count // 2], 3),
            "reach_all_s": round(reached[-1], 3)}


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
        print(json.dumps(asyncio.run(measure(fleet, jobs, options.streams))))
    finally:
        fleet.stop()


if __name__ == "__main__":
    main()
