"""Where a watched job stands: the messages of one watch, put together."""
from __future__ import annotations

from typing import Optional

from quantry import errors
from quantry.job import Event, Job
from quantry.v1 import job_pb2, quantization_service_pb2 as service_pb2


class JobView:
    """Follows the messages of one job's watch: where it stands, and the sequence to go on from."""

    def __init__(self) -> None:
        self.job = job_pb2.QuantizationJob()
        self.last_sequence = 0
        self.ended = False
        self._seen_snapshot = False

    def restart(self) -> None:
        """Forgets where it was: the next snapshot starts the story anew."""
        self.last_sequence = 0
        self._seen_snapshot = False

    def resume(self, after_sequence: int) -> None:
        self.last_sequence = after_sequence

    def seen(self) -> Job:
        copy = job_pb2.QuantizationJob()
        copy.CopyFrom(self.job)
        return Job(copy)

    def apply(self, message: service_pb2.WatchQuantizationJobResponse) -> Optional[Event]:
        """The event for the caller; None for keepalives and what was seen before."""
        kind = message.WhichOneof("kind")
        if kind == "snapshot":
            return self._apply_snapshot(message.snapshot)
        if kind == "event":
            return self._apply_event(message.event)
        if kind == "progress":
            self._set_progress(message.progress)
            return Event("progress", 0, None, self.seen(), message.progress)
        if kind == "end":
            self.ended = True
            self.job.CopyFrom(message.end.job)
            return Event("end", 0, None, self.seen(), message.end.job)
        return None

    def _apply_snapshot(self, job: job_pb2.QuantizationJob) -> Optional[Event]:
        self.job.CopyFrom(job)
        if self.last_sequence == 0:  # on a resumed stream the events up to the snapshot still follow
            self.last_sequence = job.last_sequence
        if self._seen_snapshot:
            return None
        self._seen_snapshot = True
        return Event("snapshot", 0, None, self.seen(), job)

    def _apply_event(self, event: job_pb2.JobEvent) -> Optional[Event]:
        if event.sequence <= self.last_sequence:
            return None
        if event.sequence != self.last_sequence + 1:
            raise errors.make_error(
                "DATA_LOSS", f"wanted event {self.last_sequence + 1} of {self.job.name}, got {event.sequence}: the "
                             "server left out events", hint="report it; events() reads the stored history")
        self.last_sequence = event.sequence
        progress = self.job.progress
        self.job.last_sequence = event.sequence
        kind = event.WhichOneof("kind")
        if kind == "state_changed":
            self.job.state = event.state_changed.to
            self.job.state_reason = event.state_changed.reason
            if event.state_changed.HasField("error"):
                self.job.error.CopyFrom(event.state_changed.error)
        elif kind == "stage_changed":
            progress.stage = event.stage_changed.stage
        elif kind == "progress":
            self._set_progress(event.progress)
        elif kind == "block_done":
            progress.blocks_done = max(progress.blocks_done, event.block_done.index + 1)
            progress.loss_before = event.block_done.loss_rtn
            progress.loss_after = event.block_done.loss_final
        return Event.of(event, self.seen())

    def _set_progress(self, progress: job_pb2.JobProgress) -> None:
        """Progress between blocks carries no losses: those of the block done last stay."""
        before, after = self.job.progress.loss_before, self.job.progress.loss_after
        self.job.progress.CopyFrom(progress)
        if progress.loss_before == 0 and progress.loss_after == 0:
            self.job.progress.loss_before, self.job.progress.loss_after = before, after
