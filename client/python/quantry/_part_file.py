"""A file on its way: its bytes so far beside it, checked while they come, renamed when they are right."""
from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import pathlib
import re
import stat
from typing import Iterator

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

from quantry import errors
from quantry._hash import READ_BYTES, sha256_of

NAME_DIGITS = 16  # of the sha256 in a part file's name; the command line takes up what this client leaves
FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}


@contextlib.contextmanager
def disk(path: pathlib.Path, doing: str = "write") -> Iterator[None]:
    """Turns what the disk says no with into a LocalDiskError."""
    try:
        yield
    except OSError as error:
        if isinstance(error, errors.QuantryError):
            raise
        full = error.errno in FULL
        raise errors.LocalDiskError(
            f"cannot {doing} \"{path}\": {error.strerror or error}", errno=error.errno,
            code="RESOURCE_EXHAUSTED" if full else "UNAVAILABLE", reason="DISK_FULL" if full else "STORAGE_ERROR",
            metadata={"path": str(path)},
            hint="free space there, then pull again: it goes on where it stopped" if full
            else "check the folder and its permissions, then pull again") from None


@contextlib.contextmanager
def held(folder: pathlib.Path) -> Iterator[None]:
    """Makes the folder and keeps other pulls out of it, those of other processes and of the command line too.

    Where nobody can tell (Windows, NFS) all come in. Raises Conflict when another pull is at work.
    """
    with disk(folder):
        folder.mkdir(parents=True, exist_ok=True)
    if fcntl is None:
        yield
        return
    with disk(folder):
        descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise errors.make_error("FAILED_PRECONDITION", f"another pull into \"{folder}\" is at work",
                                    hint="wait for its end, then pull again: it verifies what is there") from None
        except OSError:
            pass  # no locks on this file system
        yield
    finally:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # a forked child has the descriptor, too
        os.close(descriptor)


class PartFile:
    """Bytes of a file on their way, beside it as NAME.{sha256 digits}.part; a later try goes on from what is there."""

    def __init__(self, target: pathlib.Path, sha256: str) -> None:
        self._target, self._sha256 = target, sha256
        self.path = target.with_name(f"{target.name}.{sha256[:NAME_DIGITS]}.part")
        self._digest, self.size = hashlib.sha256(), 0
        with disk(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
            self._file = os.fdopen(os.open(self.path, flags, 0o644), "r+b", buffering=0)
            while block := self._file.read(READ_BYTES):
                self._digest.update(block)
                self.size += len(block)

    def append(self, data: bytes) -> None:
        with disk(self.path):
            rest = memoryview(data)
            while rest:
                rest = rest[self._file.write(rest):]
        self._digest.update(data)
        self.size += len(data)

    def reset(self) -> None:
        with disk(self.path):
            self._file.seek(0)
            self._file.truncate()
        self._digest, self.size = hashlib.sha256(), 0

    def matches(self, size: int) -> bool:
        return self.size == size and self._digest.hexdigest() == self._sha256

    def commit(self) -> None:
        with disk(self._target):
            os.fsync(self._file.fileno())
            self._file.close()
            try:
                os.replace(self.path, self._target)
            except FileNotFoundError:  # another pull of the same into this folder was quicker
                if not holds_exactly(self._target, self.size, self._sha256):
                    raise
            if os.name == "posix":
                folder = os.open(self._target.parent, os.O_RDONLY)
                try:
                    os.fsync(folder)
                finally:
                    os.close(folder)

    def discard(self) -> None:
        self.close()
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        self._file.close()


def remove_old_parts(target: pathlib.Path) -> None:
    """Removes what tries of other contents of `target` left beside it. Only while no other pull can be there."""
    part = re.compile(re.escape(target.name) + r"\.[0-9a-f]{%d}\.part" % NAME_DIGITS)
    with contextlib.suppress(OSError):
        for path in target.parent.iterdir():
            if part.fullmatch(path.name):
                path.unlink()


def holds_exactly(path: pathlib.Path, size: int, sha256: str) -> bool:
    """Whether a regular file has this content."""
    try:
        info = path.lstat()
        if not stat.S_ISREG(info.st_mode) or info.st_size != size:
            return False
        return sha256_of(path) == sha256
    except OSError:
        return False
