"""Packed outputs read by the packages of others: compressed-tensors, transformers, GPTQModel, AutoAWQ.

QUANTRY_READERS   Python of an environment of tests/requirements-readers.txt (default: .deps/venv-readers/bin/python)
"""
import json
import os
import pathlib
import shutil
import subprocess

import numpy as np
import pytest

from conftest import ROOT
from packed_formats import decode_folder, to_bf16
from random_models import write_random_model
from reference_forward import read_safetensors, write_safetensors

pytestmark = pytest.mark.full
SHAPE = {"hidden_size": 64, "intermediate_size": 96, "vocab_size": 512}
CT, BOTH_GPTQ = "COMPRESSED_TENSORS", ["GPTQ", "GPTQ_V1"]
AT_LEAST_ONE = {"zero_point_at_least_one": True}
# Job -> model, grid, outputs.
JOBS = {
    "2-group": ("llama", {"bits": 2, "group_size": 32}, [CT, "GPTQ", "INT4_CARRIER"]),
    "2-symmetric": ("llama", {"bits": 2, "group_size": -1, "symmetric": True}, [CT, *BOTH_GPTQ, "INT4_CARRIER"]),
    "3-group": ("llama", {"bits": 3, "group_size": 32}, [CT, "GPTQ", "INT4_CARRIER"]),
    "3-symmetric": ("llama", {"bits": 3, "group_size": 32, "symmetric": True}, [CT, *BOTH_GPTQ, "INT4_CARRIER"]),
    "4-channel": ("llama", {"bits": 4, "group_size": -1, **AT_LEAST_ONE}, [CT, *BOTH_GPTQ, "AWQ"]),
    "4-symmetric": ("llama", {"bits": 4, "group_size": 32, "symmetric": True}, [CT, *BOTH_GPTQ, "AWQ"]),
    "stories-2": ("stories260k", {"bits": 2, "group_size": -1}, [CT, "INT4_CARRIER"]),
    "stories-3": ("stories260k", {"bits": 3, "group_size": -1, "symmetric": True}, [CT, "INT4_CARRIER"]),
}
for name, grid in (("2", {"bits": 2}), ("3", {"bits": 3}), ("4", {"bits": 4, **AT_LEAST_ONE})):
    outputs = [CT, "GPTQ", *(["GPTQ_V1", "AWQ"] if name == "4" else ["INT4_CARRIER"])]
    JOBS[f"tiny1m-{name}"] = ("tiny1m", {"group_size": 32, **grid}, outputs)
    JOBS[f"tinystories-{name}"] = ("tinystories-656k", {"group_size": 128, **grid}, outputs)


def readers_python():
    path = pathlib.Path(os.environ.get("QUANTRY_READERS") or ROOT / ".deps/venv-readers/bin/python")
    if not path.exists():
        pytest.skip("no environment of tests/requirements-readers.txt: see its first lines")
    return path


def model_folder(name, stories, scratch):
    if name == "stories260k":
        return stories
    if name == "llama":
        write_random_model(scratch / "llama", name, **SHAPE)
        return scratch / "llama"
    data = os.environ.get("QUANTRY_DATA")
    return pathlib.Path(data) / "models" / name if data else None


def run_job(binaries, folder, model, grid, formats):
    """The job's outputs beside exact.safetensors: numpy's values, which rounded are the dense output's."""
    folder.mkdir()
    job = {"model_dir": str(model), "output_dir": str(folder / "out"), "method": {"rtn": {"grid": grid}},
           "outputs": [{"format": f"OUTPUT_FORMAT_{name}"} for name in ["DENSE", *formats]]}
    (folder / "job.json").write_text(json.dumps(job))
    subprocess.run([binaries / "quantry-engine", "run", "--job", folder / "job.json"], stdout=subprocess.DEVNULL,
                   timeout=300, check=True)
    outputs = [folder / "out" / name.lower().replace("_", "-") for name in formats]
    exact = decode_folder(outputs[0])
    dense = read_safetensors(folder / "out" / "dense" / "model.safetensors")
    for module, values in exact.items():
        assert np.array_equal(to_bf16(values), dense[module + ".weight"]), module
    write_safetensors(folder / "out" / "exact.safetensors", exact)
    return outputs


def flip_one_code(output, copy):
    """A copy of an output with one bit of one packed word changed; the module it is in."""
    shutil.copytree(output, copy)
    path = copy / "model.safetensors"
    data = bytearray(path.read_bytes())
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8:8 + size])
    name = min(name for name in header if name.endswith((".weight_packed", ".qweight")))
    data[8 + size + header[name]["data_offsets"][0]] ^= 1
    path.write_bytes(data)
    return name.rpartition(".")[0]


@pytest.fixture(scope="module")
def read(binaries, stories, tmp_path_factory):
    """What every reader made of every output; outputs named as JOB/FORMAT."""
    python, scratch, folders, flipped = readers_python(), tmp_path_factory.mktemp("readers"), [], {}
    for name, (model, grid, formats) in JOBS.items():
        folder = model_folder(model, stories, scratch)
        if folder is not None:
            folders += run_job(binaries, scratch / name, folder, grid, formats)
    for output in [path for path in folders if path.parents[1].name in ("3-symmetric", "4-symmetric")]:
        copy = output.parent / (output.name + "-flipped")
        flipped[f"{output.parents[1].name}/{copy.name}"] = flip_one_code(output, copy)
        folders.append(copy)
    done = subprocess.run([python, ROOT / "tests/support/foreign_readers.py", *folders], capture_output=True, text=True,
                          timeout=1200, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    print(json.dumps(result["versions"]))
    print(*(f"{folder}: {json.dumps(found)}" for folder, found in result["folders"].items()), sep="\n")
    return result["folders"], flipped


def asymmetric(folder):
    job, _, output = folder.partition("/")
    return output.startswith("compressed-tensors") and not JOBS[job][1].get("symmetric")


def test_every_reader_gets_the_exact_values(read):
    folders, flipped = read
    wrong = {}
    for folder in folders.keys() - flipped.keys():
        for reader, found in folders[folder].items():
            if reader == "transformers" and asymmetric(folder):
                continue
            if found.get("different") != [] or found["linears"] < 14:
                wrong[folder, reader] = found
    assert wrong == {}


def test_transformers_refuses_asymmetric_compressed_tensors(read):
    """compressed-tensors 0.20.0 expects zero points as it does not pack them itself; delete when it loads."""
    folders, _ = read
    for folder in filter(asymmetric, folders):
        assert "size mismatch" in str(folders[folder]["transformers"]) or "mismatched_sizes" in str(
            folders[folder]["transformers"]), folders[folder]


def test_every_reader_sees_one_other_bit(read):
    folders, flipped = read
    assert len(flipped) == 8
    seen = {(folder, reader): found.get("different") for folder in flipped for reader, found in folders[folder].items()}
    assert seen == {(folder, reader): [flipped[folder]] for folder, reader in seen}
