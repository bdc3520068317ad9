"""Reads quantry containers (docs/formats/quantry-container.md) with numpy alone.

    container = Container("artifact/quantry")
    weight = container.read("model.layers.0.self_attn.q_proj")    # float32 [out, in]
    for name, array in container.dense_tensors():                 # the whole model, one tensor at a time
        ...

`python -m quantry.reader DIR` prints a summary. A reference: clear, not fast.
"""
from __future__ import annotations

import argparse
import json
import pathlib
import sys
from typing import Any, Iterator, Optional, Sequence

import numpy as np

from quantry._hash import sha256_of
from quantry.safetensors import Array, File, FormatError, PathLike, Tensor, float32_to_bf16, parse_json

STEM = "model.quantry"
GRID_SCHEMA = "quantry.container.v1"
MIXED_SCHEMA = "quantry.container.v2"
KINDS = {GRID_SCHEMA: "grid", MIXED_SCHEMA: "mixed-binary"}  # of every linear

MAX_SIDE = 1 << 31  # of a weight, as the engine has it

GRID_PARTS = ("codes", "scales", "zeros")
MIXED_PARTS = ("salient_codes", "salient_scales", "salient_zeros", "signs", "row_gain", "row_offset",
               "column_gain", "mask")


def unpack_stream(words: Array, count: int, bits: int) -> Array:
    """`count` codes of `bits` bits of every row of a dense stream: int32 [rows, words] -> uint8 [rows, count]."""
    if words.ndim != 2 or words.shape[1] != (count * bits + 31) // 32:
        raise FormatError(f"{count} codes of {bits} bits do not fit int32 {words.shape}")
    stream = np.unpackbits(np.ascontiguousarray(words).view(np.uint8), axis=1, bitorder="little")
    digits = stream[:, :count * bits].reshape(words.shape[0], count, bits)
    codes: Array = (digits << np.arange(bits, dtype=np.uint8)).sum(axis=2, dtype=np.uint8)
    return codes


def unpack_nibbles(packed: Array, count: int) -> Array:
    """uint8 [rows, ceil(count / 2)] -> uint8 [rows, count], low nibble first."""
    both = np.stack([packed & 15, packed >> 4], axis=-1)
    return both.reshape(packed.shape[0], -1)[:, :count]


def unpack_bits(packed: Array, count: int) -> Array:
    """uint8 [rows, ceil(count / 8)] -> uint8 [rows, count] of 0 and 1, lowest bit first."""
    return np.unpackbits(packed, axis=1, bitorder="little")[:, :count]


def _is_listed(listed: Any) -> bool:
    return isinstance(listed, dict) and all(isinstance(listed.get(key), str) for key in ("path", "sha256")) \
        and "\0" not in listed["path"]


def check_against_manifest(folder: pathlib.Path) -> None:
    """Compares the folder's files with the artifact's manifest.json beside it; FormatError names the one that differs.

    A pull of some files only leaves out others that the manifest lists, and a manifest.json may be of something else.
    """
    folder = folder.resolve()
    manifest = folder.parent / "manifest.json"
    if not manifest.is_file():
        return
    found = parse_json(manifest, manifest.read_bytes())
    if not isinstance(found, dict) or not str(found.get("schema")).startswith("quantry.manifest."):
        return
    files = found.get("files")
    if not isinstance(files, list) or not all(_is_listed(listed) for listed in files):
        raise FormatError(f"{manifest}: files must be a list of path and sha256, got {str(files)[:200]}")
    for listed in files:
        path = folder.parent / listed["path"]
        if path.parent != folder or not path.exists():
            continue
        digest = sha256_of(path)
        if digest != listed["sha256"]:
            raise FormatError(f"{path} is not what its manifest lists: wanted sha256 {listed['sha256']}, "
                              f"got {digest}; fetch the artifact again (quantry pull)")


def _is_whole(value: Any, least: int, most: int) -> bool:
    return type(value) is int and least <= value <= most


def _is_linear(described: Any, kind: str) -> bool:
    """Whether the metadata's word on a linear of this kind is complete; its tensors are checked where they are read."""
    if not isinstance(described, dict) or described.get("kind", "grid") != kind:
        return False
    shape = described.get("shape")
    if not isinstance(shape, list) or len(shape) != 2 or not all(_is_whole(side, 1, MAX_SIDE) for side in shape):
        return False
    if kind == "grid":
        group = described.get("group_size")
        return _is_whole(described.get("bits"), 1, 8) and isinstance(described.get("symmetric"), bool) \
            and _is_whole(group, -1, MAX_SIDE) and group != 0
    return _is_whole(described.get("salient"), 0, shape[1]) and isinstance(described.get("mask"), str)


