"""Identity with the real programs and real handshakes: TLS, client certificates, tokens, roles, rotation, refusal.

The table of every rpc and role is server/testing/auth_rpcs_test.cc; here is what crosses processes.
"""
import contextlib
import json
import os
import re
import subprocess
import urllib.request

import api
import grpc
import pytest

from certificates import LOCAL, Authority
from conftest import submit_args
from identity import Identity, served_certificate
from service import Worker, wait_for


@pytest.fixture
def identity(binaries, tmp_path):
    return Identity(binaries, tmp_path / "identity")


def metric(server, series):
    with urllib.request.urlopen(f"http://{server.admin}/metrics", timeout=10) as answer:
        for line in answer.read().decode().splitlines():
            if line.startswith(series + " "):
                return float(line.rsplit(" ", 1)[1])
    return None


def error_of(done):
    return json.loads(done.stdout)["error"]


def test_a_job_over_tls_with_tokens(make_server, identity, stories, tmp_path):
    """The whole way, the embedded agent included: it gets a credential by itself."""
    submitter, reader = identity.token("ci", "submitter"), identity.token("ann", "viewer")
    other, root = identity.token("bob", "admin", "other"), identity.token("root", "admin", "*")
    server = make_server(*identity.tls(), f"--principals-file={identity.principals}", "--log-format=json",
                         "--log-level=error").start()

    def cli(token, *args, **kwargs):
        return server.cli(*args, *identity.flags(token), "--tenant", "acme", **kwargs)

    # The quote that --check asks for changes nothing.
    cli(submitter, *submit_args(stories, "--check", "--id", "job-1", "--wait", samples=8, length=64), check=0)
    cli(submitter, "pull", "job-1", tmp_path / "out", check=0)
    assert (tmp_path / "out" / "manifest.json").exists()
    assert "SUCCEEDED" in cli(reader, "get", "job-1", "--output", "json", check=0).stdout

    denied = error_of(cli(reader, "delete", "job-1", "--output", "json", check=5))
    assert denied["reason"] == "PERMISSION_DENIED" and "wanted role submitter" in denied["message"]
    for verb in (["get", "job-1"], ["delete", "job-1"], ["list"], ["watch", "job-1"], ["pull", "job-1", tmp_path / "no"]):
        hidden = error_of(cli(other, *verb, "--output", "json", check=4))
        assert hidden["code"] == "NOT_FOUND", verb
    absent = error_of(cli(submitter, "get", "no-such", "--output", "json", check=4))
    assert absent["reason"] == error_of(cli(other, "get", "job-1", "--output", "json", check=4))["reason"]
    cli(root, "get", "job-1", check=0)
    cli(root, "workers", check=0)
    assert error_of(cli(submitter, "workers", "--output", "json", check=5))["reason"] == "PERMISSION_DENIED"
    cli(root, "quota", "acme", "--max-queued", 7, check=0)
    assert json.loads(cli(reader, "quota", "acme", "--output", "json", check=0).stdout)["max_queued"] == 7
    assert error_of(cli(reader, "quota", "other", "--output", "json", check=4))["code"] == "NOT_FOUND"
    assert error_of(cli(submitter, "quota", "acme", "--max-queued", 9, "--output", "json", check=5))["reason"] == "PERMISSION_DENIED"
    cli(submitter, "cancel", "job-1", "--reason", "no longer wanted", check=2)  # it has ended

    audit = [line for line in map(json.loads, server.log_text().splitlines()) if line["message"] == "audit"]
    created = [line for line in audit if line["rpc"].endswith("/CreateQuantizationJob")]
    assert [(line["principal"], line["role"], line["tenant"], line["outcome"], line["level"]) for line in created] == [
        ("ci", "submitter", "acme", "OK", "audit")]
    assert created[0]["resource"] == "tenants/acme/quantizationJobs/job-1"
    deletes = [(line["principal"], line["outcome"]) for line in audit if line["rpc"].endswith("/DeleteQuantizationJob")]
    assert deletes == [("ann", "PERMISSION_DENIED"), ("bob", "NOT_FOUND")]
    asked = [(line["rpc"].rsplit("/", 1)[1], line["request"], line["outcome"]) for line in audit]
    quotas = [(json.loads(request)["max_queued"], outcome) for rpc, request, outcome in asked if rpc == "SetQuota"]
    assert quotas == [("7", "OK"), ("9", "PERMISSION_DENIED")]
    assert [json.loads(request)["reason"] for rpc, request, _ in asked if rpc == "CancelQuantizationJob"] == ["no longer wanted"]
    assert {request for rpc, request, _ in asked if rpc == "CreateQuantizationJob"} == {""}
    assert [line["principal"] for line in audit if line["rpc"].endswith("/CompleteJob")] == ["embedded-agent"]
    assert sum(metric(server, f'quantry_audit_lines_total{{outcome="{o}"}}') for o in ("ok", "error")) == len(audit)
    for file in (submitter, reader, other, root):
        assert file.read_text().strip() not in server.log_text()


