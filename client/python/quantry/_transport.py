"""One channel to one server, in two kinds: blocking and asyncio.

The logic in _core.py is written once, as coroutines over a Transport. The blocking transport's coroutines never
suspend, so that drive() runs them to their end without an event loop.
"""
from __future__ import annotations

import asyncio
import json
import os
import pathlib
import time
from dataclasses import dataclass
from typing import (Any, AsyncGenerator, AsyncIterator, Callable, Coroutine, Generator, Iterator, Optional, Protocol,
                    TypeVar, Union)

import grpc
import grpc.aio

from quantry import errors
from quantry._version import VERSION
from quantry.v1 import artifact_service_pb2_grpc, quantization_service_pb2_grpc

T = TypeVar("T")
Token = Union[str, Callable[[], str], None]
PathLike = Union[str, "os.PathLike[str]"]

DEFAULT_SERVER = "127.0.0.1:7070"
LOOPBACK = ("127.", "localhost:", "[::1]", "unix:")

# What grpc.aio says, as INTERNAL, when the call ended under a write: it hides the status. The next try tells it.
AIO_WRITE_FAILED = "Internal error from Core"

# Retries of the unary calls: creates carry a request id, the rest is idempotent by nature. Streams have retries of
# their own with a resume point.
SERVICE_CONFIG = json.dumps({"methodConfig": [
    {"name": [{"service": "quantry.v1.QuantizationService"},
              *({"service": "quantry.v1.ArtifactService", "method": method}
                for method in ("FindMissingBlobs", "GetArtifact", "ListArtifacts"))],
     "retryPolicy": {"maxAttempts": 4, "initialBackoff": "0.1s", "maxBackoff": "1s", "backoffMultiplier": 2,
                     "retryableStatusCodes": ["UNAVAILABLE"]}},
    {"name": [{"service": "quantry.v1.QuantizationService", "method": "WatchQuantizationJob"}]}]})


@dataclass(frozen=True)
class Address:
    target: str  # HOST:PORT
    source: str  # "connect()", "QUANTRY_SERVER", a file, "the default"

    @property
    def is_loopback(self) -> bool:
        return self.target.startswith(LOOPBACK)


def resolve_server(target: Optional[str]) -> Address:
    """The argument, else QUANTRY_SERVER, else the address file of an embedded server here, else the default."""
    if target:
        return Address(target, "connect()")
    if os.environ.get("QUANTRY_SERVER"):
        return Address(os.environ["QUANTRY_SERVER"], "QUANTRY_SERVER")
    folder = os.environ.get("QUANTRY_DATA_DIR") or os.path.join(
        os.environ.get("XDG_STATE_HOME") or os.path.join(os.path.expanduser("~"), ".local", "state"), "quantry")
    file = os.path.join(folder, "run", "tenant")
    try:
        with open(file, encoding="utf-8") as lines:
            found = lines.readline().strip()
    except OSError:
        found = ""
    return Address(found, file) if found else Address(DEFAULT_SERVER, "the default")


