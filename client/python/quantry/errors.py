"""What can go wrong, as exceptions.

Every failed call raises a QuantryError that says what was wanted, what was got and what to do; the subclass says
what a program can do about it. The server's reasons are listed in docs/api/errors.md.

    QuantryError
    ├── InvalidRequest       fix the request (also a ValueError)
    ├── NotFound             no such job, artifact or file (also a LookupError)
    ├── Conflict             taken, changed meanwhile, or in the wrong state
    ├── AccessDenied         credentials missing, wrong or expired
    ├── QuotaExceeded        wait `retry_after` seconds, then repeat
    ├── ServerUnavailable    nobody answers, or not now (also a ConnectionError)
    ├── CorruptData          bytes are not what their hash says
    ├── LocalDiskError       this machine's disk: full, read-only, ... (also an OSError)
    ├── ServerError          a bug of the server, or an rpc it does not have
    ├── WaitTimeout          the time given to wait() passed; the job goes on (also a TimeoutError)
    └── JobEnded             wait(): the job did not succeed; `.job` has the details
        ├── JobFailed
        └── JobCancelled
"""
from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple, Optional

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

if TYPE_CHECKING:
    from quantry.job import Job

DETAILS_KEY = "grpc-status-details-bin"


class Violation(NamedTuple):
    """One thing wrong with a request: the field, quota or missing blob, and what about it."""

    field: str
    description: str


class QuantryError(Exception):
    """Base of everything this package raises on purpose.

    message      one sentence for people
    code         the gRPC code's name: "INVALID_ARGUMENT"
    reason       stable word of docs/api/errors.md: "INVALID_SPEC"; "" when there is none
    wanted, got  the two sides of the mismatch, "" when the message has none
    hint         what to do now; "" when there is nothing to say
    metadata     every value the message mentions
    violations   the fields, quotas or blobs the server named
    retry_after  seconds the server asks to wait before a retry; None = it asks nothing
    """

    def __init__(self, message: str, *, code: str = "", reason: str = "", hint: str = "", wanted: str = "",
                 got: str = "", metadata: Optional[dict[str, str]] = None,
                 violations: tuple[Violation, ...] = (), retry_after: Optional[float] = None) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.reason = reason
        self.hint = hint
        self.metadata = dict(metadata or {})
        parsed = _wanted_got(message)
        self.wanted = wanted or self.metadata.get("wanted", "") or parsed[0]
        self.got = got or self.metadata.get("got", "") or parsed[1]
        self.violations = violations
        self.retry_after = retry_after

    def __str__(self) -> str:
        lines = [self.message or self.code]
        if self.reason:
            lines.append(f"  reason: {self.reason}")
        said = (_field_text(v, self.message) for v in self.violations)
        lines += dict.fromkeys(f"  field:  {text}" for text in said if text)
        if self.retry_after is not None:
            lines.append(f"  retry:  after {self.retry_after:g} s")
        if self.hint:
            lines.append(f"  next:   {self.hint}")
        return "\n".join(lines)

    def __reduce__(self) -> tuple[Any, ...]:  # pickles with its fields: pipelines send errors between processes
        return (_rebuild, (type(self), self.message, self.__dict__))


def _field_text(violation: Violation, message: str) -> str:
    """What a violation says beyond the message: all of it, the field's name, or nothing."""
    told = message == violation.description or any(f"{sign} {violation.description}" in message for sign in ":;")
    if not told:
        return f"{violation.field}: {violation.description}"
    return "" if violation.field in message else violation.field


def _rebuild(kind: type[QuantryError], message: str, fields: dict[str, Any]) -> QuantryError:
    error = kind.__new__(kind)
    Exception.__init__(error, message)
    error.__dict__.update(fields)
    return error


class InvalidRequest(QuantryError, ValueError):
    """The request cannot work; `violations` names the fields. Repeating it changes nothing."""


class NotFound(QuantryError, LookupError):
    """No such job, artifact or file, or it belongs to another tenant."""


class Conflict(QuantryError):
    """The id is taken, the job changed since it was read, or is in the wrong state."""


