"""Reads PromQL out of dashboards and rule files."""
import json
import re

import yaml

from conftest import DEPLOY

METRIC = re.compile(r"\b(?:quantry|grpc_server|node|kubelet|certmanager)_[a-z0-9_]+\b|\bDCGM_[A-Z0-9_]+\b|\bALERTS\b")
RECORDED = re.compile(r"\bquantry:[a-z0-9_:]+")


def dashboards():
    return {path.name: json.loads(path.read_text()) for path in sorted((DEPLOY / "grafana/dashboards").glob("*.json"))}


def panels(board):
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def dashboard_queries():
    """(dashboard, panel, expression with Grafana's variables), in file order."""
    return [(name, panel["title"], target["expr"])
            for name, board in dashboards().items() for panel in panels(board) for target in panel["targets"]]


def without_variables(expr, job=".*", interval="20s", span="2m"):
    """What Grafana would send."""
    values = {"$__rate_interval": interval, "$__range": span, "$tenant": "default", "$job_id": job, "$instance": ".*", "$model": ".*",
              "$method": ".*"}
    for name, value in values.items():
        expr = expr.replace(name, value)
    assert "$" not in expr, f"a variable this test does not know: {expr}"
    return expr


def rule_groups():
    return yaml.safe_load((DEPLOY / "prometheus/rules.yml").read_text())["groups"]


def rules():
    return [rule for group in rule_groups() for rule in group["rules"]]


def metric_names(expr):
    """Families an expression reads; of histograms without _bucket, _sum, _count."""
    bare = re.sub(r'"[^"]*"', '""', expr)
    return {re.sub(r"_(bucket|sum|count)$", "", name) for name in METRIC.findall(bare)}


def recorded_names(expr):
    return set(RECORDED.findall(expr))
