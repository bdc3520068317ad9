"""From a status to an exception and its text."""
import asyncio
import pickle

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2

import quantry
from fake_server import Fake, abort, rich_status, serving
from quantry import errors


@pytest.mark.parametrize("code, kind, also", [
    (grpc.StatusCode.INVALID_ARGUMENT, quantry.InvalidRequest, ValueError),
    (grpc.StatusCode.OUT_OF_RANGE, quantry.InvalidRequest, ValueError),
    (grpc.StatusCode.NOT_FOUND, quantry.NotFound, LookupError),
    (grpc.StatusCode.ALREADY_EXISTS, quantry.Conflict, Exception),
    (grpc.StatusCode.ABORTED, quantry.Conflict, Exception),
    (grpc.StatusCode.FAILED_PRECONDITION, quantry.Conflict, Exception),
    (grpc.StatusCode.UNAUTHENTICATED, quantry.AccessDenied, Exception),
    (grpc.StatusCode.PERMISSION_DENIED, quantry.AccessDenied, Exception),
    (grpc.StatusCode.RESOURCE_EXHAUSTED, quantry.QuotaExceeded, Exception),
    (grpc.StatusCode.UNAVAILABLE, quantry.ServerUnavailable, ConnectionError),
    (grpc.StatusCode.DEADLINE_EXCEEDED, quantry.ServerUnavailable, ConnectionError),
    (grpc.StatusCode.DATA_LOSS, quantry.CorruptData, Exception),
    (grpc.StatusCode.INTERNAL, quantry.ServerError, Exception),
    (grpc.StatusCode.UNIMPLEMENTED, quantry.ServerError, Exception),
])
def test_each_code_has_its_class(code, kind, also):
    error = errors.from_status(rich_status(code, "it broke"))
    assert type(error) is kind and isinstance(error, also) and isinstance(error, quantry.QuantryError)
    assert error.code == code.name and error.message == "it broke" and error.retry_after is None


def details():
    return (error_details_pb2.ErrorInfo(reason="QUOTA_QUEUED", domain="quantry", metadata={"limit": "3"}),
            error_details_pb2.QuotaFailure(violations=[{"subject": "tenants/a", "description": "3 jobs are queued"}]),
            error_details_pb2.RetryInfo(retry_delay=Duration(seconds=2, nanos=500_000_000)))


def test_details_are_taken_apart():
    error = errors.from_status(rich_status(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many", *details()))
    assert (error.reason, error.metadata, error.retry_after) == ("QUOTA_QUEUED", {"limit": "3"}, 2.5)
    assert error.violations == (quantry.Violation("tenants/a", "3 jobs are queued"),)
    assert str(error).splitlines() == [
        "too many", "  reason: QUOTA_QUEUED", "  field:  tenants/a: 3 jobs are queued", "  retry:  after 2.5 s",
        "  next:   wait until queued jobs have run, or cancel some"]


@pytest.mark.parametrize("message, violations, lines", [
    ("spec.bits: got 5", [("spec.bits", "got 5")], []),
    ("bits: got 5", [("spec.bits", "bits: got 5")], ["  field:  spec.bits"]),
    ("it could not run: too wide; too deep", [("spec", "too wide"), ("spec", "too deep")], ["  field:  spec"]),
    ("spec.bits: got 5 (and 1 more; see the field violations)", [("spec.bits", "got 5"), ("spec.seed", "got -1")],
     ["  field:  spec.seed: got -1"]),
    ("3 blobs are missing, the first is ab (a)", [("MISSING ab", "a")], ["  field:  MISSING ab: a"]),
])
def test_a_field_line_does_not_repeat_the_message(message, violations, lines):
    error = quantry.QuantryError(message, violations=tuple(quantry.Violation(*one) for one in violations))
    assert str(error).splitlines() == [message, *lines]


@pytest.mark.parametrize("message, metadata, wanted, got", [
    ("wanted a tenant, got \"9\"", {}, "a tenant", "\"9\""),
    ("wanted a tenant, got \"9\"; use letters", {}, "a tenant", "\"9\""),
    ("the etag differs", {"wanted": "a1", "got": "b2"}, "a1", "b2"),
    ("no such job", {}, "", ""),
])
def test_wanted_and_got(message, metadata, wanted, got):
    info = error_details_pb2.ErrorInfo(reason="X", metadata=metadata)
    error = errors.from_status(rich_status(grpc.StatusCode.ABORTED, message, info))
    assert (error.wanted, error.got) == (wanted, got)


def test_errors_pickle():
    error = errors.from_status(rich_status(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many", *details()))
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error) and str(again) == str(error) and again.retry_after == 2.5
    away = pickle.loads(pickle.dumps(quantry.ServerUnavailable("gone", code="UNAVAILABLE")))
    assert away.message == "gone" and away.code == "UNAVAILABLE"


def test_unreadable_details_cost_only_the_extra_lines():
    fake = Fake()

    def info(context):
        context.set_trailing_metadata((("grpc-status-details-bin", b"\xff\xff\xff"),))
        context.abort(grpc.StatusCode.NOT_FOUND, "nothing here")

    fake.info = info
    with serving(fake) as target, pytest.raises(quantry.NotFound, match="nothing here"):
        quantry.connect(target)


@pytest.mark.parametrize("kind", ["blocking", "asyncio"])
def test_over_the_wire(kind):
    fake = Fake()
    fake.info = lambda context: abort(context, grpc.StatusCode.RESOURCE_EXHAUSTED, "too many", "QUOTA_QUEUED",
                                      details()[1], details()[2])
    with serving(fake) as target, pytest.raises(quantry.QuotaExceeded) as caught:
        if kind == "blocking":
            quantry.connect(target)
        else:
            asyncio.run(quantry.aio.connect(target))
    assert caught.value.retry_after == 2.5 and caught.value.reason == "QUOTA_QUEUED"


def test_every_reason_with_a_hint_is_in_the_table():
    from conftest import ROOT
    table = (ROOT / "docs/api/errors.md").read_text()
    assert all(f"`{reason}`" in table for reason in errors._HINTS)


def test_a_server_that_ends_a_call_is_unavailable():
    """As one does that shuts down: the call was not cancelled here."""
    class Ended:
        code = staticmethod(lambda: grpc.StatusCode.CANCELLED)
        details = staticmethod(lambda: "CANCELLED")
        trailing_metadata = staticmethod(lambda: ())

    error = errors.from_rpc(Ended(), "127.0.0.1:1", "test", False, 1)
    assert isinstance(error, quantry.ServerUnavailable) and error.code == "UNAVAILABLE"


@pytest.mark.parametrize("words", ["Socket closed", "recvmsg:Connection reset by peer", "Secure read failed"])
@pytest.mark.parametrize("secure, certified, hint", [
    (False, False, "does the server want TLS"), (True, False, "tls_cert"), (True, True, "")])
def test_a_connection_that_is_cut(words, secure, certified, hint):
    class Cut:
        code = staticmethod(lambda: grpc.StatusCode.UNAVAILABLE)
        details = staticmethod(lambda: f"failed to connect to all addresses; last error: UNKNOWN: {words}")
        trailing_metadata = staticmethod(lambda: ())

    error = errors.from_rpc(Cut(), "q:7070", "test", secure, 1, certified)
    assert error.message.startswith("no answer from the server at q:7070 (test): ") and hint in error.hint
