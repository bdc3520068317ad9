"""Every packed output of one job, decoded by numpy and compared with the dense output, bit for bit."""
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
from packed_formats import decode_folder, parts_of_folder, to_bf16  # noqa: E402
from random_models import write_random_model  # noqa: E402
from reference_forward import read_safetensors  # noqa: E402
from service import EXAMPLES  # noqa: E402

WIDE = {"hidden_size": 64, "intermediate_size": 96}


def run_engine(binaries, folder, model, grid, formats, command="run", method="rtn", options={}, **changes):
    folder.mkdir(parents=True)
    job = {"model_dir": str(model), "output_dir": str(folder / "out"), "method": {method: {"grid": grid, **options}},
           "outputs": [{"format": f"OUTPUT_FORMAT_{name}"} for name in formats], **changes}
    (folder / "job.json").write_text(json.dumps(job))
    return subprocess.run([binaries / "quantry-engine", command, "--job", folder / "job.json"],
                          capture_output=True, text=True, timeout=120)


def last_error(done):
    assert done.returncode == 1, done.stdout
    return json.loads(done.stdout.splitlines()[-1])["error"]


def note_words(name, grid):
    """What the compatibility note of a format has to say (spec: formats.md): who loads it, what to take where nobody does."""
    bits, symmetric = grid["bits"], grid.get("symmetric", False)
    if name == "gptq" and symmetric and bits in (4, 8):
        return ["vLLM (Marlin, Machete)", "GPTQModel"]
    instead = {2: ["format int4-carrier"], 3: ["format int4-carrier"], 4: ["format awq"], 8: []}
    return {"gptq": ["GPTQModel", "checkpoint_format gptq_v2", *instead[bits]],
            "gptq-v1": ["GPTQModel", "stored minus one (checkpoint_format gptq)"],
            "awq": ["vLLM (Marlin)", "asymmetric 4-bit"],
            "int4-carrier": [f"Carries the {bits}-bit model without loss", "the memory and speed of 4 bits"],
            "quantry": ["quantry-engine", "no other engine reads it"],
            "compressed-tensors": ["vLLM"]}[name]


def check_dense_values(out, grid, formats, linears):
    """Every output beside the dense one, which is the first, holds its values."""
    dense = read_safetensors(out / "dense" / "model.safetensors")
    manifest = json.loads((out / "manifest.json").read_text())
    assert [output["format"] for output in manifest["outputs"]] == [
        name.lower().replace("_", "-") for name in ["DENSE", *formats]]
    for output in manifest["outputs"][1:]:
        decoded = decode_folder(out / output["path"])
        assert len(decoded) == linears
        for module, weight in decoded.items():
            assert np.array_equal(to_bf16(weight), dense[module + ".weight"]), (output["format"], module)
        assert output["verified"]
        assert all(words in output["compatibility"] for words in note_words(output["format"], grid)), output["compatibility"]
        assert output["bits_per_weight"] >= grid["bits"]


@pytest.mark.parametrize("architecture", ["llama-gqa-tied", "qwen2", "opt"])
@pytest.mark.parametrize("grid,formats", [
    ({"bits": 2, "group_size": 32}, ["COMPRESSED_TENSORS", "GPTQ", "INT4_CARRIER"]),
    ({"bits": 3, "group_size": 16}, ["COMPRESSED_TENSORS", "GPTQ", "INT4_CARRIER"]),
    ({"bits": 3, "group_size": -1, "symmetric": True}, ["COMPRESSED_TENSORS", "GPTQ", "GPTQ_V1", "INT4_CARRIER"]),
    ({"bits": 4, "group_size": 32}, ["COMPRESSED_TENSORS", "GPTQ", "AWQ"]),
    ({"bits": 4, "group_size": 32, "zero_point_at_least_one": True}, ["GPTQ", "GPTQ_V1", "AWQ"]),
    ({"bits": 8, "group_size": -1}, ["COMPRESSED_TENSORS", "GPTQ"]),
])
def test_all_outputs_hold_the_dense_values(binaries, tmp_path, architecture, grid, formats):
    changes = {"hidden_size": 64, "ffn_dim": 96, "word_embed_proj_dim": 64} if architecture == "opt" else WIDE
    write_random_model(tmp_path / "model", architecture, **changes)
    done = run_engine(binaries, tmp_path / "job", tmp_path / "model", grid, ["DENSE", *formats])
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    out = tmp_path / "job" / "out"
    check_dense_values(out, grid, formats, 2 * (6 if architecture == "opt" else 7))
    if "GPTQ" in formats:
        config = json.loads((out / "gptq" / "config.json").read_text())
        assert json.loads((out / "gptq" / "quantize_config.json").read_text()) == config["quantization_config"]


