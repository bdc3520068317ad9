"""Overlays: they build, fit the schemas, refer only to what exists, and run only what the programs take."""
import json
import pathlib
import re

import jsonschema
import kubernetes_validate
import pytest
import yaml

from conftest import DEPLOY, EXAMPLES, ROOT, check_flags, cli, run_tool, start_service
from overlays import build, containers, named, pod_templates
from queries import metric_names

OVERLAYS = ["embedded", "distributed", "keda"]
SCHEMAS = json.loads((pathlib.Path(__file__).parent / "crd_schemas.json").read_text())
PROGRAMS = {"quantryd": "quantryd", "worker": "quantry-worker"}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_schemas(overlay):
    for item in build(overlay):
        if item["kind"] in SCHEMAS:
            jsonschema.validate(item, SCHEMAS[item["kind"]], cls=jsonschema.Draft202012Validator)
        else:
            kubernetes_validate.validate(item, "1.33", strict=True)
    for name, item in named(overlay, "ScaledJob").items():  # its pods are plain ones
        job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name}, "spec": item["spec"]["jobTargetRef"]}
        kubernetes_validate.validate(job, "1.33", strict=True)


@pytest.mark.parametrize("change", [lambda s: s["spec"].update(replicas="one"), lambda s: s["spec"].pop("selector"),
                                    lambda s: s["spec"]["template"]["spec"]["containers"][0].update(imagee="x")])
