"""SmolLM2-135M (scripts/test --full): AWQ through the whole service, TesseraQ on its first block, PTQ1.61 and its packed products.

Needs QUANTRY_SMOLLM2: the checkpoint folder, and QUANTRY_DATA: the folder with text/wikitext2_*.
"""
import json
import shutil
import subprocess
import time

import pytest

import api  # noqa: F401  finds the package in place
from quantry.dense import save_dense

pytestmark = pytest.mark.full

# The first block at 2 bits, groups of 64: loss of rounding to nearest (ours), of the AWQ start and after 20 stages of
# 10 steps at rate 0.025 (the authors' code, one seed; a seed or another order of sums moves ours by up to 5 %).
NEAREST_LOSS, START_LOSS, LEARNED_LOSS = 495.6, 295.0, 42.3
DENSE_PERPLEXITY = 29.353080  # 100 windows of 512 tokens, wikitext2 raw test
# PTQ1.61 there, 32 x 512 tokens, by the authors' code: the mask alone, and after two epochs.
PTQ161_PERPLEXITIES = {"mask": 24847, "trained": 725.5}
PTQ161_METHODS = {"mask": {"disable_training": True}, "trained": {"epochs": 2}}
PTQ161_BITS = 1.699


@pytest.fixture
def smollm2(smollm2_dir, data_dir):
    return smollm2_dir, data_dir


def quantize(server, model, data, method, *extra):
    done = server.cli(
        "submit", model, "--id", f"smollm2-{method}", "--method", method, "--bits", 4, "--group-size", 64,
        *extra, "--evaluation", data / "text/wikitext2_wiki.test.raw", "--evaluation-length", 512,
        "--evaluation-windows", 100, "--wait", "--output", "json", check=0, timeout=3000)
    return json.loads(done.stdout)


def test_w4_g64_awq(make_server, smollm2):
    model, data = smollm2
    server = make_server().start()
    began = time.monotonic()
    job = quantize(server, model, data, "awq", "--calibration", data / "text/wikitext2_tokens_valid.txt",
                   "--calibration-samples", 32, "--calibration-length", 512)
    wall = time.monotonic() - began
    perplexity = job["quality"]["perplexity"]
    print(json.dumps({"wall_s": round(wall, 1), "perplexity": perplexity, "bits": job["bits"],
                      "peak_rss_bytes": job["peak_rss_bytes"], "outputs": job["outputs"], "timing": job["timing"]}))
    assert abs(perplexity["dense"] / DENSE_PERPLEXITY - 1) < 1e-3
    # Two streams of 32 * 512 * 576 fp32 and four fp32 copies of a block, plus libraries.
    streams, block = 2 * 32 * 512 * 576 * 4, 4 * 4 * 3_540_096
    assert int(job["peak_rss_bytes"]) <= 1.1 * (streams + block) + 300e6
    assert int(job["outputs"][0]["bytes"]) <= 1.02 * int(job["bits"]["theoretical_bytes"])
    nearest = quantize(server, model, data, "rtn")["quality"]["perplexity"]
    print(json.dumps({"rtn": nearest}))
    assert perplexity["dense"] < perplexity["quantized"] < nearest["quantized"]


def write_first_block(model, folder):
    """The model cut down to its first block, tensors copied as they are."""
    shutil.copytree(model, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((model / "config.json").read_text())
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1}))
    with (model / "model.safetensors").open("rb") as whole, (folder / "model.safetensors").open("wb") as cut:
        size = int.from_bytes(whole.read(8), "little")
        entries = json.loads(whole.read(size))
        kept = {name: entry for name, entry in entries.items()
                if not name.startswith("model.layers.") or name.startswith("model.layers.0.")}
        spans, end = [], 0
        for name, entry in kept.items():
            if name == "__metadata__":
                continue
            spans.append(entry["data_offsets"])
            length = spans[-1][1] - spans[-1][0]
            kept[name] = {**entry, "data_offsets": [end, end + length]}
            end += length
        header = json.dumps(kept).encode()
        header += b" " * (-len(header) % 8)
        cut.write(len(header).to_bytes(8, "little") + header)
        for first, last in spans:
            whole.seek(8 + size + first)
            cut.write(whole.read(last - first))