# Few steps on few windows: what is written is looked at and not what it is worth.
SHORT = {"stages": 10, "steps_per_stage": 2, "learning_rate": 0.1}
CALIBRATION = {"text": {"path": str(EXAMPLES / "text" / "calibration.txt")}, "samples": 8, "sequence_length": 64}
AT_LEAST_ONE = {"zero_point_at_least_one": True}
# Example model -> group size, linears, whether its shapes fill the words of GPTQ and AWQ.
EXAMPLE_MODELS = {"stories260k": (-1, 5 * 7, False), "tinystories-656k": (128, 2 * 7, True)}


def fitting_formats(words_are_filled, grid):
    """All that can hold the grid, but for the dense output and the container."""
    formats = ["COMPRESSED_TENSORS"] + ["INT4_CARRIER"] * (grid["bits"] < 4)
    if words_are_filled:
        formats += ["GPTQ"] + ["GPTQ_V1"] * ("symmetric" in grid or "zero_point_at_least_one" in grid)
        formats += ["AWQ"] * (grid["bits"] == 4)
    return formats


def tesseraq_cases():
    """By default every output at every width it can hold, on one model or the other; all cases in full."""
    default = {("stories260k", 2, ""), ("stories260k", 3, "symmetric"), ("tinystories-656k", 4, "at_least_one")}
    default |= {("tinystories-656k", bits, kind) for bits in (2, 3, 4) for kind in ("", "symmetric")}
    kinds = {"": {}, "symmetric": {"symmetric": True}, "at_least_one": AT_LEAST_ONE}
    for model in EXAMPLE_MODELS:
        for bits in (2, 3, 4):
            for kind, options in kinds.items():
                yield pytest.param(model, {"bits": bits, **options}, id=f"{model}-{bits}-{kind or 'asymmetric'}",
                                   marks=[] if (model, bits, kind) in default else pytest.mark.full)


@pytest.mark.parametrize("model,grid", tesseraq_cases())
def test_all_outputs_hold_the_integers_tesseraq_learned(binaries, tmp_path, model, grid):
    """The container has the engine's own integers, zero points and scales; every other output has the same."""
    group, linears, words_are_filled = EXAMPLE_MODELS[model]
    formats = ["QUANTRY", *fitting_formats(words_are_filled, grid)]
    done = run_engine(binaries, tmp_path / "job", EXAMPLES / model, {**grid, "group_size": group}, ["DENSE", *formats],
                      method="tesseraq", options=SHORT, calibration=CALIBRATION)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    out = tmp_path / "job" / "out"
    check_dense_values(out, grid, formats, linears)
    manifest = json.loads((out / "manifest.json").read_text())
    assert all(block["metrics"]["flip_ratio"] > 0.02 for block in manifest["blocks"]), "learned, not rounded to nearest"
    stored = parts_of_folder(out / "quantry")
    for output in manifest["outputs"][2:]:
        read = parts_of_folder(out / output["path"])
        assert read.keys() == stored.keys()
        for module, parts in read.items():
            assert np.array_equal(parts.integers(), stored[module].integers()), (output["format"], module)
            assert np.array_equal(parts.scales, stored[module].scales), (output["format"], module)
            if output["format"] != "int4-carrier":  # which has its own: code4 = q - z + 8
                assert np.array_equal(parts.codes, stored[module].codes), (output["format"], module)
                assert np.array_equal(parts.zeros, stored[module].zeros), (output["format"], module)


def test_the_carrier_says_what_it_takes(binaries, tmp_path):
    write_random_model(tmp_path / "model", "llama", **WIDE)
    run_engine(binaries, tmp_path / "job", tmp_path / "model", {"bits": 2, "group_size": 32}, ["INT4_CARRIER"])
    manifest = json.loads((tmp_path / "job" / "out" / "manifest.json").read_text())
    assert manifest["bits"]["linears"] == 2 + (16 + 2) / 32
    assert manifest["outputs"][0]["bits_per_weight"] == 4 + 16 / 32


@pytest.mark.parametrize("grid,name,fitting", [
    ({"bits": 3}, "AWQ", "compressed-tensors, dense, quantry, gptq, int4-carrier"),
    ({"bits": 4}, "GPTQ_V1", "compressed-tensors, dense, quantry, gptq, awq"),
    ({"bits": 8}, "INT4_CARRIER", "compressed-tensors, dense, quantry, gptq"),
])
def test_a_format_that_cannot_hold_the_bits_is_refused(binaries, tmp_path, grid, name, fitting):
    for command in ("run", "quote"):
        error = last_error(run_engine(binaries, tmp_path / command, "/nowhere", grid, [name], command))
        assert error["reason"] == "INVALID_SPEC" and error["metadata"]["fitting"] == fitting, error


def test_shapes_that_do_not_fill_words_are_named(binaries, stories, tmp_path):
    grid = {"bits": 4, "group_size": -1}
    error = last_error(run_engine(binaries, tmp_path / "run", stories, grid, ["GPTQ"]))
    assert "down_proj [64, 172]" in error["message"] and "compressed-tensors" in error["metadata"]["fitting"]
    quote = json.loads(run_engine(binaries, tmp_path / "quote", stories, grid, ["GPTQ"], "quote").stdout)
    assert "down_proj [64, 172]" in quote["problems"][0]
