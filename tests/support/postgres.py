"""PostgreSQL of a test's own: Debian's programs, a cluster in a temporary folder, loopback only."""
import contextlib
import os
import pathlib
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile

import pytest

from service import wait_for

PASSWORD = "it's a \\ secret"


def bin_folder():
    """Debian keeps the server's programs out of PATH."""
    found = sorted(pathlib.Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        pytest.fail("no PostgreSQL server on this machine: run scripts/bootstrap")
    return found[-1].parent


def user_for_server():
    """PostgreSQL refuses to run as root: arguments of subprocess for another user."""
    if os.getuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
            return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
        except KeyError:
            pass
    pytest.fail("no user to run PostgreSQL as")


class Postgres:
    """A cluster in a temporary folder, on a loopback port, with passwords on."""

    def __init__(self, folder=None, env=None):
        """`folder`: where to make its own one in; default: the temporary folder. `env`: of the server, beside this process's."""
        self.env = {**os.environ, **(env or {})}
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="quantry_pg_", dir=folder))
        self.user = user_for_server()
        if self.user:
            os.chown(self.folder, self.user["user"], self.user["group"])
        password = self.folder / "password"
        password.write_text(PASSWORD + "\n")
        password.chmod(0o644)
        subprocess.run([bin_folder() / "initdb", "-D", self.folder / "data", "-U", "quantry", "-A", "scram-sha-256",
                        f"--pwfile={password}", "-E", "UTF8", "--locale=C", "--no-sync"],
                       check=True, capture_output=True, cwd="/", timeout=60, **self.user)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.uri = f"postgresql://quantry@127.0.0.1:{self.port}/postgres"
        self.process = None

    def start(self):
        self.log = open(self.folder.parent / (self.folder.name + ".log"), "ab")
        self.process = subprocess.Popen(
            [bin_folder() / "postgres", "-D", self.folder / "data", "-h", "127.0.0.1", "-p", str(self.port),
             "-k", self.folder], stdout=self.log, stderr=self.log, cwd="/", env=self.env, **self.user)
        wait_for(lambda: subprocess.run([bin_folder() / "pg_isready", "-h", "127.0.0.1", "-p", str(self.port)],
                                        capture_output=True).returncode == 0, 30, "PostgreSQL")
        return self

    def sql(self, *statements, database="postgres", timeout=60):
        """Runs them with psql; returns what the last one answers, rows as lines."""
        command = [bin_folder() / "psql", "-XqAt", "-v", "ON_ERROR_STOP=1", "-h", "127.0.0.1", "-p", str(self.port),
                   "-U", "quantry", "-d", database]
        for statement in statements:
            command += ["-c", statement]
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout,
                              env={**os.environ, "PGPASSWORD": PASSWORD})
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def copy_jobs(self, tenant, count, database="postgres"):
        """More of one queued job of the tenant, written into the tables: a submit each would take hours for a million. Servers
        see all of them or none."""
        copies = "FROM jobs j JOIN source s ON j.tenant = s.tenant AND j.id LIKE 'copy-%'"
        self.sql(
            "BEGIN", f"CREATE TEMP TABLE source ON COMMIT DROP AS SELECT pk, tenant FROM queue WHERE tenant = '{tenant}' AND state = 1 LIMIT 1",
            "INSERT INTO jobs (tenant, id, uid, request_hash, display_name, method, spec_digest, priority, state, create_time,"
            " update_time) SELECT j.tenant, 'copy-' || n, gen_random_uuid(), request_hash, '', method, spec_digest, priority, 1,"
            f" create_time + n, update_time FROM jobs j JOIN source s ON j.pk = s.pk, generate_series(1, {count}) n",
            f"INSERT INTO job_payloads (pk, spec) SELECT j.pk, p.spec {copies} JOIN job_payloads p ON p.pk = s.pk",
            "INSERT INTO queue (pk, tenant, state, method, gpu_count, min_gpu_memory, host_memory, rank, enqueue_time,"
            " max_attempts, max_no_progress) SELECT j.pk, j.tenant, 1, j.method, q.gpu_count, q.min_gpu_memory, q.host_memory,"
            f" j.create_time, q.enqueue_time, q.max_attempts, q.max_no_progress {copies} JOIN queue q ON q.pk = s.pk",
            f"INSERT INTO job_events (pk, seq, event) SELECT j.pk, 1, e.event {copies} JOIN job_events e ON e.pk = s.pk AND e.seq = 1",
            "COMMIT", "ANALYZE", database=database, timeout=900)

    def session(self, *statements, database="postgres"):
        """A psql that has run them and stays connected: .stdin takes more, .terminate() ends it."""
        process = subprocess.Popen(
            [bin_folder() / "psql", "-XqAt", "-h", "127.0.0.1", "-p", str(self.port), "-U", "quantry", "-d", database],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True,
            env={**os.environ, "PGPASSWORD": PASSWORD})
        for statement in statements:
            process.stdin.write(statement + ";\n")
        process.stdin.flush()
        return process

    @contextlib.contextmanager
    def frozen(self):
        """All its processes stand still, their connections stay: as on a machine whose disk hangs."""
        children = pathlib.Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        self.process.send_signal(signal.SIGSTOP)  # first, so that it makes no more
        processes = [self.process.pid, *map(int, children.read_text().split())]
        for process in processes:
            os.kill(process, signal.SIGSTOP)
        try:
            yield
        finally:
            for process in reversed(processes):
                os.kill(process, signal.SIGCONT)

    def stop(self, how=signal.SIGINT):  # SIGINT: fast; SIGQUIT: immediate, as a crash
        if self.process and self.process.poll() is None:
            self.process.send_signal(how)
            self.process.wait(timeout=30)
        self.log.close()

    def remove(self):
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)
        pathlib.Path(self.log.name).unlink(missing_ok=True)


@contextlib.contextmanager
def running_postgres(env=None):
    """A Postgres that runs, gone afterwards."""
    server = Postgres(env=env)
    try:
        yield server.start()
    finally:
        server.remove()