def test_what_a_client_hears(make_server, identity, tmp_path):
    token = identity.token("ci", "viewer")
    late = identity.token("late", "viewer")
    text = identity.principals.read_text()
    identity.replace(re.sub(r'("principal":"late".*"expire_time":)"[^"]*"', r'\1"2026-01-01T00:00:00Z"', text))
    server = make_server(*identity.tls(), f"--principals-file={identity.principals}", "--embedded=false").start()
    wrong = tmp_path / "wrong"
    wrong.write_text("qtk_" + "A" * 43 + "\n")
    stranger = Authority(tmp_path / "stranger")

    def hear(*flags, check):
        return error_of(server.cli("list", "--tenant", "acme", "--output", "json", "--timeout", 5, *flags, check=check))

    server.cli("list", "--tenant", "acme", *identity.flags(token), check=0)
    for flags, cause, words in (([], "missing", "--token-file"), (["--token-file", wrong], "unknown", "quantryd token create"),
                                (["--token-file", late], "expired", "get a new token")):
        error = hear("--tls-ca", identity.authority.file, *flags, check=5)
        assert (error["reason"], error["metadata"]["cause"]) == ("UNAUTHENTICATED", cause)
        assert words in error["next"]
    assert "does the server want TLS" in hear(check=7)["next"]
    assert "the CA that signed" in hear("--tls-ca", stranger.file, "--token-file", token, check=7)["next"]
    plain = make_server("--embedded=false", name="plain").start()
    error = error_of(plain.cli("list", "--output", "json", "--timeout", 5, *identity.flags(token), check=7))
    assert "does not speak TLS" in error["next"]


def test_client_certificates(make_server, identity, tmp_path):
    issue = identity.authority.issue
    submitter = issue("submitter", "spiffe://quantry/tenant/acme/role/submitter")
    worker = issue("worker", "spiffe://quantry/role/worker/gpu-7")
    mapped = issue("mapped", "urn:example://ann")
    nobody = issue("nobody", "spiffe://elsewhere/role/admin")
    rogue = Authority(tmp_path / "rogue").issue("rogue", "spiffe://quantry/role/admin")
    server = make_server(*identity.tls(), f"--tls-client-ca-file={identity.authority.file}", "--embedded=false").start()

    def try_as(client, check):
        return server.cli("list", "--tenant", "acme", "--timeout", 5, "--output", "json", *identity.flags(client=client),
                          check=check)

    try_as(submitter, 0)
    try_as(None, 7)  # nothing else could tell who it is: the handshake fails
    try_as(rogue, 7)
    assert "names nobody" in error_of(try_as(nobody, 5))["message"]
    assert error_of(try_as(worker, 5))["reason"] == "PERMISSION_DENIED"
    assert "names nobody" in error_of(try_as(mapped, 5))["message"]
    worker_address = (server.data_dir / "run/worker").read_text().strip()

    def run_worker(client):
        """A worker as that certificate; its log once it was let in or gave up."""
        log = tmp_path / "worker.log"
        with open(log, "wb") as out:
            process = subprocess.Popen(
                [server.binaries / "quantry-worker", f"--server={worker_address}", f"--work-dir={tmp_path / 'work'}",
                 "--admin-listen=127.0.0.1:0", "--max-idle-s=1", f"--tls-ca-file={identity.authority.file}",
                 f"--client-cert-file={client[0]}", f"--client-key-file={client[1]}"], stdout=out, stderr=out)
            status = process.wait(timeout=60)
        return status, log.read_text()

    status, log = run_worker(worker)
    assert status == 0, log
    status, log = run_worker(submitter)
    assert status == 1 and "wanted role worker" in log

    # A line of the principals file gives a certificate its meaning; tokens work beside it.
    identity.replace('{"principal":"ann","role":"viewer","tenant":"acme","certificate_uri":"urn:example://ann"}\n')
    token = identity.token("ci", "viewer")
    both = make_server(*identity.tls(), f"--tls-client-ca-file={identity.authority.file}", "--embedded=false",
                       f"--principals-file={identity.principals}", name="both").start()
    both.cli("list", "--tenant", "acme", *identity.flags(client=mapped), check=0)
    both.cli("list", "--tenant", "acme", *identity.flags(token=token), check=0)
    both.cli("list", "--tenant", "acme", *identity.flags(), check=5)
    both.cli("list", "--tenant", "acme", "--timeout", 5, *identity.flags(token, rogue), check=7)


