#!/usr/bin/env python3
"""Generates quantry/v1/*_pb2.py, *_pb2.pyi and *_pb2_grpc.py from the project's .proto files.

    python build_protos.py            into quantry/v1 beside this script, unless what is there is current
    python build_protos.py --force    in any case

Needs grpcio-tools. `pip install .` and `python -m build` call it through hatch_build.py; a checkout that is
used in place (PYTHONPATH, tests) runs it once. Generated files are never committed.
"""
from __future__ import annotations

import argparse
import pathlib
import sys

HERE = pathlib.Path(__file__).resolve().parent
PACKAGE = HERE / "quantry" / "v1"
INIT = '"""Generated from proto/quantry/v1 by build_protos.py: the messages and stubs of the API."""\n'


def proto_root(here: pathlib.Path = HERE) -> pathlib.Path:
    """The folder with quantry/v1/*.proto: inside an sdist, else the checkout's."""
    for folder in (here / "proto", here.parent.parent / "proto"):
        if (folder / "quantry" / "v1" / "job.proto").exists():
            return folder
    raise SystemExit(f"build_protos: wanted proto/quantry/v1 beside {here} or two folders above, got neither: "
                     "build from a checkout or from an sdist")


def is_current(root: pathlib.Path, package: pathlib.Path = PACKAGE) -> bool:
    """Whether everything generated is there and newer than every proto and this script."""
    protos = sorted((root / "quantry" / "v1").glob("*.proto"))
    outputs = [package / f"{proto.stem}{end}" for proto in protos for end in ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py")]
    outputs.append(package / "__init__.py")
    if not all(output.exists() for output in outputs):
        return False
    newest = max(path.stat().st_mtime for path in [*protos, pathlib.Path(__file__)])
    return min(output.stat().st_mtime for output in outputs) >= newest


def generate(out: pathlib.Path = HERE) -> None:
    """Writes the package quantry/v1 below `out`."""
    from grpc_tools import protoc  # a build requirement, not one of the package

    root = proto_root()
    well_known = str(pathlib.Path(protoc.__file__).parent / "_proto")
    package = out / "quantry" / "v1"
    package.mkdir(parents=True, exist_ok=True)
    protos = [f"quantry/v1/{path.name}" for path in sorted((root / "quantry" / "v1").glob("*.proto"))]
    for old in package.glob("*_pb2*.py*"):
        old.unlink()
    status = protoc.main(["protoc", f"-I{root}", f"-I{well_known}", f"--python_out={out}", f"--pyi_out={out}",
                          f"--grpc_python_out={out}", *protos])
    if status != 0:
        raise SystemExit(f"build_protos: protoc ended with {status}")
    (package / "__init__.py").write_text(INIT)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--force", action="store_true", help="generate even when everything is current")
    options = parser.parse_args(argv)
    if options.force or not is_current(proto_root()):
        generate()
    return 0


if __name__ == "__main__":
    sys.exit(main())
