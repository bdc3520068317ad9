"""quantry-engine by itself: events, resume after kill -9, determinism, quality gate, quote, unpack."""
import hashlib
import json
import random
import signal
import subprocess
from xml.etree import ElementTree

import pytest

from conftest import EXAMPLES
from random_models import write_random_model

GRID = {"bits": 3, "group_size": -1}


@pytest.fixture
def engine(binaries, stories, tmp_path):
    return Engine(binaries / "quantry-engine", stories, tmp_path)


class Engine:
    def __init__(self, binary, model, folder):
        self.binary, self.model, self.folder = binary, model, folder

    def job(self, name, method="awq", **changes):
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        job = {
            "model_dir": str(self.model),
            "output_dir": str(folder / "out"),
            "checkpoint_dir": str(folder / "checkpoint"),
            "method": method if isinstance(method, dict) else {method: {"grid": GRID}},
            "calibration": {"text": {"path": str(EXAMPLES / "text" / "calibration.txt")},
                            "samples": 16, "sequence_length": 128},
            "evaluation": {"text": {"path": str(EXAMPLES / "text" / "evaluation.txt")},
                           "sequence_length": 128, "windows": 8},
            "outputs": [{"format": f"OUTPUT_FORMAT_{name}"} for name in ("COMPRESSED_TENSORS", "DENSE", "QUANTRY")],
            "threads": 2,
        }
        job.update(changes)
        (folder / "job.json").write_text(json.dumps(job))
        return folder

    def start(self, folder):
        return subprocess.Popen([self.binary, "run", "--job", folder / "job.json"],
                                stdout=subprocess.PIPE, text=True)

    def run(self, folder, status=0, timeout=300):
        done = subprocess.run([self.binary, "run", "--job", folder / "job.json"],
                              capture_output=True, text=True, timeout=timeout, check=False)
        assert done.returncode == status, done.stdout[-2000:] + done.stderr[-2000:]
        return [json.loads(line) for line in done.stdout.splitlines()]


def hashes(folder):
    """sha256 of every file of the artifact but the manifest, which holds measured times."""
    out = folder / "out"
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in out.rglob("*") if path.is_file() and path.name != "manifest.json"}


def test_events_tell_the_whole_story(engine):
    events = engine.run(engine.job("a"))
    kinds = [next(iter(event)) for event in events]
    assert kinds[-1] == "completed" and kinds.count("started") == 1
    stages = [event["stage"] for event in events if "stage" in event]
    assert stages == [f"STAGE_{name}" for name in ("LOADING", "CALIBRATING", "QUANTIZING", "PACKING", "EVALUATING")]
    progress = [event["progress"] for event in events if "progress" in event]
    steps = [entry["steps_done"] for entry in progress]
    assert steps == sorted(set(steps)) and len({entry["steps_total"] for entry in progress}) == 1
    assert all("eta" in entry for entry in progress if entry["blocks_done"] > 0)
    assert steps[-1] <= progress[-1]["steps_total"]
    for report in (event["block_done"] for event in events if "block_done" in event):
        assert 0 < report["loss_final"] < report["loss_rtn"]


def test_manifest_names_every_file(engine):
    folder = engine.job("a")
    events = engine.run(folder)
    manifest = json.loads((folder / "out" / "manifest.json").read_text())
    digest = hashlib.sha256((folder / "out" / "manifest.json").read_bytes()).hexdigest()
    assert events[-1]["completed"]["manifest_sha256"] == digest
    assert {entry["path"]: entry["sha256"] for entry in manifest["files"]} == hashes(folder)
    assert len(manifest["blocks"]) == 5 and len(manifest["outputs"]) == 3
    assert not list((folder / "out").rglob("*.partial"))


def test_report_shows_every_block(engine):
    folder = engine.job("a")
    engine.run(folder)
    manifest = json.loads((folder / "out" / "manifest.json").read_text())
    report = json.loads((folder / "out" / "report" / "blocks.json").read_text())
    assert [block["loss_final"] for block in report["blocks"]] == [
        block["loss_final"] for block in manifest["blocks"]]
    whole = json.loads((folder / "out" / "report" / "report.json").read_text())
    assert whole["quality"] == manifest["quality"] and whole["blocks"] == report["blocks"]
    assert whole["inputs"] == manifest["inputs"] and str(engine.folder) not in json.dumps(whole)
    plot = ElementTree.parse(folder / "out" / "report" / "loss.svg")
    assert len(plot.findall(".//{http://www.w3.org/2000/svg}circle")) == 2 * len(manifest["blocks"])


def test_same_job_twice_same_bytes(engine):
    first, second = engine.job("a"), engine.job("b")
    engine.run(first)
    engine.run(second)
    assert hashes(first) == hashes(second)


