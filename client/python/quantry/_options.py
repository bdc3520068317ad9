"""How to reach a server: where it is, over what, and who asks."""
from __future__ import annotations

import json
import logging
import os
import pathlib
import re
from dataclasses import dataclass
from typing import Any, Callable, Optional, Union

import grpc

from quantry import errors
from quantry._version import VERSION

Token = Union[str, Callable[[], str], None]
Traceparent = Union[str, Callable[[], str], None]
PathLike = Union[str, "os.PathLike[str]"]

log = logging.getLogger("quantry")

# W3C Trace Context; ids of zeros alone are none.
TRACEPARENT = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")

DEFAULT_SERVER = "127.0.0.1:7070"
# gRPC itself would take port 443 where there is none, look for a host called "http", and cut 70000 to 4464.
HOST_PORT = re.compile(r"(\[[0-9A-Fa-f:.]+(%\w+)?\]|[^\s:/\[\]]+):([0-9]{1,5})")
GRPC_NAMES = ("unix:", "unix-abstract:", "dns:", "ipv4:", "ipv6:")
LOOPBACK = ("127.", "localhost:", "[::1]", "unix:")

# Retries of the unary calls: creates carry a request id, most others are idempotent by nature. Not a delete: a second one
# is refused because the first, whose answer was lost, was done. Streams have retries of their own with a resume point.
NOT_REPEATED = ("DeleteQuantizationJob", "UpdateQuantizationJob")
SERVICE_CONFIG = json.dumps({"methodConfig": [
    {"name": [{"service": "quantry.v1.QuantizationService"},
              *({"service": "quantry.v1.ArtifactService", "method": method}
                for method in ("FindMissingBlobs", "GetArtifact", "ListArtifacts"))],
     "retryPolicy": {"maxAttempts": 4, "initialBackoff": "0.1s", "maxBackoff": "1s", "backoffMultiplier": 2,
                     "retryableStatusCodes": ["UNAVAILABLE"]}},
    {"name": [{"service": "quantry.v1.QuantizationService", "method": method}
              for method in (*NOT_REPEATED, "WatchQuantizationJob")]}]})


@dataclass(frozen=True)
class Address:
    target: str  # HOST:PORT
    source: str  # "connect()", "QUANTRY_SERVER", "context NAME", a file, "the default"

    @property
    def is_loopback(self) -> bool:
        return self.target.startswith(LOOPBACK)


def _check_target(target: str, source: str) -> str:
    match = HOST_PORT.fullmatch(target)
    if target.startswith(GRPC_NAMES) or match and 0 < int(match.group(3)) < 1 << 16:
        return target
    scheme = re.match(r"https?://", target)
    raise errors.InvalidRequest(
        f"{source}: wanted HOST:PORT, got \"{target}\"", code="INVALID_ARGUMENT",
        hint=f"leave {scheme.group()} out; tls_ca=FILE or tls=True asks for TLS" if scheme else
        "such as 127.0.0.1:7070 or [::1]:7070; a port is 1 to 65535")


def resolve_server(target: Optional[str], source: str = "connect()") -> Address:
    """The target, else the address file of an embedded server here, else the default."""
    if target:
        return Address(_check_target(target, source), source)
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
    source: str = "connect()"  # of the target
    traceparent: Traceparent = None

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
        return ([("authorization", f"Bearer {token}")] if token else []) + self._trace()

    def _trace(self) -> list[tuple[str, str]]:
        given = self.traceparent() if callable(self.traceparent) else self.traceparent
        given = os.environ.get("TRACEPARENT", "") if given is None else given
        if not given:
            return []
        if TRACEPARENT.fullmatch(given) is None:
            log.warning("traceparent: wanted 00-{32 hex digits}-{16 hex digits}-{00 or 01}, got %.100r; ignored", given)
            return []
        return [("traceparent", given)]

    def arguments(self, address: Address) -> list[tuple[str, Any]]:
        arguments: list[tuple[str, Any]] = [
            ("grpc.primary_user_agent", f"quantry-python/{VERSION}"),
            ("grpc.service_config", SERVICE_CONFIG),
            ("grpc.keepalive_time_ms", 60_000), ("grpc.keepalive_timeout_ms", 20_000),
            ("grpc.keepalive_permit_without_calls", 0),
            # A restarted server is found again within a second or two. min_reconnect_backoff_ms stays at gRPC's 20 s: it
            # also limits one attempt to connect, which takes several round trips.
            ("grpc.initial_reconnect_backoff_ms", 200), ("grpc.max_reconnect_backoff_ms", 2_000),
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