@dataclass(frozen=True)
class Options:
    """How to reach the server; see quantry.connect()."""

    target: Optional[str] = None
    tls: Optional[bool] = None
    tls_ca: Optional[PathLike] = None
    tls_cert: Optional[PathLike] = None
    tls_key: Optional[PathLike] = None
    tls_server_name: str = ""
    token: Token = None
    token_file: Optional[PathLike] = None
    timeout: float = 10.0

    @property
    def secure(self) -> bool:
        given = self.tls_ca is not None or self.tls_cert is not None
        return given if self.tls is None else self.tls

    def check(self, address: Address) -> None:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise errors.InvalidRequest("wanted tls_cert and tls_key together, got one of them")
        if self.tls is False and (self.tls_ca is not None or self.tls_cert is not None):
            raise errors.InvalidRequest("wanted tls=True with tls_ca or tls_cert, got tls=False")
        if self.token is not None and self.token_file is not None:
            raise errors.InvalidRequest("wanted one of token and token_file, got both")
        has_token = self.token is not None or self.token_file is not None
        if has_token and not self.secure and not address.is_loopback:
            raise errors.InvalidRequest(
                f"wanted TLS to send a token to {address.target}, got a plain connection: anybody on the way could "
                "read it", hint="give tls_ca=FILE, or tls=True for a certificate of a public CA")

    def credentials(self) -> grpc.ChannelCredentials:
        return grpc.ssl_channel_credentials(_read("tls_ca", self.tls_ca), _read("tls_key", self.tls_key),
                                            _read("tls_cert", self.tls_cert))

    def metadata(self) -> list[tuple[str, str]]:
        """Read anew for every call, so that a renewed token is used at once."""
        token = self.token() if callable(self.token) else self.token
        if self.token_file is not None:
            token = (_read("token_file", self.token_file) or b"").decode("utf-8", "replace").strip()
        return [("authorization", f"Bearer {token}")] if token else []

    def arguments(self, address: Address) -> list[tuple[str, Any]]:
        arguments: list[tuple[str, Any]] = [
            ("grpc.primary_user_agent", f"quantry-python/{VERSION}"),
            ("grpc.service_config", SERVICE_CONFIG),
            ("grpc.keepalive_time_ms", 60_000), ("grpc.keepalive_timeout_ms", 20_000),
            ("grpc.keepalive_permit_without_calls", 0),
            # A restarted server is found again within a second or two.
            ("grpc.initial_reconnect_backoff_ms", 200), ("grpc.min_reconnect_backoff_ms", 200),
            ("grpc.max_reconnect_backoff_ms", 2_000),
            ("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", 64 << 20)]
        if address.is_loopback:
            arguments.append(("grpc.enable_http_proxy", 0))
        if self.tls_server_name:
            arguments.append(("grpc.ssl_target_name_override", self.tls_server_name))
        return arguments


def _read(argument: str, path: Optional[PathLike]) -> Optional[bytes]:
    if path is None:
        return None
    try:
        data = pathlib.Path(path).read_bytes()
    except OSError as error:
        raise errors.InvalidRequest(f"{argument}: wanted a readable file, got \"{os.fspath(path)}\": "
                                    f"{error.strerror}") from None
    if not data.strip():
        raise errors.InvalidRequest(f"{argument}: \"{os.fspath(path)}\" is empty")
    return data


class UploadSource(Protocol):
    """The messages of one UploadBlob call, and why reading them failed."""

    error: Optional[Exception]

    def messages(self) -> Iterator[Any]: ...


class Transport(Protocol):
    """What _core.py needs of a connection. Errors are QuantryErrors."""

    @property
    def address(self) -> Address: ...

    async def call(self, service: str, method: str, request: Any, timeout: Optional[float] = None) -> Any: ...

    def stream(self, service: str, method: str, request: Any, timeout: Optional[float]) -> AsyncGenerator[Any, None]: ...

    async def upload(self, source: UploadSource, timeout: float) -> Any: ...

    async def sleep(self, seconds: float) -> None: ...

    async def run(self, function: Callable[..., T], *arguments: Any) -> T:
        """A function that blocks on the disk."""
        ...

    async def refresh(self) -> None:
        """Looks the address up again: a restarted local server may have another port."""
        ...

    async def close(self) -> None: ...


class _Base:
    def __init__(self, options: Options) -> None:
        self.options = options
        self._address = resolve_server(options.target)
        options.check(self._address)
        self._stubs: dict[str, Any] = {}
        self._channel: Any = None

    @property
    def address(self) -> Address:
        return self._address

    def _open(self, insecure: Any, secure: Any) -> Any:
        arguments = self.options.arguments(self._address)
        if self.options.secure:
            return secure(self._address.target, self.options.credentials(), options=arguments)
        return insecure(self._address.target, options=arguments)

    def _connect(self) -> Any:
        raise NotImplementedError

    def _stub(self, service: str) -> Any:
        if self._channel is None:
            self._channel = self._connect()
            make: Any = quantization_service_pb2_grpc
            files: Any = artifact_service_pb2_grpc
            self._stubs = {"jobs": make.QuantizationServiceStub(self._channel),
                           "artifacts": files.ArtifactServiceStub(self._channel)}
        return self._stubs[service]

    def _explain(self, error: Any, timeout: Optional[float]) -> errors.QuantryError:
        return errors.from_rpc(error, self._address.target, self._address.source, self.options.secure, timeout)

    def _moved(self) -> bool:
        address = resolve_server(self.options.target)
        if address.target == self._address.target:
            return False
        self.options.check(address)
        self._address = address
        return True


