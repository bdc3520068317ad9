"""Fixtures that run the real binaries: quantryd, quantry-worker, quantry-engine, quantry.

QUANTRY_BIN   folder with the binaries (default: build/release/bin, then build/dev/bin)
QUANTRY_DATA  folder with models and texts that are not shipped, models/NAME and text/NAME (tests that need it skip without)
QUANTRY_SMOLLM2  folder with SmolLM2-135M, which also needs QUANTRY_DATA (the same)
QUANTRY_FULL  set: run the slow tests too
"""
import os
import pathlib
import shutil
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
from full_marker import pytest_collection_modifyitems, pytest_configure  # noqa: E402,F401  hooks
from service import EXAMPLES, ROOT, Server, find_bin, quote_args, submit_args, wait_for  # noqa: E402,F401  tests import them from here


@pytest.fixture(scope="session")
def binaries() -> pathlib.Path:
    return find_bin()


@pytest.fixture(scope="session")
def stories() -> pathlib.Path:
    return EXAMPLES / "stories260k"


def folder_of(variable) -> pathlib.Path:
    if not os.environ.get(variable):
        pytest.skip(f"{variable} is not set")
    return pathlib.Path(os.environ[variable])


@pytest.fixture(scope="session")
def data_dir() -> pathlib.Path:
    return folder_of("QUANTRY_DATA")


@pytest.fixture(scope="session")
def smollm2_dir() -> pathlib.Path:
    return folder_of("QUANTRY_SMOLLM2")


@pytest.fixture
def model_copy(stories, tmp_path) -> pathlib.Path:
    """A writable copy of the example model, to break on purpose."""
    folder = tmp_path / "model"
    shutil.copytree(stories, folder)
    return folder


@pytest.fixture
def make_server(binaries, tmp_path):
    servers = []

    def make(*flags, name="data", **kwargs):
        server = Server(binaries, tmp_path / name, *flags, **kwargs)
        servers.append(server)
        return server

    yield make
    for server in servers:
        if server.process and server.process.poll() is None:
            server.stop()


@pytest.fixture
def server(make_server):
    return make_server().start()
