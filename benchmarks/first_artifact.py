#!/usr/bin/env python3
"""From `pip install` to the first artifact: seconds of each step in a new environment, against a running server; JSON on stdout.

    .deps/venv/bin/python benchmarks/first_artifact.py [--rounds 3]

Builds the wheel first (not counted). Each round: a new venv, `pip install` of the wheel and what it needs from the package index
without pip's cache, then a process that connects, submits examples/stories260k to 4 bits (awq), waits, pulls and verifies.
"""
import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests/support"))

from service import EXAMPLES, Server, find_bin  # noqa: E402

PROGRAM = """
import sys, quantry
model, text, out, address = sys.argv[1:]
with quantry.connect(address) as client:
    job = client.wait(client.submit(model, method="awq", bits=4, group_size="channel", calibration=text,
                                    calibration_samples=16, calibration_length=64))
    assert client.pull(job, out).artifact.verify() > 3
"""


def timed(*command):
    start = time.perf_counter()
    done = subprocess.run([*map(str, command)], capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(done.stdout + done.stderr)
    return round(time.perf_counter() - start, 2)


def build_wheel(folder):
    """From an sdist, as client/python/tests/test_wheel.py does: it needs no network."""
    package = ROOT / "client/python"
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", folder], cwd=package, check=True, stdout=sys.stderr)
    (sdist,) = folder.glob("*.tar.gz")
    subprocess.run(["tar", "-xzf", sdist, "-C", folder], check=True)
    (source,) = folder.glob("quantry-*/")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder], cwd=source, check=True, stdout=sys.stderr)
    (wheel,) = folder.glob("*.whl")
    return wheel


def one_round(folder, wheel, address):
    folder.mkdir()
    seconds = {"venv": timed(sys.executable, "-m", "venv", folder / "venv")}
    python = folder / "venv/bin/python"
    seconds["pip install"] = timed(python, "-m", "pip", "install", "--quiet", "--no-cache-dir", "--disable-pip-version-check", wheel)
    seconds["submit to verified artifact"] = timed(python, "-c", PROGRAM, EXAMPLES / "stories260k", EXAMPLES / "text/calibration.txt",
                                                   folder / "out", address)
    return {**seconds, "from pip install": round(seconds["pip install"] + seconds["submit to verified artifact"], 2)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        wheel = build_wheel(folder)
        server = Server(find_bin(), folder / "data").start()
        try:
            print(json.dumps([one_round(folder / f"round-{index}", wheel, server.address) for index in range(rounds)], indent=2))
        finally:
            server.stop()


if __name__ == "__main__":
    main()
