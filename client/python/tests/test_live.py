"""Both clients against a real quantryd, its worker and its engine."""
import asyncio
import errno
import signal
import threading
import time

import numpy as np
import pytest

import quantry
from conftest import LONG, MEASURED, QUICK, wait_for
from machine import mount_tmpfs
from quantry.safetensors import File, bf16_to_float32, float32_to_bf16


def sequences(events):
    return [event.sequence for event in events if event.sequence]


def test_the_whole_way(client, finished, tmp_path):
    job = client.get("finished")
    assert job.succeeded and job.ended and job.labels == {"team": "a"} and job.error is None
    row = job.row()
    assert row["method"] == "awq" and row["bits"] == 4 and row["state"] == "succeeded"
    assert row["recipe"] == "" and row["preprocessing"] == "none"
    assert 1 < row["perplexity_ratio"] < 2 and 0 < row["top1_agreement"] <= 1 and 4 < row["bits_linears"] < 5
    assert [block["block"] for block in job.block_rows()] == [0, 1, 2, 3, 4]
    assert all(block["loss_final"] <= block["loss_rtn"] for block in job.block_rows())
    assert {output["format"]: output["verified"] for output in job.output_rows()} == {"quantry": True, "dense": True}
    assert job.params()["awq.grid.bits"] == "4" and job.params()["outputs"] == "quantry,dense"
    assert sequences(client.events(job)) == list(range(1, job.last_sequence + 1))
    pulled = client.pull(job, tmp_path / "out")
    assert pulled.artifact.verify() == pulled.files
    pulled_row = pulled.artifact.row()
    assert pulled_row["perplexity_ratio"] == pytest.approx(row["perplexity_ratio"])
    assert {name: pulled_row[name] for name in ("method", "recipe", "preprocessing")} == \
        {name: row[name] for name in ("method", "recipe", "preprocessing")}
    assert [b["loss_final"] for b in pulled.artifact.block_rows()] == [b["loss_final"] for b in job.block_rows()]
    dense = File(pulled.artifact.output("dense") / "model.safetensors")
    loaded = pulled.artifact.load_dense()
    for name in dense.names():  # linears as bf16, the rest as it was
        tensor = dense.read(name)
        array = bf16_to_float32(float32_to_bf16(loaded[name])) if tensor.dtype == "BF16" else loaded[name]
        np.testing.assert_array_equal(array, tensor.to_float32(), err_msg=name)
    assert set(loaded) == set(dense.names())


def test_the_whole_way_in_asyncio(server, stories, tmp_path):
    async def run():
        async with await quantry.aio.connect(server.address) as client:
            assert (await client.quote(stories, **QUICK)).ok
            job = await client.submit(stories, formats="quantry", **QUICK)
            events = [event async for event in client.watch(job, after_sequence=0)]
            ended = await client.wait(job, timeout=60)
            stored = [event async for event in client.events(job)]
            pulled = await client.pull(job, tmp_path / "out")
            listed = [found.id async for found in client.list(page_size=1)]
            return events, ended, stored, pulled, listed

    events, ended, stored, pulled, listed = asyncio.run(run())
    assert ended.succeeded and ended.id in listed
    assert sequences(events) == sequences(stored) == list(range(1, ended.last_sequence + 1))
    assert events[-1].kind == "end" and pulled.artifact.verify() == pulled.files


def test_quote(client, stories):
    quote = client.quote(stories, formats=["quantry", "dense"], **QUICK)
    assert quote.ok and quote.bits_per_weight > 4 and quote.blocks == 5 and quote.steps > 0 and quote.host_memory_bytes > 0
    assert [row["format"] for row in quote.output_rows()] == ["quantry", "dense"]
    refused = client.quote(stories, **{**QUICK, "group_size": 7})
    assert not refused.ok and "7" in refused.problems[0]


def test_submit_is_idempotent(client, stories):
    again = {**QUICK, "request_id": quantry.request_id_for("test", "idempotent")}
    job = client.submit(stories, **again)
    assert client.submit(stories, **again).uid == job.uid
    with pytest.raises(quantry.Conflict) as caught:
        client.submit(stories, **{**again, "bits": 3})
    assert caught.value.reason == "REQUEST_ID_REUSED" and "leave it out" in caught.value.hint
    client.cancel(job)


