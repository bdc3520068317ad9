"""One pipeline step as a command: submit (or re-attach), wait, pull, and write what the next step needs.

    python -m quantry.step --model ./model --method awq --arguments '{"calibration": "train.txt"}' \\
        --request-key "$RUN_ID" --pull ./artifact --output-dir ./outputs

A step that is repeated with the same --request-key finds its own job again instead of starting another. --output-dir
gets a file for each output; --output NAME PATH writes one where the pipeline wants it:

    job, state, artifact, artifact_uri, perplexity_dense, perplexity_quantized, perplexity_ratio, bits, report (JSON)

Exit codes are those of the CLI: 0 succeeded, 1 the job failed, 2 wrong usage or spec, 3 cancelled, 4 not found,
5 denied, 6 quota, 7 server unreachable, 8 time over (the job goes on): 6, 7 and 8 are worth a retry.
"""
from __future__ import annotations

import argparse
import json
import math
import os
import pathlib
import sys
from typing import Any, Mapping, Optional, Sequence

from quantry import errors
from quantry._core import request_id_for
from quantry._progress import describe
from quantry.client import Client, connect
from quantry.job import Job

OUTPUTS = ("job", "state", "artifact", "artifact_uri", "perplexity_dense", "perplexity_quantized", "perplexity_ratio",
           "bits", "report")

_EXIT_CODES: tuple[tuple[type[errors.QuantryError], int], ...] = (
    (errors.JobFailed, 1), (errors.JobCancelled, 3), (errors.WaitTimeout, 8), (errors.InvalidRequest, 2),
    (errors.Conflict, 2), (errors.LocalDiskError, 2), (errors.NotFound, 4), (errors.AccessDenied, 5), (errors.QuotaExceeded, 6),
    (errors.ServerUnavailable, 7))


def exit_code(error: errors.QuantryError) -> int:
    return next((code for kind, code in _EXIT_CODES if isinstance(error, kind)), 1)


def outputs_of(job: Job) -> dict[str, str]:
    """What a step leaves for the next, as text; "" for what was not measured, "inf" for a perplexity that is not finite
    (in the report, JSON, null)."""
    row = job.row()
    numbers = {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in row.items()}
    report = {"job": job.name, "row": numbers, "blocks": job.block_rows(), "outputs": job.output_rows(),
              "params": job.params()}

    def text(name: str) -> str:
        return "" if row[name] is None else f"{row[name]:.6g}"

    return {"job": job.name, "state": job.state, "artifact": job.artifact,
            "artifact_uri": str(job.proto.result.artifact_uri), "perplexity_dense": text("perplexity_dense"),
            "perplexity_quantized": text("perplexity_quantized"), "perplexity_ratio": text("perplexity_ratio"),
            "bits": text("bits_linears"), "report": json.dumps(report, indent=1, default=str)}


def _targets(folder: Optional[str], paths: Mapping[str, str]) -> dict[str, pathlib.Path]:
    targets = {name: pathlib.Path(folder) / name for name in OUTPUTS} if folder else {}
    targets.update({name: pathlib.Path(path) for name, path in paths.items()})
    return targets


def _make_folders(targets: Mapping[str, pathlib.Path]) -> None:
    """Before the job: an output that has no place must not come out after hours."""
    for name, target in targets.items():
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            writable = os.access(target if target.exists() else target.parent, os.W_OK) and not target.is_dir()
        except OSError:
            writable = False
        if not writable:
            raise errors.InvalidRequest(f"--output, --output-dir: wanted a place where {name} can be written, got "
                                        f"\"{target}\"")


def write_outputs(values: Mapping[str, str], targets: Mapping[str, pathlib.Path]) -> None:
    for name, target in targets.items():
        target.write_text(values[name])


