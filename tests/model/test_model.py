"""spin walks the model of the lease protocol, and the model can fail.

QUANTRY_TOOLS  folder of unpacked Debian packages (default: .deps/tools, from scripts/bootstrap)
QUANTRY_FULL   more claims, retries and events: minutes instead of seconds
"""
import os
import pathlib
import re
import shutil
import subprocess

import pytest

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
TOOLS = pathlib.Path(os.environ.get("QUANTRY_TOOLS", ROOT / ".deps/tools"))


def spin():
    unpacked = TOOLS / "usr/bin/spin"
    found = str(unpacked) if unpacked.exists() else shutil.which("spin")
    assert found, f"no spin in {TOOLS} or PATH: run scripts/bootstrap"
    return found


class Outcome:
    """What a search says."""

    def __init__(self, text):
        self.text = text
        self.errors = int(re.search(r"errors: (\d+)", text).group(1))
        self.states = int(re.search(r"(\d+) states, stored", text).group(1))
        self.whole = "Search not completed" not in text and "max search depth too small" not in text
        violated = re.search(r"assertion violated (.*) \(at depth", text)
        self.broken = violated.group(1).replace(" ", "") if violated else ""


class Search:
    """The model, translated and compiled once, to be walked many times."""

    def __init__(self, folder, *bounds, live=False):
        self.folder, self.live = folder, live
        defines = [f"-D{bound}" for bound in bounds] + (["-DLIVE"] if live else [])
        shutil.copytree(HERE, folder, dirs_exist_ok=True)
        subprocess.run([spin(), "-a", *defines, "lease.pml"], cwd=folder, check=True, capture_output=True, timeout=60)
        subprocess.run(["gcc", "-O2", "-w", "-DCOLLAPSE", "-DMEMLIM=12000", *(["-DNOREDUCE", "-DNFAIR=3"] if live else ["-DSAFETY"]), "-o", "pan", "pan.c"],
                       cwd=folder, check=True, timeout=120)

    def run(self, without="", formula="", timeout=3000):
        flags = ["-a", "-f", "-N", formula] if self.live else []
        done = subprocess.run(["./pan", "-m1000000", *flags], cwd=self.folder, capture_output=True, text=True,
                              timeout=timeout, env={**os.environ, "WITHOUT": without})
        assert done.returncode == 0, done.stderr
        return Outcome(done.stdout)


def parse_table(text, pattern):
    names = {"kQueued": "QUEUED", "kRunning": "RUNNING", "kCancelling": "CANCELLING", "kSucceeded": "SUCCEEDED",
             "kFailed": "FAILED", "kCancelled": "CANCELLED"}
    return [tuple(names.get(name, name) for name in row) for row in re.findall(pattern, text)]


def test_the_model_has_the_servers_table():
    server = parse_table((ROOT / "server/jobs/transitions.cc").read_text(), r"\{(k\w+), (k\w+), \"")
    model = parse_table((HERE / "transitions.pml").read_text(), r"ROW\(([A-Z]+), ([A-Z]+)\)")
    assert len(server) == len(set(server)) == 11
    assert sorted(model) == sorted(server)
    checker = (ROOT / "tests/faults/history.py").read_text()
    rows = re.findall(r"\(\"([A-Z]+)\", \"([A-Z]+)\"\)", checker[checker.index("TRANSITIONS = {"):checker.index("Violation =")])
    assert sorted(rows) == sorted(server)
    numbers = dict(re.findall(r"#define ([A-Z]+) (\d)", (HERE / "transitions.pml").read_text()))
    declared = dict(re.findall(r"k(\w+) = (\d),", (ROOT / "server/jobs/job.h").read_text()))
    assert numbers == {name.upper(): number for name, number in declared.items()}


FULL = bool(os.environ.get("QUANTRY_FULL"))


@pytest.fixture(scope="module")
def searches(tmp_path_factory):
    """Two small ones: two claims, and one claim with two retries by the client."""
    return {name: Search(tmp_path_factory.mktemp(name), "FEW_CALLS", *bounds)
            for name, bounds in (("claims", ["EPOCHS=2", "RETRIES=0"]), ("retry", ["EPOCHS=1", "RETRIES=2"]))}


def assert_holds(outcome):
    assert outcome.errors == 0 and outcome.whole, outcome.text


@pytest.mark.parametrize("name", ["claims", "retry"])
def test_the_promise_holds_in_every_order(searches, name):
    outcome = searches[name].run()
    assert_holds(outcome)
    assert outcome.states > 100_000


def test_every_job_and_every_cancel_ends(tmp_path):
    """Without faults; a lapse, loss or crash anywhere is for the full run."""
    bounds = ["EPOCHS=2", "FAULTS=1"] if FULL else ["EPOCHS=1", "FAULTS=0"]
    search = Search(tmp_path, *bounds, "RETRIES=0", "FEW_CALLS", live=True)
    for formula in ("job_ends", "cancel_ends"):
        assert_holds(search.run(formula=formula))


# What each guard of the store is for: without it, in this search, this is broken.
GUARDS = {
    "EPOCH_GUARD": ("claims", "granted_to"), "OWNER_ALONE": ("claims", "granted_to"), "EPOCH_PREFIX": ("claims", "writer"),
    "EPOCH_KEPT": ("retry", "granted_to"), "EVENT_NUMBERS": ("retry", "next_event<="), "CANCEL_WINS": ("retry", "cancel_acknowledged"),
    "REPEATED_COMMIT": ("retry", "artifact!="), "REQUEST_ID": ("retry", "retried"), "REQUEST_IDS": ("retry", "retried"),
}


@pytest.mark.parametrize("guard", GUARDS)
def test_each_guard_is_needed(searches, guard):
    name, broken = GUARDS[guard]
    outcome = searches[name].run(guard, timeout=120)
    assert outcome.errors == 1, f"the promise holds without it:\n{outcome.text}"
    assert broken in outcome.broken, outcome.text


@pytest.mark.skipif(not FULL, reason="slow: set QUANTRY_FULL=1")
def test_the_promise_holds_with_two_claims_and_a_retry(tmp_path):
    outcome = Search(tmp_path, "EPOCHS=2", "RETRIES=1").run()
    assert_holds(outcome)
    # No move of the model is out of reach. The table has a row more: from QUEUED to SUCCEEDED, by the result of another job.
    unreached = re.findall(r'lease\.pml:\d+, state \d+, "(.*)"', outcome.text)
    assert [line for line in unreached if "end" not in line] == [], outcome.text


@pytest.mark.skipif(not FULL, reason="slow: set QUANTRY_FULL=1")
def test_the_promise_holds_with_two_events(tmp_path):
    assert_holds(Search(tmp_path, "EPOCHS=2", "RETRIES=0", "EVENTS=2").run())
