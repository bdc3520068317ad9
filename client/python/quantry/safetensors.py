"""safetensors files as numpy arrays, mapped into memory; every size is checked before use."""
from __future__ import annotations

import json
import math
import pathlib
from typing import NamedTuple

import numpy as np

MAX_HEADER_BYTES = 64 << 20

# bf16 has no numpy type: its 16 bits are kept as they are.
DTYPES = {
    "F64": np.dtype("<f8"), "F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2"),
    "I64": np.dtype("<i8"), "I32": np.dtype("<i4"), "I16": np.dtype("<i2"), "I8": np.dtype("i1"),
    "U8": np.dtype("u1"), "BOOL": np.dtype("u1"),
}


class FormatError(ValueError):
    """A file that is not what it says it is."""


class Tensor(NamedTuple):
    dtype: str  # as the file names it: "F16"
    array: np.ndarray  # of DTYPES[dtype]

    def to_float32(self) -> np.ndarray:
        if self.dtype == "BF16":
            return bf16_to_float32(self.array)
        return self.array.astype(np.float32)


def bf16_to_float32(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def float32_to_bf16(values: np.ndarray) -> np.ndarray:
    """Bits of finite values rounded half to even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


class File:
    """One safetensors file."""

    def __init__(self, path):
        self.path = pathlib.Path(path)
        self._data = np.memmap(self.path, np.uint8, "r")
        length = int.from_bytes(self._data[:8].tobytes(), "little")
        if len(self._data) < 8 or length > min(MAX_HEADER_BYTES, len(self._data) - 8):
            raise FormatError(f"{self.path}: a header of {length} bytes in a file of {len(self._data)}")
        try:
            header = json.loads(self._data[8:8 + length].tobytes())
        except ValueError as error:
            raise FormatError(f"{self.path}: the header is not JSON: {error}") from None
        self._begin = 8 + length
        self.metadata = header.pop("__metadata__", {})
        self._entries = header

    def names(self):
        return list(self._entries)

    def shape(self, name):
        return tuple(self._entries[name]["shape"])

    def nbytes(self, name) -> int:
        first, last = self._entries[name]["data_offsets"]
        return last - first

    def read(self, name) -> Tensor:
        entry = self._entries[name]
        dtype = DTYPES.get(entry["dtype"])
        first, last = entry["data_offsets"]
        if dtype is None:
            raise FormatError(f"{self.path}: {name} has dtype {entry['dtype']}, which this reader does not know")
        size = math.prod(entry["shape"]) * dtype.itemsize
        if not 0 <= first <= last <= len(self._data) - self._begin or last - first != size:
            raise FormatError(f"{self.path}: {name} should take {size} bytes, its offsets are {first} to {last}")
        data = self._data[self._begin + first:self._begin + last]
        return Tensor(entry["dtype"], data.view(dtype).reshape(entry["shape"]))
