"""Every rpc of the service descriptors with missing, oversized and hostile requests: a new rpc or service is in here by itself.

Each request is a valid one (tests/support/valid_requests.py) with one hostile field, so that the field meets its own check.
Whatever arrives, the answer is an error the caller can act on, never INTERNAL or UNKNOWN, and the server stays ready: with
SQLite, and in the full run with PostgreSQL.
"""
import contextlib
import functools
import importlib
import re
import urllib.request

import api
import grpc
import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.rpc import error_details_pb2, status_pb2

from conftest import EXAMPLES, ROOT
from postgres import PASSWORD, running_postgres
from service import Server
from valid_requests import ValidRequests

WORKER_SERVICE = "WorkerService"
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
METHODS = {
    f"{service.name}/{method.name}": method
    for module in (importlib.import_module(f"quantry.v1.{path.stem}_pb2") for path in sorted((ROOT / "proto/quantry/v1").glob("*.proto")))
    for service in module.DESCRIPTOR.services_by_name.values() for method in service.methods}
TEXTS = ["../x", "a\0b", "x" * 65536, "tenants/other/quantizationJobs/job-1", "tenants/default/quantizationJobs/../../etc",
         "tenants/default/quantizationJobs/" + "x" * 5000, "%n%s", "'; DROP TABLE jobs; --", "\u202e\ufffd", "/etc/passwd", "0" * 64]
FEW = 2  # of these for each field deep inside a message, others for its neighbours
NUMBERS = {FieldDescriptor.CPPTYPE_INT32: (-2**31, -1, 2**31 - 1), FieldDescriptor.CPPTYPE_INT64: (-2**63, -1, 2**63 - 1),
           FieldDescriptor.CPPTYPE_UINT32: (2**32 - 1,), FieldDescriptor.CPPTYPE_UINT64: (2**64 - 1,),
           FieldDescriptor.CPPTYPE_DOUBLE: (float("nan"), float("inf"), -1e300),
           FieldDescriptor.CPPTYPE_FLOAT: (float("nan"), -1e30), FieldDescriptor.CPPTYPE_BOOL: (True,),
           FieldDescriptor.CPPTYPE_ENUM: (-1, 999)}
LIMITS = {"tenant": 64 << 20, "worker": 64 << 20}
DEEP = 6  # CreateQuantizationJob: quantization_job.spec.method.tesseraq.options...
REASONS = set(re.findall(r"^\| `([A-Z_0-9]+)` \|", (ROOT / "docs/api/errors.md").read_text(), re.MULTILINE))
# What the first check of a call reads, by the names of fields: only where one of these is hostile may a call stop there.
NAMES = {"name", "parent", "session", "job", "acquire_id", "worker_id", "worker.worker_id", "worker.incarnation",
         "quantization_job.name"}
# An offset behind the end: OUT_OF_RANGE alone (artifact_service.proto).
NO_REASON = {("ArtifactService/ReadArtifact", grpc.StatusCode.OUT_OF_RANGE)}
# Not read, and in another call that reads it.
UNREAD = {"QuantizationService/UpdateQuantizationJob": "quantization_job.spec."}
# Checks that some of the hostile fields must have met.
MET = {
    "QuantizationService/CreateQuantizationJob": {"INVALID_SPEC", "INVALID_NAME", "SOURCE_FORBIDDEN"},
    "QuantizationService/ListQuantizationJobs": {"INVALID_FILTER", "INVALID_PAGE_TOKEN", "INVALID_ARGUMENT"},
    "QuantizationService/ListJobEvents": {"INVALID_PAGE_TOKEN", "INVALID_ARGUMENT"},
    "QuantizationService/CancelQuantizationJob": {"ETAG_MISMATCH"},
    "ArtifactService/UploadBlob": {"UPLOAD_OFFSET", "CHUNK_CORRUPT", "INVALID_ARGUMENT"},
    "ArtifactService/ReadArtifact": {"ARTIFACT_NOT_FOUND"},
    "WorkerService/CompleteJob": {"LEASE_LOST", "ARTIFACT_CORRUPT", "INVALID_ARGUMENT"},
    "WorkerService/CommitCheckpoint": {"LEASE_LOST", "INVALID_ARGUMENT"},
    "WorkerService/FailJob": {"LEASE_LOST", "INVALID_ARGUMENT"},
}


def values_of(field, depth=0):
    if field.cpp_type != FieldDescriptor.CPPTYPE_STRING:
        return NUMBERS.get(field.cpp_type, ())
    first = sum(field.full_name.encode())
    texts = TEXTS if depth < 2 else [TEXTS[(first + 3 * i) % len(TEXTS)] for i in range(FEW)]
    return [text.encode() for text in texts] if field.type == FieldDescriptor.TYPE_BYTES else texts


def set_field(field, value, message):
    if field.is_repeated:
        getattr(message, field.name)[:] = [value, value]
    else:
        setattr(message, field.name, value)


def set_entry(field, key, value, message):
    getattr(message, field.name)[key] = value


def set_inside(field, change, message):
    inner = getattr(message, field.name)
    if field.is_repeated:
        change(inner[0] if inner else inner.add())
    else:
        inner.SetInParent()
        change(inner)


def changes(descriptor, depth=0):
    """(path, value, change): each calls change(message) to make one field of the message, or of those in it, hostile."""
    for field in descriptor.fields:
        if field.cpp_type != FieldDescriptor.CPPTYPE_MESSAGE:
            for value in values_of(field, depth):
                yield field.name, value, functools.partial(set_field, field, value)
        elif field.message_type.GetOptions().map_entry:
            key, value = field.message_type.fields
            for hostile in values_of(key, depth):
                yield field.name, hostile, functools.partial(set_entry, field, hostile, value.default_value)
            for hostile in values_of(value, depth):
                yield field.name, hostile, functools.partial(set_entry, field, "k", hostile)
        elif depth < DEEP:
            for path, value, change in changes(field.message_type, depth + 1):
                yield f"{field.name}.{path}", value, functools.partial(set_inside, field, change)


