"""The real binaries as objects of a test: quantryd with its CLI, quantry-worker.

QUANTRY_BIN   folder with the binaries (default: build/release/bin, then build/dev/bin)
"""
import contextlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"


def find_bin() -> pathlib.Path:
    if "QUANTRY_BIN" in os.environ:
        return pathlib.Path(os.environ["QUANTRY_BIN"])
    for preset in ("release", "dev"):
        folder = ROOT / "build" / preset / "bin"
        if (folder / "quantryd").exists():
            return folder
    raise RuntimeError("no binaries: build first, or set QUANTRY_BIN")


def wait_for(condition, seconds, what):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.05)
    raise AssertionError(f"waited {seconds} s for {what}")


@contextlib.contextmanager
def fake_hub(folder):
    """tests/support/fake_hub.py over `folder`; its URL."""
    process = subprocess.Popen([sys.executable, ROOT / "tests/support/fake_hub.py", folder], stdout=subprocess.PIPE, text=True)
    try:
        yield process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait()


def resident_mib(pid):
    """Memory of a process, with its shared libraries."""
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise AssertionError("no VmRSS")


def processes():
    """(pid, words of the command, letter of the state) of every process."""
    for entry in pathlib.Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            yield (int(entry.name), (entry / "cmdline").read_bytes().split(b"\0"),
                   (entry / "stat").read_bytes().rpartition(b") ")[2][:1].decode())
        except OSError:  # it has ended
            continue


class Server:
    """One quantryd on free loopback ports, which it keeps when it is started again.

    `run`: words before every command line, its CLI's too ("ip netns exec ...").
    """

    def __init__(self, binaries, data_dir, *flags, local_roots=(), env=None, run=()):
        self.env = {**os.environ, **(env or {})}
        self.run = list(run)
        self.binaries, self.data_dir, self.flags = binaries, pathlib.Path(data_dir), list(flags)
        self.flags += [f"--local-roots={root}" for root in local_roots]
        self.log_path = self.data_dir.parent / (self.data_dir.name + ".log")
        self.process = None
        self.address = None
        self.worker_address = None
        self.port = self.worker_port = 0

    def start(self, expect_failure=False):
        run_dir = self.data_dir / "run"
        shutil.rmtree(run_dir, ignore_errors=True)
        command = [
            *self.run, self.binaries / "quantryd", f"--data-dir={self.data_dir}", f"--listen=127.0.0.1:{self.port}",
            f"--worker-listen=127.0.0.1:{self.worker_port}", "--admin-listen=127.0.0.1:0", *self.flags,
        ]
        self.log = open(self.log_path, "ab")
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log, env=self.env)
        if expect_failure:
            return self.process.wait(timeout=20)

        def ready():
            if self.process.poll() is not None:
                raise AssertionError(f"quantryd ended with {self.process.returncode}:\n{self.log_text()}")
            return (run_dir / "tenant").exists() and (run_dir / "admin").exists() and (run_dir / "tenant").read_text()

        self.address = wait_for(ready, 20, "quantryd's address file").strip()
        self.port = int(self.address.rsplit(":", 1)[1])
        self.worker_address = (run_dir / "worker").read_text().strip()
        self.worker_port = int(self.worker_address.rsplit(":", 1)[1])
        self.admin = (run_dir / "admin").read_text().strip()
        return self

    def log_text(self):
        return self.log_path.read_text(errors="replace")

    def stop(self, how=signal.SIGTERM, timeout=40):
        if self.process and self.process.poll() is None:
            self.process.send_signal(how)
            self.process.wait(timeout=timeout)
        self.log.close()
        return self.process.returncode

    def cli(self, *args, check=None, timeout=300, env=None):
        """Runs the CLI; returns the completed process. check = wanted exit status."""
        done = subprocess.run(
            [*self.run, self.binaries / "quantry", *map(str, args)], capture_output=True, text=True, timeout=timeout,
            env={**os.environ, "QUANTRY_SERVER": self.address or "127.0.0.1:1", **(env or {})},
        )
        if check is not None and done.returncode != check:
            raise AssertionError(
                f"quantry {' '.join(map(str, args))}\nwanted exit {check}, got {done.returncode}\n"
                f"stdout: {done.stdout}\nstderr: {done.stderr}\nserver:\n{self.log_text()[-4000:]}")
        return done

    def json(self, *args, check=0, **kwargs):
        done = self.cli(*args, "--output", "json", check=check, **kwargs)
        return json.loads(done.stdout)

    def engine_pids(self, job_uid=None):
        """Processes named quantry-engine below this server's data folder."""
        return [pid for pid, command, _ in processes()
                if command[0].endswith(b"quantry-engine") and b"run" in command
                and any(str(self.data_dir).encode() in part for part in command)]


class Worker:
    """One quantry-worker; `server` is the address it calls."""

    def __init__(self, binaries, work_dir, server, *flags, name=None, env=None, run=()):
        self.work_dir = pathlib.Path(work_dir)
        self.name = name or self.work_dir.name
        self.command = [*run, binaries / "quantry-worker", f"--server={server}", f"--work-dir={work_dir}",
                        f"--worker-id={self.name}", "--admin-listen=127.0.0.1:0", "--min-free-disk-bytes=1", *flags]
        self.env = {**os.environ, **(env or {})}
        self.log_path = self.work_dir.parent / f"{self.name}.log"
        self.process = None

    def start(self):
        with open(self.log_path, "ab") as log:
            self.process = subprocess.Popen(list(map(str, self.command)), stdout=log, stderr=log, env=self.env)
        return self

    def log_text(self):
        return self.log_path.read_text(errors="replace")

    def send(self, number):
        self.process.send_signal(number)

    def stop(self, how=signal.SIGTERM, timeout=40):
        if self.process and self.process.poll() is None:
            self.process.send_signal(how)
            self.process.send_signal(signal.SIGCONT)
            self.process.wait(timeout=timeout)
        return self.process.returncode

    def engines(self):
        """Pids of the engines it runs now."""
        below = str(self.work_dir).encode() + b"/"
        return [pid for pid, command, state in processes()
                if b"--job" in command and state != "Z" and any(part.startswith(below) for part in command)]


def submit_args(model, *extra, method="awq", bits=4, group=-1, evaluation=True, samples=32, length=128):
    """Arguments of a quick job on the example texts, queued without a quote first; quote_args() asks for the quote."""
    args = ["submit", model, "--method", method, "--bits", bits, "--group-size", group,
            "--calibration", EXAMPLES / "text/calibration.txt",
            "--calibration-samples", samples, "--calibration-length", length]
    if evaluation:
        args += ["--evaluation", EXAMPLES / "text/evaluation.txt",
                 "--evaluation-length", length, "--evaluation-windows", 32]
    return [*args, "--no-check", *extra]


def quote_args(submit):
    """Of the quote for the job that these arguments of submit_args() would queue."""
    return ["quote", *(arg for arg in submit[1:] if arg != "--no-check")]
