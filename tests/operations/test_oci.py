"""`quantry export --oci-layout` read by another program: skopeo checks every digest and copies the image."""
import hashlib
import json
import shutil

import pytest

from conftest import EXAMPLES, cli, run_tool, start_service, tool_environment


def skopeo(*args):
    return run_tool("skopeo", "--insecure-policy", *args, env=tool_environment())


@pytest.fixture
def layout(binaries, tmp_path, processes):
    tenant = start_service(processes, binaries, tmp_path)["tenant"]
    cli(binaries, tenant, "submit", EXAMPLES / "stories260k", "--id", "my-job", "--method", "rtn", "--group-size", -1, "--wait")
    cli(binaries, tenant, "export", "my-job", "--oci-layout", tmp_path / "oci", "--tag", "v1")
    return tmp_path / "oci"


def test_skopeo_reads_and_copies_an_export(layout, tmp_path):
    raw = skopeo("inspect", "--raw", f"oci:{layout}:v1")
    assert raw.returncode == 0, raw.stderr
    manifest = json.loads(raw.stdout)
    assert manifest["artifactType"] == "application/vnd.cncf.model.manifest.v1+json"
    # As one folder, as a registry's client would store it: every file under its digest.
    copied = skopeo("copy", f"oci:{layout}:v1", f"dir:{tmp_path}/files")
    assert copied.returncode == 0, copied.stderr
    paths = {layer["annotations"]["org.cncf.model.filepath"]: layer["digest"].removeprefix("sha256:") for layer in manifest["layers"]}
    assert {"model.safetensors", "config.json", "tokenizer.json", "README.md", "quantry-manifest.json"} <= set(paths)
    for digest in paths.values():
        assert hashlib.sha256((tmp_path / "files" / digest).read_bytes()).hexdigest() == digest
    # To another layout: the same digest, so nothing was rewritten on the way.
    assert skopeo("copy", f"oci:{layout}:v1", f"oci:{tmp_path}/again:v1").returncode == 0
    again, = json.loads((tmp_path / "again/index.json").read_text())["manifests"]
    ours, = json.loads((layout / "index.json").read_text())["manifests"]
    assert (again["digest"], again["size"]) == (ours["digest"], ours["size"])


def test_skopeo_sees_a_damaged_export(layout, tmp_path):
    manifest = json.loads(skopeo("inspect", "--raw", f"oci:{layout}:v1").stdout)
    blob = layout / "blobs/sha256" / manifest["layers"][-1]["digest"].removeprefix("sha256:")
    blob.write_bytes(bytes(len(blob.read_bytes())))
    shutil.rmtree(tmp_path / "files", ignore_errors=True)
    assert skopeo("copy", f"oci:{layout}:v1", f"dir:{tmp_path}/files").returncode != 0
