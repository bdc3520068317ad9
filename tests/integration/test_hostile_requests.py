"""Every rpc of the service descriptors with missing, oversized and hostile requests: a new rpc or service is in here by itself.

Whatever arrives, the answer is an error the caller can act on, never INTERNAL or UNKNOWN, and the server stays ready.
"""
import importlib
import re
import urllib.request

import api  # noqa: F401  makes quantry.v1 importable
import grpc
import pytest
from google.protobuf import message_factory
from google.protobuf.descriptor import FieldDescriptor

from conftest import ROOT

WORKER_SERVICE = "WorkerService"
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
METHODS = {
    f"{service.name}/{method.name}": method
    for module in (importlib.import_module(f"quantry.v1.{path.stem}_pb2") for path in sorted((ROOT / "proto/quantry/v1").glob("*.proto")))
    for service in module.DESCRIPTOR.services_by_name.values() for method in service.methods}
TEXTS = ["../x", "a\0b", "x" * 65536, "tenants/other/quantizationJobs/job-1", "tenants/default/quantizationJobs/../../etc",
         "tenants/default/quantizationJobs/" + "x" * 5000, "%n%s", "'; DROP TABLE jobs; --", "\u202e\ufffd"]
NUMBERS = {FieldDescriptor.CPPTYPE_INT32: (-2**31, -1, 2**31 - 1), FieldDescriptor.CPPTYPE_INT64: (-2**63, -1, 2**63 - 1),
           FieldDescriptor.CPPTYPE_UINT32: (2**32 - 1,), FieldDescriptor.CPPTYPE_UINT64: (2**64 - 1,),
           FieldDescriptor.CPPTYPE_DOUBLE: (float("nan"), float("inf"), -1e300),
           FieldDescriptor.CPPTYPE_FLOAT: (float("nan"), -1e30)}
LIMITS = {"tenant": 64 << 20, "worker": 64 << 20}
DEEP = 4


def variants(descriptor, depth=0):
    """(what, message) for every field of the message and of those in it, one field at a time."""
    make = message_factory.GetMessageClass(descriptor)
    for field in descriptor.fields:
        repeated = field.is_repeated
        if field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE:
            if field.message_type.GetOptions().map_entry or depth == DEEP:
                continue
            for what, inner in variants(field.message_type, depth + 1):
                message = make()
                (getattr(message, field.name).add() if repeated else getattr(message, field.name)).CopyFrom(inner)
                yield f"{field.name}.{what}", message
            continue
        if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
            values = [text.encode() for text in TEXTS] if field.type == FieldDescriptor.TYPE_BYTES else TEXTS
        elif field.cpp_type == FieldDescriptor.CPPTYPE_ENUM:
            values = [999]
        else:
            values = NUMBERS.get(field.cpp_type, ())
        for value in values:
            message = make()
            if repeated:
                getattr(message, field.name).extend([value, value])
            else:
                setattr(message, field.name, value)
            yield f"{field.name}={str(value)[:30]!r}", message


def filled(descriptor):
    """Every text a name that could be one, so that requests get further than the first check."""
    make = message_factory.GetMessageClass(descriptor)
    message = make()
    for field in descriptor.fields:
        if field.cpp_type == FieldDescriptor.CPPTYPE_STRING and not field.is_repeated:
            setattr(message, field.name, b"x" if field.type == FieldDescriptor.TYPE_BYTES else "tenants/default")
    return message


def call(channel, method, data, timeout=3):
    """The status of one request; streams are read until they end."""
    path = f"/{method.containing_service.full_name}/{method.name}"
    answers = channel.stream_stream(path, lambda data: data, lambda data: data)(iter([data]), timeout=timeout)
    try:
        for _ in answers:
            pass
        return grpc.StatusCode.OK, ""
    except grpc.RpcError as error:
        return error.code(), error.details()


@pytest.fixture(scope="module")
def channels(binaries, tmp_path_factory):
    from service import Server
    server = Server(binaries, tmp_path_factory.mktemp("hostile") / "data", "--embedded=false").start()
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


@pytest.mark.parametrize("name", sorted(METHODS))
def test_whatever_arrives_is_answered(channels, name):
    server, by_port = channels
    method = METHODS[name]
    port = "worker" if method.containing_service.name == WORKER_SERVICE else "tenant"
    channel = by_port[port]
    bad = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN}
    requests = [("nothing", b""), ("names", filled(method.input_type).SerializeToString())]
    requests += [(what, message.SerializeToString()) for what, message in variants(method.input_type)]
    for what, data in requests:
        code, details = call(channel, method, data)
        assert code not in bad, (what, code, details)
        assert code == grpc.StatusCode.OK or details, (what, code)
    # What is no message at all, gRPC itself answers.
    code, _ = call(channel, method, b"\xff\xff\xff\xff")
    assert code != grpc.StatusCode.OK
    oversized = b"\xfa\x7f" + b"\x81\x80\x80\x20" + bytes(LIMITS[port] + 1)  # an unknown field of 64 MiB and a byte
    code, details = call(channel, method, oversized, timeout=20)
    assert code == grpc.StatusCode.RESOURCE_EXHAUSTED, (code, details)
    with urllib.request.urlopen(f"http://{server.admin}/readyz", timeout=10) as ready:
        assert ready.status == 200
