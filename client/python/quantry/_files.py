"""Which local files make a model, and names that cannot leave a folder."""
from __future__ import annotations

import json
import pathlib
import re
from typing import NamedTuple

from quantry.errors import InvalidRequest, QuantryError, make_error

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
MAX_INDEX_BYTES = 256 << 20  # an index of 1e6 tensors is 100 MB

SMALL_FILES = frozenset({
    "config.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt",
    "merges.txt", "added_tokens.json", "generation_config.json", "special_tokens_map.json", "chat_template.jinja",
    "chat_template.json",
})
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")

_LABEL = re.compile(r"[a-z][a-z0-9-]*")
_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


class LocalFile(NamedTuple):
    name: str  # in the model folder
    path: pathlib.Path
    size: int


def _bad_checkpoint(message: str) -> QuantryError:
    return make_error("INVALID_ARGUMENT", message, reason="INVALID_CHECKPOINT")


def find_model_files(folder: pathlib.Path) -> list[LocalFile]:
    """What to upload of a checkpoint in Hugging Face layout, sorted by name; with a shard index, only its shards.

    Code, pickles and everything else stay at home. Links are followed: model caches are made of them.
    """
    if not folder.is_dir():
        what = "which is no folder" if folder.exists() else "which does not exist"
        raise InvalidRequest(f"model: wanted a folder with config.json and *.safetensors, got \"{folder}\", {what}",
                             code="INVALID_ARGUMENT", hint="for a folder on the server's machine use model_path=")
    files = {entry.name: LocalFile(entry.name, entry, entry.stat().st_size)
             for entry in sorted(folder.iterdir()) if entry.is_file()}
    if "config.json" not in files:
        raise _bad_checkpoint(f"\"{folder}\" has no config.json: wanted a checkpoint in Hugging Face layout "
                              "(config.json, *.safetensors, tokenizer.json)")
    weights = _weight_files(folder, files)
    return [file for name, file in files.items()
            if (name in weights if name.endswith(".safetensors")
                else name in SMALL_FILES or name.endswith(".safetensors.index.json"))]


def _weight_files(folder: pathlib.Path, files: dict[str, LocalFile]) -> set[str]:
    weights = _shards(files) if INDEX in files else set()
    if SINGLE in files:
        weights.add(SINGLE)
    weights = weights or {name for name in files if name.endswith(".safetensors")}
    if weights:
        return weights
    pickle = next((name for name in files if name.endswith(PICKLES)), "")
    if pickle:
        raise make_error("INVALID_ARGUMENT",
                         f"\"{folder}\" holds its weights as {pickle}, a pickle, which can run code when it is read: "
                         "wanted *.safetensors", reason="CHECKPOINT_FORMAT_REFUSED",
                         metadata={"path": str(folder), "file": pickle})
    raise _bad_checkpoint(f"\"{folder}\" has no weights: wanted {SINGLE}, or shards with {INDEX}")


def _shards(files: dict[str, LocalFile]) -> set[str]:
    index = files[INDEX]
    if index.size > MAX_INDEX_BYTES:
        raise _bad_checkpoint(f"{index.path}: {index.size} bytes are too many for an index")
    try:
        shards = set(json.loads(index.path.read_bytes())["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError):
        raise _bad_checkpoint(f"{index.path}: wanted JSON with an object \"weight_map\"") from None
    for shard in shards:
        if not isinstance(shard, str) or "/" in shard or not shard.endswith(".safetensors"):
            raise _bad_checkpoint(f"{index.path} names the shard {shard!r}: wanted a *.safetensors file in the same "
                                  "folder")
        if shard not in files:
            raise _bad_checkpoint(f"{index.path} names the shard \"{shard}\", which is not there")
    return shards


def find_text_file(argument: str, path: pathlib.Path) -> LocalFile:
    """One readable, non-empty file: a calibration or evaluation text."""
    if not path.is_file():
        what = "which is no file" if path.exists() else "which does not exist"
        raise InvalidRequest(f"{argument}: wanted a readable file, got \"{path}\", {what}", code="INVALID_ARGUMENT")
    size = path.stat().st_size
    if size == 0:
        raise make_error("INVALID_ARGUMENT", f"{argument}: \"{path}\" is empty: wanted text to take windows of "
                                             "tokens from", reason="INVALID_CALIBRATION")
    return LocalFile(path.name, path, size)


def check_name(name: str) -> str:
    """A file name a server announced, which is hostile: relative, of plain components, below the length limits."""
    parts = name.split("/")
    bad = len(name.encode()) > 1024 or any(
        not part or part in (".", "..") or len(part.encode()) > 240 or re.search(r"[\x00-\x1f\x7f\\]", part)
        for part in parts)
    if bad:
        shown = re.sub(r"[\x00-\x1f\x7f]", "?", name[:200])
        raise make_error("DATA_LOSS", f"the artifact names a file \"{shown}\": wanted a plain relative name that stays "
                                      "below the target folder", reason="ARTIFACT_CORRUPT", metadata={"path": shown},
                         hint="nothing was written; do not use this artifact and tell the operator of the server")
    return name


def _invalid_name(wanted: str, got: str) -> QuantryError:
    return make_error("INVALID_ARGUMENT", f"wanted {wanted}, got \"{got[:128]}\"", reason="INVALID_NAME")


def check_tenant(tenant: str) -> str:
    if len(tenant) > 63 or not _LABEL.fullmatch(tenant):
        raise _invalid_name("a tenant of 1-63 characters a-z, 0-9 and \"-\", starting with a letter", tenant)
    return tenant


def check_job_id(job_id: str) -> str:
    if not 4 <= len(job_id) <= 63 or not _LABEL.fullmatch(job_id):
        raise _invalid_name("a job id of 4-63 characters a-z, 0-9 and \"-\", starting with a letter", job_id)
    return job_id


def job_name(tenant: str, id_or_name: str) -> str:
    """The full name of a job given by id or by name."""
    if "/" not in id_or_name:
        return f"tenants/{tenant}/quantizationJobs/{check_job_id(id_or_name)}"
    parts = id_or_name.split("/")
    if len(parts) != 4 or parts[0] != "tenants" or parts[2] != "quantizationJobs":
        raise _invalid_name("tenants/{tenant}/quantizationJobs/{id}", id_or_name)
    check_tenant(parts[1])
    check_job_id(parts[3])
    return id_or_name


def artifact_name(tenant: str, uid_or_name: str) -> str:
    """The full name of an artifact; "" when the text is neither its uid nor its name."""
    if _UUID.fullmatch(uid_or_name):
        return f"tenants/{tenant}/artifacts/{uid_or_name}"
    parts = uid_or_name.split("/")
    is_name = len(parts) == 4 and parts[0] == "tenants" and parts[2] == "artifacts" and _UUID.fullmatch(parts[3])
    return uid_or_name if is_name else ""
