"""When to try again, and how long to wait before."""
from __future__ import annotations

import random

from quantry import errors

FIRST_WAIT = 0.25
LONGEST_WAIT = 5.0
# Tries without a byte of advance; with the waits between them about 90 s.
MAX_TRIES = 20
# The same while another call uploads the blob; about 4 min. A server lets go of a client that was lost without a word
# after 80 s.
MAX_HELD_TRIES = 60
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
    """Whether the same call may soon go well by itself. A quota and a full disk want somebody to do something."""
    if isinstance(error, errors.LocalDiskError):
        return False
    if error.code == "RESOURCE_EXHAUSTED":
        return error.reason in ("RESOURCE_LIMIT", "")
    return error.code in ("UNAVAILABLE", "DEADLINE_EXCEEDED")


def may_go_on(error: errors.QuantryError) -> bool:
    """Whether a transfer that ended so may go on where it stopped.

    A torn connection can show as INTERNAL, UNKNOWN or CANCELLED, but then no reason came with it.
    """
    torn = error.code in ("INTERNAL", "UNKNOWN", "CANCELLED") and not error.reason
    return is_retryable(error) or (torn and not isinstance(error, errors.LocalDiskError))


def is_break(error: errors.QuantryError) -> bool:
    """Whether a watch that ended so is worth another try: the one that broke may still count against the quota."""
    return may_go_on(error) or error.reason == "QUOTA_WATCHES"


def stream_deadline(size: int) -> float:
    """Seconds a stream that moves `size` bytes may take."""
    return 60.0 + max(0, size) / SLOWEST_BYTES_PER_SECOND
