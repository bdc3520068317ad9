"""Who asks: contexts and variables, and both clients against a real quantryd with TLS, tokens and roles."""
import asyncio
import json
import re
import subprocess

import pytest

import quantry
from certificates import LOCAL, Authority
from conftest import EXAMPLES, QUICK, service
from quantry._contexts import settle
from quantry._options import Address, Options

VARIABLES = ("QUANTRY_SERVER", "QUANTRY_CONTEXT", "QUANTRY_TENANT", "QUANTRY_TLS_CA_FILE", "QUANTRY_TOKEN_FILE",
             "QUANTRY_CLIENT_CERT_FILE", "QUANTRY_CLIENT_KEY_FILE")


@pytest.fixture
def config(monkeypatch, tmp_path):
    """Writes the file of contexts."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))

    def write(current="lab", **contexts):
        file = tmp_path / "config/quantry/config.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"current": current, "contexts": contexts}))

    return write


LAB = {"server": "lab:7070", "tls_ca": "/ca.pem", "token_file": "/token", "tenant": "acme"}


def test_the_current_context(config):
    assert settle(Options(), None, None) == (Options(), "default")
    config(lab=LAB, web={"server": "web:443", "tls_ca": "system"})
    options, tenant = settle(Options(), None, None)
    assert (options.target, options.source, tenant) == ("lab:7070", "context lab", "acme")
    assert (options.tls_ca, options.token_file, options.secure) == ("/ca.pem", "/token", True)
    web, tenant = settle(Options(), None, "web")
    assert (web.target, web.tls, web.tls_ca, web.token_file, tenant) == ("web:443", True, None, None, "default")


def test_the_cas_of_the_system():
    options, _ = settle(Options("web:443", tls_ca="system"), None, None)
    assert (options.tls, options.tls_ca) == (True, None)
    refused, _ = settle(Options("web:443", tls_ca="system", tls=False), None, None)
    with pytest.raises(quantry.InvalidRequest, match="got tls=False"):
        refused.check(Address("web:443", "connect()"))


def test_a_named_server_gets_nothing_of_the_current_context(config, monkeypatch):
    config(lab=LAB)
    options, tenant = settle(Options("other:1"), None, None)
    assert (options.tls_ca, options.token_file, options.source, tenant) == (None, None, "connect()", "default")
    monkeypatch.setenv("QUANTRY_SERVER", "env:1")
    env, _ = settle(Options(), None, None)
    assert (env.target, env.source, env.token_file) == ("env:1", "QUANTRY_SERVER", None)


def test_a_named_context_brings_its_server(config, monkeypatch):
    config(lab=LAB, web={"server": "web:443"})
    monkeypatch.setenv("QUANTRY_SERVER", "env:1")
    monkeypatch.setenv("QUANTRY_TOKEN_FILE", "/env-token")
    lab, _ = settle(Options(), None, "lab")
    assert (lab.target, lab.source, lab.token_file) == ("lab:7070", "context lab", "/token")
    assert settle(Options(), None, "web")[0].token_file is None, "the variable's token is for the variable's server"
    assert settle(Options("lab:7070"), None, "lab")[0].token_file == "/token"
    with pytest.raises(quantry.InvalidRequest, match=r'connect\(\) names other:1, context "lab" is for lab:7070'):
        settle(Options("other:1"), None, "lab")
    monkeypatch.setenv("QUANTRY_CONTEXT", "lab")
    with pytest.raises(quantry.InvalidRequest, match="QUANTRY_SERVER names env:1"):
        settle(Options(), None, None)
    assert settle(Options("other:1"), None, None)[0].target == "other:1", "an argument beats QUANTRY_CONTEXT"
    monkeypatch.setenv("QUANTRY_SERVER", "lab:7070")
    assert settle(Options(), None, None)[0].token_file == "/env-token", "the same server"


def test_the_environment_s_token_is_for_the_environment_s_server(config, monkeypatch):
    monkeypatch.setenv("QUANTRY_TOKEN_FILE", "/env-token")
    monkeypatch.setenv("QUANTRY_TENANT", "env-tenant")
    assert settle(Options("other:1"), None, None)[0].token_file == "/env-token", "no server in the environment: for any"
    monkeypatch.setenv("QUANTRY_SERVER", "env:1")
    assert [settle(Options(target), None, None)[0].token_file for target in (None, "env:1", "other:1")] == \
        ["/env-token", "/env-token", None]
    assert settle(Options("other:1"), None, None)[1] == "env-tenant", "a tenant is no secret"


def test_arguments_beat_variables_beat_the_context(config, monkeypatch):
    config(lab=LAB)
    monkeypatch.setenv("QUANTRY_TOKEN_FILE", "/env-token")
    monkeypatch.setenv("QUANTRY_TENANT", "env-tenant")
    options, tenant = settle(Options(), None, None)
    assert (options.token_file, tenant, options.tls_ca) == ("/env-token", "env-tenant", "/ca.pem")
    options, tenant = settle(Options(token="t", tls_ca="/mine.pem"), "mine", None)
    assert (options.token, options.token_file, options.tls_ca, tenant) == ("t", None, "/mine.pem", "mine")
    assert settle(Options(tls=False), None, None)[0].secure is False


@pytest.mark.parametrize("text, words", [
    ("{", "wanted JSON"), ("[]", "wanted a JSON object"), ('{"contexts": {"a": {}}}', "contexts.a: wanted server"),
    ('{"contexts": {"a": {"server": "x:1", "password": "y"}}}', "contexts.a: wanted server"),
    ('{"current": "b", "contexts": {"a": {"server": "x:1"}}}', 'no context "b": wanted a'),
])
def test_wrong_files_are_named(config, tmp_path, text, words):
    config()
    (tmp_path / "config/quantry/config.json").write_text(text)
    with pytest.raises(quantry.InvalidRequest, match=words):
        quantry.connect(check=False)


class Live:
    """quantryd with TLS, client certificates and tokens."""

    def __init__(self, binaries, folder):
        self.binaries, self.authority = binaries, Authority(folder / "ca")
        cert, key = self.authority.issue("server", *LOCAL)
        self.principals = folder / "principals"
        self.tokens = {role: self.token(folder, role) for role in ("viewer", "submitter")}
        self.tokens["late"] = self.token(folder, "viewer", "late")
        text = self.principals.read_text()
        self.principals.write_text(re.sub(r'("principal":"late".*"expire_time":)"[^"]*"', r'\1"2026-01-01T00:00:00Z"', text))
        self.server = service.Server(
            binaries, folder / "data", f"--tls-cert-file={cert}", f"--tls-key-file={key}",
            f"--tls-client-ca-file={self.authority.file}", f"--principals-file={self.principals}", "--credentials-reload-s=1")
        self.server.start()

    def token(self, folder, role, principal="ci"):
        made = subprocess.run(
            [self.binaries / "quantryd", "token", "create", f"--principals-file={self.principals}",
             f"--principal={principal}", f"--role={role}", "--tenant=acme"], capture_output=True, text=True, check=True, timeout=20)
        file = folder / f"{principal}-{role}.token"
        file.write_text(made.stdout)
        return file

    def options(self, role="submitter"):
        return {"tenant": "acme", "tls_ca": self.authority.file, "token_file": self.tokens[role]}


@pytest.fixture(scope="module")
def live(binaries, tmp_path_factory):
    running = Live(binaries, tmp_path_factory.mktemp("identity"))
    yield running
    running.server.stop()


def test_a_job_over_tls(live, config, tmp_path):
    with quantry.connect(live.server.address, **live.options()) as client:
        job = client.wait(client.submit(EXAMPLES / "stories260k", **QUICK), timeout=120)
        assert client.pull(job, tmp_path / "out").artifact.verify()
    with quantry.connect(live.server.address, **live.options("viewer")) as reader:
        assert reader.get(job).succeeded
        with pytest.raises(quantry.AccessDenied) as caught:
            reader.delete(job)
    assert caught.value.reason == "PERMISSION_DENIED" and caught.value.wanted.startswith("role submitter")

    async def run():
        async with await quantry.aio.connect(live.server.address, **live.options("viewer")) as reader:
            return [found.id async for found in reader.list()]

    assert job.id in asyncio.run(run())


def test_a_context_reaches_it(live, config):
    config(lab={"server": live.server.address, "tls_ca": str(live.authority.file),
                "token_file": str(live.tokens["viewer"]), "tenant": "acme"})
    with quantry.connect() as client:
        assert client.tenant == "acme" and client.target == live.server.address
        list(client.list())


def test_client_certificates(live, config):
    cert, key = live.authority.issue("ann", "spiffe://quantry/tenant/acme/role/viewer")
    target = live.server.address
    with quantry.connect(target, tenant="acme", tls_ca=live.authority.file, tls_cert=cert, tls_key=key) as client:
        list(client.list())
    worker = live.authority.issue("worker", "spiffe://quantry/role/worker")
    with pytest.raises(quantry.AccessDenied, match="wanted role viewer"):
        quantry.connect(target, tls_ca=live.authority.file, tls_cert=worker[0], tls_key=worker[1])


def test_what_the_others_hear(live, config):
    target, ca = live.server.address, live.authority.file
    with pytest.raises(quantry.AccessDenied) as caught:
        quantry.connect(target, tls_ca=ca)
    assert caught.value.reason == "UNAUTHENTICATED" and caught.value.metadata["cause"] == "missing"
    with pytest.raises(quantry.AccessDenied) as caught:
        quantry.connect(target, tls_ca=ca, token="qtk_wrong")
    assert caught.value.metadata["cause"] == "unknown"
    with pytest.raises(quantry.AccessDenied) as caught:
        quantry.connect(target, **live.options("late"))
    assert caught.value.metadata["cause"] == "expired" and "renewed" in caught.value.hint
    with pytest.raises(quantry.ServerUnavailable) as caught:
        quantry.connect(target, timeout=3)
    assert "TLS" in caught.value.hint
    with pytest.raises(quantry.NotFound, match="nothing named tenants/other for ci, whose tenant is acme") as caught:
        quantry.connect(target, **{**live.options(), "tenant": "other"})
    assert 'tenant="acme"' in caught.value.hint
