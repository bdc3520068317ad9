#!/usr/bin/env python3
"""A model hub for tests: the part of the Hugging Face HTTP API that a worker speaks.

    fake_hub.py FOLDER

Serves FOLDER/{org}/{name}/ as repositories of one branch, main, and one commit. *.safetensors are LFS files: /resolve/
redirects to /cdn/{sha256}. Prints "http://127.0.0.1:PORT" once it listens; logs a line a request to FOLDER/requests.
FOLDER/script.json, read anew for each request, makes trouble:
    "token"       answer 401 without "Authorization: Bearer {token}"
    "status"      [503, 429, ...]: each answers one request, then it goes on
    "break_after" bytes after which a download is cut, until "breaks" cuts are used up
    "damage"      so many downloads get a wrong byte
    "no_range"    true: ranges are ignored
    "redirect"    where LFS downloads are sent instead
    "siblings"    rows added to every listing
"""
import hashlib
import http.server
import json
import pathlib
import re
import sys
import threading
import urllib.parse

FOLDER = pathlib.Path(sys.argv[1])
LOCK = threading.Lock()


def script():
    file = FOLDER / "script.json"
    return json.loads(file.read_text()) if file.exists() else {}


def take(name):
    """One use of a counted fault."""
    with LOCK:
        faults = script()
        left = faults.get(name, 0)
        if isinstance(left, list):
            value = left.pop(0) if left else None
        else:
            value, left = left > 0, left - 1
        faults[name] = left
        if value:
            (FOLDER / "script.json").write_text(json.dumps(faults))
        return value


def commit_of(repo):
    return hashlib.sha1("".join(sorted(p.name for p in repo.iterdir())).encode()).hexdigest()


def sibling(file, repo):
    data = file.read_bytes()
    row = {"rfilename": file.relative_to(repo).as_posix(), "size": len(data),
           "blobId": hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()}
    if file.suffix == ".safetensors":
        row["blobId"] = "0" * 40
        row["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
    return row


class Hub(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        path = urllib.parse.unquote(self.path.split("?")[0])
        with LOCK, open(FOLDER / "requests", "a") as log:
            log.write(f"{path} {self.headers.get('Range', '-')} {self.headers.get('Authorization', '-')}\n")
        status = take("status")
        if status:
            return self.answer(status, b"busy", {"Retry-After": "0"})
        token = script().get("token")
        if token and self.headers.get("Authorization") != f"Bearer {token}":
            return self.answer(401, b"", {"X-Error-Code": "GatedRepo"})
        if listing := re.fullmatch(r"/api/models/(.+)/revision/(.+)", path):
            return self.listing(*listing.groups())
        if file := re.fullmatch(r"/(.+)/resolve/([^/]+)/(.+)", path):
            return self.resolve(*file.groups())
        if blob := re.fullmatch(r"/cdn/([0-9a-f]{64})", path):
            for file in FOLDER.rglob("*.safetensors"):
                if hashlib.sha256(file.read_bytes()).hexdigest() == blob[1]:
                    return self.send_file(file.read_bytes())
        return self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})

    def listing(self, name, revision):
        repo = FOLDER / name
        if not repo.is_dir():
            return self.answer(404, b"", {"X-Error-Code": "RepoNotFound"})
        commit = commit_of(repo)
        if revision not in ("main", commit):
            return self.answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
        rows = [sibling(file, repo) for file in sorted(repo.rglob("*")) if file.is_file()]
        body = {"id": name, "sha": commit, "siblings": rows + script().get("siblings", [])}
        return self.answer(200, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def resolve(self, name, revision, path):
        file = FOLDER / name / path
        if revision != commit_of(FOLDER / name) or not file.is_file():
            return self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
        if file.suffix != ".safetensors":
            return self.send_file(file.read_bytes())
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        return self.answer(302, b"", {"Location": script().get("redirect") or f"/cdn/{digest}?signature=x"})

    def send_file(self, data):
        begin = 0
        if (wanted := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))) and not script().get("no_range"):
            begin = int(wanted[1])
        if take("damage"):
            data = data[:-1] + bytes([data[-1] ^ 1])
        body = data[begin:]
        self.send_response(206 if begin else 200)
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        cut = script().get("break_after")
        if cut is not None and len(body) > cut and take("breaks"):
            self.wfile.write(body[:cut])
            self.close_connection = True
        else:
            self.wfile.write(body)

    def answer(self, status, body, headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *unused):
        pass


if __name__ == "__main__":
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()
