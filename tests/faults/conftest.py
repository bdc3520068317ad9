"""The fault suite: docs/reliability.md says what each test does. Everything runs with QUANTRY_FULL=1."""
import pathlib
import shutil
import signal
import sys
import tempfile

import pytest

sys.path[:0] = [str(pathlib.Path(__file__).resolve().parents[1] / "support"), str(pathlib.Path(__file__).resolve().parent)]

from fleet import Fleet  # noqa: E402
from full_marker import pytest_collection_modifyitems, pytest_configure  # noqa: E402,F401  hooks
from link import Link  # noqa: E402
from machine import mount_tmpfs  # noqa: E402
from postgres import running_postgres  # noqa: E402
from service import find_bin, wait_for  # noqa: E402


@pytest.fixture(scope="session")
def binaries():
    return find_bin()


@pytest.fixture(scope="session")
def session_postgres():
    with running_postgres() as server:
        yield server


@pytest.fixture(scope="session")
def session_fleet(tmp_path_factory, binaries, session_postgres):
    fleet = Fleet(tmp_path_factory.mktemp("fleet"), binaries, servers=2, postgres=session_postgres)
    try:
        yield fleet.start(workers=2)
    finally:
        fleet.stop()


@pytest.fixture
def fleet(session_fleet):
    """Two servers on PostgreSQL and two workers, shared; afterwards every job must have kept the promise."""
    session_fleet.heal()
    yield session_fleet
    session_fleet.heal_processes()
    session_fleet.check()


@pytest.fixture
def make_fleet(tmp_path, binaries):
    """Fleets that a test may treat as it likes: make_fleet() is one server on SQLite, postgres=... several."""
    fleets = []

    def make(name="fleet", **options):
        fleets.append(Fleet(tmp_path / name, binaries, **options))
        return fleets[-1]

    yield make
    for fleet in fleets:
        fleet.stop()


@pytest.fixture
def own_postgres():
    """A PostgreSQL that a test may stop."""
    with running_postgres() as server:
        yield server


@pytest.fixture
def small_disk():
    """small_disk("16m"): a new file system of that size, which other users may read too."""
    made = []

    def make(size):
        folder = pathlib.Path(tempfile.mkdtemp(prefix="quantry_disk_"))
        folder.chmod(0o755)
        made.append((folder, lambda: None))
        made[-1] = folder, mount_tmpfs(folder, size)
        return folder

    yield make
    for folder, unmount in made:
        unmount()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def far_worker(fleet):
    """The only worker, behind a link; fleet.heal_processes() brings the others back."""
    for worker in fleet.workers.values():
        worker.stop()
    with Link(fleet.servers["a"].worker_address) as link:
        (fleet.folder / "far.log").unlink(missing_ok=True)  # of the test before
        far = fleet.worker("far", address=link.address)
        wait_for(lambda: "registered" in far.log_text(), 10, "the worker")
        yield link
        fleet.workers.pop("far").stop(signal.SIGKILL)
