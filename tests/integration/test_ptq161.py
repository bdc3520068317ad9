"""PTQ1.61 through quantry-engine: container, unpack, resume, bad input, and the authors' figures.

The figures (QUANTRY_FULL) use the protocol of test_engine_targets.py and its QUANTRY_DATA.
"""
import functools
import json
import signal

import pytest

from conftest import EXAMPLES
from test_engine_run import Engine, hashes

QUICK = {"ptq161": {"epochs": 2}}
BOTH = [{"format": "OUTPUT_FORMAT_QUANTRY"}, {"format": "OUTPUT_FORMAT_DENSE"}]

# The authors' code at the same calibration: all-binary, mask only, trained, bits of the linears.
AUTHORS = {
    "stories260k": (1012.7, 345.2, 56.64, 2.463),
    "tinystories-656k": (2322.1, 630.9, 225.4, 2.025),
    "tiny1m": (841.5, 366.9, 83.30, 2.032),
}


# The same after 2,000 updates of adapters on the calibration's text: the restored model, quantized again, and the most ours
# may take there: their settings, run again at other seeds, end at up to 32.66 and 27.34 (docs/methods/preprocessing.md).
AUTHORS_RESTORED = {"stories260k": (18.03, 31.84, 32.66), "tinystories-656k": (134.2, 190.7, 192.6),
                    "tiny1m": (14.65, 26.52, 27.34)}


@pytest.fixture
def engine(binaries, stories, tmp_path):
    return Engine(binaries / "quantry-engine", stories, tmp_path)


def preprocessing(**lora):
    text = {"path": str(EXAMPLES / "text" / "calibration.txt")}
    options = {"steps": 20, "learning_rate": 3e-3, **lora}
    return {"preprocessing": {"text": text, "lora": options}}


@pytest.fixture(scope="module")
def finished(binaries, stories, tmp_path_factory):
    """Jobs that several tests look at and leave as they are: folder and events, by name. The first that asks runs it."""
    engine = Engine(binaries / "quantry-engine", stories, tmp_path_factory.mktemp("finished"))
    changes = {"plain": {}, "restored": preprocessing()}

    @functools.cache
    def run(name):
        folder = engine.job(name, QUICK, outputs=BOTH, **changes[name])
        return folder, engine.run(folder)

    return run


def manifest_of(folder):
    return json.loads((folder / "out" / "manifest.json").read_text())


def test_outputs_are_verified_and_take_the_bits_they_should(finished):
    folder, _ = finished("plain")
    manifest = manifest_of(folder)
    assert [(output["format"], output["verified"]) for output in manifest["outputs"]] == [
        ("quantry", True), ("dense", True)]
    bits = manifest["bits"]
    assert bits["linears"] < 2.47 and bits["linear_weights"] == 5 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 172 * 64)
    # Bits filled up to bytes: 51 and 137 signs a row are no multiples of 8. The rest of the file is its header.
    packed = manifest["outputs"][0]
    assert 1.04 * bits["linears"] < packed["bits_per_weight"] < 1.06 * bits["linears"]
    header = int.from_bytes((folder / "out" / "quantry" / "model.quantry.safetensors").read_bytes()[:8], "little")
    assert bits["theoretical_bytes"] == packed["theoretical_bytes"] == packed["bytes"] - header - 8
    assert manifest["quality"]["perplexity"]["quantized"] < 400


def test_unpack_gives_the_dense_output(engine, finished, tmp_path):
    import subprocess
    folder, _ = finished("plain")
    unpacked = tmp_path / "unpacked"
    subprocess.run([engine.binary, "unpack", "--input", folder / "out" / "quantry", "--output", unpacked], check=True)
    wanted = sorted_tensors(folder / "out" / "dense" / "model.safetensors")
    assert sorted_tensors(unpacked / "model.safetensors") == wanted