class AccessDenied(QuantryError):
    """Credentials are missing, wrong or expired, or do not reach this tenant."""


class QuotaExceeded(QuantryError):
    """A limit is reached: repeat after `retry_after` seconds. Without it: do not repeat by yourself."""


class ServerUnavailable(QuantryError, ConnectionError):
    """Nobody answers at the address, or the server cannot answer now. Calls may be repeated safely: submit() and retry()
    with request_id=error.metadata["request_id"], or a job of which only the answer was lost runs twice."""


class CorruptData(QuantryError):
    """Bytes differ from their sha256 or crc32c, even when fetched again."""


class LocalDiskError(QuantryError, OSError):
    """This machine cannot write (or read) a file; `errno` as the system gave it."""

    def __init__(self, message: str, *, errno: Optional[int] = None, **fields: Any) -> None:
        super().__init__(message, **fields)
        self.errno = errno


class ServerError(QuantryError):
    """A bug of the server (INTERNAL), or something this server version does not have (UNIMPLEMENTED)."""


class WaitTimeout(QuantryError, TimeoutError):
    """The time given to wait() passed. `job` as last seen; it goes on."""

    def __init__(self, message: str, job: Job, **fields: Any) -> None:
        super().__init__(message, **fields)
        self.job = job


class JobEnded(QuantryError):
    """The job ended without success. `job` has state, error and what it left behind."""

    def __init__(self, message: str, job: Job, **fields: Any) -> None:
        super().__init__(message, **fields)
        self.job = job


class JobFailed(JobEnded):
    """The job failed; reason, hint and violations are those of its error."""


class JobCancelled(JobEnded):
    """Somebody cancelled the job."""


_BY_CODE: dict[str, type[QuantryError]] = {
    "INVALID_ARGUMENT": InvalidRequest, "OUT_OF_RANGE": InvalidRequest,
    "NOT_FOUND": NotFound,
    "ALREADY_EXISTS": Conflict, "ABORTED": Conflict, "FAILED_PRECONDITION": Conflict,
    "UNAUTHENTICATED": AccessDenied, "PERMISSION_DENIED": AccessDenied,
    "RESOURCE_EXHAUSTED": QuotaExceeded,
    "UNAVAILABLE": ServerUnavailable, "DEADLINE_EXCEEDED": ServerUnavailable,
    "DATA_LOSS": CorruptData,
}

_HINTS = {
    "JOB_NOT_FOUND": "client.list() shows the jobs of this tenant",
    "ARTIFACT_NOT_FOUND": "client.get(JOB) shows whether the job has an artifact; deleted jobs keep none",
    "JOB_ID_TAKEN": "choose another job_id, or look at that job with client.get(job_id)",
    "REQUEST_ID_REUSED": "the same request_id came with another payload: leave it out for a new job",
    "INVALID_SPEC": "fix the fields named above, then check with client.quote(...): same arguments as submit",
    "INVALID_CHECKPOINT": "repair or download the checkpoint again; client.quote(...) checks it without a job",
    "UNSUPPORTED_ARCHITECTURE": "client.server_info().architectures lists the model types it knows",
    "CHECKPOINT_FORMAT_REFUSED": "convert it: model.save_pretrained(folder, safe_serialization=True)",
    "ETAG_MISMATCH": "somebody changed it meanwhile: get it again, then repeat",
    "JOB_ALREADY_ENDED": "nothing to cancel; client.get(JOB) shows how it ended",
    "JOB_NOT_ENDED": "cancel it and wait, then delete it",
    "JOB_NOT_RETRYABLE": "wait for its end, or submit another job: a finished one gives the same bytes again",
    "INVALID_FILTER": "terms joined by AND: state = RUNNING, method = awq, labels.KEY = \"VALUE\"",
    "INVALID_PAGE_TOKEN": "list again from the start",
    "SOURCE_FORBIDDEN": "the server reads only below its local roots (client.server_info().local_roots); give the "
                        "folder as `model` to upload it instead",
    "SOURCE_MISSING": "submit again: it uploads what the server lacks",
    "RESOURCE_LIMIT": "wait `retry_after` seconds, then repeat",
    "QUOTA_QUEUED": "wait until queued jobs have run, or cancel some",
    "QUOTA_STORED_BYTES": "delete jobs whose artifacts are not needed, or ask the operator",
    "QUOTA_SUBMIT_RATE": "wait `retry_after` seconds, then repeat",
    "QUOTA_WATCHES": "end other watches of the tenant, or poll with get()",
    "EVENTS_COMPACTED": "older events are gone; watch without after_sequence",
    "BLOB_MISMATCH": "the file changed while it was sent: submit again",
    "ARTIFACT_CORRUPT": "try again; if it repeats, a stored file is damaged: tell the operator",
    "QUALITY_GATE_FAILED": "the artifact is kept: client.pull(JOB, DIR); try more bits, a smaller group_size or more "
                           "calibration samples",
}

