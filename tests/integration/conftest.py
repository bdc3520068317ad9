"""Fixtures that run the real binaries: quantryd, quantry-worker, quantry-engine, quantry.

QUANTRY_BIN   folder with the binaries (default: build/release/bin, then build/dev/bin)
QUANTRY_DATA  folder with more models and texts (tests that need it skip without)
QUANTRY_FULL  set: run the slow tests too
"""
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
