#!/usr/bin/env python3
"""All figures of the service in one run, one part after the other, each below a heading with the commit and the machine's load.

    .deps/venv/bin/python benchmarks/service.py [--parts store,submit] [--depths 1000,100000,1000000]

  disk       how fast the disk takes 8 KiB and a sync (again beside every figure of `store`)
  store      quantry_store_benchmark at every depth, SQLite and PostgreSQL
  submit     quantry_submit_load, 200 submits a second over gRPC, SQLite and PostgreSQL, three runs each
  start      from a submit to its engine's first sign of life, 200 small jobs (SQLite)
  watches    watch_load.py: 10,000 streams of one job
  recovery   recovery.py: kills, PostgreSQL and the object store away, cancels
  throughput chaos.py --quiet: four servers, PostgreSQL, SeaweedFS, 50 workers for --minutes
  soak       soak.py: memory under two jobs a second for --soak-minutes

All of it takes 95 minutes with its defaults on a fast machine of two cores, the soak 60 of them. Nothing else should run on the machine but
beside the soak. Needs the release build with tests and scripts/bootstrap. Exit status 1 if a part failed; the others still run.
"""
import argparse
import os
import pathlib
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests/support"), str(ROOT / "tests/faults")]

from commit import commit  # noqa: E402
from fleet import Fleet  # noqa: E402
from postgres import PASSWORD, Postgres  # noqa: E402
from service import Server, find_bin  # noqa: E402


MOST_SUBMITTED = 100_000  # to PostgreSQL; more are copied in its tables, as a submit each takes half an hour for a million


def show(what, *command):
    print(f"\n### {what} (load {os.getloadavg()[0]:.1f})", flush=True)
    subprocess.run(command, check=True)


def python(name, *flags):
    show(f"{name} {' '.join(flags)}", sys.executable, ROOT / "benchmarks" / name, *flags)


def store_benchmark(what, folder, *flags):
    show(f"job store: {what}", find_bin() / "quantry_store_benchmark", f"--data-dir={folder}", *flags)


def disk(folder, options):
    store_benchmark("only the disk counts here", folder, "--depth=1", "--seconds=1", "--rate=1")


def store(folder, options):
    password = folder / "password"
    password.touch(0o600)
    password.write_text(PASSWORD + "\n")
    for depth in options.depths.split(","):
        store_benchmark(f"SQLite, {depth} jobs", folder / f"sqlite-{depth}", f"--depth={depth}")
        postgres = Postgres(folder)
        try:
            flags = (f"--job-store={postgres.start().uri}", f"--job-store-password-file={password}",
                     "--job-store-connections=64")  # as many as fill the queue
            if (copies := int(depth) - MOST_SUBMITTED) > 0:
                store_benchmark("one to copy", folder / f"postgres-{depth}", "--depth=2", "--claims=1", "--seconds=1", *flags)
                postgres.copy_jobs("bench-0", copies)
            store_benchmark(f"PostgreSQL, {depth} jobs", folder / f"postgres-{depth}", f"--depth={min(int(depth), MOST_SUBMITTED)}", *flags)
        finally:
            postgres.remove()


def submit_load(what, server, model, *flags):
    show(what, find_bin() / "quantry_submit_load", f"--server={server.address}", f"--model-path={model}", *flags)


def submit(folder, options):
    for postgres in (None, Postgres(folder)):
        what = "PostgreSQL" if postgres else "SQLite"
        fleet = Fleet(folder / what, find_bin(), servers=1, postgres=postgres and postgres.start())
        try:
            fleet.start(workers=0)
            for number in (1, 2, 3):
                submit_load(f"submits over gRPC, {what}, run {number}", fleet.servers["a"], folder / what / "inputs/model")
        finally:
            fleet.stop()
            if postgres:
                postgres.remove()


def start(folder, options):
    server = Server(find_bin(), folder / "embedded", f"--local-roots={ROOT}/examples")
    server.start()
    try:
        submit_load("submit to engine started", server, ROOT / "examples/stories260k", "--mode=start", "--jobs=200")
    finally:
        server.stop()


def watches(folder, options):
    python("watch_load.py", "--streams=10000")


def recovery(folder, options):
    python("recovery.py")


def throughput(folder, options):
    python("chaos.py", "--quiet", f"--minutes={options.minutes}")


def soak(folder, options):
    python("soak.py", f"--minutes={options.soak_minutes}")


PARTS = {part.__name__: part for part in (disk, store, submit, start, watches, recovery, throughput, soak)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS), help="which, with commas (default: all)")
    parser.add_argument("--depths", default="1000,100000,1000000", help="of the queue in `store`")
    parser.add_argument("--minutes", type=float, default=10, help="of `throughput`")
    parser.add_argument("--soak-minutes", type=float, default=60)
    options = parser.parse_args()
    parts = options.parts.split(",")
    if unknown := [part for part in parts if part not in PARTS]:
        parser.error(f"--parts: no part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    failed = []
    for part in parts:
        print(f"\n## {part}, {time.strftime('%Y-%m-%d %H:%M')}, {os.cpu_count()} cores, {commit()}", flush=True)
        with tempfile.TemporaryDirectory(prefix=f"quantry_{part}_", ignore_cleanup_errors=True) as folder:
            os.chmod(folder, 0o755)  # PostgreSQL's user has its cluster below
            try:
                PARTS[part](pathlib.Path(folder), options)
            except (subprocess.CalledProcessError, AssertionError, OSError) as error:
                print(f"{part}: {error}", flush=True)
                failed.append(part)
    print(f"\n## done, failed: {', '.join(failed) or 'none'}")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
