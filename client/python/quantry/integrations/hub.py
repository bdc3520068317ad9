"""A pulled artifact as a model of a hub that speaks the Hugging Face HTTP API.

    pushed = quantry.integrations.hub.push("./my-model-w4", "hf://my-org/my-model-w4")

    python -m quantry.integrations.hub ./my-model-w4 hf://my-org/my-model-w4 --private

One commit holds one output, its model card and the artifact's manifest: a reader of the hub sees all of it or nothing.
The output's files are compared with the manifest first; the same files again make no new commit. Needs huggingface_hub, whose
settings count: HF_ENDPOINT, HF_TOKEN, HF_HUB_DISABLE_XET=1 for a hub without Xet storage.
"""
from __future__ import annotations

import argparse
import json
import os
import pathlib
import re
import sys
from dataclasses import asdict, dataclass
from typing import Any, Optional, Sequence, Union

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError

from quantry import errors
from quantry.artifact import MANIFEST, LocalArtifact

PathLike = Union[str, "os.PathLike[str]"]

WORD = r"(?![.-])(?!\S*\.\.)[A-Za-z0-9._-]{1,96}"
TARGET = re.compile(rf"hf://({WORD}/{WORD})(?:@({WORD}(?:/{WORD})*))?")
MANIFEST_THERE = "quantry-manifest.json"  # manifest.json belongs to whoever loads the model
WEIGHTS = (".safetensors", ".safetensors.index.json", ".bin", ".pt", ".gguf")


@dataclass(frozen=True)
class Pushed:
    """What stands on the hub now."""

    uri: str  # hf://ORG/NAME@COMMIT: names these bytes for ever
    url: str
    commit: str
    files: int


def push(artifact: Union[LocalArtifact, PathLike], target: str, *, format: str = "", endpoint: Optional[str] = None,
         token: Optional[str] = None, private: Optional[bool] = None, replace: bool = False,
         message: str = "") -> Pushed:
    """Commits one output of `artifact`, a pulled folder, to hf://ORG/NAME[@BRANCH]; makes what is missing there.

    format    which output; default: the artifact's first
    endpoint  URL of the hub; default: HF_ENDPOINT, else huggingface.co
    token     default: HF_TOKEN, else what `hf auth login` stored
    private   of a repository that is made; default: the hub's
    replace   delete weight files of another model that lie there; without it they are a Conflict

    CorruptData: the output is not what its manifest says, and nothing was sent. AccessDenied, NotFound, QuotaExceeded,
    ServerUnavailable: what the hub said; pushing again is safe.
    """
    repo, branch = _parse(target)
    local = artifact if isinstance(artifact, LocalArtifact) else LocalArtifact(artifact)
    format = format or next(iter(local.outputs), "")
    files = _files(local, format)
    local.verify(format)
    api = HfApi(endpoint=endpoint, token=token, library_name="quantry")
    try:
        return _commit(api, repo, branch, files, private, replace, message or _message(local))
    except errors.QuantryError:
        raise
    except (HfHubHTTPError, OSError, ValueError) as error:  # ValueError: a model card the hub refuses
        raise _translated(error, target, api.endpoint) from error
    except Exception as error:
        if type(error).__module__.partition(".")[0] in ("httpx", "httpx2", "httpcore", "httpcore2", "requests"):
            raise _translated(error, target, api.endpoint) from error
        raise


def _parse(target: str) -> tuple[str, str]:
    match = TARGET.fullmatch(target)
    if match is None:
        raise errors.InvalidRequest(f"target: wanted hf://ORG/NAME or hf://ORG/NAME@BRANCH, got \"{target[:200]}\"")
    branch = match[2] or "main"
    if re.fullmatch("[0-9a-f]{40}", branch):
        raise errors.InvalidRequest(f"target: wanted a branch to commit to, got the commit \"{branch}\"",
                                    hint="leave @… out for main")
    return match[1], branch


def _files(local: LocalArtifact, format: str) -> dict[str, pathlib.Path]:
    """{name there: file here} of one output: what the manifest lists below its folder, and the manifest."""
    if not local.outputs:
        raise errors.InvalidRequest(f"wanted an artifact with outputs, got \"{local.folder}\" without one")
    folder = local.output(format)
    there = {(local.folder / file["path"]).relative_to(folder).as_posix(): local.folder / file["path"]
             for file in local._listed(format)}
    return {MANIFEST_THERE: local.folder / MANIFEST, **there}


