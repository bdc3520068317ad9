#!/usr/bin/env python3
"""Sums what the history checks of the fault suite found.

    QUANTRY_FAULT_TOTALS=totals.jsonl .deps/venv/bin/python -m pytest tests/faults
    .deps/venv/bin/python tests/faults/totals.py totals.jsonl

While QUANTRY_FAULT_TOTALS names a file, each history that is checked, by a test, by chaos.py or by benchmarks/chaos.py, adds
a line of JSON to it: its counts, the test and the seed. The sum is one JSON: runs (histories), tests, seeds (of random runs),
jobs, acknowledged calls, and what the promise forbids. Exit status 1: some of that is not 0.
"""
import argparse
import json
import os
import sys

FORBIDDEN = ("jobs_lost", "double_artifacts", "stale_writes_accepted", "events_missed", "violations")


def note(history, seed=None):
    """A history that is checked again adds another line; the last one counts."""
    path = os.environ.get("QUANTRY_FAULT_TOTALS")
    if not path:
        return
    test = os.environ.get("PYTEST_CURRENT_TEST", "").partition(" (")[0]
    line = json.dumps({"history": history.id, "test": test, "seed": seed, **history.counts()})
    with open(path, "a", encoding="utf-8") as out:  # one write: processes of tests share the file
        out.write(line + "\n")


def total(lines):
    last = {line["history"]: line for line in lines}.values()
    return {"runs": len(last), "tests": len({line["test"] for line in last if line["test"]}),
            "seeds": sorted({line["seed"] for line in last if line["seed"] is not None}),
            **{what: sum(line[what] for line in last) for what in ("jobs", "acknowledged", *FORBIDDEN)}}


def broken(figures):
    """What the promise forbids and did happen."""
    return [what for what in FORBIDDEN if figures[what]]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file")
    with open(parser.parse_args().file, encoding="utf-8") as lines:
        figures = total(map(json.loads, lines))
    print(json.dumps(figures))
    return 1 if broken(figures) or not figures["runs"] else 0


if __name__ == "__main__":
    sys.exit(main())
