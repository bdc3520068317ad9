"""A pulled artifact: its manifest, its tables, its weights, and whether its bytes are still what they were."""
from __future__ import annotations

import json
import math
import os
import pathlib
from typing import Any, Iterator, Optional, Union

from quantry._files import check_name
from quantry._hash import sha256_of
from quantry._rows import Row, block_row
from quantry.errors import CorruptData, InvalidRequest, NotFound

PathLike = Union[str, "os.PathLike[str]"]

MANIFEST = "manifest.json"


class LocalArtifact:
    """A folder that pull() filled (docs/formats). Needs no server.

        artifact = quantry.LocalArtifact("my-model-w4")
        artifact.verify()
        pandas.DataFrame(artifact.block_rows()).plot(x="block", y=["loss_rtn", "loss_final"])
    """

    def __init__(self, folder: PathLike) -> None:
        self.folder = pathlib.Path(folder)
        try:
            self.manifest: Row = json.loads((self.folder / MANIFEST).read_bytes())
        except FileNotFoundError:
            raise NotFound(f"wanted a pulled artifact, got \"{self.folder}\" without {MANIFEST}",
                           hint="pull() writes it last: pull again to complete the folder") from None
        except ValueError as error:
            raise CorruptData(f"\"{self.folder / MANIFEST}\" is not JSON: {error}") from None

    def __repr__(self) -> str:
        return f"LocalArtifact({str(self.folder)!r})"

    @property
    def job(self) -> str:
        """Name of the job that made it."""
        return str(self.manifest.get("job", ""))

    @property
    def method(self) -> str:
        return str(self.manifest.get("method", ""))

    @property
    def recipe(self) -> str:
        """The one the method names, of restore its first pass; "" when none."""
        try:
            options = json.loads(self.manifest.get("spec_json") or "{}").get("method", {}).get(self.method, {})
            return str(options.get("first_pass", options).get("recipe", ""))
        except (ValueError, TypeError, AttributeError) as error:
            raise CorruptData(f"spec_json in \"{self.folder / MANIFEST}\" is not the JSON of a spec: {error}") from None

    @property
    def preprocessing(self) -> str:
        """"lora", or "none": results with it compare with none without."""
        return "lora" if "preprocessing" in self.manifest else "none"

    @property
    def outputs(self) -> dict[str, pathlib.Path]:
        """Folder of each output layout: {"compressed-tensors": ...}."""
        folders = {output["format"]: output.get("path", "") for output in self.manifest.get("outputs", [])}
        return {name: self.folder / check_name(path) if path else self.folder for name, path in folders.items()}

    def output(self, format: str) -> pathlib.Path:
        outputs = self.outputs
        if format not in outputs:
            raise InvalidRequest(f"format: the artifact holds {', '.join(outputs) or 'no outputs'}, got \"{format}\"")
        return outputs[format]

    def _listed(self, format: str = "") -> list[Row]:
        """The manifest's entries of all files, or of one output's: {"path", "size_bytes", "sha256"}."""
        files: list[Row] = self.manifest.get("files", [])
        if not format:
            return files
        self.output(format)  # says what there is
        folders = {name: pathlib.PurePosixPath(path.relative_to(self.folder).as_posix())
                   for name, path in self.outputs.items()}
        folder = folders.pop(format)
        return [file for file in files if _is_below(file["path"], folder) and
                not any(_is_below(file["path"], other) for other in folders.values() if other != folder)]

    def verify(self, format: str = "") -> int:
        """Reads every file, or those of one output, and compares them with the manifest; returns their number.

        CorruptData names the first file that is missing or differs.
        """
        files = self._listed(format)
        for file in files:
            path = self.folder / check_name(file["path"])
            digest = _sha256(path)
            if digest != file["sha256"]:
                raise CorruptData(f"\"{path}\": wanted sha256 {file['sha256']}, got {digest or 'no such file'}",
                                  code="DATA_LOSS", reason="ARTIFACT_CORRUPT", wanted=file["sha256"],
                                  got=digest or "no such file", metadata={"path": file["path"]},
                                  hint="pull again into the same folder: it fetches what differs" if digest else
                                  "pull again into the same folder; of one output (pull(format=...)) there is only "
                                  "verify(format)")
        return len(files)

    def row(self) -> Row:
        """The headline as one flat row, ready for pandas.DataFrame([a.row() for a in artifacts])."""
        perplexity = self.manifest.get("quality", {}).get("perplexity", {})
        # A manifest leaves out what is not finite, which no JSON can say.
        absent = math.inf if perplexity.get("tokens") else None
        dense, quantized = perplexity.get("dense", absent), perplexity.get("quantized", absent)
        bits, timing = self.manifest.get("bits", {}), self.manifest.get("timing", {})
        quality = self.manifest.get("quality", {})
        return {"job": self.job.rsplit("/", 1)[-1], "method": self.method, "recipe": self.recipe,
                "preprocessing": self.preprocessing,
                "model_type": self.manifest.get("model_type"),
                "perplexity_dense": dense, "perplexity_quantized": quantized,
                "perplexity_ratio": quantized / dense if dense and quantized else None,
                "kl_divergence": quality.get("kl_divergence", absent if quantized == math.inf else None), "top1_agreement": quality.get("top1_agreement"),
                "bits_linears": bits.get("linears"), "bits_file": bits.get("file"), "run_seconds": timing.get("run_s"),
                "seed": int(self.manifest.get("seed", 0)), "outputs": ",".join(self.outputs)}

    def block_rows(self) -> list[Row]:
        """One flat row a block: block, loss_rtn, loss_final, improvement (None where not measured), seconds, metric_*."""
        return [block_row(int(block.get("index", 0)), (float(block.get("loss_rtn", 0)), float(block.get("loss_final", 0))),
                          float(block.get("seconds", 0)), block.get("metrics", {}))
                for block in self.manifest.get("blocks", [])]

    def output_rows(self) -> list[Row]:
        """One flat row an output layout: format, path, bytes, bits_per_weight, verified, compatibility."""
        return [{"format": o.get("format"), "path": o.get("path", ""), "bytes": int(o.get("bytes", 0)),
                 "bits_per_weight": float(o.get("bits_per_weight", 0)), "verified": bool(o.get("verified", False)),
                 "compatibility": o.get("compatibility", "")} for o in self.manifest.get("outputs", [])]

    def load_dense(self, dtype: str = "float32") -> dict[str, Any]:
        """The model's tensors, dequantized: {name: array}. Needs the output "quantry"; see quantry.load_dense."""
        from quantry.dense import load_dense
        return load_dense(self.output("quantry"), dtype)

    def dense_tensors(self) -> Iterator[tuple[str, Any]]:
        """(name, float32 array) one at a time, for models larger than the memory."""
        from quantry.reader import Container
        yield from Container(self.output("quantry")).dense_tensors()


def _is_below(path: str, folder: pathlib.PurePosixPath) -> bool:
    return pathlib.PurePosixPath(path).parts[:len(folder.parts)] == folder.parts


def _sha256(path: pathlib.Path) -> Optional[str]:
    try:
        return sha256_of(path)
    except OSError:
        return None


__all__ = ["LocalArtifact"]
