"""Where the server is, who asks, and over what: wrong endpoint, TLS, certificates, tokens."""
import asyncio
import contextlib
import socket
import threading

import grpc
import pytest

import quantry
from certificates import LOCAL, Authority
from fake_server import Fake, abort, serving
from quantry._options import Options, resolve_server
from quantry._retry import is_break, is_retryable
from quantry.errors import make_error


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("ca"))


def server_credentials(authority, mutual=False):
    cert, key = authority.issue("server", *LOCAL)
    ca = authority.file.read_bytes() if mutual else None
    return grpc.ssl_server_credentials([(key.read_bytes(), cert.read_bytes())], ca, mutual)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def connect(kind, target, **options):
    if kind == "blocking":
        with quantry.connect(target, **options) as client:
            return client.server_info().version

    async def run():
        async with await quantry.aio.connect(target, **options) as client:
            return (await client.server_info()).version

    return asyncio.run(run())


KINDS = pytest.mark.parametrize("kind", ["blocking", "asyncio"])


@KINDS
@pytest.mark.parametrize("target, hint", [
    ("http://127.0.0.1:7070", "leave http:// out; tls_ca=FILE or tls=True"), ("https://quantry.example", "leave https:// out"),
    ("quantry.example", "such as 127.0.0.1:7070"), ("127.0.0.1:70000", "a port is 1 to 65535"), ("127.0.0.1:0", "1 to 65535"),
    ("127.0.0.1:", "such as"), (":7070", "such as"), ("::1", "[::1]:7070"), ("127.0.0.1:7070/", "such as")])
def test_targets_that_are_none(kind, target, hint):
    with pytest.raises(quantry.InvalidRequest) as caught:
        connect(kind, target)
    assert caught.value.message == f'connect(): wanted HOST:PORT, got "{target}"' and hint in caught.value.hint
    assert (caught.value.wanted, caught.value.got) == ("HOST:PORT", f'"{target}"')


@pytest.mark.parametrize("target", ["quantry.example:1", "127.0.0.1:65535", "[::1]:7070", "[fe80::1%eth0]:7070", "a_b:80",
                                    "unix:/run/quantry", "unix:///run/quantry", "unix-abstract:quantry", "dns:///quantry:7070"])
def test_targets_that_are_some(target):
    assert resolve_server(target).target == target


@KINDS
def test_nobody_listens(kind):
    target = f"127.0.0.1:{free_port()}"
    with pytest.raises(quantry.ServerUnavailable) as caught:
        connect(kind, target)
    assert target in str(caught.value) and "connect()" in str(caught.value) and "quantryd" in caught.value.hint
    assert caught.value.got == "Connection refused" and isinstance(caught.value, ConnectionError)


def test_what_answers_is_no_quantry():
    """An HTTP/1 server."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()

        def serve():
            while True:
                try:
                    peer, _ = listener.accept()
                except OSError:
                    return
                peer.recv(1000)
                peer.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
                peer.close()

        threading.Thread(target=serve, daemon=True).start()
        with pytest.raises(quantry.ServerUnavailable) as caught:
            quantry.connect(f"127.0.0.1:{listener.getsockname()[1]}", timeout=3)
        listener.shutdown(socket.SHUT_RDWR)
    assert "no answer" in str(caught.value) or "did not answer" in str(caught.value)


def test_another_grpc_server():
    from concurrent import futures
    server = grpc.server(futures.ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with pytest.raises(quantry.ServerError, match="is no quantry server"):
            quantry.connect(f"127.0.0.1:{port}")
    finally:
        server.stop(0)


def test_a_server_that_says_nothing():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        with pytest.raises(quantry.ServerUnavailable, match="did not answer within 0.5 s"):
            quantry.connect(f"127.0.0.1:{listener.getsockname()[1]}", timeout=0.5)


@contextlib.contextmanager
def slow_link(target, seconds):
    """A way to the server on which the first bytes of each connection's answer take `seconds`."""
    listener = socket.create_server(("127.0.0.1", 0))
    sockets = [listener]

    def copy(source, sink, wait):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                closed.wait(wait)
                wait = 0
                sink.sendall(data)

    def serve():
        with contextlib.suppress(OSError):
            while True:
                peer, _ = listener.accept()
                there = socket.create_connection(target.split(":"))
                sockets.extend([peer, there])
                for ends in ((peer, there, 0), (there, peer, seconds)):
                    threading.Thread(target=copy, args=ends, daemon=True).start()

    closed = threading.Event()
    threading.Thread(target=serve, daemon=True).start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}"
    finally:
        closed.set()
        for one in sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()