def test_nothing_is_uploaded_twice(client, finished, stories):
    sent = []
    client.quote(stories, progress=lambda what, done, total: sent.append(what), **MEASURED)
    assert set(sent) == {"hashing"}


def test_model_path_outside_the_roots(client):
    with pytest.raises(quantry.AccessDenied) as caught:
        client.submit(model_path="/etc", method="rtn")
    assert caught.value.reason == "SOURCE_FORBIDDEN" and "upload" in caught.value.hint


def test_model_path(rooted, stories):
    with quantry.connect(rooted.address) as client:
        job = client.submit(model_path=stories, method="rtn", group_size="channel")
        assert client.wait(job, timeout=60).succeeded
        client.delete(job)
        client.delete(job, allow_missing=True)
        with pytest.raises(quantry.NotFound):
            client.get(job)


@pytest.mark.parametrize("call, kind, reason", [
    (lambda c: c.get("no-such-job"), quantry.NotFound, "JOB_NOT_FOUND"),
    (lambda c: list(c.watch("no-such-job")), quantry.NotFound, "JOB_NOT_FOUND"),
    (lambda c: c.wait("no-such-job"), quantry.NotFound, "JOB_NOT_FOUND"),
    (lambda c: c.pull("00000000-0000-4000-8000-000000000000", "/tmp/x"), quantry.NotFound, "ARTIFACT_NOT_FOUND"),
    (lambda c: list(c.list(filter="colour = red")), quantry.InvalidRequest, "INVALID_FILTER"),
    (lambda c: c.cancel("finished"), quantry.Conflict, "JOB_ALREADY_ENDED"),
    (lambda c: c.retry("finished"), quantry.Conflict, "JOB_NOT_RETRYABLE"),
    (lambda c: c.submit("/tmp", method="rtn"), quantry.InvalidRequest, "INVALID_CHECKPOINT"),
])
def test_what_the_server_refuses(client, finished, call, kind, reason):
    with pytest.raises(kind) as caught:
        call(client)
    assert caught.value.reason == reason and caught.value.hint and reason in str(caught.value)


def test_list_goes_over_pages(client, stories):
    labels = {"suite": "pages", "odd": 'x" AND state = "FAILED\\'}
    jobs = [client.submit(stories, labels=labels, title=str(i), check=False, **QUICK) for i in range(5)]
    for job in jobs:
        client.cancel(job, "test")
    assert [job.id for job in client.list(labels=labels, page_size=2)] == [job.id for job in reversed(jobs)]
    assert list(client.list(labels=labels, state="succeeded", method="awq")) == []
    assert {job.state for job in client.list(labels=labels)} <= {"cancelled", "cancelling"}


def test_cancelled_while_waited_for(client, stories):
    job = client.submit(stories, **LONG)
    threading.Timer(0.5, lambda: client.cancel(job, "enough")).start()
    with pytest.raises(quantry.JobCancelled) as caught:
        client.wait(job, timeout=60)
    assert caught.value.job.state == "cancelled"


def test_a_failed_job(client, stories, tmp_path):
    """A gate nothing passes: the error says so, and the artifact can be pulled all the same."""
    job = client.submit(stories, max_perplexity_ratio=0.5, **MEASURED)
    with pytest.raises(quantry.JobFailed, match="failed") as caught:
        client.wait(job, timeout=120)
    assert caught.value.reason == "QUALITY_GATE_FAILED" and "the artifact is kept" in caught.value.hint
    assert client.wait(job, raise_on_failure=False).error.reason == "QUALITY_GATE_FAILED"
    assert client.pull(job, tmp_path / "out").artifact.manifest["quality_gate_failed"]


# A worker that went with its server loses the job at once instead of after 30 s.
QUICK_LEASES = ("--lease-ttl-s=3", "--heartbeat-interval-s=1", "--sweep-interval-s=1")


def killed_and_restarted(server, at):
    """SIGKILLs the server once `at` is set, and starts it again on the same port and data."""
    def run():
        assert at.wait(60)
        server.stop(signal.SIGKILL)
        time.sleep(0.5)
        server.start()

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def see(event, at, seen):
    seen.append(event)
    if event.kind == "block":
        at.set()


