"""quantry.step, and the pipelines of integrations/ that run it, against a live quantryd."""
import json
import math
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading

import pytest
import yaml

import quantry
from conftest import EXAMPLES, MEASURED, ROOT, TESTS, wait_for
from quantry import step
from quantry.v1 import job_pb2

PIPELINES, KUBERNETES = ROOT / "integrations", ROOT / "deploy/kubernetes"
QUICK_ARGUMENTS = {"calibration_samples": 8, "calibration_length": 64, "evaluation_length": 64, "evaluation_windows": 8,
                   "formats": "quantry"}
TEXTS = ["--calibration", str(EXAMPLES / "text/calibration.txt"), "--evaluation", str(EXAMPLES / "text/evaluation.txt")]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(TESTS.parent)}


def test_outputs_and_pull(server, stories, tmp_path, capsys):
    arguments = ["--server", server.address, "--model", str(stories), "--method", "awq", "--group-size", "channel", *TEXTS,
                 "--arguments", json.dumps(QUICK_ARGUMENTS), "--request-key", "dag/run-1/outputs"]
    assert step.main([*arguments, "--pull", str(tmp_path / "w4"), "--output-dir", str(tmp_path / "all"),
                      "--output", "perplexity_ratio", str(tmp_path / "deep/er/ratio")]) == 0
    outputs = {path.name: path.read_text() for path in (tmp_path / "all").iterdir()}
    assert set(outputs) == set(step.OUTPUTS) - {"perplexity_ratio"}
    ratio = float((tmp_path / "deep/er/ratio").read_text())
    assert 1 < ratio < 2 and outputs["state"] == "succeeded"
    assert len(json.loads(outputs["report"])["blocks"]) == 5
    assert quantry.LocalArtifact(tmp_path / "w4").verify() > 3
    said = capsys.readouterr().err
    assert "succeeded" in said and "submitted tenants/default/" in said
    # Again, as a pipeline would: the same job, and nothing runs twice.
    assert step.main([*arguments, "--output-dir", str(tmp_path / "again")]) == 0
    assert (tmp_path / "again/job").read_text() == outputs["job"]


def test_a_pull_over_another_artifact(server, finished, client, stories, tmp_path, capsys):
    client.pull(finished, tmp_path / "w4")
    arguments = ["--server", server.address, "--model", str(stories), "--method", "rtn", "--group-size", "channel",
                 "--request-key", "pull-over", "--pull", str(tmp_path / "w4")]
    assert step.main(arguments) == 2 and "--pull-force" in capsys.readouterr().err
    assert step.main([*arguments, "--pull-force"]) == 0
    pulled = quantry.LocalArtifact(tmp_path / "w4")
    assert pulled.method == "rtn" and pulled.verify() > 3


@pytest.mark.parametrize("arguments, code, text", [
    (["--method", "magic", "--model", "."], 2, "wanted one of rtn"),
    (["--method", "rtn", "--model", "/no/such/model"], 2, "does not exist"),
    (["--method", "rtn", "--model-path", "/etc"], 5, "SOURCE_FORBIDDEN"),
    (["--method", "rtn", "--arguments", "[]"], 2, "wanted a JSON object"),
    (["--method", "rtn", "--model", ".", "--arguments", "{\"colour\": 1}"], 2, "no argument \"colour\"; a field of the method's own"),
    (["--method", "rtn", "--model", ".", "--arguments", "{\"bits\": \"4\"}"], 2, "bits: wanted a whole number"),
    (["--method", "rtn", "--model", ".", "--arguments", "{\"seed\": -99999999999999999999999}"], 2, "seed: wanted a whole number"),
    (["--method", "rtn", "--model", ".", "--arguments", "{\"max_run\": 1e400}"], 2, "max_run: wanted a number"),
    (["--method", "rtn", "--model", ".", "--arguments", "{\"labels\": 3}"], 2, "--arguments: "),
    (["--method", "rtn", "--output", "job", "/proc/x/job"], 2, "wanted a place where job can be written, got \"/proc/x/job\""),
    (["--method", "rtn", "--output-dir", "/proc/x"], 2, "wanted a place where job can be written"),
    (["--method", "rtn", "--output", "colour", "x"], 2, "--output: wanted one of job"),
    (["--server", "127.0.0.1:1", "--method", "rtn"], 7, "no answer"),
    (["--server", "http://127.0.0.1:1", "--method", "rtn"], 2, "wanted HOST:PORT"),
])
def test_exit_codes(server, capsys, arguments, code, text):
    assert step.main(["--server", server.address, *arguments]) == code
    assert text in capsys.readouterr().err


