"""QUANTRY_BIN: folder with the binaries (default: build/release/bin, then build/dev/bin).

The package is used in place; its protos are generated first where they are missing or older than the .proto files.
Servers are the Server of tests/integration: free loopback ports, stopped by pid.
"""
import importlib.util
import pathlib
import sys

import pytest

TESTS = pathlib.Path(__file__).resolve().parent
ROOT = TESTS.parents[2]
EXAMPLES = ROOT / "examples"
sys.path[:0] = [str(TESTS.parent), str(TESTS)]


def load(name, path):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


load("build_protos", TESTS.parent / "build_protos.py").main([])
service = load("integration_conftest", ROOT / "tests" / "integration" / "conftest.py")
from full_marker import pytest_collection_modifyitems, pytest_configure  # noqa: E402,F401  hooks

wait_for = service.wait_for

QUICK = {"method": "awq", "bits": 4, "group_size": "channel", "calibration": EXAMPLES / "text/calibration.txt",
         "calibration_samples": 8, "calibration_length": 64}
MEASURED = {**QUICK, "evaluation": EXAMPLES / "text/evaluation.txt", "evaluation_length": 64, "evaluation_windows": 8}
LONG = {**QUICK, "calibration_samples": 64, "calibration_length": 128}


@pytest.fixture(scope="session")
def binaries():
    return service.find_bin()


@pytest.fixture(scope="session")
def engine(binaries):
    return binaries / "quantry-engine"


@pytest.fixture(scope="session")
def stories():
    return EXAMPLES / "stories260k"


@pytest.fixture
def make_server(binaries, tmp_path):
    """Servers a test may kill."""
    servers = []

    def make(*flags, name="data", **kwargs):
        servers.append(service.Server(binaries, tmp_path / name, *flags, **kwargs))
        return servers[-1]

    yield make
    for server in servers:
        if server.process and server.process.poll() is None:
            server.stop()


@pytest.fixture(scope="session")
def server(binaries, tmp_path_factory):
    """One server for every test that leaves it alone."""
    shared = service.Server(binaries, tmp_path_factory.mktemp("server") / "data").start()
    yield shared
    shared.stop()


@pytest.fixture(scope="session")
def rooted(binaries, tmp_path_factory):
    """A server that may read the example model by path or URI."""
    shared = service.Server(binaries, tmp_path_factory.mktemp("rooted") / "data", local_roots=[EXAMPLES]).start()
    yield shared
    shared.stop()


@pytest.fixture
def client(server):
    import quantry
    with quantry.connect(server.address) as connected:
        yield connected


@pytest.fixture(scope="session")
def finished(server, stories):
    """A job that succeeded, measured, with two outputs."""
    import quantry
    with quantry.connect(server.address) as connected:
        job = connected.submit(stories, job_id="finished", labels={"team": "a"}, formats=["quantry", "dense"], **MEASURED)
        return connected.wait(job, timeout=120)
