#!/usr/bin/env python3
"""Writes the seeds in tests/fuzz/corpus: small, right inputs, and some nearly right ones.

    tests/fuzz/make_corpus.py          needs protoc; a seed's name is its content's digest
"""
import hashlib
import json
import pathlib
import shutil
import struct
import subprocess

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CORPUS = HERE / "corpus"


def write(target, *seeds):
    folder = CORPUS / target
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for seed in seeds:
        data = seed if isinstance(seed, bytes) else seed.encode() if isinstance(seed, str) else json.dumps(seed).encode()
        (folder / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)


def safetensors(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def message(name, file, text):
    return subprocess.run(["protoc", f"-I{ROOT / 'proto'}", f"--encode=quantry.v1.{name}", f"quantry/v1/{file}.proto"],
                          input=text.encode(), capture_output=True, check=True).stdout


def tensor(dtype, shape, begin, end):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def engine_seeds():
    write("safetensors",
          safetensors({"w": tensor("F32", [2, 2], 0, 16), "b": tensor("BF16", [3], 16, 22)}, b"\0" * 22),
          safetensors({"__metadata__": {"format": "pt"}, "e": tensor("I64", [0], 0, 0)}),
          safetensors({"hole": tensor("U8", [1], 1, 2)}, b"\0\0"),
          safetensors({"huge": tensor("F32", [1 << 31, 1 << 31], 0, 4)}, b"\0" * 4),
          struct.pack("<Q", 1 << 63), b"PK\x03\x04")
    shard = "model-00001-of-00001.safetensors"
    write("shard_index", {"metadata": {"total_size": 4}, "weight_map": {"w": shard}},
          {"weight_map": {"w": "../" + shard}}, {"weight_map": {"x": shard}}, {"weight_map": []}, "{")
    llama = json.loads((ROOT / "examples/stories260k/config.json").read_text())
    opt = {"model_type": "opt", "hidden_size": 64, "ffn_dim": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
           "vocab_size": 100, "max_position_embeddings": 64, "activation_function": "relu", "do_layer_norm_before": True,
           "word_embed_proj_dim": 64}
    rope = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192}
    write("model_config", llama, opt, {**llama, "model_type": "qwen3"}, {**llama, "rope_scaling": rope},
          {**llama, "hidden_size": -1}, {**llama, "num_key_value_heads": 3}, {"model_type": "bert"})
    grid = {"schema": "quantry.container.v1", "linears": {"l": {"bits": 4, "group_size": -1, "symmetric": True, "shape": [2, 8]}}}
    mixed = {"schema": "quantry.container.v2", "linears": {"l": {"shape": [2, 8]}}}
    tensors = {"l.codes": tensor("I32", [2, 1], 0, 8), "l.scales": tensor("F16", [2, 1], 8, 12)}
    write("container", *(safetensors({"__metadata__": {"quantry": json.dumps(body)}, **tensors}, b"\1" * 12)
                         for body in (grid, mixed, {"schema": 3}, [])), safetensors(tensors, b"\0" * 12))
    vocabulary = {"<unk>": 0, "a": 1, "b": 2, "ab": 3}
    bpe = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [
        {"id": 0, "content": "<unk>", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
         "special": True}], "normalizer": None, "pre_tokenizer": {"type": "Whitespace"}, "post_processor": None,
        "decoder": None, "model": {"type": "BPE", "dropout": None, "unk_token": "<unk>", "vocab": vocabulary,
                                   "merges": ["a b"]}}
    words = {**bpe, "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"}}
    write("tokenizer", bpe, words, {**bpe, "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False}},
          {**bpe, "model": {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["a", -1.0]]}}, {"model": {}})


