"""scripts/quickstart with a model and a text of one's own; the quickstart step of CI runs it without."""
import hashlib
import json
import os
import shutil
import subprocess

import pytest

from conftest import EXAMPLES, ROOT
from random_models import write_random_model


def quickstart(binaries, scratch, *arguments, cwd=None, **environment):
    scratch.mkdir(exist_ok=True)
    return subprocess.run([ROOT / "scripts/quickstart", "--bin", binaries, *arguments], capture_output=True, text=True, cwd=cwd,
                          env={**os.environ, "TMPDIR": str(scratch), **environment}, timeout=300, check=False)


@pytest.fixture
def model(tmp_path):
    """A random model that the example's tokenizer fits; 64 columns a scale divide its linears."""
    folder = tmp_path / "model"
    write_random_model(folder, "llama", hidden_size=64, intermediate_size=128, num_hidden_layers=1, vocab_size=512,
                       max_position_embeddings=512)
    shutil.copy(EXAMPLES / "stories260k/tokenizer.json", folder)
    return folder


def test_a_model_and_a_text_of_your_own(binaries, tmp_path, model):
    """Paths as seen from where the user is, a text of one line, and an environment that knows another server."""
    text = (EXAMPLES / "text/evaluation.txt").read_text().replace("\n", " ")
    middle = len(text) * 9 // 10
    data = (text[:middle - 20] + "\u00e9" * 40 + text[middle - 20:]).encode()
    (tmp_path / "text.txt").write_bytes(data)
    done = quickstart(binaries, tmp_path / "scratch", "--method", "rtn", "--output", "out", "model", "text.txt", cwd=tmp_path,
                      QUANTRY_CONTEXT="elsewhere", QUANTRY_TLS_CA_FILE="/no/ca.pem", QUANTRY_TENANT="acme")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "perplexity, dense -> quantized" in done.stdout and "seconds, job / everything" in done.stdout
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["method"] == "rtn" and manifest["quality"]["perplexity"]["windows"] == 64
    # Nine tenths calibrate, the last tenth measures: every byte once, no character torn.
    cut = len(data) * 9 // 10
    while data[cut] & 0xC0 == 0x80:
        cut += 1
    read = {entry["path"].split("/")[0]: entry["sha256"] for entry in manifest["inputs"] if not entry["path"].startswith("model")}
    assert read == {role: hashlib.sha256(part).hexdigest()
                    for role, part in (("calibration", data[:cut]), ("evaluation", data[cut:]))}
    assert not list((tmp_path / "scratch").iterdir()), "the data folder is left"


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_an_output_that_holds_something_is_left_alone(binaries, tmp_path, model, kind):
    output = tmp_path / "keep"
    kept = output / "thesis.txt" if kind == "folder" else output
    kept.parent.mkdir(exist_ok=True)
    kept.write_text("years of work")
    done = quickstart(binaries, tmp_path / "scratch", "--output", output, model, EXAMPLES / "text/evaluation.txt")
    assert done.returncode == 2 and "wanted a new or empty folder" in done.stderr
    assert kept.read_text() == "years of work"


@pytest.mark.parametrize("arguments, message", [
    (["one"], "wanted MODEL_DIR and TEXT_FILE, got 1 arguments"),
    (["/no/model", "text"], "no config.json in '/no/model'"),
    ([EXAMPLES / "stories260k", "/no/text"], "wanted a file with text, got '/no/text'"),
    (["--bit", "3"], "unknown option '--bit'"),
    (["--method"], "wanted a value after --method"),
])
def test_wrong_arguments(binaries, tmp_path, arguments, message):
    done = quickstart(binaries, tmp_path, *arguments)
    assert done.returncode == 2 and message in done.stderr
