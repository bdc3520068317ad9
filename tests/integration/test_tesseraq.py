"""TesseraQ, whole: quality against AWQ and the published code, resume, the model-wide tuning."""
import json
import os
import random
import shutil
import signal
import subprocess
import time

import pytest

from conftest import EXAMPLES, submit_args, wait_for
from random_models import write_random_model
from test_engine_run import Engine, hashes
from test_engine_targets import cases
from test_main_job import file_hashes

# Perplexity of the authors' code at K = 20, T = 25, rate 1e-2 on the protocol of
# docs/methods/tesseraq.md, asymmetric.
AUTHORS = {
    "stories260k": {2: 9.744, 3: 5.226},
    "tinystories-656k": {2: 52.52, 3: 36.486},
    "tiny1m": {2: 7.822, 3: 5.027},
}
# Best of the authors' TesseraQ, AutoRound, GPTQ and AWQ.
BEST_OTHER = {
    "stories260k": {2: 9.744, 3: 5.226, 4: 4.777},
    "tinystories-656k": {2: 52.52, 3: 36.486, 4: 34.298},
    "tiny1m": {2: 7.822, 3: 5.027, 4: 4.671},
}
# 4-bit weights per channel, 4-bit activations, tinystories-656k: the authors' figure by start; for the two starts
# they have none of, rounding to nearest (47.12) and AWQ (44.54) with the same activations.
W4A4 = {"NONE": 47.12, "AWQ": 40.08, "OMNIQUANT": 44.54, "QUAROT": 39.43}
# The same at 3 bits; nobody has published figures, these are ours (docs/methods/tesseraq.md).
W3A3 = {"NONE": 74.73, "AWQ": 66.28, "OMNIQUANT": 72.47, "QUAROT": 58.65}
# Our own, docs/methods/tesseraq.md.
SYMMETRIC = {"stories260k": {2: 9.304, 3: 5.280}}
GROUP = {"stories260k": -1, "tinystories-656k": 128, "tiny1m": 32}
TWO_BITS = {"bits": 2, "group_size": -1}


@pytest.fixture
def engine(binaries, stories, tmp_path):
    return Engine(binaries / "quantry-engine", stories, tmp_path)


def quick(**options):
    """Few steps: enough to see that everything works."""
    return {"tesseraq": {"grid": TWO_BITS, "steps_per_stage": 4, "learning_rate": 0.05, **options}}


# Few windows and short ones, where the options are looked at and not what they are worth.
SMALL = {"calibration": {"text": {"path": str(EXAMPLES / "text" / "calibration.txt")}, "samples": 8, "sequence_length": 64}}


def manifest_of(folder):
    return json.loads((folder / "out" / "manifest.json").read_text())


@pytest.mark.parametrize("bits", [6, 8])
def test_wide_grids_with_activations_stay_close(engine, bits):
    method = quick(grid={"bits": bits, "group_size": -1}, activations={"bits": bits}, stages=10, learning_rate=0.005)
    folder = engine.job("wide", method, outputs=[{"format": "OUTPUT_FORMAT_QUANTRY"}])
    engine.run(folder)
    perplexity = manifest_of(folder)["quality"]["perplexity"]
    assert perplexity["quantized"] < (1.1 if bits == 6 else 1.02) * perplexity["dense"]


@pytest.mark.parametrize("init", ["NONE", "OMNIQUANT", "QUAROT", "SIGNROUND"])
def test_every_start_is_improved(engine, init):
    folder = engine.job("start", quick(init=f"INIT_{init}", stages=10), **SMALL)
    engine.run(folder)
    for block in manifest_of(folder)["blocks"]:
        assert block["loss_final"] < 0.9 * block["metrics"]["loss_init"], block["index"]


