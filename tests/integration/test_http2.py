"""The limits of the ports against clients that keep no rule of HTTP/2. Whatever they do, others are served on."""
import contextlib
import select
import socket
import struct
import time
import urllib.request

import api  # noqa: F401  makes quantry.v1 importable
import grpc
import h2.config
import h2.connection
import h2.events
import pytest
from h2.errors import ErrorCodes
from h2.settings import SettingCodes
from quantry.v1 import quantization_service_pb2 as jobs_pb2, worker_service_pb2 as worker_pb2
from service import resident_mib, wait_for

MAX_STREAMS = 1000
TENANT_MESSAGE = 1 << 20
WORKER_MESSAGE = 4 << 20
INFO = "/quantry.v1.QuantizationService/GetServerInfo"
BEAT = "/quantry.v1.WorkerService/Heartbeat"


@pytest.fixture(scope="module")
def server(binaries, tmp_path_factory):
    from service import Server
    server = Server(binaries, tmp_path_factory.mktemp("http2") / "data", "--embedded=false").start()
    yield server
    server.stop()


@pytest.fixture(autouse=True)
def others_are_served(server):
    """By connections that were open before, and by new ones."""
    with grpc.insecure_channel(server.address) as before:
        info(before)
        yield
        info(before)
        with grpc.insecure_channel(server.address) as after:
            info(after)
    with urllib.request.urlopen(f"http://{server.admin}/readyz", timeout=10) as ready:
        assert ready.status == 200


def info(channel, timeout=20):
    data = channel.unary_unary(INFO, lambda data: data, lambda data: data)(b"", timeout=timeout)
    assert jobs_pb2.ServerInfo.FromString(data).version


class Peer:
    """A connection of a client that sends what it likes. `events` is what came back."""

    def __init__(self, address):
        host, _, port = address.rpartition(":")
        self.socket = socket.create_connection((host, int(port)), timeout=20)
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
        self.h2.initiate_connection()
        self.events, self.received = [], b""
        self.authority = address

    def headers(self, path, more=(), end=False):
        """Begins a call; its stream."""
        stream = self.h2.get_next_available_stream_id()
        self.h2.send_headers(stream, [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", self.authority),
                                      ("te", "trailers"), ("content-type", "application/grpc"), *more], end_stream=end)
        return stream

    def flush(self):
        """False when the server has closed the connection."""
        try:
            self.socket.sendall(self.h2.data_to_send())
            return True
        except ConnectionError:
            return False

    def read_until(self, wanted):
        """Reads on until wanted(events), or to the end of the connection; what wanted() said at last."""
        while not (found := wanted(self.events)):
            if not self.take_frame():
                with contextlib.suppress(ConnectionError):
                    if data := self.socket.recv(1 << 16):
                        self.received += data
                        continue
                return wanted(self.events)
        return found

    def take_frame(self):
        """One at a time: what comes after the one that is waited for may be against the rules."""
        size = 9 + int.from_bytes(self.received[:3], "big")
        if len(self.received) < size:
            return False
        frame, self.received = self.received[:size], self.received[size:]
        self.events += self.h2.receive_data(frame)
        return self.flush() or True


@contextlib.contextmanager
def peer(address, greeted=True):
    """greeted: it has said that it knows the server's settings, from when on gRPC holds it to them."""
    found = Peer(address)
    try:
        found.flush()
        if greeted:
            found.read_until(of_kind(h2.events.RemoteSettingsChanged))
        yield found
    finally:
        found.socket.close()


def of_kind(kind):
    return lambda events: [event for event in events if isinstance(event, kind)]


def status_of(stream):
    """What the call ended with: grpc-status, or how its stream was reset."""
    def find(events):
        for event in events:
            if getattr(event, "stream_id", None) != stream:
                continue
            if isinstance(event, h2.events.StreamReset):
                return event.error_code
            if isinstance(event, (h2.events.TrailersReceived, h2.events.ResponseReceived)):
                status = dict(event.headers).get("grpc-status")
                if status is not None:
                    return grpc.StatusCode[next(code.name for code in grpc.StatusCode if code.value[0] == int(status))]
        return None
    return find


