"""From the arguments of submit() to the job spec: the CLI's defaults, and each wrong argument by its name."""
import asyncio
import json
import subprocess

import pytest
from google.protobuf import text_format
from google.protobuf.json_format import MessageToDict, MessageToJson

import quantry
from conftest import EXAMPLES
from quantry._arguments import Arguments, JobArguments, prepare
from quantry._spec import FORMATS, METHODS, check_offered
from quantry.v1 import artifact_pb2, job_pb2, method_pb2, quantization_service_pb2 as service_pb2

TEXT = EXAMPLES / "text/calibration.txt"


def spec(**arguments):
    return MessageToDict(Arguments(model="m", **arguments).spec(), preserving_proto_field_name=True)


@pytest.mark.parametrize("arguments, wanted", [
    ({"method": "awq"}, {"awq": {"grid": {"bits": 4}}}),
    ({"method": "rtn", "bits": 3, "group_size": "channel"}, {"rtn": {"grid": {"bits": 3, "group_size": -1}}}),
    ({"method": "rtn", "group_size": "64", "symmetric": True}, {"rtn": {"grid": {"bits": 4, "group_size": 64, "symmetric": True}}}),
    ({"method": "rtn", "zero_point_at_least_one": True, "activation_bits": 8},
     {"rtn": {"grid": {"bits": 4, "zero_point_at_least_one": True}, "activations": {"bits": 8}}}),
    ({"method": "tesseraq", "method_options": {"recipe": "tesseraq-w2g128"}},
     {"tesseraq": {"grid": {}, "recipe": "tesseraq-w2g128"}}),
    ({"method": "ptq161", "method_options": {"epochs": 3}}, {"ptq161": {"epochs": 3}}),
    ({"method": "ptq161", "activation_bits": 16}, {"ptq161": {}}),
    ({"method_config": {"awq": {"grid": {"group_size": 64}, "disable_clip_search": True}}, "bits": 8},
     {"awq": {"grid": {"bits": 8, "group_size": 64}, "disable_clip_search": True}}),
])
def test_methods(arguments, wanted):
    assert spec(**arguments)["method"] == wanted


def test_everything_else():
    built = spec(method="awq", calibration="a", calibration_samples=8, calibration_length=64,
                 calibration_sampling="random", calibration_format="tokens", evaluation="b", evaluation_windows=3,
                 max_perplexity_ratio=1.1, formats=["quantry", "dense", "quantry"], device="cpu", threads=2, gpus=1,
                 gpu_memory_gib=1.5, max_run=90.5, max_pending=3600, max_no_progress=7200, seed=7)
    assert built == {
        "method": {"awq": {"grid": {"bits": 4}}}, "seed": "7",
        "calibration": {"format": "TEXT_FORMAT_TOKEN_IDS", "samples": 8, "sequence_length": 64, "sampling": "SAMPLING_RANDOM"},
        "evaluation": {"format": "TEXT_FORMAT_TEXT", "windows": 3}, "quality_gate": {"max_perplexity_ratio": 1.1},
        "outputs": [{"format": "OUTPUT_FORMAT_QUANTRY"}, {"format": "OUTPUT_FORMAT_DENSE"}],
        "resources": {"device": "cpu", "threads": 2, "gpu_count": 1, "min_gpu_memory_bytes": str(3 << 29)},
        "stop_limits": {"max_run": "90.500s", "max_pending": "3600s", "max_no_progress": "7200s"}}


