"""Overlays of deploy/kubernetes as kubectl would apply them."""
import functools

import yaml

from conftest import DEPLOY, run_tool

KUBERNETES = DEPLOY / "kubernetes"


@functools.cache
def build(overlay):
    done = run_tool("kubectl", "kustomize", KUBERNETES / "overlays" / overlay)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def named(overlay, kind):
    return {item["metadata"]["name"]: item for item in build(overlay) if item["kind"] == kind}


def pod_templates(overlay):
    for kind in ("StatefulSet", "Deployment"):
        for name, item in named(overlay, kind).items():
            yield name, item["spec"]["template"]
    for name, item in named(overlay, "ScaledJob").items():
        yield name, item["spec"]["jobTargetRef"]["template"]


def containers(template):
    return template["spec"].get("initContainers", []) + template["spec"]["containers"]
