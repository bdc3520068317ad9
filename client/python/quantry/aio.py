"""The asyncio client: quantry.client.Client with await, `async for` and `async with`.

    async with await quantry.aio.connect("127.0.0.1:7070") as client:
        job = await client.submit("./model", method="rtn")
        async for event in client.watch(job):
            print(event.text)
"""
from __future__ import annotations

import os
from types import TracebackType
from typing import TYPE_CHECKING, Any, AsyncIterator, Mapping, Optional, Sequence, Union

from quantry._arguments import arguments_of
from quantry._contexts import settle
from quantry._core import AWAY, Core, JobLike
from quantry._options import Options, Token, Traceparent
from quantry._progress import JobProgress, TransferProgress
from quantry._pull import Pulled
from quantry._transport import AsyncTransport
from quantry.job import Event, Job, Quote
from quantry.v1 import artifact_pb2, method_pb2, quantization_service_pb2 as service_pb2

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from quantry._arguments import JobArguments, SpecArguments

PathLike = Union[str, "os.PathLike[str]"]


class AsyncClient:
    """One server, as one tenant, for the event loop that first uses it. Arguments and errors are those of Client.

    Files are hashed, read and written in threads. Close an iterator you leave early with aclose(), or leave that to
    the event loop.
    """

    def __init__(self, target: Optional[str] = None, *, tenant: Optional[str] = None,
                 context: Optional[str] = None, tls: Optional[bool] = None, tls_ca: Optional[PathLike] = None,
                 tls_cert: Optional[PathLike] = None, tls_key: Optional[PathLike] = None, tls_server_name: str = "",
                 token: Token = None, token_file: Optional[PathLike] = None, timeout: float = 10.0,
                 traceparent: Traceparent = None) -> None:
        options, tenant = settle(Options(target, tls, tls_ca, tls_cert, tls_key, tls_server_name, token, token_file,
                                         timeout, traceparent=traceparent), tenant, context)
        self._transport = AsyncTransport(options)
        self._core = Core(self._transport, tenant)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, kind: Optional[type[BaseException]], error: Optional[BaseException],
                        trace: Optional[TracebackType]) -> None:
        await self.close()

    async def close(self) -> None:
        await self._transport.close()

    @property
    def target(self) -> str:
        return self._transport.address.target

    @property
    def tenant(self) -> str:
        return self._core.tenant

    async def submit(self, model: Optional[PathLike] = None, *, progress: TransferProgress = None,
                     **arguments: Unpack[JobArguments]) -> Job:
        return await self._core.submit(arguments_of(model, arguments), progress)

    async def quote(self, model: Optional[PathLike] = None, *, progress: TransferProgress = None,
                    **arguments: Unpack[SpecArguments]) -> Quote:
        return await self._core.quote(arguments_of(model, arguments), progress)

    async def get(self, job: JobLike) -> Job:
        return await self._core.get(job)

    def list(self, *, state: str = "", method: str = "", labels: Optional[Mapping[str, str]] = None, filter: str = "",
             page_size: int = 0) -> AsyncIterator[Job]:
        return self._core.list(state, method, labels, filter, page_size)

    def events(self, job: JobLike, after_sequence: int = 0) -> AsyncIterator[Event]:
        return self._core.events(job, after_sequence)

    def watch(self, job: JobLike, *, after_sequence: Optional[int] = None, away: float = AWAY,
              timeout: Optional[float] = None) -> AsyncIterator[Event]:
        return self._core.watch(job, after_sequence, away, timeout)

    async def wait(self, job: JobLike, *, timeout: Optional[float] = None, progress: JobProgress = None,
                   raise_on_failure: bool = True) -> Job:
        return await self._core.wait(job, timeout, progress, raise_on_failure)

    async def cancel(self, job: JobLike, reason: str = "") -> Job:
        return await self._core.cancel(job, reason)

    async def retry(self, job: JobLike, *, from_start: bool = False, request_id: str = "") -> Job:
        return await self._core.retry(job, from_start, request_id)

    async def delete(self, job: JobLike, *, allow_missing: bool = False) -> None:
        await self._core.delete(job, allow_missing)

    async def pull(self, job_or_artifact: JobLike, folder: PathLike, *, format: str = "", path: str = "",
                   force: bool = False, progress: TransferProgress = None) -> Pulled:
        return await self._core.pull(job_or_artifact, folder, format, path, force, progress)

    async def get_artifact(self, job_or_artifact: JobLike) -> artifact_pb2.Artifact:
        return await self._core.get_artifact(job_or_artifact)

    async def methods(self) -> Sequence[method_pb2.MethodDescription]:
        return list((await self._core.methods()).methods)

    async def server_info(self) -> service_pb2.ServerInfo:
        return await self._core.server_info()


async def connect(target: Optional[str] = None, *, check: bool = True, **options: Any) -> AsyncClient:
    """An AsyncClient that has spoken with its server; see quantry.connect."""
    client = AsyncClient(target, **options)
    if check:
        try:
            await client._core.check()
        except BaseException:
            await client.close()
            raise
    return client


__all__ = ["AsyncClient", "connect"]