def _described(path: pathlib.Path, text: str) -> tuple[str, dict[str, Any]]:
    """(schema, linears by module) of a file's metadata."""
    found = parse_json(f"{path}: its quantry metadata", text)
    if not isinstance(found, dict) or found.get("schema") not in tuple(KINDS):
        schema = found.get("schema") if isinstance(found, dict) else found
        raise FormatError(f"{path}: schema {str(schema)[:200]!r}, this reader knows {GRID_SCHEMA} and {MIXED_SCHEMA}")
    linears = found.get("linears")
    if not isinstance(linears, dict):
        raise FormatError(f"{path}: its quantry metadata has no object of linears, got {str(linears)[:200]}")
    kind = KINDS[found["schema"]]
    for module, described in linears.items():
        if not _is_linear(described, kind):
            raise FormatError(f"{path}: {module} needs the shape and what kind {kind} has, got {str(described)[:200]}")
    return found["schema"], linears


def _is_container(folder: pathlib.Path) -> bool:
    return any((folder / f"{STEM}.safetensors{end}").is_file() for end in ("", ".index.json"))


def _not_a_container(folder: pathlib.Path) -> FileNotFoundError:
    wanted = f"wanted the folder of a quantry container, with {STEM}.safetensors, got "
    if not (folder / "manifest.json").is_file():
        return FileNotFoundError(f"{wanted}{folder}" + ("" if folder.is_dir() else ", which is no folder"))
    found = sorted(entry for entry in folder.iterdir() if (entry / "config.json").is_file() or _is_container(entry))
    outputs = ", ".join(str(entry) for entry in found if _is_container(entry))
    told = f"; give one of its outputs: {outputs}" if outputs else \
        f", whose outputs are {', '.join(entry.name for entry in found) or 'none'}; submit with formats=\"quantry\" for one"
    return FileNotFoundError(f"{wanted}that of an artifact, {folder}{told}")


