#!/usr/bin/env python3
"""A model hub for tests: the part of the Hugging Face HTTP API that a worker speaks, and that huggingface_hub pushes by.

    fake_hub.py FOLDER

Serves FOLDER/{org}/{name}/ as repositories of one commit; another branch than main lies in FOLDER/{org}/{name}@{branch}.
*.safetensors are LFS files: /resolve/ redirects to /cdn/{sha256}. Writes: fake_hub_write.py. Prints "http://127.0.0.1:PORT"
once it listens; logs a line a request to FOLDER/requests.
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

from fake_hub_write import LFS, Writer

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


def files_of(repo):
    return [file for file in sorted(repo.rglob("*")) if file.is_file()]


def commit_of(repo):
    """Another one when a name or a byte changes."""
    rows = [f"{file.relative_to(repo)} {hashlib.sha1(file.read_bytes()).hexdigest()}" for file in files_of(repo)]
    return hashlib.sha1("\n".join(rows).encode()).hexdigest()


def sibling(file, repo):
    data = file.read_bytes()
    row = {"rfilename": file.relative_to(repo).as_posix(), "size": len(data),
           "blobId": hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()}
    if file.suffix == ".safetensors":
        row["blobId"] = "0" * 40
        row["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
    return row


class Hub(Writer, http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    folder = FOLDER
    commit_of = staticmethod(commit_of)

    def endpoint(self):
        return f"http://{self.headers['Host']}"

    def repo_of(self, name, revision):
        """The folder of a branch or commit; one that does not exist for what is unknown."""
        main = FOLDER / name
        return main if revision == "main" or main.is_dir() and revision == commit_of(main) else FOLDER / f"{name}@{revision}"

    def admitted(self):
        """Logs the request; answers it and returns False when the script says so."""
        path = urllib.parse.unquote(self.path.split("?")[0])
        with LOCK, open(FOLDER / "requests", "a") as log:
            log.write(f"{path} {self.headers.get('Range', '-')} {self.headers.get('Authorization', '-')}\n")
        status = take("status")
        if status:
            self.answer(status, b"busy", {"Retry-After": "0"})
            return False
        token = script().get("token")
        if token and self.headers.get("Authorization") != f"Bearer {token}":
            self.answer(401, b"", {"X-Error-Code": "GatedRepo"})
            return False
        return True

    def do_GET(self):
        path = urllib.parse.unquote(self.path.split("?")[0])
        if not self.admitted():
            return None
        if listing := re.fullmatch(r"/api/models/(.+)/revision/(.+)", path):
            return self.listing(*listing.groups())
        if tree := re.fullmatch(r"/api/models/(.+)/tree/([^/]+)/?", path):
            return self.tree(*tree.groups())
        if file := re.fullmatch(r"/(.+)/resolve/([^/]+)/(.+)", path):
            return self.resolve(*file.groups())
        if blob := re.fullmatch(r"/cdn/([0-9a-f]{64})", path):
            for file in (file for file in FOLDER.rglob("*.safetensors") if LFS not in file.parts):
                if hashlib.sha256(file.read_bytes()).hexdigest() == blob[1]:
                    return self.send_file(file.read_bytes())
        return self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})

    def listing(self, name, revision):
        if not (FOLDER / name).is_dir():
            return self.answer(404, b"", {"X-Error-Code": "RepoNotFound"})
        repo = self.repo_of(name, revision)
        if not repo.is_dir():
            return self.answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
        commit = commit_of(repo)
        rows = [sibling(file, repo) for file in files_of(repo)]
        body = {"id": name, "sha": commit, "siblings": rows + script().get("siblings", [])}
        return self.answer(200, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def tree(self, name, revision):
        repo = self.repo_of(name, revision)
        if not repo.is_dir():
            return self.answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
        rows = [{"type": "file", "path": row["rfilename"], "size": row["size"], "oid": row["blobId"]}
                for row in (sibling(file, repo) for file in files_of(repo))]
        return self.answer(200, json.dumps(rows).encode(), {"Content-Type": "application/json"})

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