@pytest.mark.parametrize("arguments, message", [
    ({}, "method: wanted one of rtn, .*, got none"),
    ({"method": "magic"}, "method: wanted one of .*, got \"magic\""),
    ({"method": "rtn", "group_size": "row"}, "group_size: wanted a number of columns"),
    ({"method": "rtn", "group_size": -2}, "group_size: wanted a number of columns"),
    ({"method": "ptq161", "bits": 4}, "do not apply to method \"ptq161\", which has no grid to choose: leave them out"),
    ({"method": "ptq161", "activation_bits": 8}, "activation_bits does not apply"),
    ({"method": "rtn", "activation_bits": 9}, "activation_bits: wanted 2 to 8"),
    ({"method": "rtn", "group_size": 1 << 31}, "group_size: wanted a number of columns"),
    ({"method": "rtn", "bits": "4"}, "bits: wanted a whole number of at most 31 bits, got '4'"),
    ({"method": "rtn", "bits": 4.5}, "bits: wanted a whole number"),
    ({"method": "rtn", "seed": -10 ** 20}, "seed: wanted a whole number of at most 63 bits, got -1000"),
    ({"method": "rtn", "calibration": "a", "calibration_samples": 99999999999}, "calibration_samples: wanted a whole number"),
    ({"method": "rtn", "max_run": -0.5}, "max_run: wanted seconds, or 0 for no limit, got -0.5"),
    ({"method": "rtn", "group_size": 0}, "group_size: wanted a number of columns, .*got 0"),
    ({"method": "rtn", "group_size": 64.5}, "group_size: wanted a number of columns, .*got 64.5"),
    ({"method": "rtn", "max_run": float("inf")}, "max_run: wanted a number below 8e.09, got inf"),
    ({"method": "rtn", "gpu_memory_gib": "8"}, "gpu_memory_gib: wanted a number below 8e.09, got '8'"),
    ({"method": "rtn", "symmetric": "no"}, "symmetric: wanted True or False, got 'no'"),
    ({"method": "rtn", "title": 3}, "title: wanted text, got 3"),
    ({"method": "rtn", "formats": "gguf"}, "formats: wanted one of compressed-tensors"),
    ({"method": "rtn", "method_options": {"epochs": 3}}, "method_options: wanted fields of method \"rtn\""),
    ({"method_config": {"awq": {"bits": 4}}}, "method_config: wanted the JSON of one method"),
    ({"method_config": "/no/such.json"}, "method_config: wanted a file"),
    ({"method": "rtn", "method_config": {"awq": {}}}, "wanted the method of method_config, \"awq\", got \"rtn\""),
    ({"method": "rtn", "calibration": "a", "calibration_format": "csv"}, "calibration_format: wanted one of text, tokens"),
    ({"method": "rtn", "calibration": "a", "calibration_sampling": "best"}, "calibration_sampling: wanted one of"),
    ({"method": "rtn", "max_perplexity_ratio": 1.1}, "wanted evaluation=FILE, got none"),
    ({"method": "rtn", "calibration_samples": 8}, "calibration_samples has no effect alone: wanted calibration=FILE, got none"),
    ({"method": "rtn", "calibration_length": 64}, "calibration_length has no effect alone"),
    ({"method": "rtn", "calibration_format": "tokens"}, "calibration_format has no effect alone"),
    ({"method": "rtn", "calibration_sampling": "random"}, "calibration_sampling has no effect alone"),
    ({"method": "rtn", "evaluation_length": 64}, "evaluation_length has no effect alone: wanted evaluation=FILE, got none"),
    ({"method": "rtn", "evaluation_windows": 3}, "evaluation_windows has no effect alone"),
    ({"method": "rtn", "evaluation_format": "tokens"}, "evaluation_format has no effect alone"),
    ({"method": "restore", "calibration": "a"}, "wanted preprocessing_corpus=FILE, got none"),
    ({"method": "rtn", "preprocessing_steps": 5}, "wanted preprocessing_corpus=FILE, got none"),
    ({"method": "rtn", "preprocessing_dropout": 0}, "wanted preprocessing_corpus=FILE, got none"),
    ({"method": "rtn", "preprocessing_length": 64}, "wanted preprocessing_corpus=FILE, got none"),
    ({"method": "rtn", "preprocessing_format": "tokens"}, "wanted preprocessing_corpus=FILE, got none"),
    ({"method": "rtn", "gpu_memory_gib": 8}, "gpu_memory_gib has no effect alone: wanted gpus=N .*, got gpus=0, device=\"auto\""),
    ({"method": "rtn", "gpu_memory_gib": 8, "device": "cpu"}, "gpu_memory_gib has no effect alone"),
    ({"method": "restore", "preprocessing_corpus": "a", "preprocessing_dropout": 1}, "preprocessing_dropout: wanted a share"),
    ({"method": "restore", "preprocessing_corpus": "a", "preprocessing_alpha": -1}, "preprocessing_alpha: wanted a number above 0"),
    ({"method": "restore", "preprocessing_corpus": "a", "preprocessing_format": "csv"}, "preprocessing_format: wanted one of"),
])
def test_wrong_arguments(arguments, message):
    with pytest.raises(quantry.InvalidRequest, match=message):
        spec(**arguments)


@pytest.mark.parametrize("name, message", [
    ("group", 'no argument "group" \\(nearest: .*group_size.*\\); a field of the method\'s own goes into '
     r'method_options=\{"group": ...\}'),
    ("recipe", r'no argument "recipe".*method_options=\{"recipe": ...\}'), ("zzz", 'no argument "zzz"; a field')])
