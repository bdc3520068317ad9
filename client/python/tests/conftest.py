"""QUANTRY_BIN: folder with quantry-engine (default: build/release/bin, then build/dev/bin)."""
import os
import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "client" / "python"))


@pytest.fixture(scope="session")
def engine():
    folders = [ROOT / "build" / preset / "bin" for preset in ("release", "dev")]
    if "QUANTRY_BIN" in os.environ:
        folders = [pathlib.Path(os.environ["QUANTRY_BIN"])]
    for folder in folders:
        if (folder / "quantry-engine").exists():
            return folder / "quantry-engine"
    raise RuntimeError("no quantry-engine: build first, or set QUANTRY_BIN")
