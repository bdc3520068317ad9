"""Hashes of files. Imports nothing else of the package: the reader of artifacts needs no gRPC."""
from __future__ import annotations

import hashlib
import pathlib

READ_BYTES = 1 << 20


def sha256_of(path: pathlib.Path) -> str:
    """Of a file's bytes, read in pieces. OSError when it cannot be read."""
    digest = hashlib.sha256()
    with open(path, "rb") as data:
        while block := data.read(READ_BYTES):
            digest.update(block)
    return digest.hexdigest()