def test_a_certificate_before_its_key(make_server, identity):
    """The pair before stays in use, and the log says until when. So with an empty key, at which gRPC would end the server."""
    identity.token("ci", "viewer")
    server = make_server(*identity.tls(), f"--principals-file={identity.principals}", "--embedded=false").start()
    refusals, end = 'quantry_credential_reloads_total{outcome="error"}', 'quantry_tls_certificate_expiry_timestamp_seconds{certificate="server"}'
    before, ends = served_certificate(server.address), metric(server, end)
    certificate, key = identity.authority.issue("next", *LOCAL, days=60)

    def check(refused, name):
        """The files were refused, and a later look found no other use for them."""
        wait_for(lambda: metric(server, refusals) == refused, 20, "the refusal")
        later = identity.token(name, "viewer")
        wait_for(lambda: server.cli("list", "--tenant", "acme", *identity.flags(later)).returncode == 0, 20, "another look")
        assert (served_certificate(server.address), metric(server, end)) == (before, ends)

    os.replace(certificate, identity.server[0])
    check(1, "ann")
    assert re.search("a certificate cannot be used .*wanted the key of .*stays in use and ends at 20", server.log_text())
    identity.server[1].write_bytes(b"")
    check(2, "bob")
    os.replace(key, identity.server[1])
    wait_for(lambda: served_certificate(server.address) != before, 20, "the next certificate")
    wait_for(lambda: metric(server, end) > ends + 29 * 86400, 20, "its end")
    assert metric(server, refusals) == 2


def test_tokens_on_loopback_without_tls(make_server, identity, stories):
    """Allowed there, and only there."""
    token = identity.token("ci", "submitter")
    server = make_server(f"--principals-file={identity.principals}").start()
    server.cli("list", "--tenant", "acme", "--token-file", token, check=0)
    assert error_of(server.cli("list", "--tenant", "acme", "--output", "json", check=5))["metadata"]["cause"] == "missing"
    server.cli(*submit_args(stories, "--id", "job-1", "--wait", evaluation=False, samples=8, length=64), "--tenant", "acme",
               "--token-file", token, check=0)
    far = server.cli("list", "--token-file", token, "--server", "192.0.2.1:7070", check=2)
    assert "wanted TLS to send a token to 192.0.2.1:7070" in far.stderr


@pytest.mark.parametrize("known", [False, True])
def test_a_stranger_writes_no_lines(make_server, identity, known):
    """A traceparent that is none is told of a caller who may call, of nobody else."""
    token = identity.token("ci", "submitter").read_text().strip()
    server = make_server("--embedded=false", f"--principals-file={identity.principals}").start()
    metadata = [("traceparent", "00-nonsense")] + [("authorization", f"Bearer {token}")] * known
    request = api.quantization_service_pb2.ListQuantizationJobsRequest(parent="tenants/acme")
    with contextlib.nullcontext() if known else pytest.raises(grpc.RpcError):
        api.Tenant(server.address).jobs.ListQuantizationJobs(request, timeout=10, metadata=metadata)
    assert ("a traceparent that is none is ignored" in server.log_text()) == known


@pytest.mark.parametrize("flags, missing", [
    (["--listen=0.0.0.0:0"], ["--tls-cert-file", "--tls-key-file", "--principals-file"]),
    (["--worker-listen=0.0.0.0:0"], ["--tls-cert-file", "--tls-key-file", "--principals-file"]),
    (["--listen=0.0.0.0:0", "--principals-file={principals}"], ["--tls-cert-file", "--tls-key-file"]),
    (["--listen=0.0.0.0:0", "--tls-cert-file={cert}", "--tls-key-file={key}"], ["--principals-file"]),
    (["--admin-listen=0.0.0.0:0"], ["--admin-plaintext"]),
])
def test_refusal_beyond_loopback(binaries, identity, tmp_path, flags, missing):
    identity.token("ci", "viewer")
    names = {"principals": identity.principals, "cert": identity.server[0], "key": identity.server[1]}
    done = subprocess.run([binaries / "quantryd", f"--data-dir={tmp_path}/data", *(f.format(**names) for f in flags)],
                          capture_output=True, text=True, timeout=20)
    assert done.returncode == 2
    assert "refusing to listen on 0.0.0.0:0" in done.stderr
    assert all(flag in done.stderr for flag in missing)
    for flag in {"--tls-cert-file", "--tls-key-file", "--principals-file"} - set(missing):
        assert flag not in done.stderr


