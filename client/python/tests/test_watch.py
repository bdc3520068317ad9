"""Watching over streams that break: no gap, nothing twice, and an end."""
import asyncio
import sys
import threading
import time

import grpc
import pytest

import quantry
from fake_server import Fake, JOB, abort, end, event, serving, snapshot
from quantry import _retry
from quantry._core import Core, request_id_for
from quantry._view import JobView
from quantry.v1 import job_pb2, quantization_service_pb2 as jobs_pb2


@pytest.fixture(autouse=True)
def no_waits(monkeypatch):
    monkeypatch.setattr(_retry, "FIRST_WAIT", 0.01)


def torn(code=grpc.StatusCode.UNAVAILABLE, message="connection reset", reason=""):
    return lambda context: abort(context, code, message, reason)


def watched(fake, kind="blocking", **options):
    with serving(fake) as target:
        if kind == "blocking":
            with quantry.Client(target) as client:
                return list(client.watch("fake", **options))

        async def run():
            async with quantry.AsyncClient(target) as client:
                return [event async for event in client.watch("fake", **options)]

        return asyncio.run(run())


def shown(events):
    return [(e.kind, e.sequence) for e in events]


WHOLE = [("snapshot", 0), ("stage", 1), ("stage", 2), ("stage", 3), ("stage", 4), ("end", 0)]


@pytest.mark.parametrize("kind", ["blocking", "asyncio"])
@pytest.mark.parametrize("scripts, asked", [
    ([[snapshot(), event(1), event(2), event(3), event(4), end()]], [0]),
    ([[snapshot(), event(1), event(2), torn()], [snapshot(4), event(3), event(4), end()]], [0, 2]),
    # what was seen comes again
    ([[snapshot(), event(1), event(2), torn()], [snapshot(4), event(1), event(2), event(3), event(4), end()]], [0, 2]),
    # a drained server ends the stream, a restarted one fails a few times
    ([[snapshot(), event(1)], [torn()], [torn(grpc.StatusCode.INTERNAL, "RST_STREAM")], [snapshot(3), event(2), event(3)],
      [snapshot(4), event(4), end()]], [0, 1, 1, 1, 3]),
    ([[snapshot(), event(1), torn(reason="SERVER_DRAINING")], [snapshot(4), event(2), event(3), event(4), end()]], [0, 1]),
])
def test_reattach(kind, scripts, asked):
    fake = Fake()
    fake.watches = [list(script) for script in scripts]
    assert shown(watched(fake, kind)) == WHOLE
    assert [request.after_sequence for request in fake.watch_requests] == asked


@pytest.mark.parametrize("kind", ["blocking", "asyncio"])
def test_a_history_that_breaks_off(kind):
    fake = Fake()
    stored = [event(n).event for n in (1, 2, 3)]
    fake.pages = [(stored[:2], "next"), torn(), torn(grpc.StatusCode.INTERNAL, "RST_STREAM"), (stored, "")]
    fake.watches = [[snapshot(3), event(4), end()]]
    assert shown(watched(fake, kind, after_sequence=0)) == [
        ("stage", 1), ("stage", 2), ("stage", 3), ("snapshot", 0), ("stage", 4), ("end", 0)]
    assert [request.after_sequence for request in fake.watch_requests] == [3]


def test_a_compacted_history_shows_as_a_second_snapshot():
    fake = Fake()
    fake.watches = [[snapshot(), event(1), torn()],
                    [torn(grpc.StatusCode.OUT_OF_RANGE, "too old", "EVENTS_COMPACTED")],
                    [snapshot(7), event(8), end()]]
    assert shown(watched(fake)) == [("snapshot", 0), ("stage", 1), ("snapshot", 0), ("stage", 8), ("end", 0)]


def test_a_gap_is_an_error():
    fake = Fake()
    fake.watches = [[snapshot(), event(1), event(3), end()]]
    with pytest.raises(quantry.CorruptData, match="wanted event 2 .* got 3"):
        watched(fake)


@pytest.mark.parametrize("failure, kind", [
    (torn(grpc.StatusCode.NOT_FOUND, "deleted", "JOB_NOT_FOUND"), quantry.NotFound),
    (torn(grpc.StatusCode.PERMISSION_DENIED, "no", "PERMISSION_DENIED"), quantry.AccessDenied),
    (torn(grpc.StatusCode.INTERNAL, "a bug", "INTERNAL"), quantry.ServerError),
])
def test_what_waiting_cannot_mend(failure, kind):
    fake = Fake()
    fake.watches = [[snapshot(), failure]]
    with pytest.raises(kind):
        watched(fake)


