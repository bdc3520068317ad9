"""A quantry container (TesseraQ and every other uniform grid, PTQ1.61) as dense tensors, in numpy or safetensors."""
from __future__ import annotations

import json
import os
import pathlib
import shutil
from typing import Any, Iterator, Union

import numpy as np

from quantry.reader import Container
from quantry.safetensors import FormatError, float32_to_bf16, write_file

PathLike = Union[str, "os.PathLike[str]"]

DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


def convert(values: np.ndarray[Any, Any], dtype: str) -> np.ndarray[Any, Any]:
    """float32 as `dtype`. bfloat16 has no numpy type: its bits come as uint16."""
    if dtype not in DTYPES:
        raise ValueError(f"dtype: wanted one of {', '.join(DTYPES)}, got {dtype!r}")
    if dtype == "bfloat16":
        return float32_to_bf16(values)
    return values.astype(np.float16 if dtype == "float16" else np.float32, copy=False)


def load_dense(folder: PathLike, dtype: str = "float32") -> dict[str, np.ndarray[Any, Any]]:
    """Every tensor of the model under the names a dense checkpoint has: {name: [out, in] array}.

    `folder` holds model.quantry.safetensors (the "quantry" output of an artifact). Weights are exactly what the codes
    stand for; in float32 nothing is rounded again. FormatError says what is wrong with a file.
    """
    return {name: convert(array, dtype) for name, array in Container(folder).dense_tensors()}


def save_dense(folder: PathLike, out: PathLike, dtype: str = "bfloat16") -> pathlib.Path:
    """Writes the container as a dense Hugging Face checkpoint, one tensor in memory at a time.

    `out`, another folder, gets model.safetensors and the container's config and tokenizer files; quantization_config is left out of
    config.json and dtype set in it. Returns the path of model.safetensors. An existing one is refused.
    """
    source, target = pathlib.Path(folder), pathlib.Path(out)
    if dtype not in DTYPES:
        raise ValueError(f"dtype: wanted one of {', '.join(DTYPES)}, got {dtype!r}")
    if target.resolve() == source.resolve():
        raise ValueError(f"out: wanted another folder than the container's, got \"{target}\"")
    container = Container(source)
    path = target / "model.safetensors"
    if path.exists():
        raise FileExistsError(f"\"{path}\" is already there: wanted a folder without a checkpoint")
    target.mkdir(parents=True, exist_ok=True)

    def tensors() -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
        for name, array in container.dense_tensors():
            yield name, convert(array, dtype)

    shapes = {name: (DTYPES[dtype], shape) for name, shape in container.dense_shapes()}
    write_file(path, shapes, tensors(), {"format": "pt"})
    for file in sorted(source.iterdir()):
        if file.suffix in (".json", ".model", ".txt", ".jinja") and not file.name.endswith(".index.json"):
            shutil.copyfile(file, target / file.name)
    _fix_config(target / "config.json", dtype)
    return path


def _fix_config(path: pathlib.Path, dtype: str) -> None:
    if not path.exists():
        return
    config = json.loads(path.read_text())
    config.pop("quantization_config", None)
    names = [name for name in ("dtype", "torch_dtype") if name in config]  # the newer one is what loaders prefer
    config.update(dict.fromkeys(names or ["torch_dtype"], dtype))
    path.write_text(json.dumps(config, indent=2) + "\n")


__all__ = ["FormatError", "convert", "load_dense", "save_dense"]
