"""The wheel: what is in it, and that it works where nothing else of the repository is."""
import pathlib
import subprocess
import sys
import zipfile

import pytest

from conftest import ROOT

PACKAGE = ROOT / "client/python"


def run(*command, **options):
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=120, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """sdist and, from it, the wheel: both build without the network, with what the test environment has."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", folder, cwd=PACKAGE)
    sdist = next(folder.glob("*.tar.gz"))
    run("tar", "-xzf", sdist, "-C", folder)
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=next(folder.glob("quantry-*/")))
    return next(folder.glob("*.whl"))


def test_contents(built):
    names = set(zipfile.ZipFile(built).namelist())
    sources = {str(path.relative_to(PACKAGE)) for path in (PACKAGE / "quantry").rglob("*.py") if path.parent.name != "v1"}
    sources.add("quantry/py.typed")
    protos = {path.stem for path in (ROOT / "proto/quantry/v1").glob("*.proto")}
    generated = {f"quantry/v1/{proto}{end}" for proto in protos for end in ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py")}
    rest = {name for name in names if not name.startswith("quantry-")}
    assert rest == sources | generated | {"quantry/v1/__init__.py"}
    metadata = zipfile.ZipFile(built).read(next(n for n in names if n.endswith("METADATA"))).decode()
    assert "Requires-Python: >=3.9" in metadata and "Requires-Dist: grpcio" in metadata and "**SYNOPSIS**" in metadata


def test_installed(built, tmp_path, server, stories):
    """From `pip install` of the wheel to an artifact, in a process that sees no other copy of the package."""
    site = tmp_path / "site"
    run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", site, built)
    script = tmp_path / "step.py"
    script.write_text(f"""
import sys
sys.path.insert(0, {str(site)!r})
import quantry
assert quantry.__file__.startswith({str(site)!r})
with quantry.connect({server.address!r}) as client:
    job = client.wait(client.submit({str(stories)!r}, method="rtn", group_size="channel", formats="quantry"), timeout=60)
    print(client.pull(job, {str(tmp_path / "out")!r}).artifact.verify())
""")
    assert int(run(sys.executable, script, cwd=tmp_path, env={"PATH": "/usr/bin:/bin"})) > 3


def test_the_reader_needs_numpy_alone(built, tmp_path):
    """No gRPC, no protobuf: they are hidden, and nothing of the package was imported for them."""
    site = tmp_path / "site"
    zipfile.ZipFile(built).extractall(site)
    code = f"""
import sys
sys.path.insert(0, {str(site)!r})
for name in ("grpc", "google", "google_crc32c"):
    sys.modules[name] = None
import quantry.reader, quantry.dense
assert quantry.load_dense is quantry.dense.load_dense
print(quantry.__version__)
"""
    assert run(sys.executable, "-c", code, cwd=tmp_path).strip() == "0.1.0"


def test_no_generated_file_is_committed():
    listed = run("git", "ls-files", "client/python", cwd=ROOT)
    assert not [name for name in listed.splitlines() if "_pb2" in name or "/v1/" in name]
    assert pathlib.Path(PACKAGE / "quantry/v1/job_pb2.py").exists()


def test_types():
    pytest.importorskip("mypy", reason="mypy is not in the default test environment: pip install mypy types-protobuf "
                                       "grpc-stubs")
    assert "Success" in run(sys.executable, "-m", "mypy", cwd=PACKAGE)
