"""What both clients do, written once as coroutines over a Transport."""
from __future__ import annotations

import contextlib
import logging
import os
import pathlib
import time
import uuid
from typing import Any, AsyncGenerator, Callable, Iterator, Mapping, Optional, Union

from quantry import errors
from quantry._arguments import Arguments, Submission, prepare
from quantry._files import artifact_name, check_tenant, job_name
from quantry._progress import JobBar, JobProgress, TransferProgress, describe, meters
from quantry._pull import Pulled, Puller, Wanted
from quantry._retry import FIRST_WAIT, Backoff, is_break, is_retryable, may_go_on
from quantry._spec import can_be_quoted, check_offered, check_quote, wrong
from quantry._transport import Transport
from quantry._upload import Uploader
from quantry._view import JobView
from quantry.job import Event, Job, Quote
from quantry.v1 import artifact_pb2, artifact_service_pb2 as files_pb2, quantization_service_pb2 as service_pb2

log = logging.getLogger("quantry")

AWAY = 150.0  # seconds a server may stay away before a watch gives up
CLOCK_SLACK = 0.05  # a stream's deadline must not come before our own
PAGE = 1000
# As the CLI: until the engine has told what it offers (20 s after a server's start at most), and for its quotes (60 s, after
# their files are there), calls get at least so many seconds.
ENGINE_TIME, QUOTE_TIME = 30.0, 90.0
CHECK_TIME = 5.0  # seconds at most that submit(check=True) waits for a quote, as the CLI
JobLike = Union[str, Job]
PathLike = Union[str, "os.PathLike[str]"]


def _quoted(value: str) -> str:
    """A value of a filter that may hold anything: a backslash takes the next character as it is."""
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def new_request_id() -> str:
    return str(uuid.uuid4())


def request_id_for(*parts: object) -> str:
    """The same UUID for the same parts: request_id=request_id_for(dag, run, step) makes a repeated step re-attach."""
    return str(uuid.uuid5(uuid.UUID("6f9bfb0c-3c2e-5f0e-9a53-6d3b0a4d1f61"), "\x1f".join(map(str, parts))))


@contextlib.contextmanager
def _naming(request_id: str) -> Iterator[None]:
    """Whether the server has heard an unanswered request is unknown: the error tells its id, to repeat it with."""
    try:
        yield
    except errors.QuantryError as error:
        if may_go_on(error):  # a torn connection shows as INTERNAL, too
            error.metadata["request_id"] = request_id
        raise


