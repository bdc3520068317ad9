"""One real run, scraped by a real Prometheus: every query finds data, every metric is documented."""
import re

from conftest import ROOT, run_tool
from queries import dashboard_queries, metric_names, rules, without_variables

# Queries that rightly find nothing in a healthy run. (GPU figures come from an
# NVML of the test's own.)
EMPTY = [
    (r"ALERTS\{", "nothing fires"),
    (r"quantry_store_errors_total", "the store is healthy; the query drops zeros"),
]
# Metrics of other exporters (docs/operations/metrics.md, "From others").
FOREIGN = re.compile(r"node_|kubelet_|certmanager_|DCGM_|ALERTS")


def documented(column):
    """Names of the catalogue by where they come from."""
    catalogue = (ROOT / "docs/operations/metrics.md").read_text().split("\n## ")[1]
    rows = re.findall(r"^\| `([a-z0-9_]+)(?:\{[^`]*\})?` \| ([^|]+) \|", catalogue, re.M)
    return {name for name, sources in rows if column in sources}


def families(text):
    return set(re.findall(r"^# TYPE (\S+) ", text, re.M))


def test_every_query_finds_data(live_run):
    missing = []
    for board, panel, expr in dashboard_queries():
        query = without_variables(expr, job=live_run.job)
        if not live_run.query_range(query) and not any(re.search(pattern, expr) for pattern, _ in EMPTY):
            missing.append(f"{board} / {panel}: {query}")
    assert not missing, "\n".join(missing)


def test_the_list_of_empty_queries_is_needed():
    for pattern, reason in EMPTY:
        assert any(re.search(pattern, expr) for _, _, expr in dashboard_queries()), reason


def test_recording_rules_find_data_and_nothing_fires(live_run):
    for rule in rules():
        if "record" in rule:
            assert live_run.query_range(rule["record"]), rule["record"]
    groups = live_run.get("/api/v1/rules")["groups"]
    assert [rule["lastError"] for group in groups for rule in group["rules"] if rule.get("lastError")] == []
    assert [alert for alert in live_run.get("/api/v1/alerts")["alerts"] if alert["state"] == "firing"] == []


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
