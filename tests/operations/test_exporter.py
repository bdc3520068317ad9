"""The exporter by itself: which series, how many, how written, and what it says when the server is away."""
import argparse
import sys

import pytest

from conftest import DEPLOY, free_ports

sys.path.insert(0, str(DEPLOY / "exporter"))
import quantry_exporter  # noqa: E402


def job(name="j1", model=None, bits=4, end="2026-01-02T03:04:05.500Z", dense=4.0):
    return {"name": f"tenants/acme/quantizationJobs/{name}", "end_time": end,
            "spec": {"model": model or {"uri": "s3://b/models/llama/?region=x"}, "method": {"awq": {"grid": {"bits": bits}}}},
            "quality": {"perplexity": {"dense": dense, "quantized": 4.5, "windows": 8}, "kl_divergence": 0.1, "top1_agreement": 0.9},
            "bits": {"linears": 4.25, "file": 5.0}, "timing": {"run_s": 12}}


def lines(succeeded=(), limit=10):
    text = quantry_exporter.render(quantry_exporter.samples(succeeded, limit))
    return [line for line in text.splitlines() if line and not line.startswith("#")]


@pytest.mark.parametrize("model,label", [
    ({"local_path": "/models/llama-7b/"}, "llama-7b"),
    ({"uri": "s3://bucket/models/opt?region=eu"}, "opt"),
    ({"blobs": {"files": [{"path": "model.safetensors", "sha256": "ab" * 32}]}}, "upload-abababab"),
    ({"blobs": {"files": []}}, "upload"),
    ({}, "upload"),
])
def test_model_label(model, label):
    assert quantry_exporter.model_label(model) == label


def test_the_newest_result_of_each_label_set_counts():
    newest_first = [job("new", dense=1.0), job("old", dense=2.0), job("other", bits=3, dense=3.0)]
    dense = [line for line in lines(succeeded=newest_first) if 'weights="dense"' in line]
    assert dense == ['quantry_result_perplexity{model="llama",method="awq",recipe="",bits="4",weights="dense"} 1.0',
                     'quantry_result_perplexity{model="llama",method="awq",recipe="",bits="3",weights="dense"} 3.0']


def of_method(name, method, preprocessing=None):
    made = job(name)
    made["spec"]["method"] = method
    if preprocessing is not None:
        made["spec"]["preprocessing"] = preprocessing
    return made


@pytest.mark.parametrize("method,preprocessing,labels", [
    ({"ptq161": {}}, None, 'method="ptq161",recipe="",bits="mixed"'),
    ({"ptq161": {}}, {"lora": {"rank": 8}}, 'method="ptq161+lora",recipe="",bits="mixed"'),
    ({"ptq161": {}}, {}, 'method="ptq161+lora",recipe="",bits="mixed"'),
    ({"ptq161": {"recipe": "ptq161-plus"}}, None, 'method="ptq161",recipe="ptq161-plus",bits="mixed"'),
    ({"tesseraq": {"recipe": "tesseraq-plus", "grid": {"bits": 2}}}, None, 'method="tesseraq",recipe="tesseraq-plus",bits="2"'),
    ({"restore": {"first_pass": {"recipe": "ptq161-plus"}}}, {}, 'method="restore+lora",recipe="ptq161-plus",bits="mixed"'),
    ({"restore": {}}, {}, 'method="restore+lora",recipe="",bits="mixed"'),
])
def test_labels_of_methods(method, preprocessing, labels):
    run_seconds = [line for line in lines(succeeded=[of_method("j", method, preprocessing)]) if "run_seconds" in line]
    assert run_seconds == [f'quantry_result_run_seconds{{model="llama",{labels}}} 12.0']


def test_recipes_and_preprocessing_do_not_take_the_place_of_plain_results():
    """However much newer they are."""
    newest_first = [of_method("restored", {"ptq161": {}}, {"lora": {}}), of_method("plus", {"ptq161": {"recipe": "ptq161-plus"}}),
                    of_method("plain", {"ptq161": {}})]
    assert len([line for line in lines(succeeded=newest_first) if line.startswith("quantry_result_run_seconds")]) == 3


def test_results_are_bounded():
    many = [job(model={"uri": f"s3://b/{i}"}) for i in range(50)]
    assert len([line for line in lines(succeeded=many, limit=7) if line.startswith("quantry_result_run_seconds")]) == 7


def test_a_job_without_evaluation_has_bits_and_no_quality():
    bare = job()
    del bare["quality"]
    names = {line.split("{")[0] for line in lines(succeeded=[bare])}
    assert names == {"quantry_result_bitwidth", "quantry_result_run_seconds", "quantry_result_end_timestamp_seconds"}


def test_time_and_labels_are_written_exactly():
    assert quantry_exporter.unix_time("1970-01-02T00:00:00.25Z") == 86400.25
    assert quantry_exporter.escape('a"b\\c\nd') == 'a\\"b\\\\c\\nd'


def test_server_away(binaries, capsys):
    options = argparse.Namespace(quantry=str(binaries / "quantry"), server=f"127.0.0.1:{free_ports(1)[0]}", tenant=["default"],
                                 interval=60, history=10, max_results=10)
    source = quantry_exporter.Source(options)
    assert "quantry_exporter_up 0.0" in source.metrics()
    assert "quantry_exporter: " in capsys.readouterr().err
    assert source.metrics() == "# HELP quantry_exporter_up " + quantry_exporter.FAMILIES["quantry_exporter_up"] + \
        "\n# TYPE quantry_exporter_up gauge\nquantry_exporter_up 0.0\n"


def test_what_is_not_finite_has_no_series():
    """The command line's JSON says null."""
    ruined = job()
    ruined["quality"] = {"perplexity": {"dense": 4.0, "quantized": None}, "kl_divergence": None, "top1_agreement": 0.1}
    text = "\n".join(lines(succeeded=[ruined]))
    assert 'weights="dense"' in text and 'weights="quantized"' not in text
    assert "kl_divergence" not in text and "top1_agreement" in text


@pytest.mark.parametrize("arguments, variable, tenants", [
    ([], None, ["default"]), ([], "", ["default"]), ([], "acme", ["acme"]),
    (["--tenant=a", "--tenant=b"], "acme", ["a", "b"])])
def test_whose_results_are_asked_for(monkeypatch, arguments, variable, tenants):
    """--tenant, else QUANTRY_TENANT, as the drop-in of the token has it."""
    monkeypatch.delenv("QUANTRY_TENANT", raising=False)
    if variable is not None:
        monkeypatch.setenv("QUANTRY_TENANT", variable)
    assert quantry_exporter.parse(arguments).tenant == tenants