def integer(text: str) -> Optional[int]:
    """An empty text is none, as templates leave it."""
    return int(text) if text else None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m quantry.step", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    server = parser.add_argument_group("server")
    server.add_argument("--server", metavar="HOST:PORT", help="default: QUANTRY_SERVER")
    server.add_argument("--tenant", help="default: QUANTRY_TENANT, else the context's, else default")
    server.add_argument("--tls-ca", metavar="FILE", help="or system: the CAs of this machine")
    server.add_argument("--tls-cert", metavar="FILE")
    server.add_argument("--tls-key", metavar="FILE")
    server.add_argument("--token-file", metavar="FILE")
    job = parser.add_argument_group("job")
    job.add_argument("--model", default="", help="folder here, uploaded")
    job.add_argument("--model-path", default="", help="folder on the server")
    job.add_argument("--model-uri", default="")
    job.add_argument("--method", default="")
    job.add_argument("--bits", type=integer)
    job.add_argument("--group-size", default="", help="columns, or channel")
    job.add_argument("--calibration", default="")
    job.add_argument("--evaluation", default="")
    job.add_argument("--arguments", default="", metavar="JSON", help="any other argument of submit(), by its name")
    job.add_argument("--job-id", default="")
    job.add_argument("--request-key", default="", help="text that names this step's run; the same: the same job")
    step = parser.add_argument_group("step")
    step.add_argument("--timeout", type=float, metavar="SECONDS", help="give up waiting; the job goes on")
    step.add_argument("--pull", default="", metavar="DIR", help="pull the artifact into this folder")
    step.add_argument("--pull-force", action="store_true", help="over another artifact in that folder, too")
    step.add_argument("--output-dir", metavar="DIR")
    step.add_argument("--output", action="append", default=[], nargs=2, metavar=("NAME", "PATH"),
                      help=f"one of {', '.join(OUTPUTS)}")
    return parser


def _arguments(options: argparse.Namespace) -> dict[str, Any]:
    """The arguments of submit(); empty texts are what was not given, as templates leave them."""
    try:
        arguments = json.loads(options.arguments or "{}")
        if not isinstance(arguments, dict):
            raise ValueError("no object")
    except ValueError as error:
        raise errors.InvalidRequest(f"--arguments: wanted a JSON object, got {options.arguments!r}: {error}") from None
    for name in ("model", "model_path", "model_uri", "method", "bits", "group_size", "calibration", "evaluation",
                 "job_id"):
        value = getattr(options, name)
        if value not in ("", None):
            arguments[name] = value
    if options.request_key:
        arguments["request_id"] = request_id_for(options.request_key)
    return arguments


def _output_paths(options: argparse.Namespace) -> dict[str, str]:
    paths = dict(options.output)
    unknown = [name for name in paths if name not in OUTPUTS]
    if unknown:
        raise errors.InvalidRequest(f"--output: wanted one of {', '.join(OUTPUTS)}, got {unknown[0]!r}")
    return paths


def _follow(client: Client, job: Job, timeout: Optional[float]) -> Job:
    last = ""

    def show(seen: Job) -> None:
        nonlocal last
        line = describe(seen).partition(", eta")[0]
        if line != last:
            print(f"{seen.id}: {line}", file=sys.stderr, flush=True)
        last = line

    return client.wait(job, timeout=timeout, progress=show, raise_on_failure=False)


def _connect(options: argparse.Namespace) -> Client:
    """Empty texts are what was not given, here too."""
    return connect(options.server, tenant=options.tenant, tls_ca=options.tls_ca or None, tls_cert=options.tls_cert or None,
                   tls_key=options.tls_key or None, token_file=options.token_file or None)


def run(options: argparse.Namespace) -> int:
    arguments, targets = _arguments(options), _targets(options.output_dir, _output_paths(options))
    _make_folders(targets)
    with _connect(options) as client:
        job = client.submit(arguments.pop("model", None), **{"check": True, **arguments})
        print(f"submitted {job.name}", file=sys.stderr, flush=True)
        ended = _follow(client, job, options.timeout)
        write_outputs(outputs_of(ended), targets)
        if options.pull and ended.artifact:
            client.pull(ended, options.pull, force=options.pull_force)
    if ended.succeeded:
        return 0
    if ended.error is not None:
        print(f"quantry.step: {ended.error}", file=sys.stderr)
    return 3 if ended.state == "cancelled" else 1


def main(argv: Optional[Sequence[str]] = None) -> int:
    options = _parser().parse_args(argv)
    try:
        return run(options)
    except errors.QuantryError as error:
        print(f"quantry.step: {error}", file=sys.stderr)
        return exit_code(error)
    except (TypeError, ValueError) as error:  # an argument that submit() does not have, or of another kind
        print(f"quantry.step: --arguments: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"quantry.step: cannot write the outputs: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
