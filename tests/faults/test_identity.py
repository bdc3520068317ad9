"""F24: credentials end, are withdrawn or replaced while watches, leases and calls go on."""
import json
import subprocess
import time

import pytest

from api import errors, token_credentials
from certificates import LOCAL
from fleet import alive
from identity import Identity, served_certificate
from link import Link
from service import wait_for
from test_workers import engine_at, stopping_at

BEATS = r'grpc_server_call_duration_seconds_count\{grpc_method="/quantry.v1.WorkerService/Heartbeat",grpc_status="OK"\}'
RELOADS = r'quantry_credential_reloads_total\{outcome="ok"\}'
FAILED_RELOADS = r'quantry_credential_reloads_total\{outcome="error"\}'
WATCHES = "quantry_watch_streams"
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
    fleet.submit("f24-expiry", f"block\ntouch {tmp_path}/at\nwait {tmp_path}/go\nblock\nblock\nblock\nartifact\ncomplete\n")
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
        fleet.submit("f24-worker", f"block\ntouch {tmp_path}/at\nwait {tmp_path}/go\nblock\nblock\nblock\nartifact\ncomplete\n")
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