def test_no_option_is_without_effect(engine):
    def bytes_of(name, **options):
        schedule = {} if "schedule" in options else {"stages": 2}
        folder = engine.job(name, quick(init="INIT_NONE", **{**schedule, **options}), outputs=[{"format": "OUTPUT_FORMAT_QUANTRY"}],
                            evaluation=None, **SMALL)
        engine.run(folder)
        return {path: sha256 for path, sha256 in hashes(folder).items() if path.endswith(".safetensors")}

    plain = bytes_of("plain")
    assert bytes_of("again") == plain
    assert bytes_of("sixteen", activations={"bits": 16}) == plain, "16 bits are the path without activations (T27)"
    for option, value in {"input_mixing": 0.5, "disable_scale_tuning": True, "final_steps": 2,
                          "final_rate_share": 0.3, "scale_curve": "SCALE_CURVE_EXPONENTIAL", "scale_weight_decay": 1,
                          "stages": 3, "schedule": [0.7, 0.1], "batch_size": 2, "dense_learning_rate": 0.01, "model_tuning_steps": 1,
                          "rounding_reach": 2, "held_out_samples": 4, "whole_epochs": True,
                          "scale_learning_rate": 0.3, "token_energy_limit": 0.5, "compute_dtype": "COMPUTE_DTYPE_BFLOAT16"}.items():
        assert bytes_of(option, **{option: value}) != plain, option


def test_learned_rounding_is_far_better_than_awq(engine):
    shape = {"calibration": {"text": {"path": str(EXAMPLES / "text" / "calibration.txt")},
                             "samples": 32, "sequence_length": 128}}
    awq = engine.job("awq", {"awq": {"grid": TWO_BITS}}, **shape)
    learned = engine.job("learned", {"tesseraq": {"grid": TWO_BITS, "budget": "BUDGET_FAST"}}, **shape)
    engine.run(awq)
    events = engine.run(learned)
    measured = [manifest_of(folder)["quality"]["perplexity"]["quantized"] for folder in (awq, learned)]
    assert measured[1] < 0.4 * measured[0], measured
    for block in manifest_of(learned)["blocks"]:
        metrics = block["metrics"]
        assert block["loss_final"] < 0.75 * metrics["loss_init"] < 0.75 * block["loss_rtn"]
        assert 0.03 < metrics["flip_ratio"] < 0.3
    shown = [event["progress"]["metrics"] for event in events
             if "stage" in event.get("progress", {}).get("metrics", {})]
    assert shown and all(0 < entry["hard_fraction"] <= 1 for entry in shown)
    assert all(entry["stage_step"] <= entry["stage_steps"] == 25 and entry["stage"] <= 20 for entry in shown)
    assert shown[-1]["block_seconds"] > 0
    # Undecided roundings are what the first stages' loss does not count.
    early = [entry for entry in shown if 2 <= entry["stage"] <= 5]
    assert early and all(entry["loss_hard"] > entry["loss_soft"] for entry in early)


def test_groups_of_128_on_the_wider_example(binaries, tmp_path):
    """The whole method at 2 bits on tinystories-656k; 48.4 to 53 at the protocol's length (docs/methods/tesseraq.md)."""
    engine = Engine(binaries / "quantry-engine", EXAMPLES / "tinystories-656k", tmp_path)
    grid = {"bits": 2, "group_size": 128}
    shape = {"outputs": [{"format": "OUTPUT_FORMAT_QUANTRY"}],
             "calibration": {"text": {"path": str(EXAMPLES / "text" / "calibration.txt")},
                             "samples": 32, "sequence_length": 128}}
    awq = engine.job("awq", {"awq": {"grid": grid}}, **shape)
    learned = engine.job("learned", {"tesseraq": {"grid": grid, "budget": "BUDGET_FAST", "batch_size": 2}}, **shape)
    engine.run(awq)
    engine.run(learned)
    perplexity = [manifest_of(folder)["quality"]["perplexity"] for folder in (awq, learned)]
    assert perplexity[1]["quantized"] < 0.5 * perplexity[0]["quantized"], perplexity
    assert perplexity[1]["quantized"] < 2.2 * perplexity[1]["dense"], perplexity
    for block in manifest_of(learned)["blocks"]:
        assert block["loss_final"] < 0.7 * block["metrics"]["loss_init"] < 0.7 * block["loss_rtn"]


@pytest.mark.parametrize("options", [{}, {"model_tuning_steps": 6, "model_tuning_dense_rate": 0.001},
                                     {"rounding_reach": 2, "held_out_samples": 4}],
                         ids=["rounding", "model_tuning", "reach_and_held_out"])
def test_killed_anywhere_resumes_to_the_same_bytes(engine, options):
    whole = engine.job("whole", quick(stages=10, **options), **SMALL)
    killed = engine.job("killed", quick(stages=10, **options), **SMALL)
    engine.run(whole)
    total = 5
    for blocks in sorted(random.Random(3).sample(range(1, total + 1), 2)) + [total]:
        with engine.start(killed) as process:
            for line in process.stdout:
                if json.loads(line).get("checkpoint", {}).get("blocks_done", 0) >= blocks:
                    process.send_signal(signal.SIGKILL)
                    break
    engine.run(killed)
    assert hashes(killed) == hashes(whole)


