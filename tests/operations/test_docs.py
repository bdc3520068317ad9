"""What the pages name exists: links, files, commands and their flags. Whole commands: test_commands.py."""
import re
import shutil
import subprocess
import sys

import pytest

from conftest import ROOT, known_flags
from doc_commands import PAGES

OPERATIONS = [page for page in PAGES if page.parent == ROOT / "docs/operations"]


def spans(page):
    """What stands between backticks, blocks left out."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL))


def name_of(page):
    return str(page.relative_to(ROOT))


def anchors(page):
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)]+)\)", prose):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_exist(page):
    for path in re.findall(r"\bdeploy/[\w./-]*\w", page.read_text()):
        if path not in ("deploy/docker/.env", "deploy/systemd"):
            assert (ROOT / path).exists(), path


def cli_help(binaries, *command):
    return subprocess.run([binaries / "quantry", *command, "--help"], capture_output=True, text=True, timeout=20).stdout


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_of_the_cli_exist(binaries, page):
    shared = set(re.findall(r"--[a-z][a-z-]*", cli_help(binaries)))
    for span in spans(page):
        match = re.match(r"quantry (?:--server \S+ )?([a-z][a-z-]*)(?: (pause|resume|drain))?\b", span)
        if not match:
            continue
        command = [part for part in match.groups() if part]
        text = cli_help(binaries, *command)
        assert f"quantry {' '.join(command)}" in text, span
        flags = set(re.findall(r"--[a-z][a-z-]*", span))
        assert flags <= shared | set(re.findall(r"--[a-z][a-z-]*", text)), span


@pytest.mark.parametrize("page", OPERATIONS, ids=name_of)
def test_flags_of_the_servers_exist(binaries, page):
    known = known_flags(binaries, "quantryd") | known_flags(binaries, "quantry-worker") | {"check-config", "config", "embedded"}
    of_commands = set(re.findall(r"--([a-z][a-z-]*)", cli_help(binaries, "quota") + cli_help(binaries, "gc")))
    of_commands |= set(re.findall(r'"--([a-z-]+)"', (ROOT / "client/python/quantry/integrations/hub.py").read_text()))
    for span in spans(page):
        if re.match(r"(quantryd|quantry-worker)?\s*--[a-z]", span):
            flags = set(re.findall(r"--([a-z][a-z-]*)", span))
            assert flags <= known | of_commands | {"sbom", "provenance"}, span


@pytest.mark.parametrize("page", [page for page in PAGES if page.parent == ROOT / "docs/api"], ids=name_of)
def test_flags_of_the_api_exist(binaries, page):
    known = set().union(*(known_flags(binaries, program) for program in ("quantryd", "quantry-worker", "quantry-engine"))) | {"help", "job"}
    known |= set(re.findall(r"--([a-z][a-z-]*)", cli_help(binaries, "submit")))
    flags = set(re.findall(r"--([a-z][a-z-]*)", page.read_text()))
    assert flags <= known, flags - known


def test_reasons_of_the_runbook_are_reasons():
    known = set(re.findall(r"`([A-Z_]+)", (ROOT / "docs/api/errors.md").read_text()))
    known |= {"RESOURCE_EXHAUSTED", "UNAVAILABLE", "INTERNAL"}  # statuses
    words = set(re.findall(r"\b[A-Z]+_[A-Z_]+\b", (ROOT / "docs/operations/runbook.md").read_text()))
    assert words - known <= {"QUANTRY_SERVER"}, words - known


def test_api_reference_is_what_the_protos_say():
    done = subprocess.run([sys.executable, ROOT / "scripts/api-reference", "--check"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_an_rpc_without_errors_in_its_comment_is_found(tmp_path):
    """In a copy of the protos, where one comment says less."""
    for name in ("scripts/api-reference", "proto"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, tmp_path / name)
    proto = tmp_path / "proto/quantry/v1/worker_service.proto"
    text = proto.read_text()
    proto.write_text(text.replace("(drain): costs no attempt. Errors:", "(drain): costs no attempt.", 1))
    assert proto.read_text() != text
    done = subprocess.run([sys.executable, tmp_path / "scripts/api-reference", "--check"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "WorkerService.ReleaseJob" in done.stderr, done.stderr


def test_api_reference_has_no_two_headings_of_one_anchor():
    page = ROOT / "docs/api/reference.md"
    assert len(anchors(page)) == len(re.findall(r"^#+ ", page.read_text(), re.M))
