"""Checkpoints that the worker fetches from a model hub: hf://ORG/NAME@REVISION."""
import json
import shutil

import pytest

from conftest import submit_args
from service import fake_hub


@pytest.fixture
def hub(stories, tmp_path):
    folder = tmp_path / "hub"
    shutil.copytree(stories, folder / "org/stories")
    with fake_hub(folder) as endpoint:
        yield endpoint


def test_a_job_on_a_model_of_a_hub(make_server, hub, stories):
    server = make_server(f"--hub-endpoint={hub}").start()
    arguments = submit_args("hf://org/stories", "--id", "from-hub", "--wait", method="rtn", evaluation=False)
    job = server.json(*arguments)
    assert job["state"] == "SUCCEEDED" and job["spec"]["model"] == {"uri": "hf://org/stories"}
    local = server.json(*submit_args(stories, "--id", "local", "--wait", method="rtn", evaluation=False))

    def weights(job):
        return [json.load(open(job["artifact"]["uri"].removeprefix("file://") + "/manifest.json"))["inputs"]]

    assert [{**row, "path": ""} for row in weights(job)[0]] == [{**row, "path": ""} for row in weights(local)[0]]
    events = server.cli("events", "from-hub", check=0).stdout
    note = next(line for line in events.splitlines() if "hf://org/stories is commit" in line)
    pinned = "hf://org/stories@" + note.split()[-1]

    # A commit stands for its content, so its result can be shared.
    text = ["--calibration", stories.parent / "text/calibration.txt", "--calibration-samples", 8, "--calibration-length", 256]
    first = server.json("submit", pinned, "--method", "rtn", "--bits", 3, "--group-size", -1, "--reuse-result", "--wait", *text)
    again = server.json("submit", pinned, "--method", "rtn", "--bits", 3, "--group-size", -1, "--reuse-result", *text)
    assert again["state"] == "SUCCEEDED" and again["artifact"] == first["artifact"]
    moving = server.cli("submit", "hf://org/stories", "--method", "rtn", "--reuse-result", check=2)
    assert "reuse_result" in moving.stderr
    quoted = server.cli("quote", pinned, "--method", "rtn", check=2)
    assert "UNIMPLEMENTED_RPC" in quoted.stderr and "submit the job" in quoted.stderr


def test_hubs_are_off_by_default(server):
    done = server.cli("submit", "hf://org/stories", "--method", "rtn", check=5)
    assert "SOURCE_FORBIDDEN" in done.stderr and "--hub-endpoint" in done.stderr
    server.cli("submit", "hf://org/../x", "--method", "rtn", check=2)


def test_a_model_that_is_not_there_fails_its_job(make_server, hub):
    server = make_server(f"--hub-endpoint={hub}").start()
    job = server.json("submit", "hf://org/none", "--method", "rtn", "--wait", check=1)
    assert job["state"] == "FAILED" and "hub" not in job["error"]["message"].split()[0]
    assert "404" in job["error"]["message"]
