"""The engine's forward pass against an independent one in numpy, for every architecture."""
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
from random_models import CONFIGS, write_random_model  # noqa: E402
from reference_forward import logits, read_safetensors  # noqa: E402


def engine_logits(binaries, model, rows, folder):
    (folder / "tokens.json").write_text(json.dumps(rows))
    done = subprocess.run(
        [binaries / "quantry-engine", "logits", "--model", model, "--tokens", folder / "tokens.json",
         "--output", folder / "logits.safetensors"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return read_safetensors(folder / "logits.safetensors")["logits"]


@pytest.mark.parametrize("name", CONFIGS)
def test_logits(binaries, tmp_path, name):
    config = write_random_model(tmp_path / "model", name)
    rows = np.random.default_rng(1).integers(0, config["vocab_size"], size=(3, 40)).tolist()
    wanted = logits(tmp_path / "model", rows)
    got = engine_logits(binaries, tmp_path / "model", rows, tmp_path)
    assert got.shape == wanted.shape
    assert np.abs(wanted).max() > 1, "a reference that says nothing checks nothing"
    assert np.abs(got - wanted).max() <= 1e-4 * max(1.0, np.abs(wanted).max())


def test_real_model(binaries, stories, tmp_path):
    rows = np.random.default_rng(2).integers(3, 512, size=(2, 64)).tolist()
    wanted = logits(stories, rows)
    got = engine_logits(binaries, stories, rows, tmp_path)
    assert np.abs(got - wanted).max() <= 1e-4 * np.abs(wanted).max()
