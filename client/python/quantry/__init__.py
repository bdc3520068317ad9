"""quantry from Python: a client of the service, and readers of what it makes.

    import quantry

    with quantry.connect("127.0.0.1:7070") as client:
        job = client.submit("./my-model", method="awq", bits=4, calibration="train.txt", evaluation="test.txt")
        job = client.wait(job, progress=True)
        client.pull(job, "./my-model-w4")

`quantry.aio` has the same for asyncio. `quantry.reader` reads quantry containers with numpy alone; nothing of gRPC is
imported before it is used.
"""
from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

# gRPC reads it when it is first imported. Between calls a channel looks whether its server is back only every 5 s: a
# watch would go on that much later, or twice that.
os.environ.setdefault("GRPC_CLIENT_CHANNEL_BACKUP_POLL_INTERVAL_MS", "200")

from quantry._version import VERSION as __version__

if TYPE_CHECKING:
    from quantry._core import request_id_for
    from quantry._pull import Pulled
    from quantry.aio import AsyncClient
    from quantry.artifact import LocalArtifact
    from quantry.client import Client, connect
    from quantry.dense import load_dense, save_dense
    from quantry.errors import (AccessDenied, Conflict, CorruptData, InvalidRequest, JobCancelled, JobEnded, JobFailed,
                                LocalDiskError, NotFound, QuantryError, QuotaExceeded, ServerError, ServerUnavailable,
                                Violation, WaitTimeout)
    from quantry.job import Event, Job, Progress, Quote

_ERRORS = ("AccessDenied", "Conflict", "CorruptData", "InvalidRequest", "JobCancelled", "JobEnded", "JobFailed",
           "LocalDiskError", "NotFound", "QuantryError", "QuotaExceeded", "ServerError", "ServerUnavailable",
           "Violation", "WaitTimeout")
_HOME = {"AsyncClient": "quantry.aio", "Client": "quantry.client", "Event": "quantry.job", "Job": "quantry.job",
         "LocalArtifact": "quantry.artifact", "Progress": "quantry.job", "Pulled": "quantry._pull",
         "Quote": "quantry.job", "connect": "quantry.client", "load_dense": "quantry.dense",
         "request_id_for": "quantry._core", "save_dense": "quantry.dense",
         **{name: "quantry.errors" for name in _ERRORS}}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    if name in ("aio", "artifact", "client", "dense", "errors", "job", "reader", "safetensors"):
        return importlib.import_module(f"quantry.{name}")
    raise AttributeError(f"module 'quantry' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])


__all__ = [
    "AccessDenied", "AsyncClient", "Client", "Conflict", "CorruptData", "Event", "InvalidRequest", "Job",
    "JobCancelled", "JobEnded", "JobFailed", "LocalArtifact", "LocalDiskError", "NotFound", "Progress", "Pulled",
    "QuantryError", "QuotaExceeded", "Quote", "ServerError", "ServerUnavailable", "Violation", "WaitTimeout",
    "__version__", "connect", "load_dense", "request_id_for", "save_dense",
]
