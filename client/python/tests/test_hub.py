"""Artifacts pushed to a hub by huggingface_hub itself, against a hub that speaks its HTTP API here."""
import hashlib
import json
import os
import shutil

import pytest

# Read when huggingface_hub is imported: no Xet storage here, no account of whoever runs this.
os.environ.update(HF_HUB_DISABLE_XET="1", HF_HUB_DISABLE_TELEMETRY="1", HF_HUB_DISABLE_IMPLICIT_TOKEN="1")

import quantry  # noqa: E402
from quantry.integrations import hub  # noqa: E402
from service import fake_hub  # noqa: E402


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "hub").mkdir()
    return tmp_path / "hub"


@pytest.fixture
def endpoint(folder):
    with fake_hub(folder) as url:
        yield url


CARD = b"---\nlibrary_name: quantry\n---\n# A model\n"
FILES = {"dense/model.safetensors": b"d" * 5000, "dense/config.json": b"{}", "dense/README.md": CARD,
         "quantry/model.quantry.safetensors": b"q" * 4000, "quantry/README.md": CARD, "report/report.html": b"<html>"}


@pytest.fixture
def artifact(tmp_path):
    """A folder as pull() leaves it."""
    folder = tmp_path / "w4"
    for name, data in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    manifest = {"job": "tenants/default/quantizationJobs/w4", "method": "awq",
                "files": [{"path": name, "sha256": hashlib.sha256(data).hexdigest()} for name, data in FILES.items()],
                "outputs": [{"format": "dense", "path": "dense"}, {"format": "quantry", "path": "quantry"}]}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return quantry.LocalArtifact(folder)


def names(repo):
    return {str(path.relative_to(repo)) for path in repo.rglob("*") if path.is_file()}


def requests(folder):
    return [line.split()[0] for line in (folder / "requests").read_text().splitlines()]


def test_pushed_whole_and_once(artifact, folder, endpoint):
    pushed = hub.push(artifact, "hf://org/stories-w4", format="dense", endpoint=endpoint, private=True)
    dense, there = artifact.output("dense"), folder / "org/stories-w4"
    assert names(there) == names(dense) | {"quantry-manifest.json"} and pushed.files == len(names(there))
    for name in names(dense):
        assert (there / name).read_bytes() == (dense / name).read_bytes(), name
    assert pushed.uri == f"hf://org/stories-w4@{pushed.commit}"
    before = len(requests(folder))
    again = hub.push(artifact.folder, "hf://org/stories-w4", format="dense", endpoint=endpoint)
    assert again.commit == pushed.commit
    assert not [path for path in requests(folder)[before:] if "/commit/" in path or path.startswith("/lfs/")]


def test_a_job_on_what_was_pushed(client, finished, make_server, folder, endpoint, tmp_path):
    """There and back: a real artifact, and a worker that fetches the commit which push() named."""
    pulled = client.pull(finished, tmp_path / "pulled")
    pushed = hub.push(pulled.artifact, "hf://org/dense", format="dense", endpoint=endpoint)
    assert names(folder / "org/dense") == names(pulled.artifact.output("dense")) | {"quantry-manifest.json"}
    assert (folder / "org/dense/README.md").read_text().startswith("---\n")
    server = make_server(f"--hub-endpoint={endpoint}").start()
    with quantry.connect(server.address) as other:
        job = other.wait(other.submit(model_uri=pushed.uri, method="rtn", group_size="channel"), timeout=120)
        assert job.succeeded and job.proto.spec.model.uri == pushed.uri


def test_a_branch(artifact, folder, endpoint):
    hub.push(artifact, "hf://org/stories", format="dense", endpoint=endpoint)
    hub.push(artifact, "hf://org/stories@w4", format="quantry", endpoint=endpoint)
    assert "model.safetensors" in names(folder / "org/stories") and "model.quantry.safetensors" in names(folder / "org/stories@w4")