def test_more_streams_than_there_may_be(server):
    """The one too many ends the connection, and the calls of nobody else."""
    with peer(server.address) as client:
        (settings,) = of_kind(h2.events.RemoteSettingsChanged)(client.events)
        assert settings.changed_settings[SettingCodes.MAX_CONCURRENT_STREAMS].new_value == MAX_STREAMS
        for _ in range(MAX_STREAMS):
            client.headers(INFO)
        client.h2.ping(b"all read")
        client.flush()
        assert client.read_until(of_kind(h2.events.PingAckReceived)), "as many as there may be"
        client.h2.remote_settings.max_concurrent_streams = 2 * MAX_STREAMS  # as the client sees it
        client.h2.remote_settings.acknowledge()
        client.headers(INFO)
        client.flush()
        assert client.read_until(of_kind((h2.events.ConnectionTerminated, h2.events.StreamReset))), client.events[-3:]


def test_rapid_reset(server):
    """Calls begun and given up in one breath (CVE-2023-44487): whether the connection ends or not, others do not wait."""
    with peer(server.address) as client, grpc.insecure_channel(server.address) as other:
        info(other)
        sent = 0
        for _ in range(50):
            for _ in range(100):
                client.h2.reset_stream(client.headers(INFO), ErrorCodes.CANCEL)
            if not client.flush():
                break
            sent += 100
        assert sent >= 100, "the flood did not begin"
        info(other, timeout=2)
        with grpc.insecure_channel(server.address, [("grpc.use_local_subchannel_pool", 1)]) as fresh:
            info(fresh, timeout=2)


def test_a_flood_of_pings(server):
    with peer(server.address) as client:
        for _ in range(50):
            client.h2.ping(b"quantry!")
            if not client.flush():
                break
        (end,) = client.read_until(of_kind(h2.events.ConnectionTerminated))
        assert end.error_code == ErrorCodes.ENHANCE_YOUR_CALM and end.additional_data == b"too_many_pings", end


@pytest.mark.parametrize("size, accepted", [(4 << 10, True), (9 << 10, False), (64 << 10, False)])
def test_metadata(server, size, accepted):
    """8 KiB of it are taken."""
    with peer(server.address) as client:
        stream = client.headers(INFO, [("x-hostile", "x" * size)])
        client.h2.send_data(stream, bytes(5), end_stream=True)  # an empty message
        client.flush()
        status = client.read_until(status_of(stream))
        assert (status == grpc.StatusCode.OK) == accepted, status
        if not accepted:
            assert status in (grpc.StatusCode.RESOURCE_EXHAUSTED, ErrorCodes.ENHANCE_YOUR_CALM, ErrorCodes.PROTOCOL_ERROR), status


def test_a_client_that_never_greets(server):
    """gRPC does not hold it to the settings it has not acknowledged; the others are served all the same."""
    with peer(server.address, greeted=False) as client:
        for _ in range(2 * MAX_STREAMS):
            client.headers(INFO, [("x-hostile", "x" * 1000)])
        client.h2.ping(b"all read")
        client.flush()
        assert client.read_until(of_kind(h2.events.PingAckReceived))
        with grpc.insecure_channel(server.address) as other:
            info(other)


def test_a_message_that_never_comes(server):
    """Many calls announce 4 GiB and send nothing of it."""
    with peer(server.worker_address) as client:
        for _ in range(100):
            client.h2.send_data(client.headers(BEAT), struct.pack(">BI", 0, 0xFFFFFFFF))
        client.h2.ping(b"all read")
        client.flush()
        assert client.read_until(of_kind(h2.events.PingAckReceived))
        with grpc.insecure_channel(server.worker_address) as other, pytest.raises(grpc.RpcError) as ended:
            other.unary_unary(BEAT, lambda data: data, lambda data: data)(b"", timeout=20)
        assert ended.value.code() == grpc.StatusCode.FAILED_PRECONDITION, "no such session"


def filler(size):
    """The length and the bytes of a field, together `size`: 4 bytes of length up to 256 MiB."""
    length = size - 4
    return bytes([length & 0x7F | 0x80, length >> 7 & 0x7F | 0x80, length >> 14 & 0x7F | 0x80, length >> 21]) + bytes(length)


def refusal(channel, path, message):
    """The status of a call, None when it is OK. Whether the message was read tells RESOURCE_EXHAUSTED."""
    try:
        channel.unary_unary(path, lambda data: data, lambda data: data)(message, timeout=20)
    except grpc.RpcError as error:
        return error.code()
    return None


