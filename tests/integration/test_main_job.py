"""The main job through every layer: submit, watch, artifact, pull, delete."""
import hashlib
import json
import re
import signal
import threading
import time

from conftest import EXAMPLES, quote_args, submit_args, wait_for
from tools import run_tool


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_submit_wait_pull(server, stories, tmp_path):
    job = server.json(*submit_args(stories, "--id", "main-job", "--wait", "--label", "team=a"))
    assert job["state"] == "SUCCEEDED"
    assert job["name"].endswith("quantizationJobs/main-job")
    perplexity = job["quality"]["perplexity"]
    assert 3 < perplexity["dense"] < 6
    assert perplexity["dense"] < perplexity["quantized"] < perplexity["dense"] * 1.2
    # 4-bit codes, one 16-bit scale and one 4-bit zero point a row.
    assert 4.0 < job["bits"]["linears"] < 4.4
    assert job["bits"]["file"] > 4
    output = job["outputs"][0]
    assert output["format"] == "compressed-tensors" and output["bytes"] > 0 and output["compatibility"]
    assert len(job["timing"]["blocks_s"]) == 5 and job["timing"]["run_s"] > 0
    assert job["peak_rss_bytes"] > 10_000_000
    assert job["artifact"]["uri"].startswith("file:")

    pulled = tmp_path / "pulled"
    server.cli("pull", "main-job", pulled, check=0)
    manifest = json.loads((pulled / "manifest.json").read_text())
    files = {entry["path"]: entry for entry in manifest["files"]}
    assert any(path.endswith("model.safetensors") for path in files)
    for path, entry in files.items():
        assert sha256(pulled / path) == entry["sha256"]
        assert (pulled / path).stat().st_size == int(entry["size_bytes"])
    folder = pulled / output["path"]
    assert (folder / "tokenizer.json").read_bytes() == (stories / "tokenizer.json").read_bytes()
    config = json.loads((folder / "config.json").read_text())
    assert config["quantization_config"]["format"] == "pack-quantized"
    assert config["quantization_config"]["config_groups"]["group_0"]["weights"]["num_bits"] == 4
    again = server.cli("pull", "main-job", pulled, check=0)
    assert "verif" in (again.stdout + again.stderr).lower()


def test_same_job_twice_same_bytes(server, stories):
    first = server.json(*submit_args(stories, "--id", "twice-1", "--wait"))
    second = server.json(*submit_args(stories, "--id", "twice-2", "--wait"))
    assert first["artifact"]["uri"] != second["artifact"]["uri"]
    assert file_hashes(first) == file_hashes(second)


def file_hashes(job):
    path = job["artifact"]["uri"].removeprefix("file://")
    manifest = json.loads(open(f"{path}/manifest.json").read())
    return {entry["path"]: entry["sha256"] for entry in manifest["files"]}


def test_every_output_format_and_rtn(server, stories):
    job = server.json(*submit_args(stories, "--id", "formats", "--wait", "--format", "compressed-tensors",
                                   "--format", "dense", "--format", "quantry", method="rtn", bits=3))
    assert {output["format"] for output in job["outputs"]} == {"compressed-tensors", "dense", "quantry"}
    assert all(output["compatibility"] for output in job["outputs"])


def test_list_get_update_labels_delete(server, stories):
    for i in range(3):
        server.json(*submit_args(stories, "--id", f"job-{i}", "--label", f"n={i}", method="rtn", evaluation=False))
    for i in range(3):
        server.cli("watch", f"job-{i}", check=0)
    listed = server.json("list")
    jobs = listed["jobs"] if isinstance(listed, dict) else listed
    assert [job["name"].rsplit("/", 1)[1] for job in jobs] == ["job-2", "job-1", "job-0"]
    by_label = server.json("list", "--label", "n=1")
    by_label = by_label["jobs"] if isinstance(by_label, dict) else by_label
    assert len(by_label) == 1
    assert server.json("list", "--state", "FAILED") in ([], {"jobs": []})
    server.cli("update", "job-1", "--label", "n=one", check=0)
    assert server.json("get", "job-1")["labels"]["n"] == "one"
    server.cli("delete", "job-1", check=0)
    server.cli("get", "job-1", check=4)