def test_symmetric_profile_keeps_zero_points_in_the_middle(engine):
    folder = engine.job("symmetric", {"tesseraq": {"grid": {**TWO_BITS, "symmetric": True},
                                                   "steps_per_stage": 2}})
    engine.run(folder)
    assert all(output["verified"] for output in manifest_of(folder)["outputs"])


def test_a_batch_larger_than_the_calibration_is_refused_at_once(engine):
    folder = engine.job("batch", quick(batch_size=17))
    events = engine.run(folder, status=1)
    assert "batch_size 17" in events[-1]["error"]["message"]


def test_submitted_through_the_service(server, stories):
    job = server.json(*submit_args(
        stories, "--wait", "--steps-per-stage", "2", "--learning-rate", "0.05", "--stages", "10",
        "--batch-size", "2", "--init", "none", method="tesseraq", bits=3))
    assert job["state"] == "SUCCEEDED"
    assert 3.0 < job["bits"]["linears"] < 3.5
    refused = server.cli(*submit_args(stories, "--recipe", "tesseraq-w2g64", "--wait", method="tesseraq", bits=3))
    assert refused.returncode != 0
    assert "tesseraq-w2g64" in refused.stdout + refused.stderr, refused.stderr


def events_of(server, name):
    lines = server.cli("events", name, "--output", "json", check=0).stdout.splitlines()
    return [json.loads(line) for line in lines]


def test_cancelled_inside_a_block_and_retried_gives_the_same_bytes(server, stories):
    job = submit_args(stories, "--steps-per-stage", "12", "--learning-rate", "0.02", "--init", "none", method="tesseraq",
                      bits=2, samples=8, length=64, evaluation=False)
    undisturbed = server.json(*job, "--id", "undisturbed", "--wait")
    server.json(*job, "--id", "cancelled")

    def inside():
        progress = server.json("get", "cancelled").get("progress", {})
        return int(progress.get("blocks_done", 0)) >= 1 and "stage" in progress["metrics"]

    wait_for(inside, 60, "the second block's stages")
    server.json("cancel", "cancelled")
    job = server.json("watch", "cancelled", check=3)
    assert job["state"] == "CANCELLED"
    assert 1 <= int(job["progress"]["blocks_done"]) < 5
    job = server.json("retry", "cancelled", "--wait")
    assert job["state"] == "SUCCEEDED"
    assert file_hashes(job) == file_hashes(undisturbed)


def kill(server, name, engine):
    os.kill(engine, signal.SIGKILL)


def cancel_and_retry(server, name, engine):
    server.json("cancel", name)
    assert server.json("watch", name, check=3)["state"] == "CANCELLED"
    server.json("retry", name)


@pytest.mark.full
@pytest.mark.parametrize("disturb", [kill, cancel_and_retry])
def test_disturbed_inside_a_block_goes_on_from_its_stage(server, stories, tmp_path, disturb):
    """The service's job; a stage is stored 30 s after the block's start at the earliest, so the engine is paused."""
    model = tmp_path / "model"
    write_random_model(model, "llama", vocab_size=512, hidden_size=64, intermediate_size=128)
    shutil.copy(stories / "tokenizer.json", model)
    job = submit_args(model, "--steps-per-stage", "120", "--learning-rate", "0.01", "--batch-size", "2", "--init",
                      "none", method="tesseraq", bits=2, samples=8, length=64, evaluation=False)
    undisturbed = server.json(*job, "--id", "undisturbed", "--wait", timeout=600)
    server.json(*job, "--id", "disturbed")

    def progress():
        return server.json("get", "disturbed").get("progress", {})

    wait_for(lambda: progress().get("metrics", {}).get("stage", 0) >= 3, 300, "stages of the first block")
    (engine,) = server.engine_pids()
    os.kill(engine, signal.SIGSTOP)
    before = progress()
    assert int(before.get("blocks_done", 0)) == 0
    time.sleep(31)
    os.kill(engine, signal.SIGCONT)
    stored = wait_for(lambda: [event for event in events_of(server, "disturbed") if "checkpoint" in event], 300,
                      "a stage in the checkpoint")
    disturb(server, "disturbed", engine)
    assert int(stored[0]["checkpoint"].get("blocks_done", 0)) == 0, "stored in the block's middle"
    stages = []  # of the first block, as the second attempt tells them

    def ended():
        job = server.json("get", "disturbed")
        metrics = job.get("progress", {}).get("metrics", {})
        if int(job["epoch"]) == 2 and int(job["progress"].get("blocks_done", 0)) == 0 and "stage" in metrics:
            stages.append(metrics["stage"])
        return job if job["state"] in ("SUCCEEDED", "FAILED") else None

    job = wait_for(ended, 600, "the job's end")
    assert job["state"] == "SUCCEEDED"
    assert "resumed=0" in server.log_text().rpartition("engine started")[2].partition("\n")[0]
    assert stages and min(stages) >= before["metrics"]["stage"], stages
    assert file_hashes(job) == file_hashes(undisturbed)