class Core:
    def __init__(self, transport: Transport, tenant: str) -> None:
        self.transport = transport
        self.tenant = check_tenant(tenant)

    @property
    def parent(self) -> str:
        return f"tenants/{self.tenant}"

    def name_of(self, job: JobLike) -> str:
        return job.name if isinstance(job, Job) else job_name(self.tenant, job)

    async def _jobs(self, method: str, request: Any, at_least: float = 0.0) -> Any:
        return await self.transport.call("jobs", method, request, at_least)

    # --- submitting ---

    async def submit(self, arguments: Arguments, progress: TransferProgress) -> Job:
        request_id = arguments.request_id or new_request_id()
        with _naming(request_id):
            return Job((await self._create(prepare(arguments, self.tenant, request_id, False), progress,
                                           arguments.check)).quantization_job)

    async def quote(self, arguments: Arguments, progress: TransferProgress) -> Quote:
        return Quote((await self._create(prepare(arguments, self.tenant, new_request_id(), True), progress)).quote)

    async def _create(self, submission: Submission, progress: TransferProgress, check: bool = False) -> Any:
        if submission.files:
            check_offered(submission.spec, await self.methods())
        for last in (False, True):
            if submission.files:
                uploader = Uploader(self.transport, self.parent, meters(progress))
                submission.set_blobs(await uploader.upload(submission.files))
            if check and not last:
                await self._check_by_quote(submission.request)
            try:
                quote = submission.request.validate_only
                return await self._jobs("CreateQuantizationJob", submission.request, QUOTE_TIME if quote else 0.0)
            except errors.Conflict as error:  # collected between upload and create: once more
                if last or error.reason != "SOURCE_MISSING" or not submission.files:
                    raise
        raise AssertionError("unreachable")

    async def _check_by_quote(self, create: service_pb2.CreateQuantizationJobRequest) -> None:
        """Refuses a job that could not run. Without a quote, or one that comes soon, the job itself tells."""
        if not can_be_quoted(create.quantization_job.spec):
            return
        request = service_pb2.CreateQuantizationJobRequest()
        request.CopyFrom(create)
        request.validate_only, request.request_id = True, ""
        try:
            answer = await self.transport.call("jobs", "CreateQuantizationJob", request, at_most=CHECK_TIME)
        except errors.QuantryError as error:
            if error.reason == "INVALID_SPEC":
                raise
            if error.code == "DEADLINE_EXCEEDED":
                log.warning("the check of the job was left out: %s", error.message)
            return
        check_quote(answer.quote)

    # --- reading ---

    async def get(self, job: JobLike) -> Job:
        request = service_pb2.GetQuantizationJobRequest(name=self.name_of(job))
        return Job(await self._jobs("GetQuantizationJob", request))

    async def list(self, state: str, method: str, labels: Optional[Mapping[str, str]], filter: str,
                   page_size: int) -> AsyncGenerator[Job, None]:
        terms = [f"state = {state.upper()}"] if state else []
        terms += [f"method = {method}"] if method else []
        terms += [f"labels.{key} = {_quoted(value)}" for key, value in (labels or {}).items()]
        terms += [filter] if filter else []
        request = service_pb2.ListQuantizationJobsRequest(parent=self.parent, page_size=page_size,
                                                          filter=" AND ".join(terms))
        while True:
            page = await self._jobs("ListQuantizationJobs", request)
            for job in page.quantization_jobs:
                yield Job(job)
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def events(self, job: JobLike, after_sequence: int) -> AsyncGenerator[Event, None]:
        request = service_pb2.ListJobEventsRequest(parent=self.name_of(job), page_size=PAGE,
                                                   after_sequence=after_sequence)
        while True:
            page = await self._jobs("ListJobEvents", request)
            for event in page.events:
                yield Event.of(event)
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token
            request.after_sequence = 0

    async def methods(self) -> service_pb2.ListMethodsResponse:
        response: service_pb2.ListMethodsResponse = await self._jobs(
            "ListMethods", service_pb2.ListMethodsRequest(), ENGINE_TIME)
        return response

    async def server_info(self) -> service_pb2.ServerInfo:
        info: service_pb2.ServerInfo = await self._jobs("GetServerInfo", service_pb2.GetServerInfoRequest())
        return info

    async def check(self) -> None:
        """A wrong endpoint, a bad credential, and one of another tenant raise; a server that is busy now does not."""
        await self.server_info()
        request = service_pb2.ListQuantizationJobsRequest(parent=self.parent, page_size=1)
        try:
            await self._jobs("ListQuantizationJobs", request)
        except errors.QuantryError as error:
            if not is_retryable(error):
                raise

    # --- steering ---

    async def cancel(self, job: JobLike, reason: str) -> Job:
        request = service_pb2.CancelQuantizationJobRequest(name=self.name_of(job), reason=reason)
        return Job(await self._jobs("CancelQuantizationJob", request))

    async def retry(self, job: JobLike, from_start: bool, request_id: str) -> Job:
        request = service_pb2.RetryQuantizationJobRequest(name=self.name_of(job), from_start=from_start,
                                                          request_id=request_id or new_request_id())
        with _naming(request.request_id):
            return Job(await self._jobs("RetryQuantizationJob", request))

    async def delete(self, job: JobLike, allow_missing: bool) -> None:
        request = service_pb2.DeleteQuantizationJobRequest(name=self.name_of(job), allow_missing=allow_missing)
        await self._jobs("DeleteQuantizationJob", request)

    # --- following ---

    async def watch(self, job: JobLike, after_sequence: Optional[int], away: float,
                    timeout: Optional[float]) -> AsyncGenerator[Event, None]:
        """Snapshot, events, end; a broken connection is taken up again after the last event seen.

        after_sequence 0 wants the whole history: the stored part is read first, then the stream goes on from there.
        """
        name, view = self.name_of(job), JobView()
        follower = _Follower(self.transport, name, view, away, timeout)
        if after_sequence is not None:
            view.resume(after_sequence)
            async for event in follower.read(lambda: self.events(name, view.last_sequence)):
                view.resume(event.sequence)
                yield event
        stream = follower.follow()
        try:
            async for event in stream:
                yield event
        finally:
            await stream.aclose()

    async def wait(self, job: JobLike, timeout: Optional[float], progress: JobProgress, raise_on_failure: bool) -> Job:
        bar, last = JobBar(progress), None
        stream = self.watch(job, None, AWAY, timeout)
        try:
            async for event in stream:
                last = event.job or last
                if last is not None:
                    bar.show(last)
        except errors.ServerUnavailable as error:
            if last is not None:
                error.hint = f"the job is safe on the server: wait({last.id!r}) again when it is back"
            raise
        finally:
            await stream.aclose()
            bar.close()
        try:
            ended = await self.get(job)
        except errors.QuantryError as error:  # a server that goes down now has told the end already
            if last is None or not last.ended or not may_go_on(error):
                raise
            ended = last
        if raise_on_failure:
            _raise_unless_succeeded(ended)
        return ended

    # --- artifacts ---

    async def get_artifact(self, job_or_artifact: JobLike) -> artifact_pb2.Artifact:
        name = await self._artifact_of(job_or_artifact)
        found: artifact_pb2.Artifact = await self.transport.call("artifacts", "GetArtifact",
                                                                 files_pb2.GetArtifactRequest(name=name))
        return found

    async def _artifact_of(self, job_or_artifact: JobLike) -> str:
        if isinstance(job_or_artifact, str) and artifact_name(self.tenant, job_or_artifact):
            return artifact_name(self.tenant, job_or_artifact)
        job = await self.get(job_or_artifact)  # a Job may be older than its artifact
        if job.artifact:
            return job.artifact
        raise errors.make_error("FAILED_PRECONDITION", f"job {job.id} has no artifact: its state is {job.state}",
                                hint=f"get({job.id!r}).error says how it ended" if job.ended
                                else f"wait({job.id!r}) until it ends")

    async def pull(self, job_or_artifact: JobLike, folder: PathLike, format: str, path: str, force: bool,
                   progress: TransferProgress) -> Pulled:
        artifact = await self.get_artifact(job_or_artifact)
        wanted = Wanted(pathlib.Path(folder), format, path, force)
        return await Puller(self.transport, meters(progress)).pull(artifact, wanted)