def test_the_schema_check_can_fail(change):
    broken = json.loads(json.dumps(named("embedded", "StatefulSet")["quantryd"]))
    change(broken)
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, "1.33", strict=True)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_custom_resources_with_a_wrong_field_are_seen(overlay):
    for item in build(overlay):
        if item["kind"] in SCHEMAS:
            broken = {**item, "spec": {**item["spec"], "notAField": 1}}
            with pytest.raises(jsonschema.ValidationError):
                jsonschema.validate(broken, SCHEMAS[item["kind"]], cls=jsonschema.Draft202012Validator)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_everything_is_in_one_namespace_with_the_restricted_profile(overlay):
    assert named(overlay, "Namespace")["quantry"]["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    assert {item["metadata"].get("namespace", "quantry") for item in build(overlay)} == {"quantry"}
    for name, template in pod_templates(overlay):
        pod = template["spec"]["securityContext"]
        assert pod["runAsNonRoot"] and pod["runAsUser"] > 0 and pod["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert template["spec"]["automountServiceAccountToken"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(template["spec"])
        for container in containers(template):
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False and context["capabilities"] == {"drop": ["ALL"]}, container["name"]
            assert context["readOnlyRootFilesystem"] is True
            assert container["resources"]["limits"]["memory"] and container["resources"]["requests"]["cpu"]
            assert re.fullmatch(r"[\w./-]+:\d+(\.\d+)+", container["image"]), container["image"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_volumes_and_names_resolve(overlay):
    maps, claims = named(overlay, "ConfigMap"), named(overlay, "PersistentVolumeClaim")
    secrets = {c["spec"]["secretName"] for c in named(overlay, "Certificate").values()} | {"quantry-object-store", "quantry-database"}
    if overlay == "embedded":
        secrets = {"quantry-server-tls"}  # made by hand there: docs/operations/deployment.md
    for name, template in pod_templates(overlay):
        volumes = {volume["name"]: volume for volume in template["spec"].get("volumes", [])}
        set_claims = {claim["metadata"]["name"] for stateful in named(overlay, "StatefulSet").values()
                      for claim in stateful["spec"].get("volumeClaimTemplates", []) if name == stateful["metadata"]["name"]}
        for container in containers(template):
            assert {mount["name"] for mount in container.get("volumeMounts", [])} <= set(volumes) | set_claims, container["name"]
            for source in container.get("envFrom", []):
                assert source.get("configMapRef", {}).get("name", next(iter(maps))) in maps
                assert source.get("secretRef", {}).get("name", next(iter(secrets))) in secrets
        for volume in volumes.values():
            assert volume.get("configMap", {}).get("name", next(iter(maps))) in maps, volume
            assert volume.get("secret", {}).get("secretName", next(iter(secrets))) in secrets, volume
            if "persistentVolumeClaim" in volume:
                assert volume["persistentVolumeClaim"]["claimName"] in claims
        account = template["spec"]["serviceAccountName"]
        assert account in named(overlay, "ServiceAccount")


def labels_of(overlay):
    return {name: template["metadata"]["labels"] for name, template in pod_templates(overlay)}


def selected(selector, overlay):
    wanted = selector.get("matchLabels", selector)
    return [name for name, labels in labels_of(overlay).items() if wanted.items() <= labels.items()]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_selectors_find_pods_and_ports_exist(overlay):
    ports = {name: {port["name"]: port["containerPort"] for c in containers(template) for port in c.get("ports", [])}
             for name, template in pod_templates(overlay)}
    for service in named(overlay, "Service").values():
        (pod,) = selected(service["spec"]["selector"], overlay)
        assert all(ports[pod][port["targetPort"]] == port["port"] for port in service["spec"]["ports"])
    service_ports = {port["name"] for port in named(overlay, "Service")["quantryd"]["spec"]["ports"]}
    for monitor in named(overlay, "ServiceMonitor").values():
        assert {endpoint["port"] for endpoint in monitor["spec"]["endpoints"]} <= service_ports
        assert monitor["spec"]["selector"]["matchLabels"].items() <= named(overlay, "Service")["quantryd"]["metadata"]["labels"].items()
    for monitor in named(overlay, "PodMonitor").values():
        for pod in selected(monitor["spec"]["selector"], overlay):
            assert {endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]} <= set(ports[pod])
    for budget in named(overlay, "PodDisruptionBudget").values():
        assert selected(budget["spec"]["selector"], overlay)
    open_ports = {port for numbers in ports.values() for port in numbers.values()} | {53, 443, 5432}
    for policy in named(overlay, "NetworkPolicy").values():
        assert selected(policy["spec"]["podSelector"], overlay), policy["metadata"]["name"]
        for rule in policy["spec"].get("ingress", []) + policy["spec"].get("egress", []):
            assert {port["port"] for port in rule["ports"]} <= open_ports


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_all_pods_are_denied_by_default(overlay):
    deny = named(overlay, "NetworkPolicy")["quantry-deny"]["spec"]
    assert set(deny["policyTypes"]) == {"Ingress", "Egress"} and not deny.get("ingress") and not deny.get("egress")
    assert set(selected(deny["podSelector"], overlay)) == set(labels_of(overlay))


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_embedded_scrapes_its_worker(overlay):
    endpoints = {e["port"] for e in named(overlay, "ServiceMonitor")["quantryd"]["spec"]["endpoints"]}
    beside = any(c["name"] == "worker" for c in named(overlay, "StatefulSet")["quantryd"]["spec"]["template"]["spec"]["containers"])
    assert ("worker-metrics" in endpoints) == beside


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_programs_take_their_arguments(binaries, tmp_path, overlay):
    checked = 0
    for _, template in pod_templates(overlay):
        grace = template["spec"]["terminationGracePeriodSeconds"]
        for container in containers(template):
            program = PROGRAMS.get(container["name"])
            if program is None:
                continue
            args = [arg.replace("$(POD_NAME)", "pod-1") for arg in container["args"]]
            check_flags(binaries, program, args, tmp_path)
            drain = next((int(arg.split("=")[1]) for arg in args if arg.startswith("--drain-timeout-s")), 25)
            assert grace > drain
            checked += 1
    assert checked == 2


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_probes_ask_the_container_itself_and_liveness_spares_the_store(overlay):
    for _, template in pod_templates(overlay):
        for container in containers(template):
            if container["name"] in PROGRAMS:
                port = {"quantryd": "7072", "worker": "7073"}[container["name"]]
                assert container["livenessProbe"]["exec"]["command"] == ["healthcheck", f"127.0.0.1:{port}", "/livez"]
                assert container["startupProbe"]["exec"]["command"][-1] == "/livez"


def test_commands_of_the_pages_find_what_is_there():
    """kubectl in text and blocks: the namespace is said, and pods are of a StatefulSet's name with a number."""
    found = 0
    for page in sorted((ROOT / "docs").glob("**/*.md")):
        for command in re.findall(r"\bkubectl [^`\n]*", page.read_text()):
            if re.match(r"kubectl (apply -k|kustomize|create namespace quantry)\b", command):
                continue
            assert command.startswith("kubectl -n quantry "), f"{page.name}: {command}"
            forwarded = re.search(r"port-forward (\S+)", command)
            if forwarded:
                found += 1
                assert forwarded.group(1).rpartition("-")[0::2] in [(name, "0") for name in named("distributed", "StatefulSet")], command
    assert found >= 2


def mounts(template, container):
    """{mount path: volume} of one container."""
    volumes = {volume["name"]: volume for volume in template["spec"]["volumes"]}
    (found,) = (c for c in template["spec"]["containers"] if c["name"] == container)
    return {mount["mountPath"]: volumes[mount["name"]] for mount in found["volumeMounts"]}


def test_the_settings_are_ones_the_server_takes(binaries, tmp_path):
    data = next(item["data"] for name, item in named("distributed", "ConfigMap").items() if name.startswith("quantry-settings"))
    assert {key for key in data if not key.startswith("QUANTRY_")} == set()
    password = tmp_path / "password"
    password.touch(mode=0o440)
    password.write_text("x\n")
    flags = {f"--{key.removeprefix('QUANTRY_').lower().replace('_', '-')}": value for key, value in data.items()}
    flags["--job-store-password-file"] = "/password"
    check_flags(binaries, "quantryd", [f"{name}={value}" for name, value in flags.items()] + ["--data-dir=/data", "--embedded=false"], tmp_path)


def test_several_servers_share_all_that_lasts():
    servers = named("distributed", "StatefulSet")["quantryd"]
    data = next(item["data"] for name, item in named("distributed", "ConfigMap").items() if name.startswith("quantry-settings"))
    assert servers["spec"]["replicas"] >= 2 and not servers["spec"].get("volumeClaimTemplates")
    assert data["QUANTRY_JOB_STORE"].startswith("postgresql://") and "sslmode=verify-full" in data["QUANTRY_JOB_STORE"]
    at = mounts(servers["spec"]["template"], "quantryd")
    assert data["QUANTRY_ARTIFACT_ROOT"].startswith("s3://") and data["QUANTRY_BLOB_ROOT"].startswith("s3://")
    for overlay in ("distributed", "keda"):
        assert not named(overlay, "PersistentVolumeClaim"), "no volume is shared"
    assert "emptyDir" in at["/var/lib/quantry"]
    folder, _, key = data["QUANTRY_JOB_STORE_PASSWORD_FILE"].rpartition("/")
    assert at[folder]["secret"]["defaultMode"] & 0o007 == 0 and key == "password"
    assert f"sslrootcert={folder}/" in data["QUANTRY_JOB_STORE"]


def test_keda_scales_on_the_queue_and_never_kills_a_running_job():
    (job,) = named("keda", "ScaledJob").values()
    spec = job["spec"]
    assert not named("keda", "Deployment")
    assert spec["rollout"]["strategy"] == "gradual" and spec["scalingStrategy"]["strategy"] == "accurate"
    assert spec["jobTargetRef"]["backoffLimit"] == 0 and spec["minReplicaCount"] == 0
    (trigger,) = spec["triggers"]
    assert trigger["type"] == "prometheus" and metric_names(trigger["metadata"]["query"]) == {
        "quantry_queue_depth", "quantry_queue_paused"}
    worker = next(c for c in spec["jobTargetRef"]["template"]["spec"]["containers"])
    assert "--once" in worker["args"] and any(arg.startswith("--max-idle-s=") for arg in worker["args"])
    assert worker["resources"]["limits"]["nvidia.com/gpu"] == 1 and "worker-cuda" in worker["image"]


def test_a_pod_takes_one_job_and_ends(binaries, tmp_path, processes):
    """The ScaledJob's container without a cluster: one job of two, then none."""
    service = start_service(processes, binaries, tmp_path, worker=False)
    template = named("keda", "ScaledJob")["quantry-worker"]["spec"]["jobTargetRef"]["template"]
    (args,) = (c["args"] for c in template["spec"]["containers"] if c["name"] == "worker")
    assert "--once" in args
    here = {"--server": service["worker"], "--work-dir": tmp_path / "scratch", "--worker-id": "pod-1", "--device": "cpu", "--max-idle-s": 3}
    args = [f"{name}={here.get(name, value)}" if value else name for name, _, value in (arg.partition("=") for arg in args)]
    for name in ("one", "two"):
        cli(binaries, service["tenant"], "submit", EXAMPLES / "stories260k", "--id", f"job-{name}", "--method", "rtn", "--group-size", -1)
    states = lambda: [job["state"] for job in json.loads(cli(binaries, service["tenant"], "list", "--output", "json"))]  # noqa: E731
    for done in (1, 2, 2):
        pod = processes.start("pod", [binaries / "quantry-worker", *args, "--admin-listen=127.0.0.1:0", "--threads=1"])
        assert pod.wait(timeout=60) == 0, processes.log("pod")
        assert sorted(states()) == ["QUEUED"] * (2 - done) + ["SUCCEEDED"] * done


def test_dashboards_for_a_cluster():
    done = run_tool("kubectl", "kustomize", DEPLOY / "grafana")
    (item,) = yaml.safe_load_all(done.stdout)
    assert set(item["data"]) == {path.name for path in (DEPLOY / "grafana/dashboards").glob("*.json")}
    assert item["metadata"]["labels"]["grafana_dashboard"] == "1"
