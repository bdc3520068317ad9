"""Who calls: certificates and tokens of one test as files, and what a server shows of its own."""
import datetime
import json
import os
import re
import socket
import ssl
import subprocess

from certificates import LOCAL, Authority

RELOAD = "--credentials-reload-s=1"


class Identity:
    """Certificates and tokens of one test, as files."""

    def __init__(self, binaries, folder):
        self.binaries, self.folder = binaries, folder
        self.authority = Authority(folder)
        self.server = self.authority.issue("server", *LOCAL)
        self.principals = folder / "principals.jsonl"

    def token(self, principal, role, tenant="acme", days=90):
        """A file with a new token; its line is in the principals file."""
        done = subprocess.run(
            [self.binaries / "quantryd", "token", "create", f"--principals-file={self.principals}",
             f"--principal={principal}", f"--role={role}", f"--tenant={tenant}", f"--expires-in-days={days}"],
            capture_output=True, text=True, timeout=20)
        assert done.returncode == 0, done.stderr
        assert re.fullmatch(r"qtk_[A-Za-z0-9_-]{43}\n", done.stdout)
        file = self.folder / f"{principal}.token"
        file.write_text(done.stdout)
        return file

    def expire(self, principal, when):
        """The principal's token ends at `when`, seconds since 1970."""
        end = datetime.datetime.fromtimestamp(when, datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        lines = [json.loads(line) for line in self.principals.read_text().splitlines()]
        for line in lines:
            if line["principal"] == principal:
                line["expire_time"] = end
        self.replace("".join(json.dumps(line) + "\n" for line in lines))

    def withdraw(self, principal):
        lines = [line for line in self.principals.read_text().splitlines() if json.loads(line)["principal"] != principal]
        self.replace("\n".join(lines) + "\n")

    def replace(self, text):
        new = self.folder / "principals.new"
        new.write_text(text)
        os.replace(new, self.principals)

    def tls(self):
        return [f"--tls-cert-file={self.server[0]}", f"--tls-key-file={self.server[1]}", RELOAD]

    def flags(self, token=None, client=None):
        flags = ["--tls-ca", self.authority.file]
        if token:
            flags += ["--token-file", token]
        if client:
            flags += ["--client-cert", client[0], "--client-key", client[1]]
        return flags


def served_certificate(address):
    """What the server shows in a handshake, as DER."""
    host, port = address.rsplit(":", 1)
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    with socket.create_connection((host, int(port)), timeout=10) as plain:
        with context.wrap_socket(plain, server_hostname="localhost") as secure:
            return secure.getpeercert(binary_form=True)
