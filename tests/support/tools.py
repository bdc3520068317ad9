"""Programs that tests run: those of scripts/bootstrap, then the machine's.

QUANTRY_TOOLS  folder of unpacked Debian packages (default: .deps/tools)
"""
import os
import pathlib
import shutil
import subprocess
import sys

TOOLS = pathlib.Path(os.environ.get("QUANTRY_TOOLS", pathlib.Path(__file__).resolve().parents[2] / ".deps/tools"))


def tool(name):
    """A program of .deps/tools, of the test environment, or of the machine."""
    for folder in (TOOLS / "usr/bin", TOOLS / "usr/sbin", pathlib.Path(sys.executable).parent):
        if (folder / name).exists():
            return folder / name
    found = shutil.which(name)
    assert found, f"no {name}: run scripts/bootstrap"
    return pathlib.Path(found)


def tool_environment():
    """For programs that are only unpacked: where their libraries are."""
    return {**os.environ, "LD_LIBRARY_PATH": f"{TOOLS}/usr/lib/x86_64-linux-gnu:{TOOLS}/lib/x86_64-linux-gnu"}


def run_tool(name, *args, timeout=60, **kwargs):
    return subprocess.run([tool(name), *map(str, args)], capture_output=True, text=True, timeout=timeout, **kwargs)