def test_a_perplexity_that_is_not_finite():
    """A gate of a pipeline must not take it for a good one, and the report is JSON."""
    job = job_pb2.QuantizationJob(name="tenants/default/quantizationJobs/j", state=job_pb2.JOB_STATE_SUCCEEDED)
    perplexity = job.result.quality.perplexity
    perplexity.dense, perplexity.quantized, perplexity.tokens = 7.1, math.inf, 100
    outputs = step.outputs_of(quantry.Job(job))
    assert float(outputs["perplexity_ratio"]) == float(outputs["perplexity_quantized"]) == math.inf

    def no_json(word):
        raise ValueError(word)

    assert json.loads(outputs["report"], parse_constant=no_json)["row"]["perplexity_ratio"] is None


def test_losses_that_were_not_measured_are_null_in_the_report():
    job = job_pb2.QuantizationJob(name="tenants/default/quantizationJobs/j", state=job_pb2.JOB_STATE_SUCCEEDED)
    job.result.blocks.add(index=3, seconds=1.5)
    (block,) = json.loads(step.outputs_of(quantry.Job(job))["report"])["blocks"]
    assert block == {"block": 3, "loss_rtn": None, "loss_final": None, "improvement": None, "seconds": 1.5}


def test_the_tenant_is_the_environment_s(server, monkeypatch):
    asked = []

    def submit(client, *_, **__):
        asked.append(client.tenant)
        raise quantry.InvalidRequest("enough")

    monkeypatch.setattr(quantry.Client, "submit", submit)
    monkeypatch.setenv("QUANTRY_TENANT", "acme")
    for more in ([], ["--tenant", "other"], ["--tenant", ""]):  # templates leave empty texts
        assert step.main(["--server", server.address, "--method", "rtn", *more]) == 2
    assert asked == ["acme", "other", "acme"]


def test_a_gate_that_fails(server, stories, tmp_path, capsys):
    arguments = {**QUICK_ARGUMENTS, "max_perplexity_ratio": 0.5}
    code = step.main(["--server", server.address, "--model", str(stories), "--method", "rtn", "--group-size", "channel", *TEXTS,
                      "--arguments", json.dumps(arguments), "--output-dir", str(tmp_path)])
    assert code == 1 and "QUALITY_GATE_FAILED" in capsys.readouterr().err
    assert (tmp_path / "state").read_text() == "failed"


def test_time_over_and_back_again(server, client, stories, tmp_path, capsys):
    arguments = ["--server", server.address, "--model", str(stories), "--method", "rtn", "--group-size", "channel",
                 "--request-key", "time-over", "--output-dir", str(tmp_path)]
    assert step.main([*arguments, "--timeout", "0.01"]) == 8
    assert step.main(arguments) == 0
    assert (tmp_path / "perplexity_ratio").read_text() == ""


def substitute(text, values):
    return re.sub(r"{{([^}]+)}}", lambda match: values[match.group(1)], text)


PLAIN = {"tls-ca": "", "tls-cert": "", "tls-key": ""}  # a server without TLS


def argo_command(parameters, workflow, outputs):
    """The container of the template as Argo would start it, with its output folder moved."""
    document = yaml.safe_load((PIPELINES / "argo/quantize.yaml").read_text())
    template = document["spec"]["templates"][0]
    values = {f"inputs.parameters.{p['name']}": p.get("value") for p in template["inputs"]["parameters"]}
    values.update({f"inputs.parameters.{name}": value for name, value in parameters.items()})
    values["workflow.uid"] = workflow
    container = template["container"]
    words = [substitute(word, values).replace("/tmp/outputs", str(outputs)) for word in container["command"] + container["args"]]
    assert words[0] == "python"
    return [sys.executable, *words[1:]], template


