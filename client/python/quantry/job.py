"""What the client hands out: jobs, events, quotes, as small read-only views of the API's messages.

Every view has `.proto`, the whole message of quantry.v1. Names of states, stages and formats are lower-case words as
the CLI prints them: "running", "quantizing", "compressed-tensors".
"""
from __future__ import annotations

import datetime
import re
from dataclasses import dataclass
from typing import Any, Literal, Optional

from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from quantry import errors
from quantry._rows import Row, block_row, losses_of
from quantry.v1 import artifact_pb2, job_pb2, quantization_service_pb2 as service_pb2

ENDED = frozenset({"succeeded", "failed", "cancelled"})


def word(enum: Any, number: int, prefix: str) -> str:
    """JOB_STATE_QUEUED -> "queued"; a number this client does not know as "unknown-7"."""
    try:
        name = str(enum.Name(number))
    except ValueError:
        return f"unknown-{number}"
    return name[len(prefix):].lower().replace("_", "-") if name.startswith(prefix) else name.lower()


def state_word(number: int) -> str:
    return word(job_pb2.JobState, number, "JOB_STATE_")


def stage_word(number: int) -> str:
    return "" if number == 0 else word(job_pb2.Stage, number, "STAGE_")


def _time(stamp: Timestamp) -> datetime.datetime:
    return stamp.ToDatetime(tzinfo=datetime.timezone.utc)


def _seconds(duration: Duration) -> float:
    return float(duration.seconds) + 1e-9 * duration.nanos


def to_dict(message: Message) -> Row:
    """The proto JSON of a message with field names as declared."""
    return dict(MessageToDict(message, preserving_proto_field_name=True))


def block_rows(blocks: Any) -> list[Row]:
    """One flat row a block, ready for pandas.DataFrame: block, loss_rtn, loss_final, improvement, seconds, metrics."""
    return [block_row(block.index, (block.loss_rtn, block.loss_final), block.seconds, block.metrics) for block in blocks]


def _block_text(block: artifact_pb2.BlockReport) -> str:
    rtn, final = losses_of(block.loss_rtn, block.loss_final)
    losses = "" if final is None else f"loss {rtn:.3g} -> {final:.3g}, "
    return f"block {block.index}: {losses}{block.seconds:.1f} s"


def output_rows(outputs: Any) -> list[Row]:
    """One flat row an output layout."""
    return [{"format": o.format, "path": o.path, "bytes": o.bytes, "bits_per_weight": o.bits_per_weight,
             "verified": o.verified, "compatibility": o.compatibility} for o in outputs]


def _quality_row(quality: artifact_pb2.Quality, bits: artifact_pb2.BitAccounting) -> Row:
    perplexity = quality.perplexity
    measured = perplexity.tokens > 0
    return {"perplexity_dense": perplexity.dense if measured else None,
            "perplexity_quantized": perplexity.quantized if measured else None,
            "perplexity_ratio": perplexity.quantized / perplexity.dense if measured and perplexity.dense else None,
            "kl_divergence": quality.kl_divergence if measured else None,
            "top1_agreement": quality.top1_agreement if measured else None,
            "bits_linears": bits.linears or None, "bits_file": bits.file or None}


@dataclass(frozen=True)
class Progress:
    """How far the running (or last) attempt is."""

    proto: job_pb2.JobProgress

    @property
    def stage(self) -> str:
        return stage_word(self.proto.stage)

    @property
    def blocks_done(self) -> int:
        return int(self.proto.blocks_done)

    @property
    def blocks_total(self) -> int:
        return int(self.proto.blocks_total)

    @property
    def ratio(self) -> float:
        """0 to 1 of the whole job."""
        return float(self.proto.ratio)

    @property
    def eta(self) -> Optional[float]:
        """Seconds left; None until a few steps into the first block."""
        return _seconds(self.proto.eta) if self.proto.HasField("eta") else None

    @property
    def loss_before(self) -> float:
        """Of the block just finished, rounded to nearest."""
        return float(self.proto.loss_before)

    @property
    def loss_after(self) -> float:
        """Of the block just finished, by the method."""
        return float(self.proto.loss_after)

    @property
    def metrics(self) -> dict[str, float]:
        return dict(self.proto.metrics)