def test_other_weights_are_not_mixed_in(artifact, folder, endpoint):
    hub.push(artifact, "hf://org/stories", format="dense", endpoint=endpoint)
    with pytest.raises(quantry.Conflict, match="got org/stories@main with model.safetensors") as caught:
        hub.push(artifact, "hf://org/stories", format="quantry", endpoint=endpoint)
    assert "replace=True" in caught.value.hint and "model.quantry.safetensors" not in names(folder / "org/stories")
    hub.push(artifact, "hf://org/stories", format="quantry", endpoint=endpoint, replace=True)
    assert {name for name in names(folder / "org/stories") if name.endswith("tensors")} == {"model.quantry.safetensors"}


def test_a_damaged_folder_is_not_sent(artifact, folder, endpoint, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(artifact.folder, copy)
    weights = copy / "dense/model.safetensors"
    weights.chmod(0o644)
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    with pytest.raises(quantry.CorruptData):
        hub.push(copy, "hf://org/stories", format="dense", endpoint=endpoint)
    assert not (folder / "requests").exists()


def test_a_folder_with_one_output(artifact, folder, endpoint):
    """As pull(format="quantry") leaves it: enough to push that output, and to verify it."""
    shutil.rmtree(artifact.folder / "dense")
    assert artifact.verify("quantry") == 2
    hub.push(artifact, "hf://org/stories", format="quantry", endpoint=endpoint)
    assert names(folder / "org/stories") == names(artifact.output("quantry")) | {"quantry-manifest.json"}
    with pytest.raises(quantry.CorruptData, match="dense/model.safetensors.*no such file") as caught:
        artifact.verify()
    assert "verify(format)" in caught.value.hint
    with pytest.raises(quantry.CorruptData, match="dense/model.safetensors"):
        hub.push(artifact, "hf://org/stories", format="dense", endpoint=endpoint)


@pytest.mark.parametrize("target", ["org/name", "hf://name", "hf://org/../x", "hf://org/name@", "hf://org/.git", "https://x/org/name",
                                    "hf://org/name@" + "0" * 40])
def test_targets_that_are_none(artifact, target):
    with pytest.raises(quantry.InvalidRequest, match="target: wanted"):
        hub.push(artifact, target, endpoint="http://127.0.0.1:1")


@pytest.mark.parametrize("script, kind, text", [
    ({"token": "hf_right"}, quantry.AccessDenied, "--token-file"), ({"status": [500]}, quantry.ServerUnavailable, "push again"),
    ({"status": [413]}, quantry.QuotaExceeded, "limit"), ({"status": [400]}, quantry.InvalidRequest, "hf://org/x")])
def test_what_the_hub_refuses(artifact, folder, endpoint, script, kind, text):
    (folder / "script.json").write_text(json.dumps(script))
    with pytest.raises(kind) as caught:
        hub.push(artifact, "hf://org/x", format="dense", endpoint=endpoint, token="hf_wrong")
    assert text in str(caught.value) and endpoint in str(caught.value)


def test_the_command(artifact, folder, endpoint, tmp_path, capsys):
    (folder / "script.json").write_text(json.dumps({"token": "hf_right"}))
    command = [str(artifact.folder), "hf://org/cli", "--format", "dense", "--endpoint", endpoint]
    assert hub.main(command) == 5 and "AccessDenied" not in capsys.readouterr().err
    (tmp_path / "token").write_text("hf_right\n")
    assert hub.main([*command, "--token-file", str(tmp_path / "token")]) == 0
    assert json.loads(capsys.readouterr().out)["uri"].startswith("hf://org/cli@")
    assert hub.main([*command, "--token-file", str(tmp_path / "none")]) == 2
    assert hub.main([str(tmp_path), "hf://org/cli"]) == 4
    assert hub.main([str(artifact.folder), "hf://org/cli", "--endpoint", "http://127.0.0.1:1"]) == 7
    assert "push again" in capsys.readouterr().err