@pytest.fixture
def perplexity(binaries, data_dir, tmp_path):
    """Runs one job by the protocol of docs/methods/tesseraq.md; the quantized model's perplexity."""

    def run(model, bits, **options):
        grid = {"bits": bits, "group_size": GROUP[model], **options.pop("grid", {})}
        job = {
            "model_dir": str(data_dir / "models" / model),
            "output_dir": str(tmp_path / "out"),
            "method": {"tesseraq": {"grid": grid, **options}},
            "outputs": [{"format": "OUTPUT_FORMAT_QUANTRY"}],  # holds what every start makes, online rotations too
            "calibration": {"text": {"path": str(data_dir / "text" / "tinystories_train_0.txt")},
                            "samples": 128, "sequence_length": 256},
            "evaluation": {"text": {"path": str(data_dir / "text" / "tinystories_val_a.txt")}, "sequence_length": 256},
        }
        (tmp_path / "job.json").write_text(json.dumps(job))
        subprocess.run([binaries / "quantry-engine", "run", "--job", tmp_path / "job.json"],
                       stdout=subprocess.DEVNULL, timeout=1800, check=True)
        return json.loads((tmp_path / "out" / "manifest.json").read_text())["quality"]["perplexity"]["quantized"]

    return run


@pytest.mark.full
@pytest.mark.parametrize("model,bits", cases(AUTHORS))
def test_no_worse_than_the_authors_code(perplexity, model, bits):
    # Three seeds lie up to 1.7 % apart; both figures are of one.
    assert perplexity(model, bits, budget="BUDGET_FAST") <= AUTHORS[model][bits] * 1.02


@pytest.mark.full
@pytest.mark.parametrize("budget", ["FAST", "FULL"])
@pytest.mark.parametrize("model,bits", cases(BEST_OTHER))
def test_plus_is_better_than_every_other_tool(perplexity, model, bits, budget):
    assert perplexity(model, bits, recipe="tesseraq-plus", budget=f"BUDGET_{budget}") < BEST_OTHER[model][bits]


@pytest.mark.full
@pytest.mark.parametrize("init", list(W4A4))
def test_w4a4_of_each_start(perplexity, init):
    measured = perplexity("tinystories-656k", 4, grid={"group_size": -1}, activations={"bits": 4},
                          init=f"INIT_{init}", budget="BUDGET_FAST")
    assert measured <= W4A4[init]


@pytest.mark.full
def test_plus_is_better_than_every_other_tool_with_activations_too(perplexity):
    assert perplexity("tinystories-656k", 4, grid={"group_size": -1}, activations={"bits": 4}, recipe="tesseraq-plus") < min(W4A4.values())


@pytest.mark.full
@pytest.mark.parametrize("init", list(W3A3))
def test_w3a3_of_each_start(perplexity, init):
    measured = perplexity("tinystories-656k", 3, grid={"group_size": -1}, activations={"bits": 3},
                          init=f"INIT_{init}", budget="BUDGET_FAST")
    assert measured <= W3A3[init] * 1.05


@pytest.mark.full
@pytest.mark.parametrize("model,bits", cases(SYMMETRIC))
def test_plus_on_symmetric_grids(perplexity, model, bits):
    measured = perplexity(model, bits, grid={"symmetric": True}, recipe="tesseraq-plus", budget="BUDGET_FULL")
    assert measured <= SYMMETRIC[model][bits] * 1.02
