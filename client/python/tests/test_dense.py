"""load_dense and save_dense against the engine's own unpacking."""
import json
import subprocess

import numpy as np
import pytest

import quantry
from quantry.safetensors import DTYPES, File, bf16_to_float32, write_file
from test_reader import artifact  # noqa: F401  (the containers of every kind)


def test_load_dense(artifact):
    packed, dense = artifact
    unpacked = File(dense / "model.safetensors")
    loaded, halves = quantry.load_dense(packed), quantry.load_dense(packed, "bfloat16")
    assert set(loaded) == set(halves) == set(unpacked.names())
    for name in loaded:
        wanted = unpacked.read(name)
        assert loaded[name].dtype == np.float32 and halves[name].dtype == np.uint16
        if wanted.dtype == "BF16":  # a linear, as the engine unpacks it
            np.testing.assert_array_equal(halves[name], wanted.array, err_msg=name)
        else:
            np.testing.assert_array_equal(loaded[name], wanted.to_float32(), err_msg=name)
    with pytest.raises(ValueError, match="dtype: wanted one of"):
        quantry.load_dense(packed, "int8")


def test_save_dense_keeps_out_of_the_container(artifact):
    packed, _ = artifact
    before = sorted(packed.iterdir())
    with pytest.raises(ValueError, match="out: wanted another folder than the container's"):
        quantry.save_dense(packed, packed.parent / "." / packed.name)
    assert sorted(packed.iterdir()) == before


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_save_dense(artifact, tmp_path, engine, dtype):
    """Written, read again, and accepted by the engine as a checkpoint."""
    packed, _ = artifact
    path = quantry.save_dense(packed, tmp_path / "dense", dtype)
    file = File(path)
    loaded = quantry.load_dense(packed, dtype)
    assert set(file.names()) == set(loaded)
    for name, array in loaded.items():
        np.testing.assert_array_equal(file.read(name).array, array, err_msg=name)
    config = json.loads((tmp_path / "dense/config.json").read_text())
    assert "quantization_config" not in config and config["torch_dtype"] == dtype
    assert (tmp_path / "dense/tokenizer.json").exists() and not list((tmp_path / "dense").glob("*.part"))
    done = subprocess.run([engine, "inspect", "--model", tmp_path / "dense"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    with pytest.raises(FileExistsError):
        quantry.save_dense(packed, tmp_path / "dense")


@pytest.mark.parametrize("named", [("torch_dtype",), ("dtype",), ("dtype", "torch_dtype"), ()])
def test_the_config_names_the_new_dtype_alone(tmp_path, named):
    """Newer checkpoints say `dtype`, and loaders prefer it to `torch_dtype`."""
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"hidden_size": 64, "quantization_config": {}} | dict.fromkeys(named, "bfloat16")))
    quantry.dense._fix_config(path, "float32")
    assert json.loads(path.read_text()) == {"hidden_size": 64} | dict.fromkeys(named or ("torch_dtype",), "float32")


def test_write_file_refuses_what_was_not_announced(tmp_path):
    for name, array in (("b", np.zeros(2, np.float32)), ("a", np.zeros(3, np.float32)), ("a", np.zeros(2, np.float16))):
        with pytest.raises(ValueError, match="wanted a F32"):
            write_file(tmp_path / "x", {"a": ("F32", (2,))}, [(name, array)], {})
    assert not (tmp_path / "x").exists() and set(DTYPES) >= {"BF16"}


def test_bf16_bits():
    values = np.array([1.5, -2.25, 0.0], np.float32)
    np.testing.assert_array_equal(bf16_to_float32(quantry.dense.convert(values, "bfloat16")), values)