class BlockingTransport(_Base):
    """Over grpc.Channel. Thread-safe as that is."""

    def _connect(self) -> Any:
        return self._open(grpc.insecure_channel, grpc.secure_channel)

    async def call(self, service: str, method: str, request: Any, timeout: Optional[float] = None) -> Any:
        timeout = self.options.timeout if timeout is None else timeout
        try:
            return getattr(self._stub(service), method)(request, timeout=timeout, metadata=self.options.metadata())
        except grpc.RpcError as error:
            raise self._explain(error, timeout) from None

    async def stream(self, service: str, method: str, request: Any,
                     timeout: Optional[float]) -> AsyncGenerator[Any, None]:
        call = getattr(self._stub(service), method)(request, timeout=timeout, metadata=self.options.metadata())
        try:
            for message in call:
                yield message
        except grpc.RpcError as error:
            raise self._explain(error, timeout) from None
        finally:
            call.cancel()

    async def upload(self, source: UploadSource, timeout: float) -> Any:
        try:
            return self._stub("artifacts").UploadBlob(source.messages(), timeout=timeout,
                                                      metadata=self.options.metadata())
        except grpc.RpcError as error:
            raise source.error or self._explain(error, timeout) from None

    async def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    async def run(self, function: Callable[..., T], *arguments: Any) -> T:
        return function(*arguments)

    async def refresh(self) -> None:
        if self._moved():
            await self.close()

    async def close(self) -> None:
        if self._channel is not None:
            self._channel.close()
        self._channel = None


class AsyncTransport(_Base):
    """Over grpc.aio. Belongs to the event loop that first uses it."""

    def _connect(self) -> Any:
        return self._open(grpc.aio.insecure_channel, grpc.aio.secure_channel)

    async def call(self, service: str, method: str, request: Any, timeout: Optional[float] = None) -> Any:
        timeout = self.options.timeout if timeout is None else timeout
        try:
            return await getattr(self._stub(service), method)(request, timeout=timeout,
                                                              metadata=self.options.metadata())
        except grpc.RpcError as error:
            raise self._explain(error, timeout) from None

    async def stream(self, service: str, method: str, request: Any,
                     timeout: Optional[float]) -> AsyncGenerator[Any, None]:
        call = getattr(self._stub(service), method)(request, timeout=timeout, metadata=self.options.metadata())
        try:
            async for message in call:
                yield message
        except grpc.RpcError as error:
            raise self._explain(error, timeout) from None
        finally:
            call.cancel()

    async def upload(self, source: UploadSource, timeout: float) -> Any:
        call = self._stub("artifacts").UploadBlob(timeout=timeout, metadata=self.options.metadata())
        messages = source.messages()
        try:
            while (message := await asyncio.to_thread(next, messages, None)) is not None:
                try:
                    await call.write(message)
                except (grpc.RpcError, asyncio.InvalidStateError):
                    break  # the server has had enough, or broke: the status says which
            else:
                await call.done_writing()
            return await call
        except grpc.RpcError as error:
            explained = self._explain(error, timeout)
            if error.details() == AIO_WRITE_FAILED:
                explained.code = "UNAVAILABLE"
            raise explained from None
        finally:
            call.cancel()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def run(self, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.to_thread(function, *arguments)

    async def refresh(self) -> None:
        if self._moved():
            await self.close()

    async def close(self) -> None:
        if self._channel is not None:
            await self._channel.close()
        self._channel = None


def drive(coroutine: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine of the blocking transport, which never suspends."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        value: T = end.value
        return value
    coroutine.close()
    raise RuntimeError("a blocking call suspended: a bug of quantry")


def iterate(items: AsyncIterator[T]) -> Generator[T, None, None]:
    """The items of an async generator of the blocking transport."""
    generator: Any = items
    try:
        while True:
            try:
                item: T = drive(generator.__anext__())
            except StopAsyncIteration:
                return
            yield item
    finally:
        drive(generator.aclose())