@pytest.mark.parametrize("call", ["submit", "quote"])
def test_an_unknown_argument_is_a_type_error(call, name, message):
    with quantry.Client("127.0.0.1:1") as client, pytest.raises(TypeError, match=message):
        getattr(client, call)("m", method="rtn", **{name: 3})

    async def run():
        async with quantry.AsyncClient("127.0.0.1:1") as client:
            await getattr(client, call)("m", method="rtn", **{name: 3})

    with pytest.raises(TypeError, match=message):
        asyncio.run(run())


def test_keyword_types_are_the_arguments():
    fields = set(Arguments.__dataclass_fields__) - {"model"}
    assert set(JobArguments.__annotations__) | set(JobArguments.__mro__[0].__annotations__) <= fields
    from quantry._arguments import SpecArguments
    assert {**SpecArguments.__annotations__, **JobArguments.__annotations__}.keys() == fields


def test_words_are_those_of_the_cli(binaries):
    text = subprocess.run([binaries / "quantry", "submit", "--help"], capture_output=True, text=True, timeout=30).stdout
    flat = " ".join(text.split())
    assert all(name in flat for name in (*FORMATS, *METHODS))


@pytest.mark.parametrize("flags, arguments", [
    (["--method", "awq"], {"method": "awq"}),
    (["--method", "awq", "--bits", "3", "--group-size", "channel", "--symmetric", "--format", "dense", "--format", "quantry",
      "--seed", "5", "--device", "cpu", "--max-run", "90", "--max-pending", "60",
      "--max-no-progress", "7200"],
     {"method": "awq", "bits": 3, "group_size": "channel", "symmetric": True, "formats": ["dense", "quantry"], "seed": 5,
      "device": "cpu", "max_run": 90, "max_pending": 60, "max_no_progress": 7200}),
    (["--method", "tesseraq", "--bits", "2", "--calibration-samples", "8", "--calibration-length", "64",
      "--calibration-sampling", "random"],
     {"method": "tesseraq", "bits": 2, "calibration_samples": 8, "calibration_length": 64, "calibration_sampling": "random"}),
    (["--method", "ptq161", "--format", "quantry"], {"method": "ptq161", "formats": ["quantry"]}),
    (["--method", "restore", "--preprocessing-corpus", str(TEXT), "--preprocessing-steps", "3", "--preprocessing-rank", "4",
      "--preprocessing-length", "64"],
     {"method": "restore", "preprocessing_corpus": TEXT, "preprocessing_steps": 3, "preprocessing_rank": 4,
      "preprocessing_length": 64}),
    (["--method", "ptq161", "--preprocessing", "lora", "--preprocessing-corpus", str(TEXT)],
     {"method": "ptq161", "preprocessing_corpus": TEXT}),
    (["--method", "ptq161", "--preprocessing", "lora", "--preprocessing-corpus", str(TEXT), "--preprocessing-accumulation", "4",
      "--preprocessing-alpha", "8", "--preprocessing-dropout", "0", "--preprocessing-learning-rate", "3e-4",
      "--preprocessing-warmup-steps", "7", "--preprocessing-clip-norm", "0.5", "--preprocessing-attention-output"],
     {"method": "ptq161", "preprocessing_corpus": TEXT, "preprocessing_accumulation": 4, "preprocessing_alpha": 8,
      "preprocessing_dropout": 0, "preprocessing_learning_rate": 3e-4, "preprocessing_warmup_steps": 7,
      "preprocessing_clip_norm": 0.5, "preprocessing_attention_output": True}),
])
def test_same_spec_as_the_cli(server, client, stories, flags, arguments):
    """The CLI's job and this client's have the same spec and digest."""
    by_cli = server.json("submit", stories, "--no-check", "--calibration", TEXT, *flags)
    job = client.submit(stories, calibration=TEXT, check=False, **arguments)
    for name in (by_cli["name"], job.name):
        client.cancel(name)
    assert job.proto.spec_digest == by_cli.get("spec_digest", by_cli.get("specDigest"))


def test_prepare_finds_the_files(stories, tmp_path):
    submission = prepare(Arguments(model=stories, method="awq", calibration=TEXT, evaluation="s3://texts/test.txt",
                                   job_id="nightly", labels={"team": "a"}, priority=3), "acme", "r", False)
    assert [file.name for file in submission.files] == ["config.json", "model.safetensors", "tokenizer.json",
                                                        "calibration.txt"]
    assert submission.request.parent == "tenants/acme" and submission.request.quantization_job_id == "nightly"
    assert submission.spec.evaluation.source.uri == "s3://texts/test.txt"


