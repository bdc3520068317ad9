"""Running what a job wrote: eval and generate from containers, packed and not."""
import json
import re
import shutil
import subprocess

import pytest

from conftest import EXAMPLES

EVALUATION = str(EXAMPLES / "text" / "evaluation.txt")
METHODS = {"ptq161": ({"ptq161": {"epochs": 1}}, "mixed-binary"),
           "rtn": ({"rtn": {"grid": {"bits": 4, "group_size": -1}}}, "grid")}


@pytest.fixture(scope="module", params=METHODS)
def artifact(request, binaries, stories, tmp_path_factory):
    """(engine, artifact folder, kind of weights)."""
    method, kind = METHODS[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    job = {"model_dir": str(stories), "output_dir": str(folder / "out"),
           "checkpoint_dir": str(folder / "checkpoint"), "method": method,
           "calibration": {"text": {"path": str(EXAMPLES / "text" / "calibration.txt")},
                           "samples": 16, "sequence_length": 128},
           "evaluation": {"text": {"path": EVALUATION}, "sequence_length": 128, "windows": 16},
           "outputs": [{"format": "OUTPUT_FORMAT_QUANTRY"}], "threads": 1}
    (folder / "job.json").write_text(json.dumps(job))
    done = subprocess.run([binaries / "quantry-engine", "run", "--job", folder / "job.json"],
                          capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    return binaries / "quantry-engine", folder / "out", kind


def test_a_flipped_bit_is_noticed_and_its_file_named(artifact, tmp_path):
    engine, out, _ = artifact
    copy = tmp_path / "copy"
    shutil.copytree(out, copy)
    weights = copy / "quantry" / "model.quantry.safetensors"
    data = bytearray(weights.read_bytes())
    data[-5] ^= 4
    weights.write_bytes(data)
    commands = [["eval", "--model", copy / "quantry", "--text", EVALUATION, "--windows", "1"],
                ["generate", "--model", copy / "quantry", "--prompt", "Once", "--max-tokens", "1"],
                ["unpack", "--input", copy / "quantry", "--output", tmp_path / "dense"]]
    for command in commands:
        done = subprocess.run([engine, *command], capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode != 0 and "model.quantry.safetensors is not what its manifest lists" in (
            done.stdout + done.stderr), (command[0], done.stdout, done.stderr)
    (copy / "manifest.json").unlink()  # nothing to compare with
    assert generate(engine, copy / "quantry", "Once", "--max-tokens", "1").returncode == 0


# auto on a machine without a GPU: the CPU's kernels; tiles: what a GPU does, here on the CPU.
PRODUCTS = ["auto", "tiles"]


def generate(engine, model, prompt, *flags):
    done = subprocess.run([engine, "generate", "--model", model, "--prompt", prompt, *flags],
                          capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.parametrize("product", PRODUCTS)
def test_eval_of_the_container_equals_the_jobs_own(artifact, product):
    engine, out, kind = artifact
    done = subprocess.run([engine, "eval", "--model", out / "quantry", "--text", EVALUATION, "--length", "128",
                           "--windows", "16", "--packed-product", product], capture_output=True, text=True, timeout=300,
                          check=True)
    result = json.loads(done.stdout)
    assert result["weights"] == kind
    wanted = json.loads((out / "manifest.json").read_text())["quality"]["perplexity"]["quantized"]
    assert result["perplexity"] == pytest.approx(wanted, rel=1e-3)


@pytest.mark.parametrize("product", PRODUCTS)
def test_generate_goes_on_from_the_container(artifact, product):
    engine, out, kind = artifact
    done = generate(engine, out / "quantry", "Once upon a time", "--max-tokens", "20", "--packed-product", product)
    assert done.stdout.startswith("Once upon a time")
    assert len(done.stdout) > len("Once upon a time") + 10
    assert f"{kind} weights" in done.stderr and re.search(r"generated: 20 tokens, [0-9.]+ tokens/s", done.stderr)


def test_generate_tells_a_story(binaries, stories):
    done = generate(binaries / "quantry-engine", stories, "Once upon a time", "--max-tokens", "60")
    assert "there was" in done.stdout
    assert generate(binaries / "quantry-engine", stories, "Once upon a time", "--max-tokens", "60").stdout == done.stdout


def test_generate_says_what_is_wrong(binaries, stories, tmp_path):
    engine = binaries / "quantry-engine"
    assert subprocess.run([engine, "generate", "--model", stories], capture_output=True, check=False).returncode == 2
    done = subprocess.run([engine, "generate", "--model", tmp_path, "--prompt", "x"], capture_output=True, text=True,
                          check=False)
    assert done.returncode == 1 and "INVALID_CHECKPOINT" in done.stderr
    done = subprocess.run([engine, "generate", "--model", stories, "--prompt", b"abc\xff"], capture_output=True, text=True,
                          check=False)
    assert done.returncode == 1 and "INVALID_SPEC" in done.stderr and "UTF-8 at byte 3" in done.stderr
    done = subprocess.run([engine, "generate", "--model", stories, "--prompt", "x", "--max-tokens", "0"],
                          capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "--max-tokens" in done.stderr
    done = subprocess.run([engine, "generate", "--model", stories, "--prompt", "x", "--packed-product", "whole"],
                          capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "--packed-product must be auto or tiles" in done.stderr
