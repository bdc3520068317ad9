"""Tiny random checkpoints of every supported architecture, for tests."""
import json

import numpy as np

from reference_forward import write_safetensors

LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": 32,
         "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4,
         "vocab_size": 96, "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
         "tie_word_embeddings": False, "attention_bias": False, "mlp_bias": False, "torch_dtype": "float32"}
LLAMA3_ROPE = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 16}

CONFIGS = {
    "llama": LLAMA,
    "llama-gqa-tied": {**LLAMA, "num_key_value_heads": 2, "tie_word_embeddings": True},
    "llama-head-dim": {**LLAMA, "head_dim": 16, "num_key_value_heads": 1},
    "llama-biases": {**LLAMA, "attention_bias": True, "mlp_bias": True},
    "llama3-rope": {**LLAMA, "rope_scaling": LLAMA3_ROPE, "rope_theta": 500.0},
    "llama3-rope-parameters": {**{k: v for k, v in LLAMA.items() if k != "rope_theta"},
                               "rope_parameters": {**LLAMA3_ROPE, "rope_theta": 500.0}},
    "linear-rope": {**LLAMA, "rope_scaling": {"type": "linear", "factor": 4.0}},
    "mistral": {**{k: v for k, v in LLAMA.items() if not k.endswith("_bias")}, "model_type": "mistral",
                "architectures": ["MistralForCausalLM"], "num_key_value_heads": 2, "sliding_window": None},
    "qwen2": {**{k: v for k, v in LLAMA.items() if not k.endswith("_bias")}, "model_type": "qwen2",
              "architectures": ["Qwen2ForCausalLM"], "num_key_value_heads": 2, "use_sliding_window": False,
              "sliding_window": 64, "tie_word_embeddings": True},
    "qwen3": {**LLAMA, "model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "head_dim": 16,
              "num_key_value_heads": 2},
    "opt": {"architectures": ["OPTForCausalLM"], "model_type": "opt", "activation_function": "relu", "hidden_size": 32,
            "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 96,
            "max_position_embeddings": 128, "word_embed_proj_dim": 32, "do_layer_norm_before": True,
            "torch_dtype": "float32"},
}


def llama_shapes(config):
    hidden, inner, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    dim = config.get("head_dim") or hidden // config["num_attention_heads"]
    q, kv = config["num_attention_heads"] * dim, config["num_key_value_heads"] * dim
    qkv_bias = config.get("attention_bias", False) or config["model_type"] == "qwen2"
    yield "model.embed_tokens.weight", (vocab, hidden)
    yield "model.norm.weight", (hidden,)
    if not config["tie_word_embeddings"]:
        yield "lm_head.weight", (vocab, hidden)
    for i in range(config["num_hidden_layers"]):
        p = f"model.layers.{i}."
        yield p + "input_layernorm.weight", (hidden,)
        yield p + "post_attention_layernorm.weight", (hidden,)
        for name, out, inp, bias in (("q", q, hidden, qkv_bias), ("k", kv, hidden, qkv_bias), ("v", kv, hidden, qkv_bias),
                                     ("o", hidden, q, config.get("attention_bias", False))):
            yield p + f"self_attn.{name}_proj.weight", (out, inp)
            if bias:
                yield p + f"self_attn.{name}_proj.bias", (out,)
        if config["model_type"] == "qwen3":
            yield p + "self_attn.q_norm.weight", (dim,)
            yield p + "self_attn.k_norm.weight", (dim,)
        for name, out, inp in (("gate", inner, hidden), ("up", inner, hidden), ("down", hidden, inner)):
            yield p + f"mlp.{name}_proj.weight", (out, inp)
            if config.get("mlp_bias"):
                yield p + f"mlp.{name}_proj.bias", (out,)


def opt_shapes(config):
    hidden, inner, p = config["hidden_size"], config["ffn_dim"], "model.decoder."
    yield p + "embed_tokens.weight", (config["vocab_size"], hidden)
    yield p + "embed_positions.weight", (config["max_position_embeddings"] + 2, hidden)
    for kind in ("weight", "bias"):
        yield p + f"final_layer_norm.{kind}", (hidden,)
        for i in range(config["num_hidden_layers"]):
            q = f"{p}layers.{i}."
            for norm in ("self_attn_layer_norm", "final_layer_norm"):
                yield q + f"{norm}.{kind}", (hidden,)
            for name, out, inp in [(f"self_attn.{n}", hidden, hidden) for n in ("q_proj", "k_proj", "v_proj", "out_proj")] + [
                    ("fc1", inner, hidden), ("fc2", hidden, inner)]:
                yield q + f"{name}.{kind}", (out, inp) if kind == "weight" else (out,)


def write_random_model(folder, name, seed=0, **changes):
    """A random checkpoint CONFIGS[name]; returns its config."""
    config = {**CONFIGS[name], **changes}
    random = np.random.default_rng(seed)
    shapes = opt_shapes(config) if config["model_type"] == "opt" else llama_shapes(config)
    tensors = {}
    for tensor, shape in shapes:
        values = random.normal(size=shape)
        if "norm" in tensor and tensor.endswith("weight"):
            values = 1 + 0.2 * values
        elif "embed" not in tensor:
            values *= 0.3
        tensors[tensor] = values.astype(np.float32)
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(folder / "model.safetensors", tensors)
    (folder / "config.json").write_text(json.dumps(config))
    return config
