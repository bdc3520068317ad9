"""Packed outputs decoded by other people's packages. Runs in .deps/venv-readers, where torch is a Python package.

usage: foreign_readers.py OUTPUT_FOLDER...      each beside dense/ and exact.safetensors, every linear in fp32

Prints one JSON object: versions of the packages, and for each folder and reader the linears read and those
that are not the exact values rounded to the type the reader computes in.
"""
import importlib.metadata
import importlib.util
import json
import pathlib
import sys
import tempfile

import torch
from safetensors.torch import load_file

PACKAGES = ("torch", "compressed-tensors", "gptqmodel", "autoawq", "transformers")


def scheme_of(folder):
    from compressed_tensors.quantization import QuantizationConfig
    (scheme,) = QuantizationConfig.model_validate(quantization_config(folder)).config_groups.values()
    return scheme


def quantization_config(folder):
    return json.loads((folder / "config.json").read_text())["quantization_config"]


def packed_modules(tensors):
    """Modules of packed linears -> their tensors by local name."""
    modules = [name.rpartition(".")[0] for name in tensors if name.endswith((".weight_packed", ".qweight"))]
    return {module: {name.removeprefix(module + "."): tensor for name, tensor in tensors.items()
                     if name.startswith(module + ".")} for module in modules}


def read_compressed_tensors(folder):
    """The library's own unpacking; its packer must give the very words back."""
    from compressed_tensors.compressors import PackedQuantizationCompressor
    scheme, read = scheme_of(folder), {}
    for module, parts in packed_modules(load_file(folder / "model.safetensors")).items():
        parts["weight_scale"] = parts["weight_scale"].float()
        plain = PackedQuantizationCompressor.decompress(parts, scheme)
        read[module] = plain["weight"]
        again = PackedQuantizationCompressor.compress(plain, scheme)
        for name in ("weight_packed", "weight_zero_point"):
            if name in parts and not torch.equal(again[name], parts[name]):
                raise AssertionError(f"{module}.{name} is packed otherwise by the library")
    return read


def read_gptqmodel(folder):
    from gptqmodel.utils.model_dequant import dequantize_model
    modules = packed_modules(load_file(folder / "model.safetensors"))
    with tempfile.TemporaryDirectory() as scratch:
        dequantize_model(folder, pathlib.Path(scratch) / "dense", target_dtype=torch.float32)
        tensors = load_file(pathlib.Path(scratch) / "dense" / "model.safetensors")
    return {module: tensors[module + ".weight"] for module in modules}


def read_awq(folder, dequantize_gemm):
    read = {}
    for module, parts in packed_modules(load_file(folder / "model.safetensors")).items():
        words, scales = parts["qweight"], parts["scales"].float()
        read[module] = dequantize_gemm(words, parts["qzeros"], scales, 4, len(words) // len(scales)).t()
    return read


def read_autoawq(folder):
    # The file alone: the package's own imports want a transformers of early 2025.
    path = importlib.metadata.distribution("autoawq").locate_file("awq/utils/packing_utils.py")
    spec = importlib.util.spec_from_file_location("packing_utils", path)
    utils = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(utils)
    return read_awq(folder, utils.dequantize_gemm)


def read_gptqmodel_awq(folder):
    # Its kernels' unpacking: dequantize_model of 7.7.0 leaves AWQ's columns in the order of their slots.
    from gptqmodel.quantization.awq.utils.packing_utils import dequantize_gemm
    return read_awq(folder, dequantize_gemm)


def read_transformers(folder):
    """A model loaded and run; its own forward pass must be that of the weights it holds."""
    from transformers import AutoModelForCausalLM
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    plain = AutoModelForCausalLM.from_pretrained(folder.parent / "dense", dtype=torch.float32).eval()
    tokens = torch.tensor([[1, 403, 407, 261, 378, 5, 19, 77]])
    with torch.no_grad():
        logits = model(tokens).logits
        state = model.state_dict()
        plain.load_state_dict({name: state[name] for name in plain.state_dict()})
        gap = (logits - plain(tokens).logits).abs().max().item()
    if not gap < 1e-5:
        raise AssertionError(f"logits differ by {gap} from those of the same dense weights")
    return {module: model.get_submodule(module).weight.data
            for module in packed_modules(load_file(folder / "model.safetensors"))}


# Reader -> the type it computes (code - zero) * scale in.
READERS = {"compressed-tensors": {"compressed-tensors": (read_compressed_tensors, torch.float32),
                                  "transformers": (read_transformers, torch.float16)},
           "gptq": {"gptqmodel": (read_gptqmodel, torch.float32)},
           "awq": {"autoawq": (read_autoawq, torch.float32), "gptqmodel": (read_gptqmodel_awq, torch.float32)}}


def compare(folder, wanted):
    """wanted: exact fp32 values by module."""
    result = {}
    for name, (read, dtype) in READERS[quantization_config(folder)["quant_method"]].items():
        try:
            weights = read(folder)
        except Exception as error:  # what a reader says is the result
            result[name] = {"error": f"{type(error).__name__}: {error}"[:300]}
            continue
        different = [module for module, weight in weights.items()
                     if not torch.equal(weight.to(dtype), wanted[module].to(dtype))]
        result[name] = {"linears": len(weights), "different": sorted(different)}
    return result


def main(folders):
    result = {"versions": {}, "folders": {}}
    for package in PACKAGES:
        try:
            result["versions"][package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            result["versions"][package] = None
    for folder in map(pathlib.Path, folders):
        wanted = load_file(folder.parent / "exact.safetensors")
        result["folders"][f"{folder.parent.parent.name}/{folder.name}"] = compare(folder, wanted)
    print(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1:])
