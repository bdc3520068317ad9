"""F24: credentials end, are withdrawn or replaced while watches, leases and calls go on."""
import json
import subprocess
import time

import grpc
import pytest

from api import Tenant, errors, token_credentials
from certificates import LOCAL
from fleet import alive
from identity import Identity, served_certificate
from link import Link
from service import wait_for
from test_workers import engine_at, stopping_at, waiting_in

BEATS = r'grpc_server_call_duration_seconds_count\{grpc_method="/quantry.v1.WorkerService/Heartbeat",grpc_status="OK"\}'
RELOADS = r'quantry_credential_reloads_total\{outcome="ok"\}'
FAILED_RELOADS = r'quantry_credential_reloads_total\{outcome="error"\}'
WATCHES = "quantry_watch_streams"
DAY_S = 86400
SERVER_END = r'quantry_tls_certificate_expiry_timestamp_seconds\{certificate="server"\}'


class Guarded:
    """A server with TLS and tokens, workers with tokens of their own, a client whose token is in `token`."""

    def __init__(self, make_fleet, binaries, folder):
        self.identity = Identity(binaries, folder)
        self.token = self.identity.token("ci", "submitter", "default")
        self.fleet = make_fleet(
            flags=[*self.identity.tls(), f"--principals-file={self.identity.principals}"],
            credentials=token_credentials(self.identity.authority.file, self.token)).start(workers=0)

    def worker(self, name, address=None):
        """Its token is in the file that comes back, its principal has its name."""
        token = self.reloading(lambda: self.identity.token(name, "worker", "*"))
        self.fleet.worker(name, address=address,
                          flags=[f"--tls-ca-file={self.identity.authority.file}", f"--token-file={token}"])
        return token

    def reloading(self, change):
        """change(), and the server has seen it."""
        before = self.fleet.metric("a", RELOADS)
        made = change()
        wait_for(lambda: self.fleet.metric("a", RELOADS) > before, 20, "the server to read the file again")
        return made


@pytest.fixture
def guarded(make_fleet, binaries, tmp_path):
    return Guarded(make_fleet, binaries, tmp_path / "identity")