def test_files_that_cannot_be_used(binaries, identity, tmp_path):
    other = identity.authority.issue("other", *LOCAL)
    identity.token("ci", "viewer")
    broken = tmp_path / "broken"
    broken.write_text("hello\n")
    for flags, words in (
            ([f"--tls-cert-file={identity.server[0]}", f"--tls-key-file={other[1]}"], "wanted the key of"),
            ([f"--tls-cert-file={broken}", f"--tls-key-file={other[1]}"], "wanted a PEM certificate"),
            ([f"--principals-file={broken}"], "broken:1: wanted one JSON object"),
            ([f"--principals-file={tmp_path}/no"], "wanted a readable file"),
            ([*identity.tls(), f"--tls-client-ca-file={broken}"], "wanted a PEM certificate")):
        done = subprocess.run(
            [binaries / "quantryd", f"--data-dir={tmp_path}/data", "--listen=127.0.0.1:0", "--worker-listen=127.0.0.1:0",
             "--admin-listen=127.0.0.1:0", "--embedded=false", *flags], capture_output=True, text=True, timeout=30)
        assert done.returncode == 1 and words in done.stderr, (flags, done.stderr)


def test_contexts(make_server, identity, tmp_path):
    token = identity.token("ci", "viewer")
    server = make_server(*identity.tls(), f"--principals-file={identity.principals}", "--embedded=false").start()
    env = {"XDG_CONFIG_HOME": str(tmp_path / "config"), "QUANTRY_SERVER": "", "QUANTRY_DATA_DIR": str(tmp_path / "none")}

    def cli(*args, check=0, more=None):
        return server.cli(*args, check=check, env={**env, **(more or {})})

    refused = cli("login", server.address, "--tls-ca", identity.authority.file, check=5)
    assert "UNAUTHENTICATED" in refused.stderr and not (tmp_path / "config").exists()
    cli("login", server.address, "--name", "lab", *identity.flags(token), "--tenant", "acme")
    config = tmp_path / "config/quantry/config.json"
    assert config.stat().st_mode & 0o777 == 0o600 and token.read_text().strip() not in config.read_text()
    assert json.loads(config.read_text())["contexts"]["lab"]["token_file"] == str(token)

    assert cli("list").stdout == cli("list", "--tenant", "acme").stdout  # server, CA, token and tenant by the context
    cli("list", "--tenant", "other", check=4)
    cli("list", more={"QUANTRY_TENANT": "other"}, check=4)
    # A server named otherwise gets neither token nor CA.
    assert "want TLS" in cli("list", "--timeout", 5, "--server", server.address, check=7).stderr
    cli("list", "--context", "lab", "--server", server.address)
    cli("list", more={"QUANTRY_SERVER": server.address, "QUANTRY_CONTEXT": "lab"})

    plain = make_server("--embedded=false", name="plain").start()
    cli("login", plain.address, "--name", "plain")
    assert [c["name"] for c in json.loads(cli("context", "list", "--output", "json").stdout) if c["current"]] == ["plain"]
    assert "plain" in cli("context", "show").stdout
    cli("list")
    cli("list", "--context", "lab")
    cli("context", "use", "lab")
    assert json.loads(cli("context", "show", "--output", "json").stdout)["tenant"] == "acme"
    cli("context", "delete", "lab")
    cli("context", "show", check=4)
    cli("context", "use", "lab", check=4)
    assert "wanted plain" in cli("list", "--context", "lab", check=2).stderr
    config.write_text("{")
    assert "config.json: wanted a JSON object" in cli("list", check=2).stderr


def test_every_line_of_the_log_is_json(make_server, identity):
    """gRPC's own about a handshake that fails, too."""
    identity.token("ci", "viewer")
    server = make_server(*identity.tls(), f"--principals-file={identity.principals}", "--embedded=false", "--log-format=json").start()
    server.cli("list", "--timeout", 2, check=7)
    wait_for(lambda: '"message":"gRPC"' in server.log_text(), 20, "what gRPC says")
    server.stop()
    assert all(json.loads(line)["level"] for line in server.log_text().splitlines())


def test_a_worker_that_finds_no_server_says_so(make_server, identity, binaries, tmp_path):
    identity.token("ci", "viewer")
    server = make_server(*identity.tls(), f"--principals-file={identity.principals}", "--embedded=false").start()
    for name, address in (("plain", server.worker_address), ("nobody", "127.0.0.1:1")):
        worker = Worker(binaries, tmp_path / name, address).start()
        try:
            wait_for(lambda: "no server answers yet" in worker.log_text(), 60, name)
        finally:
            worker.stop()


def test_a_worker_wants_a_device_it_knows(binaries):
    def check(device):
        return subprocess.run([binaries / "quantry-worker", f"--device={device}", "--check-config"], capture_output=True, text=True, timeout=20)

    for wrong in ("gpu", "cuda:", "cuda:x", "cuda:100", "CPU"):
        done = check(wrong)
        assert done.returncode == 2 and f"--device: wanted auto, cpu, cuda or cuda:N, got {wrong}" in done.stderr, (wrong, done.stderr)
    assert [check(right).returncode for right in ("auto", "cpu", "cuda", "cuda:1")] == [0] * 4
