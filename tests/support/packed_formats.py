"""Packed outputs decoded by numpy alone, from docs/formats: a second opinion on the engine's writers and readers."""
import json
from typing import NamedTuple

import numpy as np

from reference_forward import read_safetensors

AWQ_COLUMN_OF_SLOT = (0, 2, 4, 6, 1, 3, 5, 7)


def stream(words, count, bits):
    """int32 [streams, words] -> codes [streams, count]: a little-endian bit stream a row."""
    data = np.ascontiguousarray(words).view(np.uint8)
    taken = np.unpackbits(data, axis=1, bitorder="little")[:, :count * bits]
    return (taken.reshape(len(words), count, bits) << np.arange(bits)).sum(axis=2)


def awq_words(words):
    """int32 [R, N/8] -> [R, N]."""
    slots = stream(words, words.shape[1] * 8, 4).reshape(len(words), -1, 8)
    columns = np.empty_like(slots)
    for slot, column in enumerate(AWQ_COLUMN_OF_SLOT):
        columns[:, :, column] = slots[:, :, slot]
    return columns.reshape(len(words), -1)


class Parts(NamedTuple):
    """What a packed linear holds: codes, a zero point and a scale of each group, the group of each column."""
    codes: np.ndarray   # [N, K]
    zeros: np.ndarray   # [N, G]
    scales: np.ndarray  # fp32 [N, G]
    groups: np.ndarray  # [K]

    def integers(self):
        """q - z [N, K]."""
        return self.codes - self.zeros[:, self.groups]

    def values(self):
        """(q - z) * s in fp32."""
        return self.integers().astype(np.float32) * self.scales[:, self.groups]


def parts(codes, zeros, scales, groups=None):
    columns = codes.shape[1]
    if groups is None:
        groups = np.arange(columns) // (columns // scales.shape[1])
    return Parts(codes, zeros, scales.astype(np.float32), groups)


def rows_of_codes(tensors, module, names, shape, bits, symmetric):
    """Codes packed along K, zero points along N, under these names: codes, scales, zeros."""
    rows, columns = shape
    codes, scales = stream(tensors[module + names[0]], columns, bits), tensors[module + names[1]]
    zeros = np.full(scales.shape, 1 << (bits - 1))
    if not symmetric:
        zeros = stream(tensors[module + names[2]].T, rows, bits).T
    return parts(codes, zeros, scales)


def parts_of_compressed_tensors(tensors, module, config):
    scheme = config["config_groups"]["group_0"]["weights"]
    return rows_of_codes(tensors, module, (".weight_packed", ".weight_scale", ".weight_zero_point"),
                         tensors[module + ".weight_shape"], scheme["num_bits"], scheme["symmetric"])


def parts_of_quantry(tensors, module, linears):
    linear = linears[module]
    return rows_of_codes(tensors, module, (".codes", ".scales", ".zeros"), linear["shape"], linear["bits"],
                         linear["symmetric"])


def parts_of_gptq(tensors, module, config):
    bits, groups = config["bits"], tensors[module + ".g_idx"]
    scales = tensors[module + ".scales"].T
    codes = stream(tensors[module + ".qweight"].T, len(groups), bits)
    zeros = stream(tensors[module + ".qzeros"], len(scales), bits).T
    if config["checkpoint_format"] == "gptq":
        assert zeros.max() < (1 << bits) - 1, "z = 0: readers of v1 do not agree on it"
        zeros = zeros + 1
    return parts(codes, zeros, scales, groups)


def parts_of_awq(tensors, module, config):
    assert config["bits"] == 4 and config["version"] == "gemm"
    return parts(awq_words(tensors[module + ".qweight"]).T, awq_words(tensors[module + ".qzeros"]).T,
                 tensors[module + ".scales"].T)


READERS = {"compressed-tensors": (parts_of_compressed_tensors, ".weight_packed"), "gptq": (parts_of_gptq, ".qweight"),
           "awq": (parts_of_awq, ".qweight"), "quantry": (parts_of_quantry, ".codes")}


def linears_of_container(path):
    """What a quantry container's metadata says of its linears, by module."""
    data = path.read_bytes()
    header = json.loads(data[8:8 + int.from_bytes(data[:8], "little")])
    return json.loads(header["__metadata__"]["quantry"])["linears"]


def parts_of_folder(folder):
    """Every quantized linear of an output, by module."""
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    read, part = READERS[config["quant_method"]]
    path = folder / "model.safetensors"
    if config["quant_method"] == "quantry":
        path = folder / "model.quantry.safetensors"
        config = linears_of_container(path)
    tensors = read_safetensors(path)
    modules = [name.removesuffix(part) for name in tensors if name.endswith(part)]
    return {module: read(tensors, module, config) for module in modules}


def decode_folder(folder):
    """Every quantized linear of an output, by module: fp32 [N, K]."""
    return {module: linear.values() for module, linear in parts_of_folder(folder).items()}


def to_bf16(array):
    """fp32 rounded to bf16, half to even, as fp32."""
    bits = np.ascontiguousarray(array).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
    return rounded.astype(np.uint32).view(np.float32)