@pytest.mark.parametrize("port, path, known, limit, read", [
    ("address", INFO, b"", TENANT_MESSAGE, None),
    ("worker_address", BEAT, worker_pb2.HeartbeatRequest(session="x").SerializeToString(), WORKER_MESSAGE,
     grpc.StatusCode.FAILED_PRECONDITION)], ids=["tenants", "workers"])
def test_the_largest_message(server, port, path, known, limit, read):
    """As many bytes are read, and judged; a byte more is not."""
    options = [("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(getattr(server, port), options) as channel:
        for size, wanted in ((limit - 1, read), (limit, read), (limit + 1, grpc.StatusCode.RESOURCE_EXHAUSTED)):
            message = known + b"\xfa\x7f" + filler(size - len(known) - 2)  # a field that nobody knows
            assert len(message) == size
            assert refusal(channel, path, message) == wanted, size


def pour(client, path, streams, size):
    """As many calls at once, each of a message of `size` bytes that lacks its end; until all is sent or refused, or nothing moves."""
    left = {client.headers(path): size for _ in range(streams)}
    begun = set()
    while left:
        moved = False
        for stream in list(left):
            room = min(client.h2.local_flow_control_window(stream), client.h2.max_outbound_frame_size, left[stream])
            if room < (1 if stream in begun else 5):
                continue
            data = bytes(room) if stream in begun else struct.pack(">BI", 0, size) + bytes(room - 5)
            client.h2.send_data(stream, data)
            begun.add(stream)
            left[stream] -= room
            moved = True
            if not left[stream]:
                del left[stream]
            if not client.flush():
                return
        if select.select([client.socket], [], [], 0 if moved else 2)[0]:
            if not (data := client.socket.recv(1 << 20)):
                return
            for event in client.h2.receive_data(data):
                if isinstance(event, h2.events.ConnectionTerminated):
                    return
                if isinstance(event, (h2.events.StreamReset, h2.events.StreamEnded)):
                    left.pop(event.stream_id, None)
            client.flush()
        elif not moved:
            return


@pytest.mark.parametrize("streams, size", [(1, 300 << 20), (300, TENANT_MESSAGE - 10)], ids=["one message", "many messages"])
def test_the_memory_of_messages(binaries, tmp_path, streams, size):
    """Strangers' messages hold about what --call-memory-bytes allows and not what they announce; others are served meanwhile."""
    from identity import Identity
    from service import Server
    identity = Identity(binaries, tmp_path / "identity")
    token = identity.token("ann", "viewer").read_text().strip()
    server = Server(binaries, tmp_path / "data", "--embedded=false", f"--principals-file={identity.principals}",
                    "--sweep-interval-s=1", f"--call-memory-bytes={64 << 20}").start()

    def served():
        """Calls may be ended for the room that they take; clients repeat them."""
        with grpc.insecure_channel(server.address, [("grpc.use_local_subchannel_pool", 1)]) as other:
            with contextlib.suppress(grpc.RpcError):
                return other.unary_unary(INFO, lambda data: data, lambda data: data)(
                    b"", timeout=20, metadata=[("authorization", f"Bearer {token}")])

    try:
        before = resident_mib(server.process.pid)
        with contextlib.ExitStack() as peers:
            for _ in range(3):
                pour(peers.enter_context(peer(server.address)), INFO, streams, size)
                wait_for(served, 20, "another client's call")
            with grpc.insecure_channel(server.worker_address) as worker:
                assert refusal(worker, BEAT, b"") == grpc.StatusCode.UNAUTHENTICATED, "the workers' port has its own"
            wait_for(lambda: resident_mib(server.process.pid) < before + 100, 20, "memory to be given back")
    finally:
        server.stop()


@pytest.mark.full
def test_a_client_that_is_gone(server):
    """It has a call open and answers no ping: after 80 s its connection is closed."""
    with peer(server.address) as client:
        client.headers(INFO)
        client.flush()
        client.socket.settimeout(110)
        began = time.monotonic()
        with contextlib.suppress(ConnectionError):
            while client.socket.recv(1 << 16):
                pass
        assert 60 < time.monotonic() - began < 100


@pytest.mark.parametrize("sent", [b"GET / HTTP/1.1\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 100, bytes(1000)],
                         ids=["HTTP/1", "no frames", "zeros"])
def test_what_is_no_http2(server, sent):
    """The connection ends."""
    host, _, port = server.address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=20) as client:
        client.sendall(sent)
        with contextlib.suppress(ConnectionError):
            while client.recv(1 << 16):
                pass