def test_a_server_that_stays_away():
    fake = Fake()
    fake.watches = [[snapshot(), event(1), torn()]] + [[torn()]] * 1000
    with pytest.raises(quantry.ServerUnavailable):
        watched(fake, away=0.2)
    assert len(fake.watch_requests) > 2


@pytest.mark.parametrize("code, reason", [
    (grpc.StatusCode.UNAVAILABLE, "SERVER_DRAINING"), (grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE"),
    (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUOTA_WATCHES"), (grpc.StatusCode.UNAVAILABLE, "")])
@pytest.mark.parametrize("kind", ["blocking", "asyncio"])
def test_a_server_that_has_answered_is_waited_for_at_once(kind, code, reason):
    """It took the job a moment ago, and refuses the first watch."""
    fake = Fake()
    fake.watches = [[torn(code, "not now", reason)], [snapshot(), end()]]
    with serving(fake) as target:
        if kind == "blocking":
            with quantry.Client(target) as client:
                client.server_info()
                assert client.wait("fake").succeeded
        else:
            async def run():
                async with quantry.AsyncClient(target) as client:
                    await client.server_info()
                    assert (await client.wait("fake")).succeeded

            asyncio.run(run())
    assert len(fake.watch_requests) == 2


def test_a_server_that_goes_down_after_the_end():
    fake = Fake()
    fake.watches = [[snapshot(), end()]]
    fake.GetQuantizationJob = lambda request, context: abort(context, grpc.StatusCode.UNAVAILABLE, "going down")
    with serving(fake) as target, quantry.Client(target) as client:
        assert client.wait("fake").succeeded


def test_a_server_that_never_was_there():
    with pytest.raises(quantry.ServerUnavailable, match="no answer"), quantry.Client("127.0.0.1:1") as client:
        list(client.watch("fake"))


@pytest.mark.parametrize("kind", ["blocking", "asyncio"])
def test_wait_times_out_and_the_job_goes_on(kind):
    fake = Fake()

    def silence(context):
        while context.is_active():
            time.sleep(0.02)

    fake.watches = [[snapshot(), event(1), silence]]
    with serving(fake) as target, pytest.raises(quantry.WaitTimeout, match="did not end within 0.3 s") as caught:
        if kind == "blocking":
            with quantry.Client(target) as client:
                client.wait("fake", timeout=0.3)
        else:
            async def run():
                async with quantry.AsyncClient(target) as client:
                    await client.wait("fake", timeout=0.3)

            asyncio.run(run())
    assert isinstance(caught.value, TimeoutError) and caught.value.job.progress.stage == "quantizing"


def hang(context):
    while context.is_active():
        time.sleep(0.01)


def test_close_ends_a_watch_in_another_thread():
    fake, seen, raised = Fake(), threading.Event(), []
    fake.watches = [[snapshot(), event(1), hang], [snapshot(1), event(2), end()]]
    with serving(fake) as target:
        client = quantry.Client(target)

        def watch():
            try:
                for one in client.watch("fake"):
                    if one.sequence == 1:
                        seen.set()
            except quantry.QuantryError as error:
                raised.append(error)

        thread = threading.Thread(target=watch)
        thread.start()
        assert seen.wait(10)
        client.close()
        thread.join(10)
        assert not thread.is_alive() and [str(error) for error in raised] == ["this client is closed\n  next:   connect() again"]
        with pytest.raises(quantry.Conflict, match="this client is closed"):
            client.server_info()
    assert len(fake.watch_requests) == 1


@pytest.mark.parametrize("kind", ["blocking", "asyncio"])
def test_close_ends_a_watch_of_a_connection_that_was_left(kind):
    fake = Fake()
    fake.watches = [[snapshot(), event(1), hang]]
    fake.info = lambda context: abort(context, grpc.StatusCode.UNAVAILABLE, "no database", "STORE_UNAVAILABLE")

    async def follow(client, seen):
        async for one in client.watch("fake"):
            if one.sequence == 1:
                seen.set()

    async def run():
        client, seen = quantry.AsyncClient(target), asyncio.Event()
        watch = asyncio.create_task(follow(client, seen))
        await asyncio.wait_for(seen.wait(), 10)
        with pytest.raises(quantry.ServerUnavailable):
            await client.server_info()
        await client.close()
        with pytest.raises(quantry.Conflict, match="this client is closed"):
            await asyncio.wait_for(watch, 10)

    with serving(fake) as target:
        if kind == "asyncio":
            return asyncio.run(run())
        client, raised, seen = quantry.Client(target), [], threading.Event()

        def watch():
            with pytest.raises(quantry.Conflict, match="this client is closed"):
                for one in client.watch("fake"):
                    if one.sequence == 1:
                        seen.set()
            raised.append(True)

        thread = threading.Thread(target=watch)
        thread.start()
        assert seen.wait(10)
        with pytest.raises(quantry.ServerUnavailable):
            client.server_info()
        client.close()
        thread.join(10)
        assert raised


def test_leaving_early_cancels_the_stream():
    fake, over = Fake(), threading.Event()
    fake.watches = [[lambda context: context.add_callback(over.set), snapshot(), event(1), hang]]
    with serving(fake) as target, quantry.Client(target) as client:
        for seen in client.watch("fake"):
            if seen.sequence == 1:
                break
        assert over.wait(5)


def test_progress_function_sees_the_job():
    fake, seen = Fake(), []
    fake.watches = [[snapshot(), event(1), end()]]
    with serving(fake) as target, quantry.Client(target) as client:
        job = client.wait("fake", progress=lambda job: seen.append((job.state, job.progress.stage)))
    assert seen == [("running", ""), ("running", "quantizing"), ("succeeded", "")]
    assert job.name == JOB and job.succeeded


def test_progress_is_a_bar(capsys):
    fake = Fake()
    fake.watches = [[snapshot(), event(1), end()]]
    with serving(fake) as target, quantry.Client(target) as client:
        client.wait("fake", progress=True)
    last = capsys.readouterr().err.rstrip().rsplit("\r", 1)[-1]
    assert last.startswith("100%|") and last.endswith("| fake: succeeded")


def test_a_bar_without_tqdm(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    with serving(Fake()) as target, quantry.Client(target) as client:
        with pytest.raises(quantry.InvalidRequest, match="tqdm, which is not installed") as caught:
            client.wait("fake", progress=True)
    assert "quantry[progress]" in caught.value.hint


@pytest.mark.parametrize("state, kind, text", [
    (job_pb2.JOB_STATE_FAILED, quantry.JobFailed, "job fake failed: no memory"),
    (job_pb2.JOB_STATE_CANCELLED, quantry.JobCancelled, "job fake was cancelled"),
])
def test_a_job_that_did_not_succeed(state, kind, text):
    job = job_pb2.QuantizationJob(name=JOB, state=state)
    if state == job_pb2.JOB_STATE_FAILED:
        job.error.code, job.error.message = 8, "no memory"
    fake = Fake()
    fake.GetQuantizationJob = lambda request, context: job
    fake.watches = [[snapshot(), end(state)], [snapshot(), end(state)]]
    with serving(fake) as target, quantry.Client(target) as client:
        with pytest.raises(kind, match=text) as caught:
            client.wait("fake")
        assert caught.value.job.id == "fake"
        assert client.wait("fake", raise_on_failure=False).state == caught.value.job.state


def test_view_keeps_what_it_saw_apart_from_what_it_shows():
    view = JobView()
    first = view.apply(snapshot()).job
    view.apply(event(1))
    assert first.last_sequence == 0 and view.seen().last_sequence == 1


def test_losses_stay_between_blocks():
    view = JobView()
    view.apply(snapshot())
    block = event(1)
    block.event.block_done.loss_rtn, block.event.block_done.loss_final = 3, 2
    view.apply(block)
    between = jobs_pb2.WatchQuantizationJobResponse(progress=job_pb2.JobProgress(ratio=0.5, blocks_done=1))
    job = view.apply(between).job
    assert (job.progress.ratio, job.progress.loss_before, job.progress.loss_after) == (0.5, 3, 2)
    between.progress.loss_before = between.progress.loss_after = 1
    assert view.apply(between).job.progress.loss_after == 1


def test_request_ids_are_the_same_for_the_same_parts():
    assert request_id_for("dag", 1) == request_id_for("dag", "1") != request_id_for("dag1")
    assert len(request_id_for("x")) == 36


def test_names_are_checked_before_the_server():
    core = Core(None, "default")
    assert core.name_of("nightly") == "tenants/default/quantizationJobs/nightly"
    assert core.name_of(JOB) == JOB
    for bad in ("abc", "Nightly", "a/b", "tenants/default/artifacts/abcd", ""):
        with pytest.raises(quantry.InvalidRequest):
            core.name_of(bad)