def test_argo(rooted, tmp_path):
    parameters = {"server": rooted.address, **PLAIN, "model-uri": f"file://{EXAMPLES / 'stories260k'}", "group-size": "channel",
                  "calibration": str(EXAMPLES / "text/calibration.txt"),
                  "evaluation": str(EXAMPLES / "text/evaluation.txt"), "arguments": json.dumps(QUICK_ARGUMENTS)}
    command, template = argo_command(parameters, "3f1c", tmp_path)
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    files = [p["valueFrom"]["path"] for p in template["outputs"]["parameters"]]
    files += [a["path"] for a in template["outputs"]["artifacts"]]
    for path in files:
        assert (tmp_path / path.rsplit("/", 1)[1]).read_text(), path
    again = subprocess.run(command, capture_output=True, text=True, timeout=60, env=ENVIRONMENT)
    assert again.returncode == 0
    with quantry.connect(rooted.address) as client:
        assert [job.name for job in client.list(method="awq")] == [(tmp_path / "job").read_text()]
    # What is retried is what the step calls worth a retry.
    retried = [int(code) for code in re.search(r"in \[(.*)\]", template["retryStrategy"]["expression"]).group(1).split(",")]
    assert retried == [-1, 6, 7, 8] and "6 quota, 7 server unreachable, 8 time over" in (PIPELINES / "README.md").read_text()


@pytest.mark.parametrize("parameters, bits, group_size", [
    ({"method": "ptq161"}, None, None), ({"bits": "3", "group-size": "64"}, 3, "64"), ({}, None, None)])
def test_argo_gives_a_grid_to_methods_that_have_one(parameters, bits, group_size):
    command, _ = argo_command({"model-uri": "s3://m", **parameters}, "3f1c", "/nowhere")
    arguments = step._arguments(step._parser().parse_args(command[3:]))
    assert (arguments.get("bits"), arguments.get("group_size")) == (bits, group_size)


def in_the_cluster():
    """(address of the tenant port, name and files of the clients' Secret), as deploy/kubernetes has them."""
    service = yaml.safe_load((KUBERNETES / "base/service.yaml").read_text())
    (port,) = [port["port"] for port in service["spec"]["ports"] if port["name"] == "tenant"]
    certificates = yaml.safe_load_all((KUBERNETES / "components/cert-manager/certificates.yaml").read_text())
    secrets = {made["metadata"]["name"]: made["spec"].get("secretName") for made in certificates}
    return f"{service['metadata']['name']}.quantry.svc:{port}", secrets["quantry-client"]


def asked_with(words):
    """The settings of the connection that a step's command line makes."""
    options = step._parser().parse_args(words)
    return options.server, [options.tls_ca, options.tls_cert, options.tls_key], options.token_file


CLIENT_FILES = [f"/etc/quantry/client/{name}" for name in ("ca.crt", "tls.crt", "tls.key")]


def test_argo_reaches_the_server_of_the_cluster():
    """At the port of its Service, with the clients' Secret; nothing is an argument of the whole, which no templateRef brings."""
    command, template = argo_command({"model-uri": "s3://m"}, "3f1c", "/nowhere")
    address, secret = in_the_cluster()
    assert asked_with(command[3:]) == (address, CLIENT_FILES, "")
    (volume,), (mount,) = template["volumes"], template["container"]["volumeMounts"]
    default = {p["name"]: p.get("value") for p in template["inputs"]["parameters"]}
    assert volume["secret"]["secretName"] == "{{inputs.parameters.client-secret}}" and default["client-secret"] == secret
    assert mount["name"] == volume["name"] and mount["mountPath"] == "/etc/quantry/client"
    text = (PIPELINES / "argo/quantize.yaml").read_text()
    assert "{{workflow.parameters." not in text and "label quantry/client=true" in text


