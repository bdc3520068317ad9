"""Dashboards are code: they parse, they are portable, and every query is one that Prometheus takes."""
import itertools
import re

import pytest
import yaml

from conftest import DEPLOY, run_tool
from queries import dashboard_queries, dashboards, metric_names, panels, recorded_names, rules, without_variables

BOARDS = dashboards()


@pytest.mark.parametrize("name", BOARDS)
def test_board_is_portable(name):
    board = BOARDS[name]
    assert board["uid"] == name.removesuffix(".json") and board["schemaVersion"] >= 36
    assert board["title"] and board["description"] and "id" not in board
    source = {"type": "prometheus", "uid": "${DS_PROMETHEUS}"}
    variables = {v["name"]: v for v in board["templating"]["list"]}
    assert variables["DS_PROMETHEUS"]["type"] == "datasource"
    assert all(v["datasource"] == source for v in variables.values() if v["type"] == "query")
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    for panel in panels(board):
        assert panel["datasource"] == source, panel["title"]
        assert panel["targets"] and all(t["datasource"] == source for t in panel["targets"]), panel["title"]
        used = set(re.findall(r"\$([a-z]\w*)", " ".join(t["expr"] for t in panel["targets"])))
        assert used <= set(variables), f"{panel['title']} uses undefined variables"


@pytest.mark.parametrize("name", BOARDS)
def test_panels_do_not_overlap(name):
    def cells(panel):
        g = panel["gridPos"]
        return set(itertools.product(range(g["x"], g["x"] + g["w"]), range(g["y"], g["y"] + g["h"])))

    seen = set()
    for panel in BOARDS[name]["panels"]:
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24, panel["title"]
        assert not cells(panel) & seen, panel["title"]
        seen |= cells(panel)


def test_provisioning_finds_the_boards():
    provider = yaml.safe_load((DEPLOY / "grafana/provisioning/dashboards/quantry.yml").read_text())
    (entry,) = provider["providers"]
    assert provider["apiVersion"] == 1 and entry["type"] == "file"
    source = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yml").read_text())
    (prometheus,) = source["datasources"]
    assert source["apiVersion"] == 1 and prometheus["type"] == "prometheus" and prometheus["isDefault"]
    compose = yaml.safe_load((DEPLOY / "docker/compose.yml").read_text())["services"]["grafana"]
    mounted = {volume.split(":")[1] for volume in compose["volumes"]}
    assert entry["options"]["path"] in mounted and "/etc/grafana/provisioning" in mounted
    assert prometheus["url"].removeprefix("$") in compose["environment"]


def test_promtool_parses_every_query(tmp_path):
    rules_file = tmp_path / "queries.yml"
    rules_file.write_text(yaml.safe_dump({"groups": [{"name": "dashboards", "rules": [
        {"record": f"query:{i}", "expr": without_variables(expr)} for i, (_, _, expr) in enumerate(dashboard_queries())]}]}))
    done = run_tool("promtool", "check", "rules", rules_file)
    assert done.returncode == 0, done.stderr
    assert f"{len(dashboard_queries())} rules found" in done.stdout + done.stderr


def test_a_query_that_does_not_parse_is_seen(tmp_path):
    broken = tmp_path / "broken.yml"
    broken.write_text(yaml.safe_dump({"groups": [{"name": "x", "rules": [{"record": "query:0", "expr": "sum(rate(a[1m])"}]}]}))
    assert run_tool("promtool", "check", "rules", broken).returncode != 0


def test_recorded_series_are_recorded():
    known = {rule["record"] for rule in rules() if "record" in rule}
    for board, panel, expr in dashboard_queries():
        assert recorded_names(expr) <= known, f"{board}: {panel}"
        assert metric_names(expr) or recorded_names(expr), f"{board}: {panel} reads no metric"