@pytest.mark.parametrize("arguments, message", [
    ({}, "wanted one of model, model_path and model_uri, got none"),
    ({"model": "a", "model_uri": "s3://b"}, "got 2 of them"),
    ({"model": "/no/such/folder"}, "which does not exist"),
    ({"model_path": "/m", "calibration": "/no/such/text"}, "calibration: wanted a readable file"),
    ({"model_path": "/m", "job_id": "A"}, "a job id of 4-63 characters"),
])
def test_prepare_refuses(arguments, message):
    with pytest.raises(quantry.InvalidRequest, match=message):
        prepare(Arguments(method="rtn", **arguments), "default", "r", False)


@pytest.mark.parametrize("names, contents, message, reason", [
    ([], {}, "has no config.json", "INVALID_CHECKPOINT"),
    (["config.json"], {}, "has no weights", "INVALID_CHECKPOINT"),
    (["config.json", "pytorch_model.bin"], {}, "a pickle, which can run code", "CHECKPOINT_FORMAT_REFUSED"),
    (["config.json"], {"model.safetensors.index.json": "{"}, "wanted JSON with an object", "INVALID_CHECKPOINT"),
    (["config.json"], {"model.safetensors.index.json": json.dumps({"weight_map": {"a": "../x.safetensors"}})},
     "in the same folder", "INVALID_CHECKPOINT"),
    (["config.json"], {"model.safetensors.index.json": json.dumps({"weight_map": {"a": "x.safetensors"}})},
     "which is not there", "INVALID_CHECKPOINT"),
])
def test_folders_that_are_no_model(tmp_path, names, contents, message, reason):
    for name in names:
        (tmp_path / name).write_text("{}")
    for name, text in contents.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(quantry.InvalidRequest, match=message) as caught:
        prepare(Arguments(model=tmp_path, method="rtn"), "default", "r", False)
    assert caught.value.reason == reason


def test_only_model_files_are_uploaded(tmp_path):
    for name in ("config.json", "a.safetensors", "b.safetensors", "stray.safetensors", "tokenizer.json", "modeling.py",
                 "optimizer.pt", "notes.txt"):
        (tmp_path / name).write_text("x")
    (tmp_path / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}))
    submission = prepare(Arguments(model=tmp_path, method="rtn"), "default", "r", False)
    assert [file.name for file in submission.files] == [
        "a.safetensors", "b.safetensors", "config.json", "model.safetensors.index.json", "tokenizer.json"]


def test_what_the_server_offers():
    methods = service_pb2.ListMethodsResponse(methods=[method_pb2.MethodDescription(
        name="awq", bits=[2, 3, 4], output_formats=["dense"], needs_calibration=True)])

    def check(**arguments):
        check_offered(Arguments(model="m", **arguments).spec(), methods)

    check(method="awq", calibration="c", formats="dense")
    for arguments, message in (({"method": "rtn"}, "offers the methods awq"),
                               ({"method": "awq", "bits": 8, "calibration": "c"}, "awq takes 2, 3, 4, got 8"),
                               ({"method": "awq", "calibration": "c", "formats": "awq"}, "awq writes dense, got awq"),
                               ({"method": "awq"}, "needs a text to calibrate with")):
        with pytest.raises(quantry.InvalidRequest, match=message) as caught:
            check(**arguments)
        assert caught.value.reason == "INVALID_SPEC" and caught.value.violations


def test_a_recipe_is_not_contradicted():
    methods = service_pb2.ListMethodsResponse(methods=[method_pb2.MethodDescription(
        name="tesseraq", bits=[2, 3, 4], recipes=[
            method_pb2.RecipeDescription(name="two", bits=2, group_size=-1),
            method_pb2.RecipeDescription(name="four", bits=4, group_size=64, activation_bits=4),
            method_pb2.RecipeDescription(name="any")])])

    def check(recipe, **arguments):
        check_offered(Arguments(model="m", method="tesseraq", method_options={"recipe": recipe}, calibration="c",
                                **arguments).spec(), methods)

    check("two")
    check("two", bits=2, group_size="channel", activation_bits=8)
    check("any", bits=3, group_size=32)
    for recipe, arguments, field in (("best", {}, "recipe"), ("two", {"bits": 3}, "grid.bits"),
                                     ("four", {"group_size": "channel"}, "grid.group_size"),
                                     ("four", {"activation_bits": 16}, "activations.bits")):
        with pytest.raises(quantry.InvalidRequest, match="wanted") as caught:
            check(recipe, **arguments)
        assert caught.value.violations[0].field == f"quantization_job.spec.method.tesseraq.{field}"