@KINDS
def test_a_slow_link(kind):
    """Longer than every try of a call and every pause between them together."""
    with serving(Fake()) as target, slow_link(target, 3) as slow:
        assert connect(kind, slow) == "fake"


@KINDS
@pytest.mark.parametrize("timeout, wanted", [(5, [30, 90, 5]), (200, [200, 200, 200])])
def test_the_engine_gets_its_time(kind, timeout, wanted):
    """methods() and quote() wait longer than other calls, and as long as asked if that is longer still."""
    job = {"model_uri": "hf://org/model", "method": "rtn"}

    async def run(target):
        async with await quantry.aio.connect(target, timeout=timeout) as client:
            return await client.methods(), await client.quote(**job), await client.submit(**job)

    fake = Fake()
    with serving(fake) as target:
        if kind == "blocking":
            with quantry.connect(target, timeout=timeout) as client:
                client.methods()
                client.quote(**job)
                client.submit(**job)
        else:
            asyncio.run(run(target))
    assert all(most / 2 < got < most + 2 for got, most in zip(fake.remaining, wanted, strict=True)), fake.remaining


@KINDS
def test_tls(kind, authority):
    with serving(Fake(), server_credentials(authority)) as target:
        assert connect(kind, target, tls_ca=authority.file) == "fake"
        port = target.rsplit(":", 1)[1]
        assert connect(kind, f"localhost:{port}", tls_ca=authority.file) == "fake"


@KINDS
def test_mutual_tls(kind, authority):
    cert, key = authority.issue("client")
    with serving(Fake(), server_credentials(authority, mutual=True)) as target:
        assert connect(kind, target, tls_ca=authority.file, tls_cert=cert, tls_key=key) == "fake"
        with pytest.raises(quantry.ServerUnavailable) as caught:
            connect(kind, target, tls_ca=authority.file)
        assert "tls_cert" in caught.value.hint and "tls_key" in caught.value.hint


def test_no_tls_where_it_is_needed(authority):
    with serving(Fake(), server_credentials(authority)) as target, pytest.raises(quantry.ServerUnavailable) as caught:
        quantry.connect(target)
    assert "TLS" in caught.value.hint


def test_tls_where_there_is_none(authority):
    with serving(Fake()) as target, pytest.raises(quantry.ServerUnavailable) as caught:
        quantry.connect(target, tls_ca=authority.file)
    assert "does not speak TLS" in caught.value.hint


def test_a_certificate_of_another_authority(authority, tmp_path):
    with serving(Fake(), server_credentials(authority)) as target, pytest.raises(quantry.ServerUnavailable) as caught:
        quantry.connect(target, tls_ca=Authority(tmp_path).file)
    assert "tls_ca must be the CA" in caught.value.hint


def test_tokens(tmp_path):
    fake, file = Fake(), tmp_path / "token"
    file.write_text("from-file\n")
    current = iter(["first", "second", "third"])
    with serving(fake) as target:
        connect("blocking", target)
        connect("blocking", target, token="abc")
        connect("asyncio", target, token=lambda: next(current))
        with quantry.connect(target, token_file=file) as client:
            file.write_text("renewed")
            client.server_info()
    assert fake.tokens == [None, None, "Bearer abc", "Bearer abc", "Bearer first", "Bearer third",  # the second is of the check for the tenant
                           "Bearer from-file", "Bearer renewed"]


