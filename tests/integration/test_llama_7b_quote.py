"""LLaMA-7B by its shapes alone: a sparse checkpoint, quoted from its headers."""
import json
import shutil
import subprocess

import numpy as np
import pytest

from conftest import EXAMPLES
from random_models import CONFIGS, llama_shapes

LLAMA_7B = {**CONFIGS["llama"], "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32000, "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-6, "torch_dtype": "float16"}
LINEARS = 6_476_005_376
SALIENT = 0.2


def write_sparse_model(folder, stories):
    """LLaMA-7B's header and config before 13.5 GB of hole: a few blocks on disk."""
    folder.mkdir()
    header, end = {}, 0
    for name, shape in llama_shapes(LLAMA_7B):
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path = folder / "model.safetensors"
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    assert path.stat().st_size > 13.4e9 and path.stat().st_blocks * 512 < 1e6
    (folder / "config.json").write_text(json.dumps(LLAMA_7B))
    shutil.copy(stories / "tokenizer.json", folder)
    (folder / "text.txt").write_bytes(16 * (EXAMPLES / "text/calibration.txt").read_bytes())  # enough for 256 windows
    return folder


def quote(binaries, folder, method, formats, samples=128):
    job = {"model_dir": str(folder), "output_dir": str(folder / "out"), "method": method,
           "calibration": {"text": {"path": str(folder / "text.txt")}, "samples": samples, "sequence_length": 2048},
           "outputs": [{"format": f"OUTPUT_FORMAT_{name}"} for name in formats]}
    (folder / "job.json").write_text(json.dumps(job))
    done = subprocess.run([binaries / "quantry-engine", "quote", "--job", folder / "job.json"], capture_output=True,
                          text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def llama_7b(stories, tmp_path_factory):
    return write_sparse_model(tmp_path_factory.mktemp("llama") / "llama-7b", stories)


def bits_of(rows, columns, sharers):
    """A PTQ1.61 linear: codes, row side of 52 bits, column gains of 16, its share of the mask."""
    salient = int(SALIENT * columns) + 1
    return rows * (columns + 3 * salient + 52) + 16 * (columns - salient) + columns / sharers


def stored_bits_of(rows, columns, holds_mask):
    """The same in the container, whose rows of codes and signs, zero points and mask are filled up to bytes."""
    salient = int(SALIENT * columns) + 1
    others = columns - salient
    row = -(-salient // 2) + -(-others // 8) + 6
    return 8 * (rows * row + -(-rows // 2) + 2 * others + (-(-columns // 8) if holds_mask else 0))


def test_ptq161_takes_the_published_bits(binaries, llama_7b):
    quoted = quote(binaries, llama_7b, {"ptq161": {}}, ["QUANTRY", "DENSE"])
    assert quoted["problems"] == [] and quoted["blocks"] == 32 and quoted["parameters"] == 6_738_415_616
    block = 3 * bits_of(4096, 4096, 3) + bits_of(4096, 4096, 1) + 2 * bits_of(11008, 4096, 2) + bits_of(4096, 11008, 1)
    formula = 32 * block / LINEARS
    assert formula == pytest.approx(1.6138, abs=5e-5)
    assert quoted["bits_per_weight"] == pytest.approx(formula, rel=1e-12)
    packed, dense = quoted["outputs"]
    # The formula is the method's; what is stored fills up rows to bytes.
    block = 2 * (stored_bits_of(4096, 4096, True) + stored_bits_of(4096, 4096, False))  # q and o; k and v
    block += stored_bits_of(11008, 4096, True) + stored_bits_of(11008, 4096, False) + stored_bits_of(4096, 11008, True)
    stored = 32 * block / LINEARS
    assert formula < stored < formula * 1.001
    assert packed["bits_per_weight"] == pytest.approx(stored, rel=1e-12)
    rest = 2 * (quoted["parameters"] - LINEARS)
    assert packed["bytes"] == 32 * block // 8 + rest
    assert packed["bytes"] == pytest.approx(1.831e9, rel=1e-3)
    assert 8 * packed["bytes"] / quoted["parameters"] == pytest.approx(2.17, abs=0.01)
    assert dense["bytes"] == 2 * quoted["parameters"]


@pytest.mark.parametrize("bits,group,stored", [(2, 128, 2 + 18 / 128), (3, 128, 3 + 19 / 128), (4, 128, 4 + 20 / 128)])
def test_grids_take_bits_and_their_share_of_scales(binaries, llama_7b, bits, group, stored):
    grid = {"bits": bits, "group_size": group}
    quoted = quote(binaries, llama_7b, {"rtn": {"grid": grid}}, ["COMPRESSED_TENSORS"])
    (packed,) = quoted["outputs"]
    assert packed["bits_per_weight"] == quoted["bits_per_weight"] == pytest.approx(stored, rel=1e-6)
    assert packed["bytes"] == pytest.approx(stored * LINEARS / 8 + 2 * (quoted["parameters"] - LINEARS), rel=1e-5)


def test_calibration_stays_in_host_memory(binaries, llama_7b):
    """Two streams and a stream for each target of training (ptq161 has two): a GPU gets them window by window."""
    stream = 128 * 4 * 2048 * 4096
    targets = {"awq": 0, "tesseraq": 1, "tesseraq-plus": 1, "signround": 1, "omniquant": 1, "ptq161": 2}
    for name, count in targets.items():
        method = name.removesuffix("-plus")
        options = {} if method == "ptq161" else {"grid": {"bits": 4, "group_size": 128}}
        if method != name:
            options |= {"recipe": name, "model_tuning_steps": -1}  # its codes of all blocks outweigh a block's targets
        few, many = (quote(binaries, llama_7b, {method: options}, ["DENSE"], samples) for samples in (128, 256))
        grown = {place: many[f"{place}_memory_bytes"] - few[f"{place}_memory_bytes"] for place in ("host", "device")}
        token_ids = 128 * 8 * 2048
        assert grown == {"host": (2 + count) * stream + token_ids, "device": 0}, name


def test_memory_names_what_methods_hold(binaries, llama_7b):
    """Second moments of gptq and its kin, codes of all blocks while a whole model is tuned."""
    memory = {}
    grid = {"bits": 4, "group_size": 128}
    for name, method in {"rtn": {"rtn": {"grid": grid}}, "gptq": {"gptq": {"grid": grid}}, "billm": {"billm": {}},
                         "quarot": {"quarot": {"grid": grid, "rotation": {"online": False}}},
                         "quarot-gptq": {"quarot": {"grid": grid, "gptq": True, "rotation": {"online": False}}},
                         "tesseraq": {"tesseraq": {"grid": grid}},
                         "tesseraq-plus": {"tesseraq": {"grid": grid, "recipe": "tesseraq-plus"}}}.items():
        quoted = quote(binaries, llama_7b, method, ["DENSE"])
        memory[name] = (int(quoted["host_memory_bytes"]), int(quoted["device_memory_bytes"]))
    moments = 4 * (3 * 4096**2 + 11008**2)
    factors = 8 * 4 * 11008**2
    for place in (0, 1):
        base = memory["rtn"][place]
        assert memory["gptq"][place] - base == memory["quarot-gptq"][place] - base == moments + factors
        assert memory["billm"][place] - base == 2 * moments + factors
        assert memory["quarot"][place] == base
        assert base < memory["tesseraq"][place] < base + 24e9  # 32 bytes a weight of a block, 8192 tokens
        assert memory["tesseraq-plus"][place] - base > LINEARS + 4 * 32000 * 4096