def test_killed_at_any_block_resumes_to_the_same_bytes(engine):
    whole, killed = engine.job("whole"), engine.job("killed")
    engine.run(whole)
    stop_after = random.Random(5).sample(range(1, 5), 2)
    for blocks in sorted(stop_after):
        with engine.start(killed) as process:
            for line in process.stdout:
                event = json.loads(line)
                if event.get("checkpoint", {}).get("blocks_done", 0) >= blocks:
                    process.send_signal(signal.SIGKILL)
                    break
    events = engine.run(killed)
    started = next(event["started"] for event in events if "started" in event)
    assert started["resumed_blocks"] >= max(stop_after)
    assert hashes(killed) == hashes(whole)


def test_sigterm_stops_at_once_and_leaves_a_checkpoint(engine):
    folder = engine.job("a")
    with engine.start(folder) as process:
        for line in process.stdout:
            if "checkpoint" in json.loads(line):
                process.terminate()
                break
        assert process.wait(timeout=5) == 143
    events = engine.run(folder)
    assert next(event["started"] for event in events if "started" in event)["resumed_blocks"] >= 1


def test_a_damaged_checkpoint_is_ignored_with_a_warning(engine):
    folder = engine.job("a")
    engine.run(folder)
    before = hashes(folder)
    path = folder / "checkpoint" / "block-00001.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    events = engine.run(folder)
    warnings = [event["log"]["message"] for event in events if "log" in event]
    assert any("block-00001.safetensors is damaged" in text for text in warnings)
    assert hashes(folder) == before


def test_another_job_does_not_take_the_checkpoint(engine):
    engine.run(engine.job("a"))
    events = engine.run(engine.job("a", seed=9))
    assert next(event["started"] for event in events if "started" in event)["resumed_blocks"] == 0


def test_quality_gate_fails_the_job_but_keeps_the_files(engine):
    folder = engine.job("a", quality_gate={"max_perplexity_ratio": 1.0001})
    events = engine.run(folder)
    assert events[-1]["completed"]["quality_gate_failed"] is True
    assert json.loads((folder / "out" / "manifest.json").read_text())["quality_gate_failed"] is True


@pytest.mark.parametrize("changes,reason,words", [
    ({"method": {"rtn": {"grid": {"bits": 4, "group_size": 64}}}}, "INVALID_SPEC", "down_proj"),
    ({"method": {"rtn": {"grid": {"bits": 7}}}}, "INVALID_SPEC", "got 7"),
    ({"surprise": 1}, "INVALID_SPEC", "surprise"),
    ({"device": "tpu"}, "INVALID_SPEC", "tpu"),
])
def test_bad_jobs_end_with_one_typed_error(engine, changes, reason, words):
    events = engine.run(engine.job("a", **changes), status=1)
    error = events[-1]["error"]
    assert error["reason"] == reason and error["failure_class"] == "FAILURE_CLASS_USER"
    assert words in error["message"]


def test_rtn_needs_no_calibration(engine):
    folder = engine.job("a", method="rtn", calibration=None)
    events = engine.run(folder)
    assert "completed" in events[-1]
    assert all("loss_rtn" not in event["block_done"] for event in events if "block_done" in event)


def test_quote_reads_headers_only(engine):
    folder = engine.job("a")
    done = subprocess.run([engine.binary, "quote", "--job", folder / "job.json"],
                          capture_output=True, text=True, timeout=60, check=True)
    quote = json.loads(done.stdout)
    assert quote["problems"] == [] and quote["blocks"] == 5 and quote["steps"] > 0
    assert [output["format"] for output in quote["outputs"]] == [
        "OUTPUT_FORMAT_COMPRESSED_TENSORS", "OUTPUT_FORMAT_DENSE", "OUTPUT_FORMAT_QUANTRY"]
    assert not (folder / "out").exists()
    misfit = engine.job("b", method="rtn")
    job = json.loads((misfit / "job.json").read_text())
    job["method"]["rtn"]["grid"]["group_size"] = 64
    (misfit / "job.json").write_text(json.dumps(job))
    done = subprocess.run([engine.binary, "quote", "--job", misfit / "job.json"],
                          capture_output=True, text=True, timeout=60, check=True)
    assert "down_proj" in json.loads(done.stdout)["problems"][0]


def quoted_memory(engine, folder):
    done = subprocess.run([engine.binary, "quote", "--job", folder / "job.json"],
                          capture_output=True, text=True, timeout=60, check=True)
    return json.loads(done.stdout)["host_memory_bytes"]


def test_a_quote_counts_the_jobs_threads(engine):
    """What works side by side holds more."""
    one, two = (quoted_memory(engine, engine.job(f"threads-{threads}", threads=threads)) for threads in (1, 2))
    assert one < two


def test_a_quote_counts_texts(engine, tmp_path):
    """All windows of a text: its size while it is read, its ids then."""
    small, large = tmp_path / "small.txt", tmp_path / "large.txt"
    for path, size in ((small, 10**6), (large, 10**8)):
        with path.open("w") as file:
            file.write("once upon a time\n" * 100)
            file.truncate(size)
    corpus = {"lora": {}, "sequence_length": 256}
    one, two = (quoted_memory(engine, engine.job(path.stem, preprocessing={**corpus, "text": {"path": str(path)}}))
                for path in (small, large))
    assert 8e8 < two - one < 1e9


