"""Several quantryd and quantry-worker with the synthetic engine, and a log of what they promised.

Jobs follow scripts (tests/support/synthetic_engine.cc) and take milliseconds. Every call made through a Fleet is
recorded in its History (tests/faults/history.py), which `check` judges once everything has come to rest.
"""
import contextlib
import hashlib
import json
import os
import pathlib
import re
import signal
import threading
import time
import urllib.request
import uuid

import pytest

import api
import totals
from api import PuppetWorker, Tenant, errors, state_name
from history import ENDED, History
from object_store import read_object, write_object
from postgres import PASSWORD
from quantry.v1 import artifact_service_pb2, job_pb2
from service import Server, Worker, wait_for

QUICK = "stage QUANTIZING\nblock\nblock\nblock\nblock\nartifact\ncomplete\n"
HANG = "stage QUANTIZING\nblock\nhang\n"
UNCONFINED = "--engine-confinement=false"


def engine_path(binaries):
    found = pathlib.Path(binaries).parent / "tests/synthetic_engine"
    assert found.exists(), f"no {found}: build the target synthetic_engine"
    return found


def plain_event(event):
    """A JobEvent as history.py has it."""
    found = {"sequence": event.sequence, "epoch": event.epoch, "kind": event.WhichOneof("kind")}
    if found["kind"] == "state_changed":
        found.update({"from": state_name(getattr(event.state_changed, "from")), "to": state_name(event.state_changed.to)})
    return found


def epoch_of(uri):
    """Of an artifact: .../JOB UID/EPOCH, behind it perhaps the options of its store."""
    return int(uri.partition("?")[0].rpartition("/")[2])


def reach_store_by(link, server, postgres):
    """From its next start on `server` finds `postgres` behind `link`."""
    port = link.address.rpartition(":")[2]
    server.flags[:] = [flag.replace(f":{postgres.port}/", f":{port}/") for flag in server.flags]