@pytest.mark.parametrize("kind", ["blocking", pytest.param("asyncio", marks=pytest.mark.full)])
def test_server_killed_while_watched(make_server, stories, kind):
    server, at, seen = make_server(*QUICK_LEASES).start(), threading.Event(), []
    thread = killed_and_restarted(server, at)
    if kind == "blocking":
        with quantry.connect(server.address) as client:
            job = client.submit(stories, **LONG)
            for event in client.watch(job, after_sequence=0, timeout=120):
                see(event, at, seen)
            ended, stored = client.get(job), list(client.events(job))
    else:
        async def run():
            async with await quantry.aio.connect(server.address) as client:
                job = await client.submit(stories, **LONG)
                async for event in client.watch(job, after_sequence=0, timeout=120):
                    see(event, at, seen)
                return await client.get(job), [event async for event in client.events(job)]

        ended, stored = asyncio.run(run())
    thread.join(60)
    assert ended.succeeded and seen[-1].kind == "end"
    assert sequences(seen) == sequences(stored) == list(range(1, ended.last_sequence + 1))
    assert [event.kind for event in seen].count("snapshot") == 1


@pytest.mark.full
def test_server_killed_while_waited_for(make_server, stories):
    server, at = make_server(*QUICK_LEASES).start(), threading.Event()
    thread = killed_and_restarted(server, at)
    with quantry.connect(server.address) as client:
        job = client.submit(stories, **LONG)
        ended = client.wait(job, timeout=120, progress=lambda job: job.progress.blocks_done and at.set())
    thread.join(60)
    assert at.is_set() and ended.succeeded


def test_server_gone_for_good(make_server, stories):
    server = make_server().start()
    with quantry.connect(server.address) as client:
        job = client.submit(stories, **LONG)
        with pytest.raises(quantry.ServerUnavailable, match="no answer"):
            for event in client.watch(job, away=1):
                if server.process.poll() is None:
                    server.stop(signal.SIGKILL)


def test_wait_timeout_leaves_the_job(client, stories):
    job = client.submit(stories, **LONG)
    with pytest.raises(quantry.WaitTimeout) as caught:
        client.wait(job, timeout=0.2)
    assert not caught.value.job.ended
    client.cancel(job)


def test_a_stored_artifact_that_was_tampered_with(server, client, stories, tmp_path):
    job = client.wait(client.submit(stories, method="rtn", group_size="channel", formats="quantry"), timeout=60)
    stored = next((server.data_dir / "artifacts/default" / job.uid).rglob("model.quantry.safetensors"))
    data = bytearray(stored.read_bytes())
    data[-1] ^= 1
    stored.chmod(0o644)
    stored.write_bytes(data)
    with pytest.raises(quantry.CorruptData) as caught:
        client.pull(job, tmp_path / "out")
    assert caught.value.reason == "ARTIFACT_CORRUPT"
    assert not list((tmp_path / "out").rglob("*.safetensors")) and not (tmp_path / "out/manifest.json").exists()


@pytest.mark.parametrize("way", ["package", "cli"])
def test_pulled_onto_a_full_disk(server, client, finished, tmp_path, way):
    """Nothing half-written counts; once there is room the same pull goes on."""
    unmount = mount_tmpfs(tmp_path / "small", "4m")
    try:
        filler, out = tmp_path / "small/filler", tmp_path / "small/out"
        filler.write_bytes(bytes(3_900_000))
        if way == "package":
            with pytest.raises(quantry.LocalDiskError, match="No space left on device") as caught:
                client.pull(finished, out)
            assert caught.value.errno == errno.ENOSPC and caught.value.reason == "DISK_FULL"
            assert "goes on where it stopped" in caught.value.hint
        else:
            refused = server.cli("pull", "finished", out)
            assert refused.returncode not in (0, 7) and "No space left on device" in refused.stderr
            assert "make room and run the same pull again" in refused.stderr
        assert not (out / "manifest.json").exists()
        filler.unlink()
        if way == "cli":
            server.cli("pull", "finished", out, check=0)
        assert client.pull(finished, out).artifact.verify() > 3
    finally:
        unmount()


def test_first_artifact_in_a_folder_of_its_own(client, finished, tmp_path):
    """What the README shows."""
    wait_for(lambda: client.get("finished").ended, 60, "the job")
    pulled = client.pull("finished", tmp_path / "w4", format="quantry")
    weights = quantry.load_dense(pulled.artifact.output("quantry"))
    assert weights["model.layers.0.self_attn.q_proj.weight"].dtype == np.float32
