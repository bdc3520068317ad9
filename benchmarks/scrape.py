#!/usr/bin/env python3
"""How long a Prometheus takes to scrape a server and many idle workers, and how many series they have; JSON on stdout.

    .deps/venv/bin/python benchmarks/scrape.py [--workers 100] [--seconds 60]

All on this machine, each worker its own process. Workers ask their engine once for its methods: here a script that has the
answer of the real one, since a hundred of those at once would measure the disk.
"""
import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import time
import urllib.parse

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests/operations"))

import yaml  # noqa: E402
from conftest import Processes, find_bin, free_ports, http_get, start_service, tool, wait_for  # noqa: E402

FIGURES = {
    "targets": "count(up == 1)",
    "scrape_seconds_median": "quantile by (job) (0.5, quantile_over_time(0.5, scrape_duration_seconds[{window}]))",
    "scrape_seconds_max": "max by (job) (max_over_time(scrape_duration_seconds[{window}]))",
    "series_each_at_most": "max by (job) (scrape_samples_scraped)",
    "series": "sum(scrape_samples_scraped)",
    "workers_live": "quantry_workers_live",
    "heartbeats_per_second": 'sum(rate(grpc_server_call_started_total{{grpc_method=~".*Heartbeat"}}[{window}]))',
}


def fake_engine(binaries, folder):
    (folder / "methods.json").write_text(subprocess.run([binaries / "quantry-engine", "methods"], capture_output=True, text=True,
                                                        check=True).stdout)
    engine = folder / "engine"
    engine.write_text(f"#!/bin/sh\ncat {folder}/methods.json\n")
    engine.chmod(0o755)
    return engine


def start_workers(group, binaries, folder, server, count):
    engine, ports = fake_engine(binaries, folder), free_ports(count)
    for index, port in enumerate(ports):
        group.start(f"worker-{index}", [
            binaries / "quantry-worker", f"--server={server}", f"--work-dir={folder}/w{index}", f"--worker-id=worker-{index}",
            f"--admin-listen=127.0.0.1:{port}", "--threads=1", "--device=cpu", f"--engine-binary={engine}", "--engine-confinement=false"])
    for port in ports:
        wait_for(lambda: http_get(f"http://127.0.0.1:{port}/readyz"), 120, f"the worker at {port}")
    return [f"127.0.0.1:{port}" for port in ports]


def start_prometheus(group, folder, targets):
    (port,) = free_ports(1)
    jobs = [{"job_name": name, "static_configs": [{"targets": addresses}]} for name, addresses in targets.items()]
    (folder / "prometheus.yml").write_text(yaml.safe_dump({"global": {"scrape_interval": "5s"}, "scrape_configs": jobs}))
    group.start("prometheus", [tool("prometheus"), f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/tsdb",
                               f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"])
    wait_for(lambda: http_get(f"http://127.0.0.1:{port}/-/ready"), 30, "Prometheus")
    return f"127.0.0.1:{port}"


def ask(prometheus, expression):
    url = f"http://{prometheus}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
    found = {row["metric"].get("job", ""): float(row["value"][1]) for row in json.loads(http_get(url))["data"]["result"]}
    return next(iter(found.values())) if len(found) == 1 else found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=100)
    parser.add_argument("--seconds", type=int, default=60)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, group = pathlib.Path(name), Processes(name)
        try:
            binaries = find_bin()
            service = start_service(group, binaries, folder, worker=False)
            workers = start_workers(group, binaries, folder, service["worker"], options.workers)
            prometheus = start_prometheus(group, folder, {"quantryd": [service["admin"]], "quantry-worker": workers})
            time.sleep(options.seconds)
            window = f"{options.seconds}s"
            print(json.dumps({name: ask(prometheus, figure.format(window=window)) for name, figure in FIGURES.items()}, indent=2))
        finally:
            group.stop()


if __name__ == "__main__":
    main()