def test_events_have_no_gap(server, stories):
    server.cli(*submit_args(stories, "--id", "events", "--wait"), check=0)
    done = server.cli("events", "events", "--output", "json", check=0)
    text = done.stdout.strip()
    events = json.loads(text) if text.startswith("[") else [json.loads(line) for line in text.splitlines()]
    sequences = [int(event["sequence"]) for event in events]
    assert sequences == list(range(1, len(sequences) + 1))
    assert len([event for event in events if "block_done" in event]) == 5


def test_quote_says_what_a_job_costs(server, stories):
    done = server.json(*quote_args(submit_args(stories)))
    quote = done.get("quote", done)
    assert int(quote["blocks"]) == 5
    assert int(quote["host_memory_bytes"]) > 0
    assert quote["outputs"][0]["bits_per_weight"] > 4
    assert server.json("list") in ([], {"jobs": []})


def test_model_path_below_a_root(make_server, stories):
    server = make_server(local_roots=[EXAMPLES]).start()
    args = submit_args(stories, "--wait", method="rtn", evaluation=False)
    args[1:2] = ["--model-path", str(stories)]
    assert server.json(*args)["state"] == "SUCCEEDED"


def test_methods_and_server_info(server):
    methods = server.json("methods")
    methods = methods["methods"] if isinstance(methods, dict) else methods
    assert {"rtn", "awq"} <= {method["name"] for method in methods}
    info = server.json("server-info")
    assert "llama" in info["architectures"] and "compressed-tensors" in info["output_formats"]


def test_metrics_are_clean_and_move(server, stories):
    import urllib.request

    def scrape():
        return urllib.request.urlopen(f"http://{server.admin}/metrics", timeout=5).read().decode()

    before = scrape()
    assert "quantry_jobs_submitted_total" in before, "exported from zero"
    checked = run_tool("promtool", "check", "metrics", input=before)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    server.cli(*submit_args(stories, "--wait", method="rtn", evaluation=False), check=0)
    after = scrape()
    assert re.search(r"^quantry_jobs_submitted_total(\{[^}]*\})? 1$", after, re.M)
    assert re.search(r'^quantry_jobs_finished_total\{[^}]*outcome="succeeded"[^}]*\} 1$', after, re.M | re.I)
    for probe in ("livez", "readyz"):
        assert urllib.request.urlopen(f"http://{server.admin}/{probe}", timeout=5).status == 200


def test_graceful_drain_keeps_the_job(make_server, stories):
    server = make_server().start()
    server.json(*submit_args(stories, "--id", "drained", samples=32, length=256))
    wait_for(lambda: server.json("get", "drained")["state"] == "RUNNING", 30, "the job to run")
    assert server.stop(signal.SIGTERM) == 0
    assert not server.engine_pids()
    server.start()
    job = server.json("watch", "drained")
    assert job["state"] == "SUCCEEDED"


def test_watch_survives_a_killed_server(make_server, stories):
    server = make_server().start()
    result = {}

    def submit():
        result["done"] = server.cli(*submit_args(stories, "--id", "survivor", "--wait", "--output", "json",
                                                 samples=32, length=256))

    thread = threading.Thread(target=submit)
    thread.start()
    wait_for(lambda: server.cli("get", "survivor").returncode == 0 and
             int(server.json("get", "survivor").get("progress", {}).get("blocks_done", 0)) >= 1, 60, "the first block")
    server.stop(signal.SIGKILL)
    time.sleep(0.5)
    server.start()
    thread.join(timeout=180)
    assert not thread.is_alive()
    assert result["done"].returncode == 0, result["done"].stderr
    assert json.loads(result["done"].stdout)["state"] == "SUCCEEDED"
    done = server.cli("events", "survivor", "--output", "json", check=0).stdout.strip()
    events = json.loads(done) if done.startswith("[") else [json.loads(line) for line in done.splitlines()]
    sequences = [int(event["sequence"]) for event in events]
    assert sequences == list(range(1, len(sequences) + 1))