_CODE_HINTS = {
    "UNAVAILABLE": "is quantryd running there? Name another server with connect(\"HOST:PORT\") or QUANTRY_SERVER",
    "DEADLINE_EXCEEDED": "try again, or raise timeout=",
    "UNAUTHENTICATED": "give connect() a valid token or client certificate; an expired token must be renewed",
    "PERMISSION_DENIED": "ask the operator for access to this tenant",
    "UNIMPLEMENTED": "this server does not offer that; client.server_info().version shows its version",
}


def hint_for(reason: str, code: str) -> str:
    return _HINTS.get(reason) or _CODE_HINTS.get(code, "")


def _tenant_hint(message: str) -> str:
    """For credentials of one tenant that asked for another's."""
    match = re.search(r", whose tenant is ([a-z][a-z0-9-]*)$", message)
    return f"give connect() tenant=\"{match.group(1)}\", or set QUANTRY_TENANT" if match else ""


def _wanted_got(message: str) -> tuple[str, str]:
    match = re.search(r"wanted (.+?), got ([^;]+)", message, re.DOTALL)
    return (match.group(1), match.group(2)) if match else ("", "")


def code_name(code: int) -> str:
    """google.rpc.Status.code as a word."""
    for status in grpc.StatusCode:
        if status.value[0] == code:
            return str(status.name)
    return "UNKNOWN"


def fields_of(status: status_pb2.Status) -> dict[str, Any]:
    """The keyword arguments of the exception for a google.rpc.Status."""
    fields: dict[str, Any] = {"code": code_name(status.code), "metadata": {}}
    violations: list[Violation] = []
    for detail in status.details:
        for kind in (error_details_pb2.ErrorInfo, error_details_pb2.BadRequest, error_details_pb2.QuotaFailure,
                     error_details_pb2.PreconditionFailure, error_details_pb2.RetryInfo):
            if not detail.Is(kind.DESCRIPTOR):
                continue
            message: Any = kind()
            try:
                detail.Unpack(message)
            except DecodeError:  # only costs the extra lines
                continue
            _add_detail(message, fields, violations)
    fields["violations"] = tuple(violations)
    fields["hint"] = hint_for(fields.get("reason", ""), fields["code"])
    return fields


def _add_detail(message: Any, fields: dict[str, Any], violations: list[Violation]) -> None:
    if isinstance(message, error_details_pb2.ErrorInfo):
        fields["reason"] = message.reason
        fields["metadata"] = dict(message.metadata)
    elif isinstance(message, error_details_pb2.BadRequest):
        violations += [Violation(v.field, v.description) for v in message.field_violations]
    elif isinstance(message, error_details_pb2.QuotaFailure):
        violations += [Violation(v.subject, v.description) for v in message.violations]
    elif isinstance(message, error_details_pb2.PreconditionFailure):
        violations += [Violation(f"{v.type} {v.subject}", v.description) for v in message.violations]
    elif isinstance(message, error_details_pb2.RetryInfo):
        fields["retry_after"] = message.retry_delay.seconds + 1e-9 * message.retry_delay.nanos


def make_error(code: str, message: str, **fields: Any) -> QuantryError:
    """The exception of a code, for errors found on this side."""
    fields.setdefault("hint", hint_for(fields.get("reason", ""), code))
    return _BY_CODE.get(code, ServerError)(message, code=code, **fields)


