"""Job reports: the files in the artifact, `quantry report`, `quantry compare`, and that the command a report gives repeats it."""
import json
from html.parser import HTMLParser

import yaml

from conftest import EXAMPLES, submit_args


class Tags(HTMLParser):
    """Fails on an unclosed tag; collects the names of all."""
    VOID = {"meta", "link", "br", "path", "circle", "line", "rect"}

    def __init__(self, text):
        super().__init__()
        self.seen, self.open = set(), []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.seen.add(tag)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag


def hashes(report):
    return {entry["path"]: entry["sha256"] for entry in report["files"]}


def test_report_compare_and_the_command_that_repeats_it(server, stories, tmp_path):
    server.cli(*submit_args(stories, "--id", "first", "--wait", "--format", "compressed-tensors",
                            "--format", "quantry", "--max-perplexity-ratio", "2"), check=0)
    report = server.json("report", "first")
    assert report["quality"]["perplexity"]["quantized"] > report["quality"]["perplexity"]["dense"]
    pulled = tmp_path / "pulled"
    server.cli("pull", "first", pulled, check=0)
    text = server.cli("report", "first", "--html", tmp_path / "report.html", check=0).stdout
    assert text.splitlines()[1:] == server.cli("report", pulled, check=0).stdout.splitlines()[1:]
    assert report["reproduction"]["command"].split()[:3] == ["quantry", "submit", "MODEL_DIR"]

    files = {"MODEL_DIR": stories, "METHOD_CONFIG": pulled / "report/method.json",
             "CALIBRATION_FILE": EXAMPLES / "text/calibration.txt",
             "EVALUATION_FILE": EXAMPLES / "text/evaluation.txt"}
    argv = [files.get(word, word) for word in report["reproduction"]["argv"]]
    server.cli(*argv[1:], "--id", "again", "--wait", check=0)
    assert hashes(server.json("report", "again")) == hashes(report)
    same = server.json("compare", pulled, "again")
    assert same["differences"] == [] and all(block["ratio"] == 1 for block in same["blocks"])

    stored = (pulled / "report/report.html").read_text()
    html = (tmp_path / "report.html").read_text()
    assert Tags(stored).seen == Tags(html).seen >= {"svg", "table", "section"}
    assert "script" not in Tags(html).seen and str(stories) not in html
    assert "EVALUATING" in html and "EVALUATING" not in stored


def test_compare_shows_which_method_loses_less(server, stories):
    server.cli(*submit_args(stories, "--id", "awq-job", "--wait"), check=0)
    server.cli(*submit_args(stories, "--id", "rtn-job", "--wait", method="rtn"), check=0)
    compared = server.json("compare", "rtn-job", "awq-job")
    assert compared["differences"] == []
    assert len(compared["blocks"]) == 5 and compared["ratios"]["perplexity_quantized"] < 1
    table = server.cli("compare", "rtn-job", "awq-job", check=0).stdout
    assert "loss of block 4" in table and "weights, compressed-tensors" in table
    server.cli("report", "no-such-job", check=4)


def test_every_output_has_a_card(server, stories, tmp_path):
    server.cli(*submit_args(stories, "--id", "cards", "--wait", "--format", "compressed-tensors",
                            "--format", "dense"), check=0)
    server.cli("pull", "cards", tmp_path / "out", check=0)
    for folder in ("compressed-tensors", "dense"):
        card = (tmp_path / "out" / folder / "README.md").read_text()
        front = yaml.safe_load(card.split("---\n")[1])
        assert front["library_name"] == "transformers" and {"quantry", "awq", folder} <= set(front["tags"])
    report = json.loads((tmp_path / "out/report/report.json").read_text())
    assert report["schema"] == "quantry.job-report.v1" and "seconds" not in report["blocks"][0]
