"""The writing half of fake_hub.py: what huggingface_hub calls to make a repository and commit to it."""
import base64
import hashlib
import json
import re
import urllib.parse

LFS = ".lfs"  # objects that were uploaded and not committed yet, below the hub's folder


class Writer:
    """Mixed into the handler, which has folder, repo_of(name, revision), commit_of(repo), endpoint() and answer()."""

    def do_POST(self):
        path = urllib.parse.unquote(self.path.split("?")[0])
        body = self.read_body()
        if not self.admitted():
            return None
        for pattern, act in ((r"/api/repos/create", self.create), (r"/api/validate-yaml", self.validate),
                             (r"/api/models/([^/]+/[^/]+)/branch/(.+)", self.branch),
                             (r"/api/models/([^/]+/[^/]+)/preupload/(.+)", self.preupload),
                             (r"/api/models/([^/]+/[^/]+)/commit/(.+)", self.commit),
                             (r"/(.+)\.git/info/lfs/objects/batch", self.batch), (r"/lfs/verify", self.verify)):
            if match := re.fullmatch(pattern, path):
                return act(body, *match.groups())
        return self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})

    def do_PUT(self):
        digest = self.path.rsplit("/", 1)[1].split("?")[0]
        data = self.read_body()
        if hashlib.sha256(data).hexdigest() != digest:
            return self.answer(400, b"", {})
        (self.folder / LFS).mkdir(exist_ok=True)
        (self.folder / LFS / digest).write_bytes(data)
        return self.answer(200, b"", {})

    def read_body(self):
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        data = b""
        while size := int(self.rfile.readline(), 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    def json(self, value, status=200):
        self.answer(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def create(self, body):
        wanted = json.loads(body)
        repo = self.folder / wanted["organization"] / wanted["name"]
        status = 409 if repo.is_dir() else 200
        repo.mkdir(parents=True, exist_ok=True)
        self.json({"url": f"{self.endpoint()}/{wanted['organization']}/{wanted['name']}", "visibility": wanted.get("visibility")}, status)

    def validate(self, body):
        content = json.loads(body)["content"]
        self.json({"errors": [], "warnings": [] if content.startswith("---\n") else [{"message": "empty or missing yaml metadata"}]})

    def branch(self, body, name, branch):
        repo = self.repo_of(name, branch)
        status = 409 if repo.is_dir() else 200
        repo.mkdir(parents=True, exist_ok=True)
        self.json({}, status)

    def preupload(self, body, name, revision):
        def row(file):
            there = self.repo_of(name, revision) / file["path"]
            lfs = file["path"].endswith(".safetensors")
            data = there.read_bytes() if there.is_file() else None
            blob = None if data is None else hashlib.sha256(data) if lfs else hashlib.sha1(b"blob %d\0" % len(data) + data)
            return {"path": file["path"], "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False,
                    "oid": blob and blob.hexdigest()}

        self.json({"files": [row(file) for file in json.loads(body)["files"]]})

    def batch(self, body, name):
        def row(item):
            actions = {"upload": {"href": f"{self.endpoint()}/lfs/{item['oid']}"}, "verify": {"href": f"{self.endpoint()}/lfs/verify"}}
            stored = (self.folder / LFS / item["oid"]).exists()
            return {"oid": item["oid"], "size": item["size"], **({} if stored else {"actions": actions})}

        self.json({"transfer": "basic", "objects": [row(item) for item in json.loads(body)["objects"]]})

    def verify(self, body):
        wanted = json.loads(body)
        file = self.folder / LFS / wanted["oid"]
        self.json({}, 200 if file.exists() and file.stat().st_size == wanted["size"] else 404)

    def commit(self, body, name, revision):
        repo = self.repo_of(name, revision)
        for line in body.splitlines():
            key, value = (entry := json.loads(line))["key"], entry["value"]
            if key in ("file", "lfsFile"):
                (repo / value["path"]).parent.mkdir(parents=True, exist_ok=True)
                data = base64.b64decode(value["content"]) if key == "file" else (self.folder / LFS / value["oid"]).read_bytes()
                (repo / value["path"]).write_bytes(data)
            elif key == "deletedFile":
                (repo / value["path"]).unlink()
        oid = self.commit_of(repo)
        self.json({"success": True, "commitOid": oid, "commitUrl": f"{self.endpoint()}/{name}/commit/{oid}"})