def from_status(status: status_pb2.Status) -> QuantryError:
    """The exception for a google.rpc.Status, such as QuantizationJob.error."""
    fields = fields_of(status)
    fields["hint"] = _tenant_hint(status.message) or fields["hint"]
    return _BY_CODE.get(fields["code"], ServerError)(status.message, **fields)


def _last_words(message: str) -> str:
    """gRPC's "failed to connect to all addresses; last error: ...: Connection refused" comes down to its end."""
    return re.sub(r" \(\d+\)$", "", message.rsplit(": ", 1)[-1])


def _connection_hint(message: str, secure: bool, certified: bool) -> str:
    lower = message.lower()
    if "wrong_version_number" in lower.replace(" ", "_"):
        return "the server does not speak TLS: connect without tls_ca and tls"
    if "certificate" in lower or "ssl" in lower or "handshake" in lower or "peer name" in lower:
        return ("TLS failed: tls_ca must be the CA that signed the server's certificate and the target its name; a "
                "server that asks for client certificates needs tls_cert and tls_key")
    cut = any(word in lower for word in ("socket closed", "connection reset", "eof", "settings frame", "secure read failed"))
    if cut and not secure:
        return "somebody listens there but does not answer plain gRPC: does the server want TLS (tls_ca=, tls=True)?"
    if cut and not certified:
        return ("somebody listens there but ends the connection: does the server want a client certificate (tls_cert=, "
                "tls_key=), or is it going down?")
    return _CODE_HINTS["UNAVAILABLE"]


def from_rpc(error: Any, target: str, source: str, secure: bool, timeout: Optional[float],
             certified: bool = False) -> QuantryError:
    """The exception for a grpc.RpcError of either API; a connection failure names the server. `certified`: this side has
    a certificate, too."""
    code = error.code().name if error.code() is not None else "UNKNOWN"
    text = error.details() or ""
    blob = next((value for key, value in error.trailing_metadata() or () if key == DETAILS_KEY), None)
    status = status_pb2.Status()
    if blob:
        try:
            status.ParseFromString(blob)
        except DecodeError:
            status.Clear()
    status.code = error.code().value[0] if error.code() is not None else 2
    status.message = text
    if blob is None and code == "UNAVAILABLE":
        return ServerUnavailable(f"no answer from the server at {target} ({source}): {_last_words(text)}", code=code,
                                 hint=_connection_hint(text, secure, certified), wanted=f"a quantry server at {target}",
                                 got=_last_words(text))
    if blob is None and code == "DEADLINE_EXCEEDED":
        within = f" within {timeout:g} s" if timeout is not None else " in time"
        return ServerUnavailable(f"the server at {target} ({source}) did not answer{within}", code=code,
                                 hint=_CODE_HINTS[code])
    if blob is None and code == "CANCELLED":  # not by this side: that raises nothing here
        return ServerUnavailable(f"the server at {target} ({source}) ended the call; it is probably shutting down",
                                 code="UNAVAILABLE", hint=_CODE_HINTS["UNAVAILABLE"])
    if blob is None and _no_quantry(code, text):
        return ServerError(f"what answers at {target} ({source}) is no quantry server (or an old one): {text}", code=code,
                           hint="check host and port: the tenant port of quantryd is wanted",
                           wanted="quantry's tenant API", got=text)
    return from_status(status)


def _no_quantry(code: str, text: str) -> bool:
    """A quantryd gives every error its details; others do not know the method, or are no gRPC at all."""
    return code == "UNIMPLEMENTED" or (code in ("UNKNOWN", "INTERNAL") and any(
        word in text.lower() for word in ("http", "content-type")))


__all__ = [
    "AccessDenied", "Conflict", "CorruptData", "InvalidRequest", "JobCancelled", "JobEnded", "JobFailed",
    "LocalDiskError", "NotFound", "QuantryError", "QuotaExceeded", "ServerError", "ServerUnavailable", "Violation",
    "WaitTimeout",
]