@dataclass(frozen=True)
class Job:
    """A job as last seen."""

    proto: job_pb2.QuantizationJob

    @property
    def name(self) -> str:
        """tenants/{tenant}/quantizationJobs/{id}"""
        return str(self.proto.name)

    @property
    def id(self) -> str:
        return self.name.rsplit("/", 1)[-1]

    @property
    def uid(self) -> str:
        return str(self.proto.uid)

    @property
    def state(self) -> str:
        """queued, running, cancelling, succeeded, failed or cancelled."""
        return state_word(self.proto.state)

    @property
    def state_reason(self) -> str:
        return str(self.proto.state_reason)

    @property
    def ended(self) -> bool:
        return self.state in ENDED

    @property
    def succeeded(self) -> bool:
        return self.state == "succeeded"

    @property
    def method(self) -> str:
        return str(self.proto.spec.method.WhichOneof("kind") or "")

    @property
    def recipe(self) -> str:
        """The one the method names, of restore its first pass; "" when none."""
        options: Any = getattr(self.proto.spec.method, self.method) if self.method else None
        return str(getattr(getattr(options, "first_pass", options), "recipe", ""))

    @property
    def preprocessing(self) -> str:
        """"lora", or "none": results with it compare with none without."""
        return "lora" if self.proto.spec.HasField("preprocessing") else "none"

    @property
    def labels(self) -> dict[str, str]:
        return dict(self.proto.labels)

    @property
    def progress(self) -> Progress:
        return Progress(self.proto.progress)

    @property
    def artifact(self) -> str:
        """Name of the artifact; "" until there is one."""
        return str(self.proto.artifact)

    @property
    def error(self) -> Optional[errors.QuantryError]:
        """Why a failed job failed."""
        return errors.from_status(self.proto.error) if self.proto.HasField("error") else None

    @property
    def create_time(self) -> datetime.datetime:
        return _time(self.proto.create_time)

    @property
    def start_time(self) -> Optional[datetime.datetime]:
        return _time(self.proto.start_time) if self.proto.HasField("start_time") else None

    @property
    def end_time(self) -> Optional[datetime.datetime]:
        return _time(self.proto.end_time) if self.proto.HasField("end_time") else None

    @property
    def last_sequence(self) -> int:
        return int(self.proto.last_sequence)

    def params(self) -> dict[str, str]:
        """The spec, flat, without the sources' file lists: {"method": "awq", "awq.grid.bits": "4", "seed": "0"}."""
        spec = to_dict(self.proto.spec)
        flat = {"method": self.method, "seed": str(self.proto.spec.seed)}
        _flatten("", spec.get("method", {}), flat)
        for part in ("calibration", "preprocessing", "evaluation", "quality_gate", "resources"):
            fields = {name: value for name, value in spec.get(part, {}).items() if name != "source"}
            _flatten(f"{part}.", fields, flat)
        outputs = [word(job_pb2.OutputFormat, o.format, "OUTPUT_FORMAT_") for o in self.proto.spec.outputs]
        flat["outputs"] = ",".join(outputs) or "compressed-tensors"
        return flat

    def row(self) -> Row:
        """One flat row, ready for pandas.DataFrame([job.row() for job in client.list()])."""
        seconds = (self.end_time - self.start_time).total_seconds() if self.end_time and self.start_time else None
        grid = getattr(getattr(self.proto.spec.method, self.method), "grid", None) if self.method else None
        return {"id": self.id, "state": self.state, "method": self.method, "recipe": self.recipe,
                "preprocessing": self.preprocessing,
                "bits": grid.bits if grid is not None else None,
                "group_size": grid.group_size if grid is not None else None, "seed": self.proto.spec.seed,
                **_quality_row(self.proto.result.quality, self.proto.result.bits), "run_seconds": seconds,
                "create_time": self.create_time, "artifact": self.artifact, "reason": self.state_reason}

    def block_rows(self) -> list[Row]:
        """One flat row a block of the result: block, loss_rtn, loss_final, improvement (None where not measured, as
        without calibration), seconds and metrics."""
        return block_rows(self.proto.result.blocks)

    def output_rows(self) -> list[Row]:
        """One flat row an output layout: format, path, bytes, bits_per_weight, verified, compatibility."""
        return output_rows(self.proto.result.outputs)

    def to_dict(self) -> Row:
        return to_dict(self.proto)