class Container:
    """A quantry folder, checked against its manifest where there is one. Files are mapped, linears decoded one at
    a time."""

    def __init__(self, folder: PathLike, check: bool = True) -> None:
        self.folder = pathlib.Path(folder)
        if not _is_container(self.folder):
            raise _not_a_container(self.folder)
        if check:
            check_against_manifest(self.folder)
        self._files: dict[str, File] = {}  # tensor -> its file
        self.linears: dict[str, Any] = {}  # module -> what the metadata says of it
        self.schemas: set[str] = set()
        for path in self._shards():
            file = File(path)
            self._files.update((name, file) for name in file.names())
            if "quantry" not in file.metadata:
                continue
            schema, linears = _described(path, file.metadata["quantry"])
            self.schemas.add(schema)
            self.linears.update(linears)
        if not self.linears:
            raise FormatError(f"{self.folder}: no file of it describes its linears")

    def _shards(self) -> list[pathlib.Path]:
        single, index = self.folder / f"{STEM}.safetensors", self.folder / f"{STEM}.safetensors.index.json"
        if not index.exists():
            return [single]
        if single.exists():
            raise FormatError(f"{self.folder} holds the same tensors twice, in {single.name} and in the shards of {index.name}: "
                              "remove the one that is left over")
        found = parse_json(index, index.read_bytes())
        shards = found.get("weight_map") if isinstance(found, dict) else None
        if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
            raise FormatError(f"{index}: weight_map must name a file for every tensor")
        names = sorted(set(shards.values()))
        if any(part in name for name in names for part in "/\\\0"):
            raise FormatError(f"{index}: shards must be file names without folders")
        return [self.folder / name for name in names]

    def _tensor(self, name: str, dtype: Sequence[str], shape: tuple[int, ...]) -> Tensor:
        if name not in self._files:
            raise FormatError(f"{self.folder}: no tensor {name}")
        tensor = self._files[name].read(name)
        if tensor.dtype not in dtype or tensor.array.shape != shape:
            raise FormatError(f"{name} should be {' or '.join(dtype)} {shape}, got {tensor.dtype} "
                              f"{tensor.array.shape}")
        return tensor

    def _factors(self, name: str, dtype: Sequence[str], shape: tuple[int, ...]) -> Array:
        """Scales or gains, float32."""
        values = self._tensor(name, dtype, shape).to_float32()
        if not np.isfinite(values).all():
            raise FormatError(f"{self.folder}: {name} holds NaN or infinity")
        return values

    def kind(self, module: str) -> str:
        """"grid" or "mixed-binary"."""
        return str(self.linears[module].get("kind", "grid"))

    def parts(self, module: str) -> list[str]:
        """Names of the tensors that hold a linear's weight."""
        names = MIXED_PARTS if self.kind(module) == "mixed-binary" else GRID_PARTS
        return [f"{module}.{name}" for name in names if f"{module}.{name}" in self._files]

    def read(self, module: str) -> Array:
        """The weight float32 [out, in] a linear stands for."""
        described = self.linears[module]
        return self._read_mixed(module, described) if self.kind(module) == "mixed-binary" \
            else self._read_grid(module, described)

    def _read_grid(self, module: str, described: Any) -> Array:
        rows, columns = described["shape"]
        bits = described["bits"]
        group = columns if described["group_size"] < 0 else described["group_size"]
        if columns % group != 0:
            raise FormatError(f"{module}: groups of {group} do not divide {columns} columns")
        groups = columns // group
        words = self._tensor(f"{module}.codes", ("I32",), (rows, (columns * bits + 31) // 32))
        scales = self._factors(f"{module}.scales", ("F16", "BF16"), (rows, groups))
        codes = unpack_stream(words.array, columns, bits).astype(np.float32)
        if described["symmetric"]:
            zeros = np.full((rows, groups), 1 << (bits - 1), np.float32)
        else:
            packed = self._tensor(f"{module}.zeros", ("I32",), ((rows * bits + 31) // 32, groups))
            zeros = unpack_stream(packed.array.T, rows, bits).T.astype(np.float32)
        centred = codes.reshape(rows, groups, group) - zeros[:, :, None]
        weight: Array = (centred * scales[:, :, None]).reshape(rows, columns)
        return weight

    def _read_mixed(self, module: str, described: Any) -> Array:
        (rows, columns), count = described["shape"], described["salient"]
        others = columns - count

        def half(part: str, size: int) -> Array:
            return self._factors(f"{module}.{part}", ("F16",), (size,))

        def packed(part: str, *shape: int) -> Array:
            return self._tensor(f"{module}.{part}", ("U8",), shape).array

        mask = self._tensor(described["mask"], ("U8",), ((columns + 7) // 8,)).array
        salient = unpack_bits(mask[None, :], columns)[0].astype(bool)
        if salient.sum() != count:
            raise FormatError(f"{described['mask']} has {salient.sum()} ones, {count} are wanted")
        codes = unpack_nibbles(packed("salient_codes", rows, (count + 1) // 2), count).astype(np.float32)
        zeros = unpack_nibbles(packed("salient_zeros", (rows + 1) // 2)[None, :], rows)[0].astype(np.float32)
        signs = unpack_bits(packed("signs", rows, (others + 7) // 8), others).astype(bool)
        gain, offset = half("row_gain", rows)[:, None], half("row_offset", rows)[:, None]
        weight = np.empty((rows, columns), np.float32)
        weight[:, salient] = (codes - zeros[:, None]) * half("salient_scales", rows)[:, None]
        weight[:, ~salient] = np.where(signs, offset + gain, offset - gain) * half("column_gain", others)
        return weight

    def other_tensors(self) -> list[str]:
        """Names of the tensors kept dense: embeddings, norms, biases, head."""
        packed = {name for module in self.linears for name in self.parts(module)}
        return [name for name in self._files if name not in packed]

    def dense_tensors(self) -> Iterator[tuple[str, Array]]:
        """(name, float32 array) of the whole model under the names a dense checkpoint has."""
        for name in self.other_tensors():
            yield name, self._files[name].read(name).to_float32()
        for module in self.linears:
            yield f"{module}.weight", self.read(module)

    def dense_shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """(name, shape) of what dense_tensors() gives, in its order."""
        for name in self.other_tensors():
            yield name, self._files[name].shape(name)
        for module, described in self.linears.items():
            rows, columns = described["shape"]
            yield f"{module}.weight", (rows, columns)

    def summary(self) -> dict[str, Any]:
        packed = [name for module in self.linears for name in self.parts(module)]
        bits = 8 * sum(self._files[name].nbytes(name) for name in packed)
        weights = sum(rows * columns for rows, columns in (d["shape"] for d in self.linears.values()))
        paths = {file.path for file in self._files.values()}
        kinds = [self.kind(module) for module in self.linears]
        return {"schemas": sorted(self.schemas), "files": len(paths),
                "bytes": sum(path.stat().st_size for path in paths),
                "linears": {kind: kinds.count(kind) for kind in sorted(set(kinds))},
                "linear_weights": weights, "linear_bits_per_weight": bits / weights,
                "dense_tensors": len(self.other_tensors())}


def main(argv: Optional[Sequence[str]] = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m quantry.reader", description="Summary of a quantry container.")
    parser.add_argument("folder")
    parser.add_argument("--linears", action="store_true", help="also one line a linear")
    options = parser.parse_args(argv)
    try:
        container = Container(options.folder)
        print(json.dumps(container.summary(), indent=1))
        for module in container.linears if options.linears else ():
            weight = container.read(module)
            rms = float(np.sqrt(np.mean(np.square(weight, dtype=np.float64))))
            print(f"{module}: {container.kind(module)} {weight.shape[0]} x {weight.shape[1]}, rms {rms:.4g}")
    except (FormatError, OSError) as error:
        print(f"quantry.reader: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())


__all__ = ["Container", "FormatError", "float32_to_bf16", "unpack_bits", "unpack_nibbles", "unpack_stream"]