def assert_the_quote_holds(engine, folder):
    """Runs the job of the folder: its peak of memory is what was quoted, or less."""
    quoted = quoted_memory(engine, folder)
    engine.run(folder)
    peak = json.loads((folder / "out" / "manifest.json").read_text())["peak_rss_bytes"]
    assert peak <= quoted


@pytest.mark.parametrize("method", [
    {"ptq161": {"recipe": "ptq161-plus", "epochs": 1, "rounding_stages": 1, "rounding_steps": 1}},
    {"signround": {"grid": GRID, "iterations": 2, "batch_size": 2}},
], ids=lambda method: next(iter(method)))
def test_a_quote_holds_the_peak(engine, tmp_path, method):
    """One wide block, beside which the rest of the process is small."""
    write_random_model(tmp_path / "wide", "llama", hidden_size=1024, intermediate_size=2816, num_hidden_layers=1,
                       num_attention_heads=16, num_key_value_heads=16)
    tokens = tmp_path / "tokens.json"
    tokens.write_text(json.dumps(random.Random(1).choices(range(90), k=200)))
    text = {"path": str(tokens), "format": "TEXT_FORMAT_TOKEN_IDS"}
    folder = engine.job("a", method=method, model_dir=str(tmp_path / "wide"),
                        calibration={"text": text, "samples": 4, "sequence_length": 32},
                        evaluation={"text": text, "sequence_length": 32, "windows": 1},
                        outputs=[{"format": "OUTPUT_FORMAT_DENSE"}])
    assert_the_quote_holds(engine, folder)


@pytest.mark.parametrize("length", [64, 512])
def test_a_quote_holds_the_peak_of_adapters(engine, tmp_path, length):
    """SmolLM2's shapes and four blocks: beside its vocabulary they are small."""
    write_random_model(tmp_path / "wide", "llama-gqa-tied", hidden_size=576, intermediate_size=1536,
                       num_hidden_layers=4, num_attention_heads=9, num_key_value_heads=3, vocab_size=49152)
    tokens = tmp_path / "tokens.json"
    tokens.write_text(json.dumps(random.Random(1).choices(range(90), k=4 * length)))
    text = {"path": str(tokens), "format": "TEXT_FORMAT_TOKEN_IDS"}
    folder = engine.job("a", method={"ptq161": {"epochs": 1}}, model_dir=str(tmp_path / "wide"), evaluation=None,
                        calibration={"text": text, "samples": 4, "sequence_length": 32},
                        preprocessing={"text": text, "sequence_length": length, "lora": {"steps": 3}},
                        outputs=[{"format": "OUTPUT_FORMAT_DENSE"}])
    assert_the_quote_holds(engine, folder)


def test_a_quote_holds_the_peak_of_a_rotation(engine, tmp_path):
    """A large vocabulary, stored and rotated, beside which a block is small."""
    write_random_model(tmp_path / "wide", "llama-gqa-tied", hidden_size=512, num_hidden_layers=1, vocab_size=100_000)
    folder = engine.job("a", method={"quarot": {"grid": GRID}}, model_dir=str(tmp_path / "wide"), calibration=None,
                        evaluation=None, outputs=[{"format": "OUTPUT_FORMAT_COMPRESSED_TENSORS"}])
    assert_the_quote_holds(engine, folder)


@pytest.mark.parametrize("command", ["methods", "--version", "inspect", "quote", "eval", "generate"])
def test_a_result_that_is_lost_is_no_success(engine, command):
    flags = {"inspect": ["--model", engine.model],
             "quote": ["--job", engine.job("a") / "job.json"],
             "eval": ["--model", engine.model, "--text", EXAMPLES / "text" / "evaluation.txt", "--windows", "1"],
             "generate": ["--model", engine.model, "--prompt", "Once", "--max-tokens", "2"]}.get(command, [])
    with open("/dev/full", "wb") as full:
        done = subprocess.run([engine.binary, command, *flags], stdout=full, stderr=subprocess.PIPE, text=True, timeout=60,
                              check=False)
    assert done.returncode == 1 and "WRITE_FAILED" in done.stderr, (done.returncode, done.stderr)


def test_unpack_gives_the_dense_output(engine, tmp_path):
    folder = engine.job("a")
    engine.run(folder)
    for name in ("compressed-tensors", "quantry"):
        target = tmp_path / f"unpacked-{name}"
        subprocess.run([engine.binary, "unpack", "--input", folder / "out" / name, "--output", target],
                       timeout=60, check=True)
        text = EXAMPLES / "text" / "evaluation.txt"
        results = [json.loads(subprocess.run(
            [engine.binary, "eval", "--model", model, "--text", text, "--length", "128", "--windows", "4"],
            capture_output=True, text=True, timeout=120, check=True).stdout)
            for model in (target, folder / "out" / "dense")]
        assert results[0]["perplexity"] == results[1]["perplexity"]
