"""Every packed output of one job, decoded by numpy and compared with the dense output, bit for bit."""
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
from packed_formats import decode_folder, to_bf16  # noqa: E402
from random_models import write_random_model  # noqa: E402
from reference_forward import read_safetensors  # noqa: E402

WIDE = {"hidden_size": 64, "intermediate_size": 96}


def run_engine(binaries, folder, model, grid, formats):
    folder.mkdir(parents=True)
    job = {"model_dir": str(model), "output_dir": str(folder / "out"), "method": {"rtn": {"grid": grid}},
           "outputs": [{"format": f"OUTPUT_FORMAT_{name}"} for name in formats]}
    (folder / "job.json").write_text(json.dumps(job))
    return subprocess.run([binaries / "quantry-engine", "run", "--job", folder / "job.json"],
                          capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("architecture", ["llama-gqa-tied", "qwen2", "opt"])
@pytest.mark.parametrize("grid,formats", [
    ({"bits": 2, "group_size": 32}, ["COMPRESSED_TENSORS"]),
    ({"bits": 3, "group_size": 16}, ["COMPRESSED_TENSORS"]),
    ({"bits": 3, "group_size": -1, "symmetric": True}, ["COMPRESSED_TENSORS"]),
    ({"bits": 4, "group_size": 32}, ["COMPRESSED_TENSORS"]),
    ({"bits": 8, "group_size": -1}, ["COMPRESSED_TENSORS"]),
])
def test_all_outputs_hold_the_dense_values(binaries, tmp_path, architecture, grid, formats):
    changes = {"hidden_size": 64, "ffn_dim": 96, "word_embed_proj_dim": 64} if architecture == "opt" else WIDE
    write_random_model(tmp_path / "model", architecture, **changes)
    done = run_engine(binaries, tmp_path / "job", tmp_path / "model", grid, ["DENSE", *formats])
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    out = tmp_path / "job" / "out"
    dense = read_safetensors(out / "dense" / "model.safetensors")
    manifest = json.loads((out / "manifest.json").read_text())
    for output in manifest["outputs"][1:]:
        decoded = decode_folder(out / output["path"])
        assert len(decoded) == 2 * (6 if architecture == "opt" else 7)
        for module, weight in decoded.items():
            assert np.array_equal(to_bf16(weight), dense[module + ".weight"]), (output["format"], module)
