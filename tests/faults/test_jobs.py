"""F16, F17, F23: cancels at every moment, jobs that poison, tenants that flood."""
import math
import random
import signal
import statistics
import threading
import time
import uuid

import pytest

from api import errors
from fleet import QUICK, call_in_parallel
from quantry.v1 import job_pb2, quantization_service_pb2
from service import wait_for


def cancel(fleet, job, server="a"):
    """Acknowledged, or refused because the job had ended."""
    try:
        fleet.cancel(job, server)
    except errors.Conflict as refused:
        assert refused.reason == "JOB_ALREADY_ENDED"


def test_f16_cancel_races(fleet):
    """Before, during and after claim and commit, by seeded schedules: what was acknowledged holds."""
    puppet = fleet.puppet("job-f16")
    for number in range(12):
        job = f"f16-puppet-{number}"
        fleet.submit(job, method="gptq")
        moment = number % 4
        if moment == 0:  # the claim races with the cancel
            lease, _ = call_in_parallel(2, lambda i: fleet.acquire(puppet, 0.3) if i == 0 else cancel(fleet, job, "b"))
            if lease is None:
                continue
        else:
            lease = fleet.acquire(puppet)
        if moment == 1:
            cancel(fleet, job)
            assert puppet.beat(lease) == "CANCEL"
            fleet.write(puppet, "fail", lease, cancelled=True)
            continue
        digest = fleet.put_artifact(lease)
        if moment == 2:  # the commit races with the cancel
            call_in_parallel(2, lambda i: fleet.write(puppet, "complete", lease, digest) if i == 0 else cancel(fleet, job, "b"))
            continue
        try:
            fleet.write(puppet, "complete", lease, digest)
        except errors.Conflict as refused:
            assert refused.reason == "LEASE_LOST" and moment == 0
        cancel(fleet, job)

    draw = random.Random(16)
    for number in range(10):
        fleet.submit(f"f16-{number}", QUICK)
    for number in range(10):
        time.sleep(draw.uniform(0, 0.15))
        cancel(fleet, f"f16-{number}", draw.choice("ab"))
    for number in range(10):
        fleet.wait_end(f"f16-{number}")


POISON = {
    "segfault": ("block\nsignal 11\n", "ENGINE_CRASHED"),
    "abort": ("block\nsignal 6\n", "ENGINE_CRASHED"),
    "killed": ("block\nsignal 9\n", "ENGINE_CRASHED"),
    "silent-exit": ("block\nexit 0\n", "ENGINE_PROTOCOL"),
    "status": ("block\nexit 77\n", "ENGINE_CRASHED"),
    "no-artifact": ("block\ncomplete\n", "ENGINE_PROTOCOL"),
    "busy-loop": ("block\nspin\n", "NO_PROGRESS"),
    "asleep": ("ignore-term\nblock\nhang\n", "NO_PROGRESS"),
}
STRANGE = {
    "garbage": "garbage\n" * 20,
    "huge-line": "huge-line 5000000\n",
    "nan": "nan\n" * 5 + "sleep 5000\n",  # longer than a lease
}


@pytest.mark.parametrize("attempts", [1, pytest.param(3, marks=pytest.mark.full)])
def test_f17_poison_jobs(make_fleet, attempts):
    """Each ends FAILED with its reason after its attempts; the healthy ones among them do not notice."""
    fleet = make_fleet(ttl_s=3).start(workers=0)
    fleet.worker("w1", slots=12)
    limits = job_pb2.StopLimits()
    limits.max_no_progress.FromMilliseconds(1500)
    for name, (script, _) in POISON.items():
        fleet.submit(f"f17-{name}", script, retry_policy=job_pb2.RetryPolicy(max_attempts=attempts), stop_limits=limits)
    for name, script in STRANGE.items():
        fleet.submit(f"f17-{name}", "block\n" + script + "block\nblock\nblock\nartifact\ncomplete\n")
    fleet.submit("f17-healthy", QUICK)
    assert fleet.wait_end("f17-healthy").epoch == 1
    for name in STRANGE:
        found = fleet.wait_end(f"f17-{name}")
        assert fleet.state(f"f17-{name}") == "SUCCEEDED", found
    for name, (_, reason) in POISON.items():
        found = fleet.wait_end(f"f17-{name}")
        assert found.state_reason == reason, (name, found.state_reason, found.error)
    # Each attempt's report goes to the server that leads its worker: counted once between them.
    died = sum(fleet.metric(server, "quantry_attempt_engine_signals_total") for server in fleet.servers)
    assert died == 3 * attempts, died
    wait_for(lambda: not fleet.workers["w1"].engines(), 15, "every engine to be gone")
    fleet.check()