def sorted_tensors(path):
    """Name, dtype, shape and bytes of every tensor of a safetensors file."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8:8 + size])
    header.pop("__metadata__", None)
    return sorted((name, entry["dtype"], entry["shape"],
                   data[8 + size + entry["data_offsets"][0]:8 + size + entry["data_offsets"][1]])
                  for name, entry in header.items())


def test_killed_between_blocks_resumes_to_the_same_bytes(engine, finished):
    (whole, _), killed = finished("plain"), engine.job("killed", QUICK, outputs=BOTH)
    with engine.start(killed) as process:
        for line in process.stdout:
            if json.loads(line).get("checkpoint", {}).get("blocks_done", 0) >= 2:
                process.send_signal(signal.SIGKILL)
                break
    engine.run(killed)
    assert hashes(killed) == hashes(whole)


def test_preprocessing_restores_what_the_first_pass_lost(finished):
    (plain, _), (restored, events) = finished("plain"), finished("restored")
    stages = [event["stage"] for event in events if "stage" in event]
    assert stages[1:3] == ["STAGE_PREPROCESSING", "STAGE_CALIBRATING"]
    progress = [event["progress"] for event in events if "progress" in event]
    assert progress[-1]["steps_done"] <= progress[-1]["steps_total"]
    losses = [entry["metrics"]["lm_loss"] for entry in progress if "lm_loss" in entry.get("metrics", {})]
    assert losses and all(0 < loss < 10 for loss in losses), "what adapters learn is told on the way"
    without, manifest = manifest_of(plain), manifest_of(restored)
    report = manifest["preprocessing"]
    assert "preprocessing" not in without
    assert report["updates"] == 20 and report["loss_last"] < report["loss_first"]
    perplexity = manifest["quality"]["perplexity"]
    assert perplexity["dense"] == without["quality"]["perplexity"]["dense"]
    assert report["perplexity_first_pass"] == pytest.approx(without["quality"]["perplexity"]["quantized"], rel=1e-6)
    assert report["perplexity_restored"] < report["perplexity_first_pass"]
    assert perplexity["quantized"] < report["perplexity_first_pass"]
    assert not (restored / "checkpoint" / "restored").exists()


def test_the_first_pass_mask_is_kept(engine, finished):
    """The second pass's salient columns are those that the job without preprocessing chooses."""
    def masks(folder):
        tensors = sorted_tensors(folder / "out" / "quantry" / "model.quantry.safetensors")
        return [tensor for tensor in tensors if tensor[0].endswith(".mask")]

    kept = engine.job("kept", {"ptq161": {**QUICK["ptq161"], "first_pass_mask": True}}, outputs=BOTH, **preprocessing())
    engine.run(kept)
    plain = masks(finished("plain")[0])
    assert plain and masks(kept) == plain
    assert masks(finished("restored")[0]) != plain, "the restored model would choose others"


def test_restore_writes_the_model_that_preprocessing_leaves(engine, finished):
    first = engine.job("first", {"restore": {"first_pass": QUICK["ptq161"]}}, outputs=BOTH[1:], **preprocessing())
    engine.run(first)
    manifest = manifest_of(first)
    restored = manifest["preprocessing"]["perplexity_restored"]
    assert restored < manifest["preprocessing"]["perplexity_first_pass"]
    # Stored in bf16, so close to it and no more.
    assert manifest["quality"]["perplexity"]["quantized"] == pytest.approx(restored, rel=1e-2)
    second = engine.job("second", QUICK, outputs=BOTH, model_dir=str(first / "out" / "dense"))
    engine.run(second)
    whole, _ = finished("restored")
    in_two_jobs = manifest_of(second)["quality"]["perplexity"]
    assert in_two_jobs["dense"] == pytest.approx(restored, rel=1e-2)
    assert in_two_jobs["quantized"] == pytest.approx(manifest_of(whole)["quality"]["perplexity"]["quantized"], rel=0.1)


# That kept adapters go on from their last update is tested where the clock is the test's: pipeline/run_test.cc.
KILLED_AT = {
    "first pass": lambda event, checkpoints: checkpoints == 3,
    "adapters": lambda event, _: "lm_loss" in event.get("progress", {}).get("metrics", {}),
    "second pass": lambda event, _: event.get("checkpoint", {}).get("blocks_done", 0) == 2,
}


@pytest.mark.parametrize("where", list(KILLED_AT))
def test_preprocessing_killed_goes_on_to_the_same_bytes(engine, finished, where):
    (whole, _), killed = finished("restored"), engine.job("killed", QUICK, outputs=BOTH, **preprocessing())
    checkpoints = 0
    with engine.start(killed) as process:
        for line in process.stdout:
            event = json.loads(line)
            checkpoints += "checkpoint" in event
            if KILLED_AT[where](event, checkpoints):
                process.send_signal(signal.SIGKILL)
                break
    assert process.returncode == -signal.SIGKILL
    engine.run(killed)
    assert hashes(killed) == hashes(whole)


@pytest.mark.parametrize("lora,words", [({"rank": 1000}, "at most 32"), ({"dropout": 1.5}, "dropout"),
                                        ({"steps": -1}, "steps"),
                                        ({"steps": 5, "warmup_steps": 5}, "below steps, 5")])
def test_preprocessing_refuses_what_cannot_work(engine, lora, words):
    error = engine.run(engine.job("a", QUICK, outputs=BOTH, **preprocessing(**lora)), status=1)[-1]["error"]
    assert error["reason"] == "INVALID_SPEC" and words in error["message"]


def test_preprocessing_needs_a_window_of_text(engine, tmp_path):
    short = tmp_path / "short.txt"
    short.write_text("Once upon a time")
    folder = engine.job("a", QUICK, outputs=BOTH, preprocessing={"text": {"path": str(short)}})
    error = engine.run(folder, status=1)[-1]["error"]
    assert error["reason"] == "INVALID_CALIBRATION" and "128" in error["message"]


@pytest.mark.parametrize("method,outputs,words", [
    (QUICK, [{"format": "OUTPUT_FORMAT_COMPRESSED_TENSORS"}], "quantry, dense"),
    ({"ptq161": {"salient_ratio": 0.6}}, BOTH, "salient_ratio"),
    ({"ptq161": {"grid": {"bits": 2}}}, BOTH, "grid"),
])
def test_bad_specs_are_refused_by_name(engine, method, outputs, words):
    events = engine.run(engine.job("a", method, outputs=outputs), status=1)
    error = events[-1]["error"]
    assert error["reason"] == "INVALID_SPEC" and words in error["message"]


