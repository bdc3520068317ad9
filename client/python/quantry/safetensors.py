"""safetensors files as numpy arrays, mapped into memory; every size is checked before use."""
from __future__ import annotations

import json
import math
import os
import pathlib
from typing import Any, Iterable, Mapping, NamedTuple, Union

import numpy as np

Array = np.ndarray[Any, Any]
PathLike = Union[str, "os.PathLike[str]"]

MAX_HEADER_BYTES = 64 << 20

# bf16 has no numpy type: its 16 bits are kept as they are.
DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"), "F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2"),
    "I64": np.dtype("<i8"), "I32": np.dtype("<i4"), "I16": np.dtype("<i2"), "I8": np.dtype("i1"),
    "U8": np.dtype("u1"), "BOOL": np.dtype("u1"),
}


class FormatError(ValueError):
    """A file that is not what it says it is."""


class Tensor(NamedTuple):
    dtype: str  # as the file names it: "F16"
    array: Array  # of DTYPES[dtype]

    def to_float32(self) -> Array:
        if self.dtype == "BF16":
            return bf16_to_float32(self.array)
        return self.array.astype(np.float32)


def bf16_to_float32(bits: Array) -> Array:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def float32_to_bf16(values: Array) -> Array:
    """Bits of finite values rounded half to even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def parse_json(what: object, text: Union[str, bytes]) -> Any:
    """The JSON value; FormatError naming `what` where it is none, nested too deeply included."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{what} is not JSON: {error}") from None


def _is_entry(entry: Any) -> bool:
    def sizes(value: Any) -> bool:
        return isinstance(value, list) and all(type(n) is int and n >= 0 for n in value)

    return isinstance(entry, dict) and isinstance(entry.get("dtype"), str) and sizes(entry.get("shape")) \
        and sizes(entry.get("data_offsets")) and len(entry["data_offsets"]) == 2


class File:
    """One safetensors file."""

    def __init__(self, path: PathLike) -> None:
        self.path = pathlib.Path(path)
        size = self.path.stat().st_size
        if size < 8:  # nothing at all cannot be mapped either
            raise FormatError(f"{self.path}: wanted a header, got a file of {size} bytes")
        self._data = np.memmap(self.path, np.uint8, "r")
        length = int.from_bytes(self._data[:8].tobytes(), "little")
        if length > min(MAX_HEADER_BYTES, len(self._data) - 8):
            raise FormatError(f"{self.path}: a header of {length} bytes in a file of {len(self._data)}")
        header = parse_json(f"{self.path}: the header", self._data[8:8 + length].tobytes())
        self._begin = 8 + length
        self.metadata: dict[str, str] = header.pop("__metadata__", {}) if isinstance(header, dict) else {}
        self._entries: dict[str, Any] = header
        if not isinstance(header, dict) or not isinstance(self.metadata, dict):
            raise FormatError(f"{self.path}: the header is no JSON object of tensors")
        if not all(isinstance(value, str) for value in self.metadata.values()):
            raise FormatError(f"{self.path}: metadata must be texts, got {str(self.metadata)[:200]}")
        for name, entry in header.items():
            if not _is_entry(entry):
                raise FormatError(f"{self.path}: {name} needs dtype, shape and data_offsets, got {str(entry)[:200]}")
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
        if end != len(self._data) - self._begin:
            raise FormatError(f"{self.path}: the offsets of its tensors end at {end}, its data at "
                              f"{len(self._data) - self._begin}: it is cut off, or something follows")

    def names(self) -> list[str]:
        return list(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._entries[name]["shape"])

    def nbytes(self, name: str) -> int:
        first, last = self._entries[name]["data_offsets"]
        return int(last - first)

    def read(self, name: str) -> Tensor:
        entry = self._entries[name]
        dtype = DTYPES.get(entry["dtype"])
        first, last = entry["data_offsets"]
        if dtype is None:
            raise FormatError(f"{self.path}: {name} has dtype {entry['dtype']}, which this reader does not know")
        size = math.prod(entry["shape"]) * dtype.itemsize
        if not 0 <= first <= last <= len(self._data) - self._begin or last - first != size:
            raise FormatError(f"{self.path}: {name} should take {size} bytes, its offsets are {first} to {last}")
        data = self._data[self._begin + first:self._begin + last]
        try:
            return Tensor(entry["dtype"], data.view(dtype).reshape(entry["shape"]))
        except (ValueError, OverflowError) as error:  # sides that no array has, one of them 0
            raise FormatError(f"{self.path}: {name} has the shape {str(entry['shape'])[:200]}: {error}") from None


def write_file(path: PathLike, shapes: Mapping[str, tuple[str, tuple[int, ...]]],
               tensors: Iterable[tuple[str, Array]], metadata: Mapping[str, str]) -> None:
    """Writes one file, a tensor at a time: `shapes` is {name: (dtype, shape)}, `tensors` gives them in that order.

    The file appears whole or not at all.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    at = 0
    for name, (dtype, shape) in shapes.items():
        size = math.prod(shape) * DTYPES[dtype].itemsize
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    target = pathlib.Path(path)
    part = target.with_name(f"{target.name}.part")
    order = iter(shapes.items())
    with open(part, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, array in tensors:
            wanted, (dtype, shape) = next(order)
            if name != wanted or array.shape != shape or array.dtype != DTYPES[dtype]:
                raise ValueError(f"wanted {wanted} {dtype} {shape}, got {name} {array.dtype} {array.shape}")
            file.write(np.ascontiguousarray(array).data)
    os.replace(part, target)