def test_f24_rotation_under_an_open_watch(guarded):
    """A new certificate and a new token count while a watch goes on; the old token's end ends it."""
    fleet, identity = guarded.fleet, guarded.identity
    server = fleet.servers["a"]
    fleet.submit("f24-watch", method="gptq")  # that nobody runs
    old = guarded.reloading(lambda: identity.token("old", "submitter", "default"))
    flags = list(map(str, identity.flags(old)))
    watch = subprocess.Popen([server.binaries / "quantry", "--server", server.address, "watch", "f24-watch", "--output", "json",
                              *flags], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        wait_for(lambda: fleet.metric("a", WATCHES) == 1, 20, "the watch")

        # The certificate: another key, the same names, the same CA.
        before, end = served_certificate(server.address), fleet.metric("a", SERVER_END)
        identity.authority.issue("server", *LOCAL, days=60)
        wait_for(lambda: served_certificate(server.address) != before, 20, "the new certificate")
        wait_for(lambda: fleet.metric("a", SERVER_END) > end + 29 * 86400, 20, "the new certificate's end")
        server.cli("list", *flags, check=0)
        assert watch.poll() is None

        # The token: a second line first, then the old one goes.
        new = guarded.reloading(lambda: identity.token("new", "submitter", "default"))
        server.cli("list", *identity.flags(new), check=0)
        server.cli("list", *flags, check=0)
        assert watch.poll() is None
        identity.withdraw("old")
        out, err = watch.communicate(timeout=30)
        assert watch.returncode == 5, (out, err)
        assert json.loads(out)["error"]["metadata"]["cause"] == "unknown" and "withdrawn" in err
        refused = json.loads(server.cli("list", *flags, "--output", "json", check=5).stdout)
        assert refused["error"]["metadata"]["cause"] == "unknown"

        # A broken file changes nothing and is told.
        identity.replace("broken\n")
        wait_for(lambda: fleet.metric("a", FAILED_RELOADS) >= 1, 20, "the failed reload")
        server.cli("list", *identity.flags(new), check=0)
        assert "principals.jsonl:1: wanted one JSON object" in server.log_text()
    finally:
        if watch.poll() is None:
            watch.kill()
        watch.wait()


def test_f24_token_that_expires_under_a_watch(guarded, tmp_path):
    """Its watch ends when it does; with a new token in the file it goes on where it was: no event is missed."""
    fleet, identity = guarded.fleet, guarded.identity
    guarded.worker("w1")
    fleet.submit("f24-expiry", waiting_in(tmp_path))
    wait_for((tmp_path / "at").exists, 20, "a block")
    guarded.reloading(lambda: identity.expire("ci", time.time() + 3))
    watch = fleet.watch("f24-expiry")
    assert watch.attached.wait(10)
    wait_for(lambda: watch.breaks, 20, "the watch to end with its token")
    with pytest.raises(errors.QuantryError) as refused:
        fleet.get("f24-expiry")
    assert (refused.value.reason, refused.value.metadata["cause"]) == ("UNAUTHENTICATED", "expired")
    guarded.reloading(lambda: identity.token("ci", "submitter", "default"))  # another line, the same file of the client
    wait_for(lambda: watch.resumes, 20, "the watch to go on")
    (tmp_path / "go").touch()
    assert watch.wait() == "SUCCEEDED"
    assert fleet.get("f24-expiry").epoch == 1
    fleet.check()


def test_f24_worker_changes_its_token_under_a_job(guarded, tmp_path):
    """The new one in its file, the old one withdrawn, the server's certificate another, every connection made anew: the
    attempt goes on."""
    fleet, identity = guarded.fleet, guarded.identity
    with Link(fleet.servers["a"].worker_address) as link:
        token = guarded.worker("w1", address=link.address)
        fleet.submit("f24-worker", waiting_in(tmp_path))
        engine_at(tmp_path / "at")
        before = served_certificate(fleet.servers["a"].worker_address)
        identity.authority.issue("server", *LOCAL, days=60)
        new = guarded.reloading(lambda: identity.token("w1-new", "worker", "*"))
        new.replace(token)
        guarded.reloading(lambda: identity.withdraw("w1"))
        wait_for(lambda: served_certificate(fleet.servers["a"].worker_address) != before, 20, "the new certificate")
        link.reset()
        beats = fleet.metric("a", BEATS)
        wait_for(lambda: fleet.metric("a", BEATS) >= beats + 4, 20, "heartbeats for longer than a lease")
        (tmp_path / "go").touch()
        found = fleet.wait_end("f24-worker")
        assert (found.epoch, found.worker_losses) == (1, 0), found
        fleet.check()


def test_f24_worker_whose_token_is_withdrawn(guarded, tmp_path):
    """It can write nothing more and stops its engine; the job runs elsewhere."""
    fleet, identity = guarded.fleet, guarded.identity
    guarded.worker("w1")
    fleet.submit("f24-gone", stopping_at(tmp_path / "at"))
    pid = engine_at(tmp_path / "at")
    fleet.wait_block("f24-gone", 2)
    guarded.reloading(lambda: identity.withdraw("w1"))
    guarded.worker("w2")
    found = fleet.wait_end("f24-gone")
    assert (found.epoch, found.worker) == (2, "w2"), found
    wait_for(lambda: not alive(pid), 20, "the engine of a worker that lost its lease to be stopped")
    fleet.check()


class Certified:
    """A server that wants client certificates and nothing else; `ca` has signed all of them."""

    def __init__(self, make_fleet, binaries, folder):
        identity = Identity(binaries, folder)
        self.ca = identity.authority
        self.submitter = self.credentials("submitter", "spiffe://quantry/tenant/default/role/submitter")
        self.fleet = make_fleet(flags=[*identity.tls(), f"--tls-client-ca-file={self.ca.file}"], ttl_s=10,
                                credentials=self.submitter).start(workers=0)

    def credentials(self, file_name, name, seconds=DAY_S):
        """Of a channel; the certificate ends in so many seconds."""
        certificate, key = self.ca.issue(file_name, name, days=seconds / DAY_S)
        return grpc.ssl_channel_credentials(self.ca.file.read_bytes(), key.read_bytes(), certificate.read_bytes())


@pytest.fixture
def certified(make_fleet, binaries, tmp_path):
    return Certified(make_fleet, binaries, tmp_path / "identity")


@pytest.mark.full
def test_f24_worker_changes_its_certificate_under_a_job(certified, tmp_path):
    """Another one in its files, every connection made anew again and again: the attempt goes on when the old one has ended."""
    fleet, ca, name = certified.fleet, certified.ca, "spiffe://quantry/role/worker/w1"
    with Link(fleet.servers["a"].worker_address) as link:
        ends = time.time() + 20
        certificate, key = ca.issue("worker", name, days=20 / DAY_S)
        fleet.worker("w1", address=link.address, flags=[f"--tls-ca-file={ca.file}", f"--client-cert-file={certificate}",
                                                        f"--client-key-file={key}"])
        fleet.submit("f24-certificate", waiting_in(tmp_path))
        engine_at(tmp_path / "at")
        ca.issue("worker", name)  # a new key, the same names
        while time.time() < ends + fleet.ttl_s:  # it looks at its files every 10 s
            link.reset()
            beats = fleet.metric("a", BEATS)
            wait_for(lambda: fleet.metric("a", BEATS) >= beats + 2, 20, "heartbeats")
        (tmp_path / "go").touch()
        found = fleet.wait_end("f24-certificate")
        assert (found.epoch, found.worker_losses) == (1, 0), found
        assert fleet.state("f24-certificate") == "SUCCEEDED"
        fleet.check()


def test_f24_certificate_that_ends_under_a_watch(certified):
    """The principal ends when the certificate does (docs/security.md), and with it the stream; the next one goes on."""
    fleet = certified.fleet
    fleet.submit("f24-watched", method="gptq")  # that nobody runs
    ends = time.time() + 6
    short = Tenant(fleet.servers["a"].address, credentials=certified.credentials(
        "short", "spiffe://quantry/tenant/default/role/viewer", seconds=6))
    try:
        seen = []
        with pytest.raises(errors.AccessDenied) as refused:
            for message in short.watch("f24-watched"):
                seen.append(message.WhichOneof("kind"))
        assert -1 <= time.time() - ends < 5  # a certificate ends at a whole second
        assert seen[0] == "snapshot"
        assert (refused.value.reason, refused.value.metadata["cause"]) == ("UNAUTHENTICATED", "expired")
        with pytest.raises(errors.AccessDenied):
            short.get("f24-watched")
    finally:
        short.close()
    watch = fleet.watch("f24-watched")
    assert watch.attached.wait(10)
    fleet.cancel("f24-watched")
    assert watch.wait() == "CANCELLED"
    fleet.check()