def test_kubeflow_reaches_the_server_of_the_cluster(tmp_path):
    component = yaml.safe_load((PIPELINES / "kubeflow/quantize.yaml").read_text())
    inputs = {i["name"]: i.get("default", "x") for i in component["inputs"]}
    words = [kubeflow_words(part, inputs, tmp_path) for part in component["implementation"]["container"]["command"]]
    address, secret = in_the_cluster()
    assert asked_with(words[3:]) == (address, CLIENT_FILES, "")
    text = (PIPELINES / "kubeflow/quantize.yaml").read_text()
    assert f'secret_name="{secret}", mount_path="/etc/quantry/client"' in text and "label quantry/client=true" in text


def test_argo_retries_however_long_a_step_ran():
    """maxDuration is a deadline from the first start: a retry of a longer step would be killed at once."""
    document = yaml.safe_load((PIPELINES / "argo/quantize.yaml").read_text())
    assert set(document["spec"]["templates"][0]["retryStrategy"]["backoff"]) == {"duration", "factor"}


def kubeflow_words(part, inputs, folder):
    if isinstance(part, str):
        return part
    if "inputValue" in part:
        return inputs[part["inputValue"]]
    return str(folder / part["outputPath"] / "data")


def test_kubeflow(rooted, tmp_path):
    component = yaml.safe_load((PIPELINES / "kubeflow/quantize.yaml").read_text())
    inputs = {i["name"]: i.get("default") for i in component["inputs"]}
    inputs.update(server=rooted.address, tls_ca="", tls_cert="", tls_key="", model_uri=f"file://{EXAMPLES / 'stories260k'}", run_id="kfp-1", method="rtn",
                  group_size="channel", arguments="{\"formats\": \"quantry\"}")
    words = [kubeflow_words(part, inputs, tmp_path) for part in component["implementation"]["container"]["command"]]
    done = subprocess.run([sys.executable, *words[1:]], capture_output=True, text=True, timeout=120, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    written = {path.parent.name for path in tmp_path.glob("*/data")}
    assert written == {output["name"] for output in component["outputs"]}
    assert (tmp_path / "job/data").read_text().startswith("tenants/default/")


def unknown_to(source, understood, path=""):
    """Paths of the source that the other side dropped or changed."""
    if isinstance(source, dict):
        return [found for name, value in source.items()
                for found in unknown_to(value, (understood or {}).get(name), f"{path}.{name}")]
    if isinstance(source, list):
        pairs = zip(source, understood or [None] * len(source))
        return [found for i, (value, other) in enumerate(pairs) for found in unknown_to(value, other, f"{path}[{i}]")]
    return [] if str(source) == str(understood) else [path]


@pytest.mark.full
def test_argo_s_own_types():
    """Argo's Python types know every field of the template."""
    models = pytest.importorskip("hera.workflows.models", reason="hera is not in the default test environment")
    document = yaml.safe_load((PIPELINES / "argo/quantize.yaml").read_text())

    def understood():
        return models.WorkflowTemplate.model_validate(document).model_dump(mode="json", by_alias=True, exclude_none=True)

    assert unknown_to(document, understood()) == []
    document["spec"]["templates"][0]["container"]["colour"] = "red"
    assert unknown_to(document, understood()) == [".spec.templates[0].container.colour"]


@pytest.mark.full
def test_kubeflow_s_own_compiler(tmp_path):
    """The SDK loads the component and compiles a pipeline of it."""
    kfp = pytest.importorskip("kfp", reason="kfp is not in the default test environment")
    quantize = kfp.components.load_component_from_file(str(PIPELINES / "kubeflow/quantize.yaml"))

    @kfp.dsl.pipeline(name="models")
    def pipeline(uri: str):
        first = quantize(server="q:7070", model_uri=uri, run_id=kfp.dsl.PIPELINE_JOB_ID_PLACEHOLDER)
        quantize(server="q:7070", model_uri=first.outputs["artifact_uri"], run_id="second")

    kfp.compiler.Compiler().compile(pipeline, str(tmp_path / "pipeline.yaml"))
    compiled = yaml.safe_load((tmp_path / "pipeline.yaml").read_text())
    words = compiled["deploymentSpec"]["executors"]["exec-quantize-with-quantry"]["container"]["command"]
    assert words[:3] == ["python", "-m", "quantry.step"] and "{{$.outputs.parameters['job'].output_file}}" in words


def script(server, binaries, *arguments, **variables):
    environment = {**os.environ, "PATH": f"{binaries}:{os.environ['PATH']}", "QUANTRY_SERVER": server.address, **variables}
    return subprocess.run([PIPELINES / "ci/quantize.sh", *map(str, arguments)], capture_output=True, text=True, timeout=120,
                          env=environment)


QUICK_FLAGS = ["--method", "rtn", "--group-size", "channel", "--evaluation-length", "64", "--evaluation-windows", "8",
               "--calibration-samples", "8", "--calibration-length", "64", "--format", "quantry"]


def test_ci_script(server, client, binaries, stories, tmp_path):
    text = EXAMPLES / "text/evaluation.txt"
    summary = tmp_path / "summary.md"
    before = len(list(client.list()))
    for _ in range(2):
        done = script(server, binaries, stories, text, tmp_path / "out", *QUICK_FLAGS, RUN_KEY="ci-1",
                      GITHUB_STEP_SUMMARY=str(summary))
        assert done.returncode == 0, done.stderr
    assert len(list(client.list())) == before + 1
    assert quantry.LocalArtifact(tmp_path / "out").verify() > 3
    assert "succeeded" in summary.read_text().lower()
    assert script(server, binaries, stories).returncode == 2
    nameless = {"GITHUB_SHA": "", "CI_COMMIT_SHA": "", "GIT_COMMIT": "", "GIT_DIR": "/nowhere"}
    refused = script(server, binaries, stories, text, tmp_path / "out", *QUICK_FLAGS, **nameless)
    assert refused.returncode == 2 and "RUN_KEY" in refused.stderr
    gate = script(server, binaries, stories, text, tmp_path / "gated", *QUICK_FLAGS, "--max-perplexity-ratio", "0.5", RUN_KEY="gate")
    assert gate.returncode == 1 and "QUALITY_GATE_FAILED" in gate.stderr


def test_image():
    done = subprocess.run([pathlib.Path(sys.executable).with_name("hadolint"), "-c", ROOT / ".hadolint.yaml",
                           PIPELINES / "Dockerfile"], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stdout


def test_ci_script_without_a_server(server, binaries, stories, tmp_path):
    done = script(server, binaries, stories, EXAMPLES / "text/evaluation.txt", tmp_path / "out", *QUICK_FLAGS,
                  QUANTRY_SERVER="127.0.0.1:1", RETRY_PAUSE="0")
    assert done.returncode == 7 and done.stderr.count("no answer from the server") == 4


@pytest.mark.full
def test_a_step_survives_a_restart_of_the_server(make_server, stories, tmp_path, capsys):
    server = make_server("--lease-ttl-s=3", "--heartbeat-interval-s=1", "--sweep-interval-s=1").start()
    with quantry.connect(server.address) as client:
        job = client.submit(stories, request_id=quantry.request_id_for("restart"), **MEASURED)

        def restart():
            wait_for(lambda: client.get(job).progress.blocks_done >= 1, 30, "a block")
            server.stop(signal.SIGTERM)
            server.start()

        thread = threading.Thread(target=restart)
        thread.start()
        arguments = {**QUICK_ARGUMENTS, "formats": []}
        code = step.main(["--server", server.address, "--model", str(stories), "--method", "awq", "--bits", "4",
                          "--group-size", "channel", *TEXTS, "--arguments", json.dumps(arguments), "--request-key", "restart",
                          "--output-dir", str(tmp_path)])
        thread.join(60)
    assert code == 0 and (tmp_path / "job").read_text() == job.name
