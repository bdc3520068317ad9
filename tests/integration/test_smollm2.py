"""SmolLM2-135M through the whole service (scripts/test --full).

Needs QUANTRY_SMOLLM2: the checkpoint folder, and QUANTRY_DATA: the folder with text/wikitext2_*.
"""
import json
import os
import pathlib
import time

import pytest

pytestmark = pytest.mark.full

DENSE_PERPLEXITY = 29.353080  # 100 windows of 512 tokens, wikitext2 raw test


@pytest.fixture
def smollm2():
    if "QUANTRY_SMOLLM2" not in os.environ or "QUANTRY_DATA" not in os.environ:
        pytest.skip("set QUANTRY_SMOLLM2 and QUANTRY_DATA")
    return pathlib.Path(os.environ["QUANTRY_SMOLLM2"]), pathlib.Path(os.environ["QUANTRY_DATA"])


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
