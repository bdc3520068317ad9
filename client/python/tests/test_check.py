"""submit() asks for a quote first, where there is one to be had."""
import asyncio
import time

import grpc
import pytest

import quantry
import quantry.aio
from conftest import QUICK
from fake_server import Fake, abort, serving
from quantry.v1 import quantization_service_pb2 as jobs_pb2

JOB = {"model_path": "/m", "method": "rtn", "labels": {"team": "a"}, "reuse_result": True}
KINDS = pytest.mark.parametrize("kind", ["blocking", "asyncio"])


def submit(fake, kind="blocking", timeout=10.0, **arguments):
    async def run(target):
        async with quantry.AsyncClient(target, timeout=timeout) as client:
            return await client.submit(**arguments)

    with serving(fake) as target:
        if kind == "asyncio":
            return asyncio.run(run(target))
        with quantry.Client(target, timeout=timeout) as client:
            return client.submit(**arguments)


@KINDS
def test_what_the_model_cannot_do_is_refused(kind):
    fake = Fake()
    fake.quote = lambda context: jobs_pb2.Quote(problems=["INVALID_SPEC: down_proj is 172 wide", "gate_proj too"])
    with pytest.raises(quantry.InvalidRequest) as caught:
        submit(fake, kind, **JOB)
    assert caught.value.message == "the job could not run: INVALID_SPEC: down_proj is 172 wide; gate_proj too"
    assert caught.value.reason == "INVALID_SPEC" and caught.value.code == "INVALID_ARGUMENT"
    assert [violation.description for violation in caught.value.violations] == [
        "INVALID_SPEC: down_proj is 172 wide", "gate_proj too"]
    assert not fake.creates and len(fake.quotes) == 1


@KINDS
def test_the_check_asks_for_the_job_that_is_submitted(kind):
    fake = Fake()
    submit(fake, kind, request_id=quantry.request_id_for("check"), **JOB)
    (asked,), (made,) = fake.quotes, fake.creates
    assert asked.validate_only and not asked.request_id and made.request_id
    assert asked.quantization_job == made.quantization_job and asked.reuse_result == made.reuse_result


def test_a_spec_that_the_quote_refuses():
    fake = Fake()
    fake.quote = lambda context: abort(context, grpc.StatusCode.INVALID_ARGUMENT, "group_size: got 7", "INVALID_SPEC")
    with pytest.raises(quantry.InvalidRequest, match="group_size: got 7"):
        submit(fake, **JOB)
    assert not fake.creates


@pytest.mark.parametrize("code, reason", [
    (grpc.StatusCode.UNAVAILABLE, "STORAGE_ERROR"), (grpc.StatusCode.UNIMPLEMENTED, "UNIMPLEMENTED_RPC"),
    (grpc.StatusCode.NOT_FOUND, "FILE_NOT_FOUND"), (grpc.StatusCode.UNIMPLEMENTED, ""), (grpc.StatusCode.CANCELLED, "")])
def test_without_a_quote_the_job_is_submitted(caplog, code, reason):
    fake = Fake()
    fake.quote = lambda context: abort(context, code, "no quote", reason)
    with caplog.at_level("INFO", "quantry"):
        assert submit(fake, **JOB).id == "fake"
    assert fake.quotes and len(fake.creates) == 1 and not caplog.messages


@KINDS
@pytest.mark.parametrize("timeout, most", [(10.0, 5), (3.0, 3)])
def test_a_slow_quote_is_not_waited_for(caplog, kind, timeout, most):
    """5 seconds, or what the caller waits for any answer if that is less; the log says that the check was left out."""
    fake = Fake()

    def slow(context):
        while context.is_active():
            time.sleep(0.02)

    fake.quote = slow
    assert submit(fake, kind, timeout, **JOB).id == "fake"
    assert most / 2 < fake.remaining[0] < most + 0.5 and len(fake.creates) == 1  # gRPC rounds a deadline up
    (record,) = [record for record in caplog.records if record.name == "quantry"]
    assert record.levelname == "WARNING" and record.getMessage().startswith("the check of the job was left out: the server at ")
    assert f"did not answer within {most} s" in record.getMessage()


def test_no_quote_is_asked_for_where_the_check_is_off():
    fake = Fake()
    submit(fake, check=False, **JOB)
    assert not fake.quotes and len(fake.creates) == 1


@pytest.mark.parametrize("arguments", [
    {"model_uri": "hf://org/model"}, {"model_uri": "s3://bucket/model"},
    {"model_path": "/m", "calibration": "s3://bucket/text"}, {"model_path": "/m", "evaluation": "s3://bucket/text"},
    {"model_path": "/m", "preprocessing_corpus": "s3://bucket/text"}])
def test_what_would_be_fetched_is_not_quoted(arguments):
    fake = Fake()
    submit(fake, method="rtn", **arguments)
    assert not fake.quotes and len(fake.creates) == 1


def test_a_real_engine_is_asked(server, stories, monkeypatch):
    monkeypatch.setattr("quantry._core.CHECK_TIME", 60.0)  # a busy machine may take longer to load it
    with quantry.connect(server.address, timeout=60) as client:
        with pytest.raises(quantry.InvalidRequest, match="the job could not run.* 7") as caught:
            client.submit(stories, job_id="refused", **{**QUICK, "group_size": 7})
        assert caught.value.reason == "INVALID_SPEC"
        with pytest.raises(quantry.NotFound):
            client.get("refused")
        client.cancel(client.submit(stories, **QUICK))