def test_calibration_is_needed(engine):
    folder = engine.job("a", QUICK, outputs=BOTH, calibration=None)
    error = engine.run(folder, status=1)[-1]["error"]
    assert error["reason"] == "INVALID_SPEC" and "calibration" in error["message"]


def test_preprocessing_through_the_service(server, stories):
    job = server.json(
        "submit", stories, "--method", "ptq161", "--epochs", "1", "--format", "quantry",
        "--preprocessing", "lora", "--preprocessing-corpus", EXAMPLES / "text/evaluation.txt",
        "--preprocessing-steps", "10", "--preprocessing-rank", "4",
        "--calibration", EXAMPLES / "text/calibration.txt", "--calibration-samples", 8,
        "--calibration-length", 64, "--wait")
    assert job["state"] == "SUCCEEDED"
    assert "PREPROCESSING" in server.cli("events", job["name"], "--output", "json", check=0).stdout
    alone = server.cli("submit", stories, "--method", "ptq161", "--calibration", EXAMPLES / "text/calibration.txt",
                       "--preprocessing", "lora")
    assert alone.returncode == 2 and "--preprocessing-corpus FILE" in alone.stderr


def test_restore_through_the_service(server, stories):
    corpus = ("--preprocessing-corpus", EXAMPLES / "text/evaluation.txt", "--preprocessing-steps", 5)
    calibration = ("--calibration", EXAMPLES / "text/calibration.txt", "--calibration-samples", 8,
                   "--calibration-length", 64)
    job = server.json("submit", stories, "--method", "restore", *corpus, *calibration, "--wait")
    assert job["state"] == "SUCCEEDED" and [output["format"] for output in job["outputs"]] == ["dense"]
    alone = server.cli("submit", stories, "--method", "restore", *calibration)
    assert alone.returncode == 2 and "--method restore needs a text to train on" in alone.stderr


@pytest.fixture
def figures(binaries, data_dir, tmp_path):
    """Runs one model by the protocol of the figures, adapters after the first pass if asked for; perplexity and manifest."""

    def run(model, method, outputs=BOTH[:1], lora=None):
        engine = Engine(binaries / "quantry-engine", data_dir / "models" / model, tmp_path)
        text = data_dir / "text"
        train = {"path": str(text / "tinystories_train_0.txt")}
        folder = engine.job(
            "figures", method, outputs=outputs, calibration={"text": train, "samples": 128, "sequence_length": 256},
            evaluation={"text": {"path": str(text / "tinystories_val_a.txt")}, "sequence_length": 256},
            **({"preprocessing": {"text": train, "lora": lora}} if lora else {}))
        engine.run(folder, timeout=3600)
        manifest = manifest_of(folder)
        return manifest["quality"]["perplexity"]["quantized"], manifest

    return run


@pytest.mark.full
@pytest.mark.parametrize("model", list(AUTHORS))
def test_figures_of_the_authors(figures, model):
    binary, masked, trained, bits = AUTHORS[model]
    perplexity, manifest = figures(model, {"ptq161": {}})
    # Theirs is one seed on another machine: half a percent is noise (stories260k: 56.65 here).
    assert perplexity <= 1.005 * trained
    assert manifest["bits"]["linears"] <= bits + 0.001
    masked_only, _ = figures(model, {"ptq161": {"disable_training": True}})
    all_binary, _ = figures(model, {"ptq161": {"disable_training": True, "disable_mask": True}})
    assert manifest["quality"]["perplexity"]["dense"] < perplexity < masked_only < all_binary
    assert masked_only <= 1.02 * masked and all_binary <= 1.02 * binary


@pytest.mark.full
@pytest.mark.parametrize("model", list(AUTHORS_RESTORED))
def test_preprocessed_figures_of_the_authors(figures, model):
    restored, second, most = AUTHORS_RESTORED[model]
    perplexity, manifest = figures(model, {"ptq161": {}}, lora={"steps": 2000, "warmup_steps": 200})
    report = manifest["preprocessing"]
    assert report["perplexity_restored"] <= 1.01 * restored
    assert second <= most <= 1.04 * second
    assert perplexity <= most
    assert report["perplexity_restored"] < perplexity < report["perplexity_first_pass"]


@pytest.mark.full
@pytest.mark.parametrize("model", list(AUTHORS))
def test_plus_beats_every_binary_method_at_no_more_bits(figures, model):
    perplexity, manifest = figures(model, {"ptq161": {"recipe": "ptq161-plus"}})
    assert manifest["quality"]["perplexity"]["dense"] < perplexity
    for name, outputs in {"ptq161": BOTH[:1], "billm": BOTH[1:], "pbllm": BOTH[1:]}.items():
        other, of_other = figures(model, {name: {}}, outputs)
        assert perplexity < other, name
        assert manifest["bits"]["linears"] <= of_other["bits"]["linears"], name