def test_traces(monkeypatch):
    fake, given = Fake(), "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-"
    with serving(fake) as target:
        monkeypatch.delenv("TRACEPARENT", raising=False)
        connect("blocking", target)
        for bad in ("nonsense", "00-" + "0" * 32 + "-b7ad6b7169203331-01"):
            connect("blocking", target, traceparent=bad)
        connect("asyncio", target, traceparent=lambda: given + "00")
        monkeypatch.setenv("TRACEPARENT", given + "01")
        connect("blocking", target)
        connect("blocking", target, traceparent="")
    assert fake.traces[::2] == fake.traces[1::2] == [None, None, None, given + "00", given + "01", None]


@KINDS
@pytest.mark.parametrize("code", [grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.INTERNAL])  # late; a reset by a proxy
def test_a_submit_without_an_answer_can_be_repeated(kind, code):
    """The server has the job, the client has an error: it says with which id to ask again."""
    fake = Fake()
    fake.info = lambda context: abort(context, code, "no answer")

    def submit(client, **arguments):
        return client.submit(model_path="/m", method="rtn", **arguments)

    async def run():
        async with quantry.AsyncClient(target) as client:
            await submit(client)

    with serving(fake) as target, quantry.Client(target) as client:
        with pytest.raises(quantry.QuantryError) as caught:
            submit(client) if kind == "blocking" else asyncio.run(run())
        fake.info = lambda context: None
        submit(client, request_id=caught.value.metadata["request_id"])
    assert len(fake.creates) == 2 and fake.creates[0] == fake.creates[1]


def test_a_delete_is_not_repeated():
    """The second would be refused: the first, whose answer is lost, was done."""
    fake = Fake()
    fake.deletes = [lambda context: abort(context, grpc.StatusCode.UNAVAILABLE, "going down")] * 9
    with serving(fake) as target, quantry.Client(target) as client:
        with pytest.raises(quantry.ServerUnavailable):
            client.delete("fake")
    assert len(fake.deletes) == 8


@pytest.mark.parametrize("kind", ["blocking", "asyncio"])
@pytest.mark.parametrize("reason, connections", [("STORE_UNAVAILABLE", 2), ("ENGINE_UNAVAILABLE", 1)])
def test_a_server_without_its_store_is_left_for_a_new_connection(kind, reason, connections):
    fake = Fake()
    fake.info = lambda context: len(fake.peers) == 1 and abort(context, grpc.StatusCode.FAILED_PRECONDITION, "no", reason)

    async def run():
        async with quantry.AsyncClient(target) as client:
            with pytest.raises(quantry.QuantryError):
                await client.server_info()
            await client.server_info()

    with serving(fake) as target, quantry.Client(target) as client:
        if kind == "asyncio":
            asyncio.run(run())
        else:
            with pytest.raises(quantry.QuantryError):
                client.server_info()
            client.server_info()
    assert len(fake.peers) == 2 and len(set(fake.peers)) == connections


@pytest.mark.parametrize("kind", ["blocking", "asyncio"])
def test_a_call_that_a_draining_server_cut_off_is_made_again(kind):
    fake = Fake()
    fake.info = lambda context: len(fake.peers) < 3 and context.abort(grpc.StatusCode.CANCELLED, "")
    with serving(fake) as target:
        assert connect(kind, target) == "fake"
        assert len(fake.peers) == 4, "connecting asks, too"
        fake.info = lambda context: context.abort(grpc.StatusCode.CANCELLED, "")
        with pytest.raises(quantry.ServerUnavailable, match="ended the call"):
            connect(kind, target)
        assert len(fake.peers) == 8
        fake.deletes = [lambda context: context.abort(grpc.StatusCode.CANCELLED, "")] * 2
        with quantry.Client(target) as client, pytest.raises(quantry.ServerUnavailable):
            client.delete("fake")
        assert len(fake.deletes) == 1


