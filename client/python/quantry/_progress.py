"""Progress of transfers and of jobs: nothing, tqdm bars, or a function of the caller's."""
from __future__ import annotations

from types import TracebackType
from typing import Any, Callable, Optional, Union

from quantry.errors import InvalidRequest
from quantry.job import Job

# progress= of wait(): True = a tqdm bar; a function is called with the job after each change.
JobProgress = Union[bool, Callable[[Job], None], None]
# progress= of submit(), quote() and pull(): True = a tqdm bar; a function is called with what is done ("hashing",
# "uploading", "downloading"), the bytes done and the bytes in all.
TransferProgress = Union[bool, Callable[[str, int, int], None], None]


class Meter:
    """Bytes of one transfer; add() takes back with a negative number."""

    def __init__(self, what: str, total: int) -> None:
        self.what, self.total, self.done = what, total, 0

    def add(self, count: int) -> None:
        self.done += count

    def __enter__(self) -> Meter:
        return self

    def __exit__(self, kind: Optional[type[BaseException]], error: Optional[BaseException],
                 trace: Optional[TracebackType]) -> None:
        self.close()

    def close(self) -> None:
        pass


MeterFactory = Callable[[str, int], Meter]


class _CallingMeter(Meter):
    def __init__(self, what: str, total: int, function: Callable[[str, int, int], None]) -> None:
        super().__init__(what, total)
        self._function = function

    def add(self, count: int) -> None:
        super().add(count)
        self._function(self.what, self.done, self.total)


class _BarMeter(Meter):
    def __init__(self, what: str, total: int) -> None:
        super().__init__(what, total)
        self._bar = _tqdm(total=total, desc=what, unit="B", unit_scale=True, unit_divisor=1024)

    def add(self, count: int) -> None:
        super().add(count)
        self._bar.update(count)

    def close(self) -> None:
        self._bar.close()


def _tqdm(**options: Any) -> Any:
    try:
        from tqdm.auto import tqdm
    except ImportError:
        raise InvalidRequest("progress=True draws with tqdm, which is not installed",
                             hint="pip install \"quantry[progress]\", or give a function as progress") from None
    return tqdm(**options)


def meters(progress: TransferProgress) -> MeterFactory:
    if callable(progress):
        function = progress
        return lambda what, total: _CallingMeter(what, total, function)
    return _BarMeter if progress else Meter


def _seconds(seconds: float) -> str:
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"


def describe(job: Job) -> str:
    """Stage, block, ETA and loss in a few words: "quantizing, block 3/5, eta 12s, loss 0.81 -> 0.33"."""
    if job.state != "running":
        return f"{job.state} ({job.state_reason})" if job.state_reason else job.state
    progress = job.progress
    parts = [progress.stage or "running"]
    if progress.blocks_total:
        parts.append(f"block {progress.blocks_done}/{progress.blocks_total}")
    if progress.eta is not None:
        parts.append(f"eta {_seconds(progress.eta)}")
    if progress.loss_before or progress.loss_after:
        parts.append(f"loss {progress.loss_before:.3g} -> {progress.loss_after:.3g}")
    return ", ".join(parts)


class JobBar:
    """Shows a job as progress= asks."""

    def __init__(self, progress: JobProgress) -> None:
        self._function = progress if callable(progress) else None
        # The text as description: tqdm begins a postfix with a comma.
        self._bar = _tqdm(total=100, bar_format="{percentage:3.0f}%|{bar}| {desc}") if progress is True else None

    def show(self, job: Job) -> None:
        if self._function is not None:
            self._function(job)
        if self._bar is not None:
            done = 100 if job.succeeded else round(100 * min(1.0, max(0.0, job.progress.ratio)))
            self._bar.set_description_str(f"{job.id}: {describe(job)}", refresh=False)
            self._bar.n = done
            self._bar.refresh()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


__all__ = ["JobProgress", "TransferProgress", "describe"]
