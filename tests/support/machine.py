"""What a test may ask of the machine: a small file system, a network of its own. Skips with the reason where it may not."""
import ctypes
import os
import re
import subprocess
import uuid

import pytest


def mount_tmpfs(folder, size):
    """A file system of `size` at `folder`; returns what takes it away again."""
    folder.mkdir(parents=True, exist_ok=True)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"tmpfs", str(folder).encode(), b"tmpfs", 0, f"size={size}".encode()) != 0:
        pytest.skip(f"cannot mount a tmpfs here: {os.strerror(ctypes.get_errno())}")
    return lambda: libc.umount2(str(folder).encode(), 2)


def fill(path):
    """Writes to the file until the disk is full."""
    with open(path, "wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 4096)
        except OSError:
            pass


class Namespace:
    """A network namespace whose loopback can be slow, lossy or cut in one direction.

    `run` is the start of every command line that shall live in it.
    """

    def __init__(self):
        self.name = f"quantry-{uuid.uuid4().hex[:8]}"
        self._call("ip", "netns", "add", self.name)
        try:
            self.ip("link", "set", "lo", "up", "mtu", "1500")
            # The kernel's own rule first, so that others can come before it.
            self.ip("rule", "add", "pref", "10", "lookup", "local")
            self.ip("rule", "del", "pref", "0")
        except BaseException:
            self.remove()
            raise

    @property
    def run(self):
        return ["ip", "netns", "exec", self.name]

    def _call(self, *command):
        try:
            done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=20)
        except FileNotFoundError:
            pytest.skip(f"no network namespaces here: there is no program {command[0]} (Debian package iproute2)")
        if done.returncode != 0:
            pytest.skip(f"not on this machine: {' '.join(map(str, command))}: {done.stderr.strip()}")
        return done.stdout

    def ip(self, *arguments):
        return self._call(*self.run, "ip", *arguments)

    def impair(self, *netem):
        """Every packet, by netem: "delay", "100ms" or "loss", "5%". False: this kernel has no sch_netem."""
        command = [*self.run, "tc", "qdisc", "add", "dev", "lo", "root", "netem", *netem]
        return subprocess.run(command, capture_output=True, timeout=20).returncode == 0

    def lose(self, percent):
        """So many of a hundred packets: by netem, else by nftables as they arrive (of one dropped on its way out the sender would be told)."""
        if not self.impair("loss", f"{percent}%"):
            self._call(*self.run, "nft", "add table inet line; add counter inet line lost; "
                       "add chain inet line arriving { type filter hook input priority 0; }; "
                       f"add rule inet line arriving numgen random mod 100 < {percent} counter name lost drop")

    def lost(self):
        """Packets that lose() has lost."""
        netem = re.search(r"netem.*?dropped (\d+)", self._call(*self.run, "tc", "-s", "qdisc", "show", "dev", "lo"), re.DOTALL)
        return int((netem or re.search(r"packets (\d+)", self._call(*self.run, "nft", "list", "counter", "inet", "line", "lost")))[1])

    def throttle(self, rate):
        """Every packet through a token bucket: "256kbit"."""
        self._call(*self.run, "tc", "qdisc", "add", "dev", "lo", "root", "tbf", "rate", rate, "burst", "8kb", "latency", "2s")

    def throttled(self):
        """How often a packet had to wait for throttle()."""
        return int(re.search(r"overlimits (\d+)", self._call(*self.run, "tc", "-s", "qdisc", "show", "dev", "lo"))[1])

    def cut(self, to=None, of=None):
        """No TCP packet gets to the port `to`, or away from the port `of`, until heal()."""
        match = ["dport", to] if to else ["sport", of]
        self.ip("rule", "add", "pref", "1", "ipproto", "tcp", *match, "blackhole")

    def heal(self):
        self.ip("rule", "del", "pref", "1")

    def remove(self):
        subprocess.run(["ip", "netns", "del", self.name], capture_output=True, timeout=20)
