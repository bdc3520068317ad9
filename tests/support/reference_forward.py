"""An independent forward pass in numpy, fp64, for tests: Llama, Mistral, Qwen2, Qwen3, OPT.

Also a small safetensors reader and writer, so that nothing of the engine is shared.
Written from the published model definitions; no speed, no caches.
"""
import json
import math
import struct

import numpy as np

DTYPES = {"F32": np.float32, "F64": np.float64, "F16": np.float16, "I64": np.int64, "I32": np.int32}


def read_safetensors(path):
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8:8 + length])
    data = raw[8 + length:]
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        if entry["dtype"] == "BF16":
            bits = np.frombuffer(data[begin:end], dtype=np.uint16).astype(np.uint32) << 16
            array = bits.view(np.float32)
        else:
            array = np.frombuffer(data[begin:end], dtype=DTYPES[entry["dtype"]])
        tensors[name] = array.reshape(entry["shape"])
    return tensors


def write_safetensors(path, tensors):
    names = {np.dtype(np.float32): "F32", np.dtype(np.float16): "F16", np.dtype(np.int64): "I64"}
    header, blobs, offset = {"__metadata__": {"format": "pt"}}, [], 0
    for name, array in tensors.items():
        blob = np.ascontiguousarray(array).tobytes()
        header[name] = {"dtype": names[array.dtype], "shape": list(array.shape),
                        "data_offsets": [offset, offset + len(blob)]}
        blobs.append(blob)
        offset += len(blob)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(blobs))


def rms_norm(x, weight, eps):
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * weight


def layer_norm(x, weight, bias, eps):
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / np.sqrt(np.mean(centred**2, axis=-1, keepdims=True) + eps) * weight + bias


def inverse_frequencies(config):
    dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    rope = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    theta = rope.get("rope_theta", config.get("rope_theta", 10000.0))
    freq = 1.0 / theta ** (np.arange(0, dim, 2, dtype=np.float64) / dim)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "linear":
        return freq / rope["factor"]
    if kind == "llama3":
        old = rope["original_max_position_embeddings"]
        low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
        out = []
        for f in freq:
            wavelength = 2 * math.pi / f
            if wavelength > old / low:
                out.append(f / factor)
            elif wavelength < old / high:
                out.append(f)
            else:
                smooth = (old / wavelength - low) / (high - low)
                out.append((1 - smooth) * f / factor + smooth * f)
        return np.array(out)
    return freq


def rotate(x, cos, sin):
    half = x.shape[-1] // 2
    turned = np.concatenate([-x[..., half:], x[..., :half]], axis=-1)
    return x * cos + turned * sin


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def activation(name, x):
    if name == "silu":
        return x / (1 + np.exp(-x))
    if name == "relu":
        return np.maximum(x, 0)
    if name == "gelu":
        return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def attention(q, k, v):
    """q [heads, tokens, dim], k and v [kv_heads, tokens, dim] -> [tokens, heads * dim]."""
    repeat = q.shape[0] // k.shape[0]
    k, v = np.repeat(k, repeat, axis=0), np.repeat(v, repeat, axis=0)
    scores = q @ k.transpose(0, 2, 1) / math.sqrt(q.shape[-1])
    tokens = q.shape[1]
    scores = np.where(np.tril(np.ones((tokens, tokens), dtype=bool)), scores, -np.inf)
    return (softmax(scores) @ v).transpose(1, 0, 2).reshape(tokens, -1)


class Weights:
    def __init__(self, tensors):
        self.tensors = {name: array.astype(np.float64) for name, array in tensors.items()}

    def __getitem__(self, name):
        return self.tensors[name]

    def get(self, name):
        return self.tensors.get(name)

    def linear(self, name, x):
        y = x @ self[name + ".weight"].T
        bias = self.get(name + ".bias")
        return y if bias is None else y + bias


def heads(x, count):
    return x.reshape(x.shape[0], count, -1).transpose(1, 0, 2)


def llama_like(config, w, tokens):
    """Logits [tokens, vocabulary]; Llama, Mistral, Qwen2 and Qwen3."""
    eps, count = config["rms_norm_eps"], config["num_attention_heads"]
    kv_count = config.get("num_key_value_heads", count)
    angles = np.outer(np.arange(len(tokens)), inverse_frequencies(config))
    cos, sin = (np.concatenate([f(angles)] * 2, axis=-1) for f in (np.cos, np.sin))
    x = w["model.embed_tokens.weight"][tokens]
    for i in range(config["num_hidden_layers"]):
        p = f"model.layers.{i}."
        h = rms_norm(x, w[p + "input_layernorm.weight"], eps)
        q, k, v = (heads(w.linear(p + f"self_attn.{n}_proj", h), c)
                   for n, c in (("q", count), ("k", kv_count), ("v", kv_count)))
        if config["model_type"] == "qwen3":
            q = rms_norm(q, w[p + "self_attn.q_norm.weight"], eps)
            k = rms_norm(k, w[p + "self_attn.k_norm.weight"], eps)
        x = x + w.linear(p + "self_attn.o_proj", attention(rotate(q, cos, sin), rotate(k, cos, sin), v))
        h = rms_norm(x, w[p + "post_attention_layernorm.weight"], eps)
        gate = activation(config["hidden_act"], w.linear(p + "mlp.gate_proj", h))
        x = x + w.linear(p + "mlp.down_proj", gate * w.linear(p + "mlp.up_proj", h))
    x = rms_norm(x, w["model.norm.weight"], eps)
    head = w.get("lm_head.weight")
    if config.get("tie_word_embeddings") or head is None:
        head = w["model.embed_tokens.weight"]
    return x @ head.T


def opt(config, w, tokens):
    prefix, count = "model.decoder.", config["num_attention_heads"]
    x = w[prefix + "embed_tokens.weight"][tokens]
    x = x + w[prefix + "embed_positions.weight"][np.arange(len(tokens)) + 2]
    for i in range(config["num_hidden_layers"]):
        p = f"{prefix}layers.{i}."
        h = layer_norm(x, w[p + "self_attn_layer_norm.weight"], w[p + "self_attn_layer_norm.bias"], 1e-5)
        q, k, v = (heads(w.linear(p + f"self_attn.{n}_proj", h), count) for n in "qkv")
        x = x + w.linear(p + "self_attn.out_proj", attention(q, k, v))
        h = layer_norm(x, w[p + "final_layer_norm.weight"], w[p + "final_layer_norm.bias"], 1e-5)
        x = x + w.linear(p + "fc2", activation(config["activation_function"], w.linear(p + "fc1", h)))
    x = layer_norm(x, w[prefix + "final_layer_norm.weight"], w[prefix + "final_layer_norm.bias"], 1e-5)
    return x @ w[prefix + "embed_tokens.weight"].T


def logits(model_dir, token_rows):
    """Logits [rows, tokens, vocabulary] of a checkpoint folder."""
    config = json.loads((model_dir / "config.json").read_text())
    weights = Weights(read_safetensors(model_dir / "model.safetensors"))
    forward = opt if config["model_type"] == "opt" else llama_like
    return np.stack([forward(config, weights, np.array(row)) for row in token_rows])