def call(channel, method, messages, timeout=3):
    """(code, reason, words) of the answer to these bytes; streams are read until they end."""
    path = f"/{method.containing_service.full_name}/{method.name}"
    answers = channel.stream_stream(path, lambda data: data, lambda data: data)(iter(messages), timeout=timeout)
    try:
        for _ in answers:
            pass
        return grpc.StatusCode.OK, "", ""
    except grpc.RpcError as error:
        return error.code(), reason_of(error), error.details()


def reason_of(error):
    """Of its ErrorInfo; "" without."""
    status, info = status_pb2.Status(), error_details_pb2.ErrorInfo()
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            status.ParseFromString(value)
    for detail in status.details:
        if detail.Unpack(info):
            return info.reason
    return ""


@contextlib.contextmanager
def sqlite(folder):
    yield []


@contextlib.contextmanager
def postgresql(folder):
    password = folder / "password"
    password.write_text(PASSWORD + "\n")
    password.chmod(0o600)
    with running_postgres() as store:
        yield [f"--job-store={store.uri}", f"--job-store-password-file={password}"]
        assert store.sql("SELECT count(*) > 0 FROM jobs") == "t"


@pytest.fixture(scope="module", params=[pytest.param(sqlite, id="sqlite"), pytest.param(postgresql, id="postgresql", marks=pytest.mark.full)])
def channels(request, binaries, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    with request.param(folder) as store_flags:
        server = Server(binaries, folder / "data", "--embedded=false", *store_flags, local_roots=[EXAMPLES]).start()
        yield from channels_of(server)


def channels_of(server):
    options = [("grpc.max_send_message_length", -1), ("grpc.max_metadata_size", 1 << 20)]
    with grpc.insecure_channel(server.address, options) as tenant, \
            grpc.insecure_channel(server.worker_address, options) as worker:
        yield server, {"tenant": tenant, "worker": worker}
    server.stop()


def served(channel):
    """What the port itself says: the answer to "list_services", of which the names are all that is looked at."""
    ask = channel.stream_stream(REFLECTION, lambda data: data, lambda data: data)
    (answer,) = ask(iter([b"\x3a\x01*"]), timeout=20)
    return set(re.findall(rb"quantry\.v1\.\w+", answer))


def test_no_service_is_forgotten(channels):
    """What a port serves is in the table above, behind the port that the calls go to."""
    server, by_port = channels
    wanted = {"tenant": set(), "worker": set()}
    for method in METHODS.values():
        service = method.containing_service
        wanted["worker" if service.name == WORKER_SERVICE else "tenant"].add(service.full_name.encode())
    assert {port: served(channel) for port, channel in by_port.items()} == wanted
    with urllib.request.urlopen(f"http://{server.admin}/metrics", timeout=10) as answer:
        metrics = answer.read().decode()
    assert [name for name in METHODS if name not in metrics] == [], "missing in server/rpc/service_context.cc"


@pytest.fixture(scope="module")
def valid(channels):
    server, _ = channels
    tenant, worker = api.Tenant(server.address), api.PuppetWorker(server.worker_address, "valid")
    yield ValidRequests(tenant, worker)
    tenant.close()
    worker.close()


def test_every_rpc_has_a_valid_request():
    """A new one is written down in tests/support/valid_requests.py."""
    assert set(ValidRequests.TABLE) == set(METHODS)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_whatever_arrives_is_answered(channels, valid, name):
    server, by_port = channels
    method = METHODS[name]
    port = "worker" if method.containing_service.name == WORKER_SERVICE else "tenant"
    channel = by_port[port]

    def ask(what, messages):
        code, reason, words = call(channel, method, [message.SerializeToString() for message in messages])
        if code == grpc.StatusCode.OK:
            valid.answered(name)
            return "", ""
        assert code not in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN), (what, code, words)
        assert words and (reason in REASONS or (name, code) in NO_REASON), (what, code, reason, words)
        return reason, words.partition(", got")[0]

    first_check = ask("nothing", [valid.of(name)[0].__class__()])
    assert ask("valid", valid.of(name)) == ("", "")
    met, stopped = set(), set()
    for number in range(len(valid.of(name))):
        for path, value, change in changes(method.input_type):
            if path.startswith(UNREAD.get(name, "no field")):
                continue
            messages = valid.of(name)
            change(messages[number])
            answer = ask(f"{path}={value!r:.40}", messages)
            met.add(answer[0])
            if answer == first_check != ("", ""):
                stopped.add(path)
    assert stopped <= NAMES, "the valid request is none: these never met their own checks"
    assert met >= MET.get(name, set())

    # What is no message at all, gRPC itself answers.
    code, _, _ = call(channel, method, [b"\xff\xff\xff\xff"])
    assert code != grpc.StatusCode.OK
    oversized = b"\xfa\x7f" + b"\x81\x80\x80\x20" + bytes(LIMITS[port] + 1)  # an unknown field of 64 MiB and a byte
    code, _, words = call(channel, method, [oversized], timeout=20)
    assert code == grpc.StatusCode.RESOURCE_EXHAUSTED, (code, words)
    with urllib.request.urlopen(f"http://{server.admin}/readyz", timeout=10) as ready:
        assert ready.status == 200
