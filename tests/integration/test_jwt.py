"""quantryd --jwks-file with the real programs: tokens of an identity provider, what is wrong with them, and keys that change.

What a verifier makes of odd headers and claims is server/auth/jwt_test.cc.
"""
import base64
import json
import os
import time

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils

from conftest import wait_for
from identity import RELOAD

ISSUER, AUDIENCE = "https://issuer.example", "quantry"
CLAIMS = {"iss": ISSUER, "aud": AUDIENCE, "sub": "ann", "quantry_role": "viewer", "quantry_tenant": "acme"}


def base64url(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class Key:
    """Of an identity provider: RSA signs RS256, P-256 ES256."""

    def __init__(self, kid, alg):
        self.kid, self.alg = kid, alg
        self.key = rsa.generate_private_key(65537, 2048) if alg == "RS256" else ec.generate_private_key(ec.SECP256R1())

    def jwk(self):
        numbers = self.key.public_key().public_numbers()
        if self.alg == "RS256":
            return {"kty": "RSA", "kid": self.kid, "n": base64url(numbers.n.to_bytes(256, "big")), "e": base64url(numbers.e.to_bytes(3, "big"))}
        return {"kty": "EC", "crv": "P-256", "kid": self.kid, "x": base64url(numbers.x.to_bytes(32, "big")),
                "y": base64url(numbers.y.to_bytes(32, "big"))}

    def sign(self, data):
        if self.alg == "RS256":
            return self.key.sign(data, padding.PKCS1v15(), hashes.SHA256())
        r, s = utils.decode_dss_signature(self.key.sign(data, ec.ECDSA(hashes.SHA256())))
        return r.to_bytes(32, "big") + s.to_bytes(32, "big")

    def token(self, header=None, **claims):
        """Good for an hour unless the claims say otherwise."""
        parts = ({"alg": self.alg, "kid": self.kid, **(header or {})}, {**CLAIMS, "exp": int(time.time()) + 3600, **claims})
        text = ".".join(base64url(json.dumps(part).encode()) for part in parts)
        signature = "" if (header or {}).get("alg") == "none" else base64url(self.sign(text.encode()))
        return f"{text}.{signature}"


class Provider:
    """A server that believes the keys of a JWKS file, which may be changed."""

    def __init__(self, make_server, folder):
        self.folder, self.file = folder, folder / "jwks.json"
        self.rsa, self.ec = Key("rsa-1", "RS256"), Key("ec-1", "ES256")
        self.publish(self.rsa, self.ec)
        self.server = make_server(f"--jwks-file={self.file}", f"--jwt-issuer={ISSUER}", f"--jwt-audience={AUDIENCE}", RELOAD,
                                  "--embedded=false").start()

    def publish(self, *keys):
        self.write(json.dumps({"keys": [key.jwk() for key in keys]}))

    def write(self, text):
        new = self.folder / "jwks.new"
        new.write_text(text)
        os.replace(new, self.file)

    def call(self, token, *args):
        """(exit status, error) of a call with it."""
        file = self.folder / "token"
        file.touch(mode=0o600)
        file.write_text(token + "\n")
        done = self.server.cli(*(args or ["list"]), "--tenant", "acme", "--output", "json", "--timeout", 10, "--token-file", file)
        return done.returncode, json.loads(done.stdout)["error"] if done.returncode else {}

    def accepts(self, token):
        status, error = self.call(token)
        assert status == 0 or error["reason"] == "UNAUTHENTICATED", error
        return status == 0


@pytest.fixture
def provider(make_server, tmp_path):
    return Provider(make_server, tmp_path)


def test_good_tokens(provider):
    for key in (provider.rsa, provider.ec):
        assert provider.call(key.token()) == (0, {}), key.alg
        assert provider.call(key.token(aud=["elsewhere", AUDIENCE])) == (0, {}), key.alg
        assert provider.call(key.token(quantry_role="admin", quantry_tenant="*"), "workers") == (0, {}), key.alg


def test_refused_tokens(provider):
    """UNAUTHENTICATED and why: no word of a token counts that is not signed, current and for this server."""
    for key in (provider.rsa, provider.ec):
        good, stranger = key.token(), Key(key.kid, key.alg)
        head, claims, signature = good.split(".")
        raised = base64url(json.dumps({**CLAIMS, "exp": int(time.time()) + 3600, "quantry_role": "admin"}).encode())
        other = provider.ec if key is provider.rsa else provider.rsa
        for name, token, cause in (
                ("expired", key.token(exp=int(time.time()) - 60), "expired"),
                ("another audience", key.token(aud="elsewhere"), "unknown"),
                ("another issuer", key.token(iss="https://elsewhere.example"), "unknown"),
                ("not yet", key.token(nbf=int(time.time()) + 3000), "unknown"),
                ("no such role", key.token(quantry_role="king"), "unknown"),
                ("alg none", key.token({"alg": "none"}), "unknown"),
                ("alg HS256", key.token({"alg": "HS256"}), "unknown"),
                ("alg of the other key", key.token({"alg": other.alg}), "unknown"),
                ("another's key", stranger.token(), "unknown"),
                ("another's claims", f"{head}.{raised}.{signature}", "unknown"),
                ("no signature", f"{head}.{claims}.", "unknown")):
            status, error = provider.call(token)
            assert (status, error.get("reason")) == (5, "UNAUTHENTICATED"), (key.alg, name, error)
            assert error["metadata"]["cause"] == cause, (key.alg, name, error)
    assert provider.call(provider.rsa.token()) == (0, {}), "the others are served on"


def test_roles_and_tenants(provider):
    status, error = provider.call(provider.rsa.token(), "delete", "job-1")
    assert (status, error["reason"]) == (5, "PERMISSION_DENIED"), error
    status, error = provider.call(provider.rsa.token(quantry_role="admin"), "workers")
    assert (status, error["reason"]) == (5, "PERMISSION_DENIED"), "an admin of one tenant"
    status, error = provider.call(provider.ec.token(quantry_role="admin", quantry_tenant="other"))
    assert (status, error["code"]) == (4, "NOT_FOUND"), error
    status, error = provider.call(provider.ec.token(quantry_role="worker", quantry_tenant="*"))
    assert (status, error["reason"]) == (5, "PERMISSION_DENIED"), error


def test_keys_that_change(provider):
    """As an identity provider changes them: both for a while, then the new one alone. A broken file changes nothing."""
    old, new = provider.rsa, Key("rsa-2", "RS256")
    before, after = old.token(), new.token()
    assert provider.accepts(before) and not provider.accepts(after)
    provider.publish(old, new)
    wait_for(lambda: provider.accepts(after), 20, "the new key")
    assert provider.accepts(before)
    provider.write("{")
    wait_for(lambda: "jwks.json" in provider.server.log_text(), 20, "the broken file to be told")
    assert provider.accepts(before) and provider.accepts(after)
    provider.publish(new)
    wait_for(lambda: not provider.accepts(before), 20, "the old key to be gone")
    assert provider.accepts(after)
