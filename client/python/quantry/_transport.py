"""One channel to one server, in two kinds: blocking and asyncio.

The logic in _core.py is written once, as coroutines over a Transport. The blocking transport's coroutines never
suspend, so that drive() runs them to their end without an event loop.
"""
from __future__ import annotations

import asyncio
import itertools
import math
import threading
import time
import weakref
from typing import (Any, AsyncGenerator, AsyncIterator, Callable, Coroutine, Generator, Iterator, Optional, Protocol,
                    TypeVar)

import grpc
import grpc.aio

from quantry import errors
from quantry._options import NOT_REPEATED, Address, Options, resolve_server
from quantry._retry import Backoff
from quantry.v1 import artifact_service_pb2_grpc, quantization_service_pb2_grpc

T = TypeVar("T")

# Of a call that the server cut off.
CUT_OFF_TRIES = 4

# What grpc.aio says, as INTERNAL, when the call ended under a write: it hides the status. The next try tells it.
AIO_WRITE_FAILED = "Internal error from Core"


class UploadSource(Protocol):
    """The messages of one UploadBlob call, and why reading them failed."""

    error: Optional[Exception]

    def messages(self) -> Iterator[Any]: ...


class Transport(Protocol):
    """What _core.py needs of a connection. Errors are QuantryErrors."""

    @property
    def address(self) -> Address: ...

    @property
    def answered(self) -> bool:
        """Whether a server has ever answered."""
        ...

    async def call(self, service: str, method: str, request: Any, at_least: float = 0.0,
                   at_most: float = math.inf) -> Any:
        """Waits `timeout` of the options, or `at_least` seconds if that is longer; in all `at_most`."""
        ...

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


def _has_details(error: Any) -> bool:
    """Whether a quantryd says why."""
    return any(key == errors.DETAILS_KEY for key, _ in error.trailing_metadata() or ())


def _closed_error() -> errors.QuantryError:
    return errors.make_error("FAILED_PRECONDITION", "this client is closed", hint="connect() again")


class _Base:
    def __init__(self, options: Options) -> None:
        self.options = options
        self._address = resolve_server(options.target, options.source)
        options.check(self._address)
        self._stubs: dict[str, Any] = {}
        self._channel: Any = None
        self._closed = self._answered = False
        self._lock = threading.Lock()
        self._streams: weakref.WeakSet[Any] = weakref.WeakSet()  # some of channels that were left

    @property
    def address(self) -> Address:
        return self._address

    @property
    def answered(self) -> bool:
        return self._answered

    def _open(self, insecure: Any, secure: Any) -> Any:
        arguments = self.options.arguments(self._address)
        if self.options.secure:
            return secure(self._address.target, self.options.credentials(), options=arguments)
        return insecure(self._address.target, options=arguments)

    def _connect(self) -> Any:
        raise NotImplementedError

    def _stub(self, service: str) -> Any:
        with self._lock:
            if self._closed:
                raise _closed_error()
            if self._channel is None:
                self._channel = self._connect()
                make: Any = quantization_service_pb2_grpc
                files: Any = artifact_service_pb2_grpc
                self._stubs = {"jobs": make.QuantizationServiceStub(self._channel),
                               "artifacts": files.ArtifactServiceStub(self._channel)}
            return self._stubs[service]

    def _opened(self, call: Any) -> Any:
        """A stream which close() ends, whichever channel it is of."""
        self._streams.add(call)
        return call

    def _take_channel(self) -> Any:
        """The channel to close, None without one; from now on there is no other."""
        with self._lock:
            self._closed, channel, self._channel = True, self._channel, None
            for call in list(self._streams):
                call.cancel()
            return channel

    def _explain(self, error: Any, timeout: Optional[float]) -> errors.QuantryError:
        if self._closed:  # it is what cut the call: nobody should try again
            return _closed_error()
        self._answered = self._answered or _has_details(error)
        explained = errors.from_rpc(error, self._address.target, self._address.source, self.options.secure, timeout,
                                    self.options.tls_cert is not None)
        if explained.reason == "STORE_UNAVAILABLE":  # behind the address there may be others, which have theirs
            self._connect_anew(self._address)
        return explained

    def _connect_anew(self, address: Address) -> None:
        """For the calls from now on. The old channel closes with its last call: other threads may be using it."""
        with self._lock:
            self._address, self._channel = address, None

    def _may_repeat(self, error: Any, method: str, tries: int, at_most: float) -> bool:
        """The server ended the call without an answer: it cancels what is still open when its drain takes too long."""
        return (error.code() is grpc.StatusCode.CANCELLED and not _has_details(error) and not self._closed
                and tries < CUT_OFF_TRIES and math.isinf(at_most) and method not in NOT_REPEATED)

    async def _answer(self, call: Any, request: Any, timeout: float) -> Any:
        raise NotImplementedError

    async def sleep(self, seconds: float) -> None:
        raise NotImplementedError

    async def call(self, service: str, method: str, request: Any, at_least: float = 0.0,
                   at_most: float = math.inf) -> Any:
        timeout = min(max(self.options.timeout, at_least), at_most)
        end, backoff = time.monotonic() + timeout, Backoff()
        for tries in itertools.count(1):
            try:
                answer = await self._answer(getattr(self._stub(service), method), request,
                                            max(0.0, end - time.monotonic()))
                self._answered = True
                return answer
            except grpc.RpcError as error:
                if not self._may_repeat(error, method, tries, at_most):
                    raise self._explain(error, timeout) from None
            await self.sleep(backoff.next())

    async def refresh(self) -> None:
        address = resolve_server(self.options.target, self.options.source)
        if address.target == self._address.target:
            return
        self.options.check(address)
        self._connect_anew(address)


class BlockingTransport(_Base):
    """Over grpc.Channel. Thread-safe as that is."""

    def _connect(self) -> Any:
        return self._open(grpc.insecure_channel, grpc.secure_channel)

    async def _answer(self, call: Any, request: Any, timeout: float) -> Any:
        return call(request, timeout=timeout, metadata=self.options.metadata())

    async def stream(self, service: str, method: str, request: Any,
                     timeout: Optional[float]) -> AsyncGenerator[Any, None]:
        call = self._opened(getattr(self._stub(service), method)(request, timeout=timeout,
                                                                 metadata=self.options.metadata()))
        try:
            for message in call:
                self._answered = True
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

    async def close(self) -> None:
        channel = self._take_channel()
        if channel is not None:
            channel.close()


class AsyncTransport(_Base):
    """Over grpc.aio. Belongs to the event loop that first uses it."""

    def _connect(self) -> Any:
        return self._open(grpc.aio.insecure_channel, grpc.aio.secure_channel)

    async def _answer(self, call: Any, request: Any, timeout: float) -> Any:
        return await call(request, timeout=timeout, metadata=self.options.metadata())

    async def stream(self, service: str, method: str, request: Any,
                     timeout: Optional[float]) -> AsyncGenerator[Any, None]:
        call = self._opened(getattr(self._stub(service), method)(request, timeout=timeout,
                                                                 metadata=self.options.metadata()))
        try:
            async for message in call:
                self._answered = True
                yield message
        except grpc.RpcError as error:
            raise self._explain(error, timeout) from None
        except asyncio.CancelledError:
            if self._closed and call.cancelled():  # by close(), not the caller's task
                raise _closed_error() from None
            raise
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

    async def close(self) -> None:
        channel = self._take_channel()
        if channel is not None:
            await channel.close()


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