def _flatten(prefix: str, fields: Row, flat: dict[str, str]) -> None:
    for name, value in fields.items():
        if isinstance(value, dict):
            _flatten(f"{prefix}{name}.", value, flat)
        else:
            flat[f"{prefix}{name}"] = str(value)


EventKind = Literal["snapshot", "state", "stage", "progress", "block", "log", "checkpoint", "end"]

_EVENT_KINDS: dict[str, EventKind] = {
    "state_changed": "state", "progress": "progress", "block_done": "block", "log": "log",
    "checkpoint": "checkpoint", "stage_changed": "stage",
}


@dataclass(frozen=True)
class Event:
    """One message of a watch, or one entry of a job's history.

    kind      snapshot (first), state, stage, progress, block, log, checkpoint; end (last)
    sequence  1, 2, 3, ... without gaps; 0 for what is not part of the history (snapshot, live progress, end)
    time      when the server stored it; None without a sequence
    job       the job as it is after this event; None from events() and for what watch(after_sequence=N) reads of the
              history, which comes before the snapshot
    proto     the message: QuantizationJob, JobEvent or JobProgress
    """

    kind: EventKind
    sequence: int
    time: Optional[datetime.datetime]
    job: Optional[Job]
    proto: Any

    @classmethod
    def of(cls, event: job_pb2.JobEvent, job: Optional[Job] = None) -> Event:
        kind = _EVENT_KINDS.get(event.WhichOneof("kind") or "", "log")
        return cls(kind, int(event.sequence), _time(event.time), job, event)

    @property
    def text(self) -> str:
        """One line for people."""
        if self.kind in ("snapshot", "end"):
            return state_word(self.proto.state)
        if self.kind == "progress" and self.sequence == 0:
            return f"{stage_word(self.proto.stage)} {100 * self.proto.ratio:.0f} %"
        event = self.proto
        if self.kind == "state":
            reason = f": {event.state_changed.reason}" if event.state_changed.reason else ""
            return state_word(event.state_changed.to) + plain(reason)
        if self.kind == "stage":
            return stage_word(event.stage_changed.stage)
        if self.kind == "block":
            return _block_text(event.block_done)
        if self.kind == "checkpoint":
            return f"checkpoint after {event.checkpoint.blocks_done} blocks"
        if self.kind == "progress":
            return f"{stage_word(event.progress.stage)} {100 * event.progress.ratio:.0f} %"
        return plain(event.log.message)


def plain(text: str) -> str:
    """Without control characters, which could drive a terminal."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f]", "?", text)


@dataclass(frozen=True)
class Quote:
    """What a job would cost; `problems` says why it could not run."""

    proto: service_pb2.Quote

    @property
    def ok(self) -> bool:
        return not self.proto.problems

    @property
    def problems(self) -> list[str]:
        return list(self.proto.problems)

    @property
    def steps(self) -> int:
        return int(self.proto.steps)

    @property
    def blocks(self) -> int:
        return int(self.proto.blocks)

    @property
    def parameters(self) -> int:
        return int(self.proto.parameters)

    @property
    def host_memory_bytes(self) -> int:
        """At the peak."""
        return int(self.proto.host_memory_bytes)

    @property
    def device_memory_bytes(self) -> int:
        """At the peak, when a GPU is used."""
        return int(self.proto.device_memory_bytes)

    @property
    def bits_per_weight(self) -> float:
        """Of the quantized linears, as the method makes them; 0 where it could not run."""
        return float(self.proto.bits_per_weight)

    def output_rows(self) -> list[Row]:
        return [{"format": word(job_pb2.OutputFormat, o.format, "OUTPUT_FORMAT_"), "bytes": o.bytes,
                 "bits_per_weight": o.bits_per_weight} for o in self.proto.outputs]


__all__ = ["Event", "Job", "Progress", "Quote", "block_rows", "output_rows", "to_dict"]