def test_f17_workers_that_vanish(fleet):
    """A job that takes three different workers with it is POISON_JOB."""
    fleet.submit("f17-poison", method="gptq")
    for number in range(3):
        puppet = fleet.puppet(f"f17-victim-{number}", "ab"[number % 2])
        lease = wait_for(lambda: fleet.acquire(puppet), 20, "the job")
        assert lease.epoch == number + 1
        puppet.register(new_incarnation=True)
    found = fleet.wait_end("f17-poison")
    assert found.state_reason == "POISON_JOB"


def percentiles(times):
    """Of seconds: "p50 3 ms, p99 9 ms, max 12 ms", and the p99."""
    ordered = sorted(times)
    p99 = ordered[math.ceil(0.99 * len(ordered)) - 1]
    return f"p50 {statistics.median(ordered) * 1e3:.0f} ms, p99 {p99 * 1e3:.0f} ms, max {ordered[-1] * 1e3:.0f} ms", p99


@pytest.mark.parametrize("flood", [pytest.param(500, id="500"), pytest.param(1_000_000, id="1000000", marks=pytest.mark.full)])
def test_f23_flood(make_fleet, session_postgres, flood):
    """One tenant queues a flood; the others' calls and jobs stay quick: it has its share of the workers and no more."""
    fleet = make_fleet(postgres=session_postgres, servers=2).start(workers=0)
    stop = threading.Event()

    def submit_as(tenant, i=0):
        """Seconds it took at one server or the other; not in the history."""
        request = quantization_service_pb2.CreateQuantizationJobRequest(
            parent=f"tenants/{tenant}", quantization_job=job_pb2.QuantizationJob(spec=fleet.spec()), request_id=str(uuid.uuid4()))
        began = time.monotonic()
        fleet.api("ab"[i % 2]).jobs.CreateQuantizationJob(request, timeout=20)
        return time.monotonic() - began

    def flood_on(i):
        while not stop.is_set():
            try:
                submit_as("loud", i)
            except Exception:  # a full queue refuses: that is the point
                time.sleep(0.01)

    submit_as("loud")
    before = [submit_as("quiet", number) for number in range(100)]
    session_postgres.copy_jobs("loud", flood, fleet.database)
    floods = [threading.Thread(target=flood_on, args=(i,)) for i in range(2)]
    for thread in floods:
        thread.start()
    fleet.worker("w1", "a", slots=2)
    fleet.worker("w2", "b", slots=2)
    submits, waits = [], []
    try:
        for number in range(8):
            submits += [submit_as("quiet", i) for i in range(25)]
            began = time.monotonic()
            fleet.submit(f"f23-{number}")
            submits.append(time.monotonic() - began)
            fleet.wait_end(f"f23-{number}")
            waits.append(time.monotonic() - began)
    finally:
        stop.set()
        for thread in floods:
            thread.join()
    text, p99 = percentiles(submits)
    print(f"flood of {flood}: {len(submits)} submits of others {text} (without it {percentiles(before)[0]}); "
          f"submit to end p50 {statistics.median(waits) * 1e3:.0f} ms, max {max(waits) * 1e3:.0f} ms")
    assert p99 < 0.5 and max(waits) < 15
    for worker in fleet.workers.values():
        worker.stop(signal.SIGKILL)
    fleet.check()
