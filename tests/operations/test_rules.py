"""Recording rules and alerts: promtool's own unit tests, a runbook for each, one source for Prometheus and Kubernetes."""
import re

import yaml

from conftest import DEPLOY, ROOT, run_tool
from queries import rule_groups, rules

ALERTS = {rule["alert"] for rule in rules() if "alert" in rule}
UNIT_TESTS = sorted((DEPLOY / "prometheus").glob("rules_*test.yml"))  # days: windows that long are slow by the minute
WANTED = {  # spec/service.md §4.4
    "QuantryApiErrorBudgetFast", "QuantryApiErrorBudgetSlow", "QuantryQueueTooOld", "QuantryNoWorkers",
    "QuantrySweeperStalled", "QuantryStoreErrors", "QuantryStaleWritesHigh", "QuantryJobFailureRatio",
    "QuantryWorkerNoProgress", "QuantryGpuXid", "QuantryDiskNearlyFull", "QuantryCertExpiring"}


def test_promtool_accepts_rules_and_configuration():
    done = run_tool("promtool", "check", "config", DEPLOY / "prometheus/prometheus.yml")
    assert done.returncode == 0, done.stderr


def test_unit_tests_pass():
    done = run_tool("promtool", "test", "rules", *(path.name for path in UNIT_TESTS), cwd=DEPLOY / "prometheus", timeout=180)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_seen_to_fire_and_to_stay_silent_in_a_unit_test():
    fired, silent = set(), set()
    for test in (test for path in UNIT_TESTS for test in yaml.safe_load(path.read_text())["tests"]):
        for check in test.get("alert_rule_test", ()):
            (fired if check["exp_alerts"] else silent).add(check["alertname"])
    assert fired == ALERTS >= WANTED
    # Where instances differ, the one that must not fire stands in the same test.
    assert ALERTS - silent <= {"QuantryDiskNearlyFull", "QuantryEngineKills"}


def test_every_alert_has_a_runbook_section():
    text = (ROOT / "docs/operations/runbook.md").read_text()
    sections = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", text, re.M | re.S))
    assert set(sections) == ALERTS
    for rule in rules():
        if "alert" not in rule:
            continue
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert rule["annotations"]["summary"]
        assert rule["annotations"]["runbook"] == f"docs/operations/runbook.md#{rule['alert'].lower()}"
        body = sections[rule["alert"]]
        assert "**Means**" in body and "**Do**" in body, rule["alert"]


def test_kubernetes_holds_the_same_rules():
    resource = yaml.safe_load((DEPLOY / "kubernetes/components/monitoring/prometheus-rule.yaml").read_text())
    assert resource["spec"]["groups"] == rule_groups()