def run_engine(binaries, folder, job, timeout):
    """The manifest of a job whose artifact goes to folder/out."""
    (folder / "job.json").write_text(json.dumps({**job, "output_dir": str(folder / "out")}))
    subprocess.run([binaries / "quantry-engine", "run", "--job", folder / "job.json"], stdout=subprocess.DEVNULL,
                   timeout=timeout, check=True)
    return json.loads((folder / "out" / "manifest.json").read_text())


def text_of(path, **windows):
    return {"text": {"path": str(path)}, "sequence_length": 512, **windows}


@pytest.mark.parametrize("kind", PTQ161_METHODS)
def test_ptq161_is_no_worse_than_the_authors_code_and_its_file_says_the_same(binaries, smollm2, tmp_path, kind):
    """Massive activations from block 11 on: where products of integers could lose most."""
    model, data = smollm2
    raw = data / "text/wikitext2_wiki.test.raw"
    manifest = run_engine(binaries, tmp_path, {
        "model_dir": str(model), "method": {"ptq161": PTQ161_METHODS[kind]},
        "outputs": [{"format": "OUTPUT_FORMAT_QUANTRY"}],
        "calibration": text_of(data / "text/wikitext2_tokens_valid.txt", samples=32),
        "evaluation": text_of(raw, windows=100)}, timeout=3000)
    perplexity, bits, (output,) = manifest["quality"]["perplexity"], manifest["bits"], manifest["outputs"]
    print(json.dumps({"perplexity": perplexity, "bits": bits, "bytes": output["bytes"]}))
    assert perplexity["quantized"] <= PTQ161_PERPLEXITIES[kind]
    assert bits["linears"] <= PTQ161_BITS
    assert int(output["bytes"]) <= 1.02 * int(bits["theoretical_bytes"])
    engine, container = binaries / "quantry-engine", tmp_path / "out/quantry"
    # In float32: where the model is as broken as by the mask alone, bfloat16 moves its perplexity by 0.3 %.
    save_dense(container, tmp_path / "dense", "float32")

    def evaluated(folder, *flags):
        done = subprocess.run([engine, "eval", "--model", folder, "--text", raw, "--length", "512", "--windows", "10",
                               *flags], capture_output=True, text=True, timeout=3000, check=True)
        return json.loads(done.stdout)["perplexity"]

    found = {product: evaluated(container, "--packed-product", product) for product in ("auto", "tiles")}
    found["dense"] = evaluated(tmp_path / "dense")
    print(json.dumps(found))
    assert [found["auto"], found["tiles"]] == pytest.approx([found["dense"]] * 2, rel=1e-3)


@pytest.mark.parametrize("compute_dtype", ["FLOAT32", "BFLOAT16"])
def test_w2_g64_tesseraq_reaches_the_published_loss(binaries, smollm2, tmp_path, compute_dtype):
    """The one figure the authors' code was measured with here: the first block, a short schedule, 32 x 512 tokens."""
    model, data = smollm2
    write_first_block(model, tmp_path / "model")
    method = {"grid": {"bits": 2, "group_size": 64}, "steps_per_stage": 10, "learning_rate": 0.025,
              "compute_dtype": f"COMPUTE_DTYPE_{compute_dtype}"}
    began = time.monotonic()
    manifest = run_engine(binaries, tmp_path, {
        "model_dir": str(tmp_path / "model"), "method": {"tesseraq": method},
        "outputs": [{"format": "OUTPUT_FORMAT_QUANTRY"}, {"format": "OUTPUT_FORMAT_COMPRESSED_TENSORS"}],
        "calibration": text_of(data / "text/wikitext2_tokens_valid.txt", samples=32)}, timeout=1800)
    (block,) = manifest["blocks"]
    print(json.dumps({"wall_s": round(time.monotonic() - began, 1), "block": block, "bits": manifest["bits"]}))
    assert block["loss_rtn"] == pytest.approx(NEAREST_LOSS, rel=0.01)
    assert block["metrics"]["loss_init"] == pytest.approx(START_LOSS, rel=0.03)
    assert block["loss_final"] == pytest.approx(LEARNED_LOSS, rel=0.06)
    assert 0.05 < block["metrics"]["flip_ratio"] < 0.15
    assert manifest["bits"]["linears"] == 2 + (16 + 2) / 64
    assert all(output["verified"] for output in manifest["outputs"])
