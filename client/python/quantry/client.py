"""The blocking client. See docs/python.md for the whole reference."""
from __future__ import annotations

import os
from types import TracebackType
from typing import TYPE_CHECKING, Any, Iterator, Mapping, Optional, Sequence, Union

from quantry._arguments import arguments_of
from quantry._contexts import settle
from quantry._core import AWAY, Core, JobLike
from quantry._options import Options, Token, Traceparent
from quantry._progress import JobProgress, TransferProgress
from quantry._pull import Pulled
from quantry._transport import BlockingTransport, drive, iterate
from quantry.job import Event, Job, Quote
from quantry.v1 import artifact_pb2, method_pb2, quantization_service_pb2 as service_pb2

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from quantry._arguments import JobArguments, SpecArguments

PathLike = Union[str, "os.PathLike[str]"]


class Client:
    """One server, as one tenant. May be shared by threads; use it as a context manager, or close() it.

    Jobs are named by id ("nightly"), by full name, or by a Job. Every method raises a QuantryError (quantry.errors).
    """

    def __init__(self, target: Optional[str] = None, *, tenant: Optional[str] = None,
                 context: Optional[str] = None, tls: Optional[bool] = None, tls_ca: Optional[PathLike] = None,
                 tls_cert: Optional[PathLike] = None, tls_key: Optional[PathLike] = None, tls_server_name: str = "",
                 token: Token = None, token_file: Optional[PathLike] = None, timeout: float = 10.0,
                 traceparent: Traceparent = None) -> None:
        """
        target      HOST:PORT; None: that of context, else QUANTRY_SERVER, else the current context's, else a server of
                    yours on this machine, else 127.0.0.1:7070
        tenant      whose jobs are meant; None: QUANTRY_TENANT, else the context's, else "default"
        context     server remembered by `quantry login`, which it brings; None: QUANTRY_CONTEXT without a target, else the
                    current one if no server is named. Arguments and QUANTRY_TLS_CA_FILE, QUANTRY_TOKEN_FILE, QUANTRY_CLIENT_CERT_FILE and
                    QUANTRY_CLIENT_KEY_FILE beat what it says
        tls         True: TLS with the public CAs; implied by tls_ca and tls_cert
        tls_ca      file with the CA that signed the server's certificate
        tls_cert    with tls_key: this client's certificate, for servers that ask for one (mTLS)
        tls_server_name  the name to expect in the server's certificate, when it is not the target's
        token       bearer token, or a function that returns it, called for every call
        token_file  file with the token, read for every call: a renewed token is used at once
        timeout     seconds to wait for the answer of one call; methods() waits 30 and quote() 90 at least, streams and
                    uploads take what they need
        traceparent W3C trace that calls and jobs belong to, or a function that returns it; None: $TRACEPARENT
        """
        options, tenant = settle(Options(target, tls, tls_ca, tls_cert, tls_key, tls_server_name, token, token_file,
                                         timeout, traceparent=traceparent), tenant, context)
        self._transport = BlockingTransport(options)
        self._core = Core(self._transport, tenant)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: Optional[type[BaseException]], error: Optional[BaseException],
                 trace: Optional[TracebackType]) -> None:
        self.close()

    def close(self) -> None:
        """Ends what other threads do with this client, a watch or wait too: they and later calls raise a Conflict."""
        drive(self._transport.close())

    @property
    def target(self) -> str:
        return self._transport.address.target

    @property
    def tenant(self) -> str:
        return self._core.tenant

    def submit(self, model: Optional[PathLike] = None, *, progress: TransferProgress = None,
               **arguments: Unpack[JobArguments]) -> Job:
        """Queues a job; durable when it returns.

        `model` is a folder on this machine (uploaded by content hash: only what the server lacks is sent). A repeat
        with the same request_id returns the same job. Asks for a quote first and raises InvalidRequest for a job
        that could not run; check=False queues it unasked.
        """
        return drive(self._core.submit(arguments_of(model, arguments), progress))

    def quote(self, model: Optional[PathLike] = None, *, progress: TransferProgress = None,
              **arguments: Unpack[SpecArguments]) -> Quote:
        """What submit() with the same arguments would cost, and whether it can run. A folder is uploaded for it."""
        return drive(self._core.quote(arguments_of(model, arguments), progress))

    def get(self, job: JobLike) -> Job:
        return drive(self._core.get(job))

    def list(self, *, state: str = "", method: str = "", labels: Optional[Mapping[str, str]] = None, filter: str = "",
             page_size: int = 0) -> Iterator[Job]:
        """The tenant's jobs, newest first, page by page as they are read."""
        return iterate(self._core.list(state, method, labels, filter, page_size))

    def events(self, job: JobLike, after_sequence: int = 0) -> Iterator[Event]:
        """The stored history, oldest first, and then no more."""
        return iterate(self._core.events(job, after_sequence))

    def watch(self, job: JobLike, *, after_sequence: Optional[int] = None, away: float = AWAY,
              timeout: Optional[float] = None) -> Iterator[Event]:
        """A snapshot, every event as it happens, and the end.

        A broken connection is taken up again after the last event seen: sequences have no gap, whatever happens to
        the server; it may stay away for `away` seconds. after_sequence=N starts with what was stored after event N
        (0: the whole history). `timeout` ends the watch with WaitTimeout. Breaking off leaves the job running.
        """
        return iterate(self._core.watch(job, after_sequence, away, timeout))

    def wait(self, job: JobLike, *, timeout: Optional[float] = None, progress: JobProgress = None,
             raise_on_failure: bool = True) -> Job:
        """Until the job ends. Raises JobFailed or JobCancelled, and WaitTimeout (the job goes on).

        progress=True draws a bar with stage, block, loss and ETA; a function gets the Job after each change.
        """
        return drive(self._core.wait(job, timeout, progress, raise_on_failure))

    def cancel(self, job: JobLike, reason: str = "") -> Job:
        return drive(self._core.cancel(job, reason))

    def retry(self, job: JobLike, *, from_start: bool = False, request_id: str = "") -> Job:
        """Queues a failed or cancelled job again; it goes on from its last checkpoint unless from_start."""
        return drive(self._core.retry(job, from_start, request_id))

    def delete(self, job: JobLike, *, allow_missing: bool = False) -> None:
        """Removes an ended job, its events and its artifact."""
        drive(self._core.delete(job, allow_missing))

    def pull(self, job_or_artifact: JobLike, folder: PathLike, *, format: str = "", path: str = "",
             force: bool = False, progress: TransferProgress = None) -> Pulled:
        """Copies an artifact into a folder and proves every sha256; run again, it resumes.

        format or path take only one output's files, or one file or folder. Files are replaced whole or not at all;
        what is not the artifact's is kept unless force.
        """
        return drive(self._core.pull(job_or_artifact, folder, format, path, force, progress))

    def get_artifact(self, job_or_artifact: JobLike) -> artifact_pb2.Artifact:
        """The artifact's record with its manifest, without its files."""
        return drive(self._core.get_artifact(job_or_artifact))

    def methods(self) -> Sequence[method_pb2.MethodDescription]:
        """What the fleet can run: MethodDescription messages."""
        return list(drive(self._core.methods()).methods)

    def server_info(self) -> service_pb2.ServerInfo:
        return drive(self._core.server_info())


def connect(target: Optional[str] = None, *, check: bool = True, **options: Any) -> Client:
    """A Client that has spoken with its server: a wrong endpoint, missing TLS, a bad token or one of another tenant
    raises here.

    check=False connects with the first call instead. Options are those of Client.
    """
    client = Client(target, **options)
    if check:
        try:
            drive(client._core.check())
        except BaseException:
            client.close()
            raise
    return client


__all__ = ["Client", "connect"]
