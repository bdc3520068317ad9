"""Packed outputs decoded by numpy alone, from docs/formats: a second opinion on the engine's writers and readers."""
import json

import numpy as np

from reference_forward import read_safetensors


def stream(words, count, bits):
    """int32 [streams, words] -> codes [streams, count]: a little-endian bit stream a row."""
    data = np.ascontiguousarray(words).view(np.uint8)
    taken = np.unpackbits(data, axis=1, bitorder="little")[:, :count * bits]
    return (taken.reshape(len(words), count, bits) << np.arange(bits)).sum(axis=2)


def values(codes, zeros, scales, groups):
    """(q - z) * s in fp32; codes [N, K], zeros and scales [N, G], groups [K]."""
    return (codes - zeros[:, groups]).astype(np.float32) * scales.astype(np.float32)[:, groups]


def decode_compressed_tensors(tensors, module, config):
    scheme = config["config_groups"]["group_0"]["weights"]
    bits, (rows, columns) = scheme["num_bits"], tensors[module + ".weight_shape"]
    scales = tensors[module + ".weight_scale"]
    codes = stream(tensors[module + ".weight_packed"], columns, bits)
    zeros = np.full(scales.shape, 1 << (bits - 1))
    if not scheme["symmetric"]:
        zeros = stream(tensors[module + ".weight_zero_point"].T, rows, bits).T
    return values(codes, zeros, scales, np.arange(columns) // (columns // scales.shape[1]))


def decode_folder(folder):
    """Every quantized linear of an output, by module: fp32 [N, K]."""
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    tensors = read_safetensors(folder / "model.safetensors")
    decode, part = {"compressed-tensors": (decode_compressed_tensors, ".weight_packed")}[config["quant_method"]]
    modules = [name.removesuffix(part) for name in tensors if name.endswith(part)]
    return {module: decode(tensors, module, config) for module in modules}


def to_bf16(array):
    """fp32 rounded to bf16, half to even, as fp32."""
    bits = np.ascontiguousarray(array).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
    return rounded.astype(np.uint32).view(np.float32)