def _raise_unless_succeeded(job: Job) -> None:
    if job.succeeded:
        return
    if job.state == "cancelled":
        reason = f": {job.state_reason}" if job.state_reason else ""
        raise errors.JobCancelled(f"job {job.id} was cancelled{reason}", job, code="CANCELLED")
    fields = errors.fields_of(job.proto.error)
    raise errors.JobFailed(f"job {job.id} failed: {job.proto.error.message or job.state_reason}", job, **fields)


class _Follower:
    """One watch over as many streams as it takes."""

    def __init__(self, transport: Transport, name: str, view: JobView, away: float, timeout: Optional[float]) -> None:
        if timeout is not None and timeout <= 0:
            raise wrong(f"timeout: wanted seconds above 0 or None, got {timeout}")
        self._transport, self._name, self._view, self._away = transport, name, view, away
        self._end = None if timeout is None else time.monotonic() + timeout
        self._timeout = timeout
        self._backoff = Backoff()
        self._heard_at = time.monotonic()
        self._lost = False

    def _rest(self) -> Optional[float]:
        return None if self._end is None else self._end - time.monotonic()

    def _check_time(self) -> None:
        rest = self._rest()
        if rest is not None and rest <= 0:
            job = self._view.seen()
            raise errors.WaitTimeout(f"job {job.id or self._name} did not end within {self._timeout:g} s: "
                                     f"{describe(job)}; it goes on", job,
                                     hint="wait() again, or cancel() it")

    async def read(self, events: Callable[[], AsyncGenerator[Event, None]]) -> AsyncGenerator[Event, None]:
        """All of `events()`, which begins after the last that was seen; over broken connections."""
        while True:
            self._check_time()
            try:
                async for event in events():
                    self._news()
                    yield event
                self._news()
                return
            except errors.QuantryError as error:
                if error.reason == "EVENTS_COMPACTED":
                    raise
                failure = error
            await self._after_break(failure, False)

    async def follow(self) -> AsyncGenerator[Event, None]:
        while True:
            self._check_time()
            failure: Optional[errors.QuantryError] = None
            heard = False
            stream = self._stream()
            try:
                async for message in stream:
                    heard = True
                    self._news()
                    event = self._view.apply(message)
                    if event is not None:
                        yield event
                    if self._view.ended:
                        return
            except errors.QuantryError as error:
                failure = error
            finally:
                await stream.aclose()
            self._check_time()
            await self._after_break(failure, heard)

    def _stream(self) -> AsyncGenerator[Any, None]:
        rest = self._rest()
        request = service_pb2.WatchQuantizationJobRequest(name=self._name, after_sequence=self._view.last_sequence)
        return self._transport.stream("jobs", "WatchQuantizationJob", request,
                                      None if rest is None else max(rest, 0) + CLOCK_SLACK)

    def _news(self) -> None:
        self._heard_at = time.monotonic()
        self._backoff.reset()
        if self._lost:
            log.info("%s: connected again", self._name)
        self._lost = False

    async def _after_break(self, failure: Optional[errors.QuantryError], heard: bool) -> None:
        """What to do after a stream that did not end the job: returns to try again."""
        if failure is not None and failure.reason == "EVENTS_COMPACTED":
            self._view.restart()
            return
        if failure is None and heard:  # the server cut a long stream
            await self._transport.sleep(FIRST_WAIT)
            return
        if failure is not None and not is_break(failure):
            raise failure
        # A server that was never there is told at once, one that went away gets time to come back.
        if not self._transport.answered or time.monotonic() - self._heard_at >= self._away:
            raise failure or errors.ServerUnavailable("the watch stream keeps ending without news", code="UNAVAILABLE")
        if not self._lost:
            log.warning("%s: connection lost, trying again (the job is not affected)", self._name)
        self._lost = True
        await self._transport.sleep(self._backoff.next())
        await self._transport.refresh()


__all__ = ["AWAY", "Core", "JobLike", "request_id_for"]