class Fleet:
    """`postgres` None: one server on SQLite. Servers and workers are started by name: a, b, ... and w1, w2, ...

    `credentials`: of the test's own calls to tenant ports. `bucket`: boto3's client of the object store that holds the
    artifacts; None: they lie in folders.
    """

    def __init__(self, folder, binaries, servers=2, postgres=None, flags=(), env=None, run=(), ttl_s=3, engine=None,
                 credentials=None, bucket=None):
        self.folder, self.binaries, self.postgres, self.credentials = pathlib.Path(folder), binaries, postgres, credentials
        self.ttl_s, self.bucket = ttl_s, bucket
        self.folder.mkdir(parents=True, exist_ok=True)
        self.engine = engine or engine_path(binaries)
        self.history = History()
        self.env, self.run = env or {}, list(run)
        self.workers, self.tenants, self.puppets = {}, {}, []
        self.scripts = self.folder / "inputs/scripts"
        self.scripts.mkdir(parents=True, exist_ok=True)
        model = self.folder / "inputs/model"
        model.mkdir(exist_ok=True)
        (model / "config.json").write_text("{}")
        (model / "model.safetensors").write_bytes(b"weights")
        # The synthetic engine's scripts touch files outside their job's.
        self.flags = ["--embedded=false", f"--engine-binary={self.engine}", UNCONFINED, f"--lease-ttl-s={ttl_s}",
                      "--heartbeat-interval-s=1", "--sweep-interval-s=1", "--drain-timeout-s=5",
                      f"--local-roots={self.folder}/inputs", *self._store_flags(), *flags]
        names = "abcdefgh"[:servers if postgres else 1]
        self.servers = {name: Server(binaries, self.folder / name, *self.flags, env=self.env, run=self.run) for name in names}

    def _store_flags(self):
        if self.postgres is None:
            return []
        password = self.folder / "password"
        password.write_text(PASSWORD + "\n")
        password.chmod(0o600)
        database = f"q{uuid.uuid4().hex[:12]}"
        self.postgres.sql(f"CREATE DATABASE {database}")
        self.database = database
        return [f"--job-store=postgresql://quantry@127.0.0.1:{self.postgres.port}/{database}",
                f"--job-store-password-file={password}", f"--blob-dir={self.folder}/shared/blobs",
                f"--artifact-root=file://{self.folder}/shared/artifacts"]

    # Processes ---------------------------------------------------------------

    def start(self, workers=2, slots=1):
        for server in self.servers.values():
            server.start()
        for number in range(workers):
            self.worker(f"w{number + 1}", list(self.servers)[number % len(self.servers)], slots=slots)
        return self

    def worker(self, name, server="a", address=None, slots=1, flags=(), env=None):
        """Starts one; `address` instead of a server: a link's, or several."""
        worker = Worker(self.binaries, self.folder / name, address or self.servers[server].worker_address,
                        f"--engine-binary={self.engine}", UNCONFINED, f"--slots={slots}", "--threads=1", "--drain-timeout-s=5", *flags,
                        env={**self.env, **(env or {})}, run=self.run)
        self.workers[name] = worker
        return worker.start()

    def everyone(self):
        """An address that means all servers: a client goes on to the next when one is gone."""
        return "ipv4:" + ",".join(server.worker_address for server in self.servers.values())

    def stop(self):
        for puppet in self.puppets:
            puppet.close()
        for tenant in self.tenants.values():
            tenant.close()
        running = [w.process for w in self.workers.values()] + [s.process for s in self.servers.values()]
        for process in [p for p in running if p and p.poll() is None]:
            process.kill()
            process.wait()

    def api(self, server="a"):
        """Tenant calls to the server; its address stays when it is started again."""
        if server not in self.tenants:
            self.tenants[server] = Tenant(self.servers[server].address, credentials=self.credentials)
        return self.tenants[server]

    def puppet(self, name, server="a", address=None):
        """A worker for jobs of the method gptq alone."""
        puppet = PuppetWorker(address or self.servers[server].worker_address, name)
        puppet.info.methods[:] = ["gptq"]
        self.puppets.append(puppet)
        return puppet.register()

    @contextlib.contextmanager
    def passing_puppet(self, name, server="a"):
        """One that is closed again."""
        puppet = self.puppet(name, server)
        try:
            yield puppet
        finally:
            self.puppets.remove(puppet)
            puppet.close()

    def heal(self):
        """Everyone runs again, with nothing left of the test before."""
        for puppet in self.puppets:
            puppet.close()
        self.puppets.clear()
        for name in [name for name in self.workers if name not in ("w1", "w2")]:
            self.workers.pop(name).stop(signal.SIGKILL)
        self.heal_processes()
        self.history = History()

    def heal_processes(self):
        for server in self.servers.values():
            kill(server.process.pid, signal.SIGCONT)
            if server.process.poll() is not None:
                server.start()
        for name, worker in list(self.workers.items()):
            if worker.process.poll() is None:
                worker.send(signal.SIGCONT)
            if worker.process.poll() is not None:
                worker.start()

    # Calls, recorded -----------------------------------------------------------

    def spec(self, script=QUICK, method="awq", model_uri=None, **fields):
        """`method`: the synthetic engine runs rtn and awq; gptq is left for puppets. `model_uri`: instead of a local model."""
        name = hashlib.sha256(script.encode()).hexdigest()[:16]
        path = self.scripts / name
        if not path.exists():
            path.write_text(script)
        spec = job_pb2.JobSpec(**fields)
        if model_uri:
            spec.model.uri = model_uri
        else:
            spec.model.local_path = str(self.folder / "inputs/model")
        spec.calibration.source.local_path = str(path)
        getattr(spec.method, method).grid.bits = 4
        return spec

    def _record(self, call, job, function, fields=lambda answer: {}, **known):
        began = time.monotonic()
        try:
            answer = function()
        except errors.QuantryError as error:
            self.history.add(call, job, began, error=error.reason, **known)
            raise
        self.history.add(call, job, began, **known, **fields(answer))
        return answer

    def submit(self, job, script=QUICK, server="a", request_id=None, timeout=None, **fields):
        request_id = request_id or str(uuid.uuid4())
        spec = self.spec(script, **fields)
        return self._record("submit", job, lambda: self.api(server).submit(job, spec, request_id, timeout),
                            lambda answer: {"uid": answer.uid}, request_id=request_id)

    def submit_for_sure(self, job, script=QUICK, seconds=60, **fields):
        """Repeats under one request id, at any server, until it is acknowledged."""
        request_id, tries = str(uuid.uuid4()), 0
        deadline = time.monotonic() + seconds
        while True:
            try:
                return self.submit(job, script, list(self.servers)[tries % len(self.servers)], request_id, timeout=5, **fields)
            except errors.ServerUnavailable:
                assert time.monotonic() < deadline, f"{job} was not taken within {seconds} s"
                tries += 1
                time.sleep(0.1)

    def expect_full(self, prefix, **fields):
        """Submits until the server has no room left, and says so."""
        with pytest.raises(errors.QuantryError) as refused:
            for number in range(5000):
                self.submit(f"{prefix}-{number}", **fields)
        assert refused.value.reason in ("DISK_FULL", "STORE_UNAVAILABLE"), refused.value

    def get(self, job, server="a"):
        return self._record("get", job, lambda: self.api(server).get(job), lambda answer: {
            "sequence": answer.last_sequence, "epoch": answer.epoch, "state": state_name(answer.state)})

    def state(self, job, server="a"):
        return state_name(self.get(job, server).state)

    def cancel(self, job, server="a"):
        return self._record("cancel", job, lambda: self.api(server).cancel(job),
                            lambda answer: {"state": state_name(answer.state)})

    def retry(self, job, server="a", request_id=None):
        request_id = request_id or str(uuid.uuid4())
        return self._record("retry", job, lambda: self.api(server).retry(job, request_id), request_id=request_id)

    def delete(self, job, server="a"):
        return self._record("delete", job, lambda: self.api(server).delete(job))

    def delete_for_sure(self, job, seconds=60):
        """Repeats until the job is gone."""
        def gone():
            try:
                self.delete(job)
            except errors.ServerUnavailable:
                return False
            except errors.NotFound:
                pass
            return True

        wait_for(gone, seconds, f"{job} to be deleted")

    def acquire(self, puppet, wait_s=5, acquire_id=None):
        began = time.monotonic()
        lease = puppet.acquire(wait_s, acquire_id)
        if lease is not None:
            self.history.add("acquire", lease.job.rpartition("/")[2], began, worker=puppet.name, epoch=lease.epoch)
        return lease

    def write(self, puppet, what, lease, *arguments, **named):
        """A puppet's complete, fail, release or checkpoint."""
        return self._record("write", lease.job.rpartition("/")[2],
                            lambda: getattr(puppet, what)(lease, *arguments, **named), what=what, worker=puppet.name,
                            epoch=lease.epoch)

    def put_artifact(self, lease):
        """Writes what an engine would have made below the lease's prefix; the manifest's sha256."""
        weights = f"weights of attempt {lease.epoch}".encode()
        self._write_file(lease.output_uri, "model.safetensors", weights)
        manifest = json.dumps({"schema": "quantry.manifest.v1", "job": lease.job, "files": [
            {"path": "model.safetensors", "sizeBytes": str(len(weights)), "sha256": hashlib.sha256(weights).hexdigest()}]})
        self._write_file(lease.output_uri, "manifest.json", manifest.encode())
        return hashlib.sha256(manifest.encode()).hexdigest()

    def _write_file(self, folder_uri, name, data):
        if self.bucket is not None:
            return write_object(self.bucket, folder_uri, name, data)
        folder = pathlib.Path(folder_uri.removeprefix("file://"))
        folder.mkdir(parents=True, exist_ok=True)
        return (folder / name).write_bytes(data)

    def _read_file(self, folder_uri, name):
        """Its bytes; None: there is no such file."""
        if self.bucket is not None:
            return read_object(self.bucket, folder_uri, name)
        path = pathlib.Path(folder_uri.removeprefix("file://")) / name
        return path.read_bytes() if path.exists() else None

    def metric(self, server, name):
        """The sum of a metric's series now."""
        with urllib.request.urlopen(f"http://{self.servers[server].admin}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if re.match(rf"{name}[ {{]", line))

    # Waiting ------------------------------------------------------------------

    def wait_state(self, job, *states, server="a", seconds=30):
        def reached():
            try:
                return self.state(job, server) in states
            except errors.ServerUnavailable:
                return False

        wait_for(reached, seconds, f"{job} to be {' or '.join(states)}")
        return self.get(job, server)

    def wait_end(self, job, server="a", seconds=30):
        return self.wait_state(job, *ENDED, server=server, seconds=seconds)

    def wait_block(self, job, blocks=1, server="a", seconds=30):
        """Until a checkpoint of so many blocks is committed."""
        wait_for(lambda: any(e.checkpoint.blocks_done >= blocks for e in self.api(server).events(job)), seconds,
                 f"block {blocks} of {job}")

    def watch(self, job, server="a"):
        return Watch(self, job, server)

    # Judgement ------------------------------------------------------------------

    def collect(self, server="a", jobs=None):
        """Reads how every acknowledged job ended, with its events, artifacts and files."""
        tenant = self.api(server)
        artifacts = self._artifacts(tenant)
        if jobs is None:
            jobs = {r["job"] for r in self.history.records if r["call"] == "submit" and "error" not in r}
        for job in sorted(jobs):
            try:
                found = tenant.get(job)
            except errors.NotFound:
                continue  # the checker says so
            mine = artifacts.get(found.name, [])
            self.history.add("final", job, uid=found.uid, state=state_name(found.state), epoch=found.epoch,
                             events=[plain_event(event) for event in tenant.events(job)],
                             gate=found.state_reason == "QUALITY_GATE_FAILED",
                             artifacts=[{"uid": a.name.rpartition("/")[2], "epoch": epoch_of(a.uri)} for a in mine])
            for artifact in mine:
                self._read_files(job, artifact)

    def artifacts_of(self, job, server="a"):
        return self._artifacts(self.api(server)).get(api.name_of(job), [])

    def _artifacts(self, tenant):
        found = {}
        request = artifact_service_pb2.ListArtifactsRequest(parent=api.PARENT, page_size=1000)
        while True:
            page = tenant.call(tenant.artifacts.ListArtifacts, request)
            for artifact in page.artifacts:
                found.setdefault(artifact.job, []).append(artifact)
            if not page.next_page_token:
                return found
            request.page_token = page.next_page_token

    def _read_files(self, job, artifact):
        manifest = self._read_file(artifact.uri, "manifest.json")
        wanted = [("manifest.json", artifact.manifest_sha256)]
        if manifest is not None:
            wanted += [(file["path"], file["sha256"]) for file in json.loads(manifest)["files"]]
        for path, sha256 in wanted:
            data = manifest if path == "manifest.json" else self._read_file(artifact.uri, path)
            self.history.add("file", job, path=path, wanted=sha256, got="" if data is None else hashlib.sha256(data).hexdigest())

    def check(self, server="a", jobs=None):
        self.collect(server, jobs)
        totals.note(self.history)
        violations = self.history.check()
        if violations:
            path = self.folder / "history.jsonl"
            self.history.write(path)
            raise AssertionError("\n".join(map(str, violations[:20])) + f"\nthe whole history: {path}")


class Watch:
    """Follows a job in the background as clients do: re-attaches with its last sequence, at any server.

    `resumes`: seconds between each break and the first message after it.
    """

    def __init__(self, fleet, job, server="a"):
        self.fleet, self.job, self.server, self.history = fleet, job, server, fleet.history
        self.stream = f"{job}-{uuid.uuid4().hex[:6]}"
        self.last, self.end, self.breaks, self.resumes = 0, None, 0, []
        self.attached = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self):
        servers = list(self.fleet.servers)
        broken_at = None
        while not self._stop.is_set() and self.end is None:
            try:
                for message in self.fleet.api(self.server).watch(self.job, self.last):
                    if broken_at is not None:
                        self.resumes.append(time.monotonic() - broken_at)
                        broken_at = None
                    self.attached.set()
                    self._take(message)
            except errors.QuantryError:
                broken_at = broken_at or time.monotonic()
                self.breaks += 1
                self.server = servers[(servers.index(self.server) + 1) % len(servers)]
                self._stop.wait(0.1)

    def _take(self, message):
        kind = message.WhichOneof("kind")
        if kind == "snapshot" and self.last == 0:
            self.last = message.snapshot.last_sequence
            self._note("snapshot", uid=message.snapshot.uid, sequence=self.last)
        elif kind == "event":
            self.last = message.event.sequence
            self._note("event", event=plain_event(message.event))
        elif kind == "end":
            self.end = message.end.job
            self._note("end", sequence=self.end.last_sequence, state=state_name(self.end.state))

    def _note(self, call, **fields):
        self.history.add(call, self.job, stream=self.stream, **fields)

    def wait(self, seconds=60):
        """The state it ended with."""
        self._thread.join(timeout=seconds)
        if self.end is None:
            self._stop.set()
            raise AssertionError(f"the watch of {self.job} saw no end within {seconds} s, its last sequence is {self.last}")
        return state_name(self.end.state)


def alive(pid):
    try:
        os.kill(pid, 0)
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except (OSError, IndexError):
        return False


def kill(pid, number=signal.SIGKILL):
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


def call_in_parallel(count, function):
    """function(i) in `count` threads at once; answers or exceptions, in order."""
    answers = [None] * count
    ready = threading.Barrier(count)

    def one(i):
        ready.wait()
        try:
            answers[i] = function(i)
        except Exception as error:  # for the caller to judge
            answers[i] = error

    threads = [threading.Thread(target=one, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


__all__ = ["Fleet", "HANG", "QUICK", "Watch", "alive", "call_in_parallel", "engine_path", "kill"]