def test_an_expired_token():
    fake = Fake()
    fake.info = lambda context: abort(context, grpc.StatusCode.UNAUTHENTICATED, "the token expired", "UNAUTHENTICATED")
    with serving(fake) as target, pytest.raises(quantry.AccessDenied, match="expired") as caught:
        quantry.connect(target, token="old")
    assert "renewed" in caught.value.hint and caught.value.reason == "UNAUTHENTICATED"


@KINDS
def test_a_credential_of_another_tenant(kind):
    """Found by connecting, and the error says which tenant to give."""
    fake = Fake()
    fake.list = lambda request, context: request.parent == "tenants/acme" or abort(
        context, grpc.StatusCode.NOT_FOUND, f"nothing named {request.parent} for ci, whose tenant is acme", "JOB_NOT_FOUND")
    with serving(fake) as target:
        with pytest.raises(quantry.NotFound, match="nothing named tenants/default for ci") as caught:
            connect(kind, target)
        assert caught.value.hint == 'give connect() tenant="acme", or set QUANTRY_TENANT'
        assert connect(kind, target, tenant="acme") == connect(kind, target, check=False) == "fake"
    assert [request.page_size for request in fake.lists] == [1, 1]


@KINDS
@pytest.mark.parametrize("code, reason", [(grpc.StatusCode.RESOURCE_EXHAUSTED, "RESOURCE_LIMIT"),
                                          (grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE")])
def test_a_server_that_is_busy_is_connected_to(kind, code, reason):
    fake = Fake()
    fake.list = lambda request, context: abort(context, code, "not now", reason)
    with serving(fake) as target:
        assert connect(kind, target) == "fake"


@pytest.mark.parametrize("options, message", [
    ({"token": "abc"}, "wanted TLS to send a token"),
    ({"tls_cert": "c.pem"}, "tls_cert and tls_key together"),
    ({"tls": False, "tls_ca": "c.pem"}, "got tls=False"),
    ({"token": "a", "token_file": "b", "tls": True}, "one of token and token_file"),
    ({"tenant": "Not A Tenant"}, "a tenant of 1-63 characters"),
])
def test_options_that_cannot_work(options, message):
    with pytest.raises(quantry.InvalidRequest, match=message):
        quantry.Client("quantry.example:7070", **options)


@pytest.mark.parametrize("options, message", [
    ({"tls_ca": "/no/such/ca.pem"}, "tls_ca: wanted a readable file"),
    ({"token_file": "/no/such/token"}, "token_file: wanted a readable file"),
])
def test_files_that_are_not_there(options, message):
    with pytest.raises(quantry.InvalidRequest, match=message):
        quantry.connect("127.0.0.1:1", **options)


def test_where_the_server_is(monkeypatch, tmp_path):
    for name in ("QUANTRY_SERVER", "QUANTRY_DATA_DIR", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve_server(None).target == "127.0.0.1:7070"
    file = tmp_path / ".local/state/quantry/run/tenant"
    file.parent.mkdir(parents=True)
    file.write_text("127.0.0.1:1234\n")
    assert resolve_server(None).target == "127.0.0.1:1234"
    assert resolve_server("here:2").source == "connect()"
    assert Options(tls_ca="x").secure and Options(tls=True).secure and not Options().secure


@pytest.mark.parametrize("code, reason, call, watch", [
    ("UNAVAILABLE", "", True, True), ("UNAVAILABLE", "STORE_UNAVAILABLE", True, True), ("DEADLINE_EXCEEDED", "", True, True),
    ("RESOURCE_EXHAUSTED", "RESOURCE_LIMIT", True, True), ("RESOURCE_EXHAUSTED", "QUOTA_STORED_BYTES", False, False),
    ("RESOURCE_EXHAUSTED", "DISK_FULL", False, False), ("RESOURCE_EXHAUSTED", "QUOTA_WATCHES", False, True),
    ("INTERNAL", "", False, True), ("INTERNAL", "INTERNAL", False, False), ("NOT_FOUND", "JOB_NOT_FOUND", False, False)])
def test_what_is_tried_again(code, reason, call, watch):
    error = make_error(code, "no", reason=reason)
    assert (is_retryable(error), is_break(error)) == (call, watch)
