#!/usr/bin/env python3
"""Weight and first paint of the status page with many jobs in the store; JSON on stdout.

    .deps/venv/bin/python benchmarks/status_page.py [--jobs 1000] [--ended 60] [--screenshots DIR]

Starts a server of its own with one worker: `ended` small jobs run to their end, a larger one runs, all others wait.
Each run is a browser of its own, so that nothing is in a cache.
"""
import argparse
import json
import pathlib
import statistics
import sys
import tempfile
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "client/python"), str(ROOT / "tests/support"), str(ROOT / "tests/operations")]

import build_protos  # noqa: E402

build_protos.main([])
import quantry  # noqa: E402
from browser import Browser  # noqa: E402
from conftest import EXAMPLES, Processes, find_bin, http_get, start_service  # noqa: E402

SMALL = {"method": "rtn", "bits": 4, "group_size": "channel"}
LONG = {"method": "tesseraq", "bits": 4, "group_size": "channel", "calibration": EXAMPLES / "text/calibration.txt",
        "calibration_samples": 16, "calibration_length": 64, "method_options": {"stages": 20, "steps_per_stage": 30}}
FILLED = "document.querySelector('#ended td') !== null"


def fill(client, jobs, ended):
    for index in range(ended):
        client.submit(EXAMPLES / "stories260k", job_id=f"ended-{index:04}", evaluation=EXAMPLES / "text/evaluation.txt",
                      evaluation_length=64, evaluation_windows=2, **SMALL)
    for index in range(ended):
        client.wait(f"ended-{index:04}", timeout=600)
    client.submit(EXAMPLES / "stories260k", job_id="running", title="the one that runs", **LONG)
    for index in range(jobs - ended - 1):
        client.submit(EXAMPLES / "stories260k", job_id=f"waiting-{index:04}", **SMALL)


def asked(url, times=10):
    """Milliseconds of one request each, more than a second apart: the server answers younger questions from what it read."""
    took = []
    for _ in range(times):
        time.sleep(1.05)
        start = time.perf_counter()
        http_get(url)
        took.append(1000 * (time.perf_counter() - start))
    return {"median_ms": round(statistics.median(took), 2), "max_ms": round(max(took), 2)}


def painted(admin):
    """The list's page in a fresh browser: bytes of each response, first paint, and when its tables were there at the latest."""
    with Browser() as browser:
        page = browser.open(f"http://{admin}/")
        page.wait(FILLED)
        filled = page.evaluate("performance.now()")
        paints = page.evaluate("performance.getEntriesByType('paint').map((p) => [p.name, p.startTime])")
        sizes = page.evaluate("performance.getEntriesByType('navigation').concat(performance.getEntriesByType('resource'))"
                              ".map((r) => [new URL(r.name).pathname, r.transferSize])")
        assert page.problems == [], page.problems
    first = dict(reversed(sizes))  # of each path the first response
    return {"paint_ms": {name: round(start, 1) for name, start in paints}, "filled_ms_at_most": round(filled, 1), "bytes": first,
            "bytes_total": sum(first.values())}


def take_screenshots(admin, folder):
    folder.mkdir(parents=True, exist_ok=True)
    with Browser() as browser:
        for name, width, dark in (("desk", 1280, False), ("phone", 390, False), ("phone-dark", 390, True)):
            page = browser.open(f"http://{admin}/", width=width, height=844, dark=dark)
            page.wait(FILLED)
            page.screenshot(str(folder / f"{name}.png"), full=False)
        job = browser.open(f"http://{admin}/jobs/default/running", dark=True)
        job.wait("document.querySelector('#plot path') !== null", 120)
        job.screenshot(str(folder / "job.png"), full=False)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--ended", type=int, default=60)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--screenshots", metavar="DIR", type=pathlib.Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        group = Processes(name)
        try:
            service = start_service(group, find_bin(), pathlib.Path(name))
            with quantry.connect(service["tenant"]) as client:
                fill(client, options.jobs, options.ended)
            runs = [painted(service["admin"]) for _ in range(options.runs)]
            jobs = json.loads(http_get(f"http://{service['admin']}/status.json"))["queue"]["jobs"]
            print(json.dumps({"jobs": jobs, "status_json": asked(f"http://{service['admin']}/status.json"), "page": runs}, indent=2))
            if options.screenshots:
                take_screenshots(service["admin"], options.screenshots)
        finally:
            group.stop()


if __name__ == "__main__":
    main()