def test_params_tell_of_preprocessing():
    """It makes another model of it."""
    job = job_pb2.QuantizationJob()
    job.spec.method.ptq161.SetInParent()
    job.spec.preprocessing.lora.rank = 64
    job.spec.preprocessing.source.SetInParent()
    params = quantry.Job(job).params()
    assert params["preprocessing.lora.rank"] == "64" and "preprocessing.source" not in str(params)


@pytest.mark.parametrize("method, recipe", [
    ("", ""), ("awq { grid { bits: 4 } }", ""), ("ptq161 { }", ""), ("ptq161 { recipe: 'ptq161-plus' }", "ptq161-plus"),
    ("tesseraq { recipe: 'tesseraq-plus' grid { bits: 2 } }", "tesseraq-plus"),
    ("restore { }", ""), ("restore { first_pass { recipe: 'ptq161-plus' } }", "ptq161-plus")])
@pytest.mark.parametrize("preprocessing", ["none", "lora"])
def test_rows_tell_recipes_and_preprocessing_apart(tmp_path, method, recipe, preprocessing):
    job = job_pb2.QuantizationJob()
    text_format.Parse(method, job.spec.method)
    manifest = {"method": quantry.Job(job).method}
    if preprocessing == "lora":
        job.spec.preprocessing.lora.rank = 64
        manifest["preprocessing"] = {"updates": 1}
    manifest["spec_json"] = MessageToJson(job.spec, preserving_proto_field_name=True)
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    for row in (quantry.Job(job).row(), quantry.LocalArtifact(tmp_path).row()):
        assert (row["recipe"], row["preprocessing"]) == (recipe, preprocessing)


@pytest.mark.parametrize("spec_json", ["{", "[]", 5, "{\"method\": {\"awq\": []}}"])
def test_a_spec_that_is_none(tmp_path, spec_json):
    (tmp_path / "manifest.json").write_text(json.dumps({"method": "awq", "spec_json": spec_json}))
    with pytest.raises(quantry.CorruptData, match="spec_json in .* is not the JSON of a spec"):
        quantry.LocalArtifact(tmp_path).row()


@pytest.mark.parametrize("losses, wanted", [
    ({"loss_rtn": 4.0, "loss_final": 1.0}, (4.0, 1.0, 0.75)), ({}, (None, None, None)),
    ({"loss_final": 1.0}, (0.0, 1.0, None)), ({"loss_rtn": 4.0}, (None, None, None))])
def test_losses_that_were_not_measured(tmp_path, losses, wanted):
    """Without calibration the message holds 0 and the manifest nothing: no loss, not one of 0."""
    job = job_pb2.QuantizationJob()
    job.result.blocks.add(index=2, seconds=1.5, metrics={"clipped": 3}, **losses)
    block = {"index": 2, "seconds": 1.5, "metrics": {"clipped": 3}, **losses}
    (tmp_path / "manifest.json").write_text(json.dumps({"blocks": [block]}))
    for row in (*quantry.Job(job).block_rows(), *quantry.LocalArtifact(tmp_path).block_rows()):
        assert (row["loss_rtn"], row["loss_final"], row["improvement"]) == wanted
        assert (row["block"], row["seconds"], row["metric_clipped"]) == (2, 1.5, 3)


@pytest.mark.parametrize("losses, text", [
    ({"loss_rtn": 4.0, "loss_final": 1.0}, "block 2: loss 4 -> 1, 1.5 s"), ({}, "block 2: 1.5 s")])
def test_the_text_of_a_block(losses, text):
    event = job_pb2.JobEvent(sequence=1)
    event.block_done.CopyFrom(artifact_pb2.BlockReport(index=2, seconds=1.5, **losses))
    assert quantry.Event.of(event).text == text


def test_an_artifact_without_a_spec(tmp_path):
    """As quantry-engine writes it where no server tells one."""
    (tmp_path / "manifest.json").write_text(json.dumps({"method": "awq", "spec_json": ""}))
    row = quantry.LocalArtifact(tmp_path).row()
    assert row["recipe"] == "" and row["preprocessing"] == "none"
