"""One real run, scraped by a real Prometheus: every query finds data, every metric is documented."""
import re

import pytest

from conftest import ROOT, Processes, free_ports, run_tool, scrape_config, start_prometheus, start_service, wait_for
from postgres import PASSWORD, Postgres
from queries import dashboard_queries, metric_names, rules, without_variables

# Queries that rightly find nothing in a healthy run; a sick one has data for
# them. (GPU figures come from an NVML of the test's own.)
EMPTY = [
    (r"ALERTS\{", "nothing fires"),
    (r"quantry_store_errors_total", "the store is healthy; the query drops zeros"),
]
# spec/service.md §4.2 and §4.3.
SPECIFIED = """
    grpc_server_call_started_total grpc_server_call_duration_seconds quantry_jobs quantry_queue_depth quantry_queue_oldest_timestamp_seconds
    quantry_jobs_submitted_total quantry_jobs_finished_total quantry_job_queue_seconds quantry_job_run_seconds quantry_job_attempts_total
    quantry_lease_expired_total quantry_stale_writes_rejected_total quantry_sweeper_last_run_timestamp_seconds quantry_watch_streams
    quantry_watch_events_sent_total quantry_watch_events_conflated_total quantry_store_op_seconds quantry_store_errors_total
    quantry_objectstore_request_seconds quantry_artifact_bytes_total quantry_build_info quantry_worker_slots quantry_worker_busy
    quantry_worker_block_seconds quantry_worker_gpu_memory_used_bytes quantry_worker_gpu_utilization_ratio quantry_worker_gpu_energy_joules_total
    quantry_worker_gpu_temperature_celsius quantry_worker_gpu_xid_errors_total quantry_worker_engine_exits_total quantry_job_progress_ratio
    quantry_job_blocks_done quantry_job_block_loss quantry_job_estimated_end_timestamp_seconds quantry_job_info""".split()
# Metrics of other exporters (docs/operations/metrics.md, "From others").
FOREIGN = re.compile(r"node_|kubelet_|certmanager_|DCGM_|ALERTS")


def documented(column):
    """Names of the catalogue by where they come from."""
    catalogue = (ROOT / "docs/operations/metrics.md").read_text().split("\n## ")[1]
    rows = re.findall(r"^\| `([a-z0-9_]+)(?:\{[^`]*\})?` \| ([^|]+) \|", catalogue, re.M)
    return {name for name, sources in rows if column in sources}


def test_every_name_of_the_specification_is_there_or_explained():
    known = documented("quantryd") | documented("worker")
    section = (ROOT / "docs/operations/metrics.md").read_text().split("## Named in the specification and not there")[1].split("\n## ")[0]
    explained = set(re.findall(r"^\| `([a-z0-9_]+)", section, re.M))
    assert set(SPECIFIED) - known <= explained, set(SPECIFIED) - known - explained


def families(text):
    return set(re.findall(r"^# TYPE (\S+) ", text, re.M))


def test_every_query_finds_data(live_run):
    missing = []
    for board, panel, expr in dashboard_queries():
        query = without_variables(expr, job=live_run.job)
        if not live_run.query_range(query) and not any(re.search(pattern, expr) for pattern, _ in EMPTY):
            missing.append(f"{board} / {panel}: {query}")
    assert not missing, "\n".join(missing)


def queries_of_trouble():
    found = [expr for _, _, expr in dashboard_queries() if any(re.search(pattern, expr) for pattern, _ in EMPTY)]
    assert len(found) >= len(EMPTY)
    return [without_variables(expr) for expr in found]


@pytest.fixture
def sick_run(binaries, tmp_path):
    """A server whose database is gone, scraped by a Prometheus whose alerts do not wait."""
    group, database = Processes(tmp_path), Postgres()
    try:
        database.start()
        password = tmp_path / "password"
        password.touch(mode=0o600)
        password.write_text(PASSWORD + "\n")
        service = start_service(group, binaries, tmp_path, worker=False, flags=[
            f"--job-store={database.uri}", f"--job-store-password-file={password}", f"--blob-dir={tmp_path}/blobs",
            f"--artifact-root=file://{tmp_path}/artifacts"])
        nobody = [f"127.0.0.1:{port}" for port in free_ports(2)]
        run = start_prometheus(group, tmp_path, scrape_config(tmp_path, {
            "quantryd": service["admin"], "quantry-worker": nobody[0], "quantry-exporter": nobody[1]}, patient=False))
        wait_for(lambda: run.now("quantry:queue_depth"), 30, "a scrape")
        database.stop()
        yield run
    finally:
        group.stop()
        database.remove()


def test_queries_of_trouble_find_data_in_trouble(sick_run):
    for query in queries_of_trouble():
        wait_for(lambda: sick_run.now(query), 60, query)  # noqa: B023
    wait_for(lambda: "QuantryStoreErrors" in firing(sick_run), 60, "QuantryStoreErrors")


def firing(run):
    return {alert["labels"]["alertname"] for alert in run.get("/api/v1/alerts")["alerts"] if alert["state"] == "firing"}


def test_recording_rules_find_data_and_nothing_fires(live_run):
    for rule in rules():
        if "record" in rule:
            assert live_run.query_range(rule["record"]), rule["record"]
    groups = live_run.get("/api/v1/rules")["groups"]
    assert [rule["lastError"] for group in groups for rule in group["rules"] if rule.get("lastError")] == []
    assert firing(live_run) == set()


def test_a_metric_that_does_not_exist_is_seen(live_run):
    assert live_run.query_range("quantry_no_such_metric") == []


def test_rules_and_boards_read_metrics_that_exist(live_run):
    exported = set().union(*map(families, live_run.texts.values()))
    for expr in [expr for _, _, expr in dashboard_queries()] + [rule["expr"] for rule in rules()]:
        unknown = {name for name in metric_names(expr) if not FOREIGN.match(name)} - exported
        assert not unknown, expr


def test_the_catalogue_is_complete(live_run):
    for process, text in live_run.texts.items():
        seen, known = families(text), documented(process)
        assert seen == known, f"{process}: undocumented {seen - known}, not exported {known - seen}"


def test_names_follow_the_rules(live_run):
    for process, text in live_run.texts.items():
        done = run_tool("promtool", "check", "metrics", input=text)
        assert done.returncode == 0, f"{process}: {done.stderr}"


def test_series_of_a_job_end_with_it(live_run):
    """Seen while it ran, gone two scrapes later: the fixture waited for it."""
    for name in ("quantry_job_info", "quantry_job_progress_ratio", "quantry_job_stage"):
        assert live_run.query_range(f'{name}{{job_id="{live_run.job}"}}')
        assert live_run.now(name) == []


def test_series_stay_few(live_run):
    for process, text in live_run.texts.items():
        per_family = {}
        for line in text.splitlines():
            if not line.startswith("#"):
                name = re.sub(r"_(bucket|sum|count)$", "", re.match(r"[a-z0-9_]+", line).group())
                per_family[name] = per_family.get(name, 0) + 1
        assert max(per_family.values()) < 1000, process