def _message(local: LocalArtifact) -> str:
    return f"Add {local.method} weights made by quantry"


def _commit(api: HfApi, repo: str, branch: str, files: dict[str, pathlib.Path], private: Optional[bool],
            replace: bool, message: str) -> Pushed:
    api.create_repo(repo, private=private, exist_ok=True)
    if branch != "main":
        api.create_branch(repo, branch=branch, exist_ok=True)
    there = api.list_repo_files(repo, revision=branch)
    strangers = sorted(name for name in there if name.endswith(WEIGHTS) and name not in files)
    if strangers and not replace:
        raise errors.Conflict(f"wanted a branch without other weights, got {repo}@{branch} with {', '.join(strangers[:5])}",
                              hint="push to another name or branch, or replace them: replace=True (--replace)")
    operations: list[Any] = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=str(path))
                             for name, path in sorted(files.items())]
    operations += [CommitOperationDelete(path_in_repo=name) for name in strangers]
    done = api.create_commit(repo, operations, commit_message=message, revision=branch)
    return Pushed(f"hf://{repo}@{done.oid}", str(done.commit_url), str(done.oid), len(files))


def _translated(error: Exception, target: str, endpoint: str) -> errors.QuantryError:
    """What a program can do about it; the hub's own words are kept."""
    response = getattr(error, "response", None)
    status = int(response.status_code) if response is not None else 0
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = f"{target}: the hub {endpoint} says: {' '.join(lines[:3])[:500] or type(error).__name__}"
    if status in (401, 403):
        return errors.AccessDenied(said, hint="give a token that may write there: HF_TOKEN, token= or --token-file")
    if status == 404:
        return errors.NotFound(said, hint="look at the name, and whether the token may see it")
    if status in (409, 412):
        return errors.Conflict(said, hint="somebody committed meanwhile: push again")
    if status in (402, 413, 429, 507):
        return errors.QuotaExceeded(said, hint="the hub's limit for this account; wait, or make room")
    if status == 0 and not isinstance(error, ValueError) or status >= 500:
        return errors.ServerUnavailable(said, hint="look at HF_ENDPOINT or --endpoint; then push again: what arrived "
                                                   "is not sent twice")
    return errors.InvalidRequest(said)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m quantry.integrations.hub", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", metavar="DIR", help="folder of a pulled artifact")
    parser.add_argument("target", metavar="hf://ORG/NAME[@BRANCH]")
    parser.add_argument("--format", default="", help="which output; default: the artifact's first")
    parser.add_argument("--endpoint", metavar="URL", help="default: HF_ENDPOINT, else huggingface.co")
    parser.add_argument("--token-file", metavar="FILE", help="default: HF_TOKEN, else what `hf auth login` stored")
    parser.add_argument("--private", action="store_true", default=None, help="if the repository has to be made")
    parser.add_argument("--replace", action="store_true", help="delete weight files of another model that lie there")
    parser.add_argument("--message", default="", help="of the commit")
    return parser


def _token(path: Optional[str]) -> Optional[str]:
    if not path:
        return None
    try:
        return pathlib.Path(path).read_text(encoding="utf-8").strip()
    except OSError as error:
        raise errors.InvalidRequest(f"--token-file: wanted a readable file, got \"{path}\": {error.strerror}") from None


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Prints what was pushed as one JSON object; exit codes are those of quantry.step."""
    from quantry.step import exit_code
    options = _parser().parse_args(argv)
    try:
        pushed = push(options.artifact, options.target, format=options.format, endpoint=options.endpoint,
                      token=_token(options.token_file), private=options.private, replace=options.replace,
                      message=options.message)
    except errors.QuantryError as error:
        print(f"quantry.integrations.hub: {error}", file=sys.stderr)
        return exit_code(error)
    print(json.dumps(asdict(pushed)))
    return 0


__all__ = ["Pushed", "push"]

if __name__ == "__main__":
    sys.exit(main())
