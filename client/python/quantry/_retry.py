"""When to try again, and how long to wait before."""
from __future__ import annotations

import random

from quantry import errors

FIRST_WAIT = 0.25
LONGEST_WAIT = 5.0
# Tries without a byte of advance; with the waits between them about 90 s.
MAX_TRIES = 20
# Slower than this a stream counts as stuck.
SLOWEST_BYTES_PER_SECOND = 64 << 10


class Backoff:
    """Waits in seconds: doubling, jittered to 50-100 %, so that many clients do not come back at once."""

    def __init__(self) -> None:
        self._wait = FIRST_WAIT

    def next(self) -> float:
        wait = self._wait
        self._wait = min(2 * wait, LONGEST_WAIT)
        return wait * (0.5 + 0.5 * random.random())

    def reset(self) -> None:
        self._wait = FIRST_WAIT


def is_retryable(error: errors.QuantryError) -> bool:
    return error.code in ("UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED") and not isinstance(
        error, errors.LocalDiskError)


def is_break(error: errors.QuantryError) -> bool:
    """Whether a watch that ended so is worth another try.

    A torn connection can show as INTERNAL, UNKNOWN or CANCELLED, but then no reason came with it.
    """
    return is_retryable(error) or (error.code in ("INTERNAL", "UNKNOWN", "CANCELLED") and not error.reason)


def stream_deadline(rest: int) -> float:
    """Seconds a stream of `rest` bytes may take."""
    return 60.0 + max(0, rest) / SLOWEST_BYTES_PER_SECOND