def service_seeds():
    write("filter", 'state=QUEUED AND method=awq AND labels.team="a \\"b\\""', "state = RUNNING", "labels.k=v", "AND", '"')
    write("page_token", "", "AAAA", "dGhpcyBpcyBub3QgYSB0b2tlbg")
    spec = ('parent: "tenants/default" quantization_job_id: "job-1" quantization_job { spec { model { local_path: "/m" } '
            'method { awq { grid { bits: 4 group_size: 128 } } } calibration { source { local_path: "/t" } samples: 8 '
            'sequence_length: 64 } outputs { format: OUTPUT_FORMAT_GPTQ } } labels { key: "a" value: "b" } }')
    blobs = ('parent: "tenants/default" quantization_job { spec { model { blobs { files { path: "config.json" sha256: "'
             + "0" * 64 + '" size_bytes: 3 } } } method { rtn { grid { bits: 3 group_size: -1 } } } } }')
    write("create_request", *(message("CreateQuantizationJobRequest", "quantization_service", text) for text in (spec, blobs)))
    beat = ('session: "s" jobs { job: "tenants/default/quantizationJobs/j" epoch: 1 progress { blocks_done: 1 blocks_total: 4 '
            'eta { seconds: 5 } } }')
    worker = 'worker { worker_id: "w" incarnation: "i" slots: 1 gpus { uuid: "g" memory_bytes: 1 } methods: "awq" }'
    checkpoint = ('session: "s" job: "tenants/default/quantizationJobs/j" epoch: 1 checkpoint { blocks_done: 1 }')
    lease = 'session: "s" job: "tenants/default/quantizationJobs/j" epoch: 1'
    events = 'event_offset: 2 events { log { message: "m" } }'
    write("worker_messages", b"\0" + message("HeartbeatRequest", "worker_service", beat),
          b"\1" + message("RegisterWorkerRequest", "worker_service", worker),
          b"\2" + message("CommitCheckpointRequest", "worker_service", checkpoint),
          b"\3\x08\xff\xff\xff\xff\xff\xff\xff\xff\x7f\x10\x01", b"\3\x08\x05\x10\xff\x93\xeb\xdc\x03",
          b"\4" + message("AcquireJobRequest", "worker_service", 'session: "s" acquire_id: "a" wait { seconds: 20 }'),
          b"\5" + message("CompleteJobRequest", "worker_service", f'{lease} manifest_sha256: "{"0" * 64}" file_count: 1 {events}'),
          b"\6" + message("FailJobRequest", "worker_service", f'{lease} error {{ reason: "R" message: "m" }} log_tail: "l" {events}'),
          b"\7" + message("ReleaseJobRequest", "worker_service", f'{lease} reason: "drain"'))
    write("engine_events", '{"started":{"engine_version":"1","device":"cpu","blocks_total":5}}', '{"stage":"STAGE_LOADING"}',
          '{"checkpoint":{"blocks_done":1,"files":[{"path":"a","size_bytes":"3","sha256":"x"}]}}', '{"later":{}}',
          '{"error":{"failure_class":"FAILURE_CLASS_USER","reason":"R","message":"m","metadata":{"a":"b"}}}',
          b'{"log":{"message":"\xff"}}', '{"methods":[{"name":"awq"}]}', '{"completed":{"manifest_sha256":1e400}}')
    manifest = {"schema": "quantry.manifest.v1", "files": [{"path": "a/b", "size_bytes": 1, "sha256": "00"}],
                "quality": {"perplexity": {"dense": 4, "quantized": "NaN"}}, "bits": {"linears": 4.25},
                "timing": {"stages_s": {"STAGE_LOADING": 1}}, "outputs": [{"format": "gptq", "bytes": "7"}]}
    write("manifest", manifest, {"files": [{"path": "../x"}, {"path": "/x"}, {"path": "a\u0000b"}]}, [])
    named = [{"path": path, "size_bytes": "6", "sha256": "0" * 64} for path in
             ("b/file", "/etc/passwd", "../outside", "b/../../outside", "b\\..\\..", "a\u0000b", "b//file", "b/./file", "b", "", ".")]
    write("committed_manifest", {**manifest, "files": named[:1]}, {"files": named, "later": [{}]}, {"files": named[:1] * 2},
          {"schema": 7}, {"files": {}}, [], "{", b'{"schema":"\xff"}')
    trace = "0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331"
    write("http_message", "GET /metrics?name=x HTTP/1.1\r\nHost: localhost:7072\r\n\r\n", "HEAD /readyz HTTP/1.0\r\nhOst:status.example.com",
          "POST / HTTP/1.1\r\nHost: [::1]:1", "GET / HTTP/1.1\r\nHost: 127.0.0.1.evil.example\r\n", f"00-{trace}-01", f"01-{trace}-00-later")
    claims = {"iss": "i", "aud": ["a", "b"], "sub": "s", "quantry_role": "submitter", "quantry_tenant": "t", "exp": 2e9, "nbf": 1}
    curve = {"kty": "EC", "crv": "P-256", "x": "A" * 43, "y": "A" * 43}
    write("jwt", {"alg": "ES256", "kid": "k"}, {"alg": "none"}, {"alg": "RS256", "crit": ["b64"]}, claims,
          {**claims, "quantry_tenant": "*", "quantry_role": "admin", "exp": 1e308}, {"keys": [curve]},
          {"keys": [{"kty": "RSA", "n": "A" * 342, "e": "AQAB"}, {"kty": "oct", "k": "AAAA"}]},
          "eyJhbGciOiJFUzI1NiJ9.e30." + "A" * 86, "..", "a.b")
    whole = bytes([5, 1, 0, 1, 1, 5, 4])
    write("upload", whole, bytes([5, 1, 0, 1, 1, 3, 3, 0, 4, 1, 2, 4]), bytes([9, 0, 20, 0, 1, 2, 120, 4]),
          bytes([5, 1, 1, 5, 0, 1, 1, 5, 5, 0, 0, 1, 0, 1, 0, 1, 6, 0, 1, 1, 5, 4]),
          bytes.fromhex("000011000e000101050101059595952f00000000000000000095957cff02"))


if __name__ == "__main__":
    engine_seeds()
    service_seeds()
