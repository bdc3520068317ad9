"""What a test may ask of the machine: a small file system, a network of its own. Skips with the reason where it may not."""
import ctypes
import os
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

    `run` is the start of every command line that shall live in it. Rules are by port, of TCP, one way: a packet to
    the port, or from it.
    """

    def __init__(self):
        self.name = f"quantry-{uuid.uuid4().hex[:8]}"
        self._call("ip", "netns", "add", self.name)
        try:
            self.tc("qdisc", "add", "dev", "lo", "root", "netem", "delay", "0ms")
            self.tc("qdisc", "del", "dev", "lo", "root")
            self._call(*self.run, "ip", "link", "set", "lo", "up")
        except BaseException:
            self.remove()
            raise

    @property
    def run(self):
        return ["ip", "netns", "exec", self.name]

    def _call(self, *command):
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=20)
        except FileNotFoundError:
            pytest.skip(f"no network namespaces here: there is no program {command[0]} (Debian package iproute2)")
        if done.returncode != 0:
            pytest.skip(f"no network namespaces here: {' '.join(command)}: {done.stderr.strip()}")
        return done.stdout

    def tc(self, *arguments):
        return self._call(*self.run, "tc", *map(str, arguments))

    def impair(self, *netem):
        """netem for everything: "delay", "100ms", "loss", "5%"; nothing = as it was."""
        subprocess.run([*self.run, "tc", "qdisc", "del", "dev", "lo", "root"], capture_output=True, timeout=20)
        if netem:
            self.tc("qdisc", "add", "dev", "lo", "root", "netem", *netem)

    def cut(self, to=(), of=()):
        """Drops packets to the ports `to` and from the ports `of`, until impair()."""
        self.impair()
        self.tc("qdisc", "add", "dev", "lo", "clsact")
        for match, ports in (("dport", to), ("sport", of)):
            for port in ports:
                self.tc("filter", "add", "dev", "lo", "egress", "protocol", "ip", "u32", "match", "ip", match, port,
                        "0xffff", "action", "drop")

    def heal(self):
        self.impair()
        subprocess.run([*self.run, "tc", "qdisc", "del", "dev", "lo", "clsact"], capture_output=True, timeout=20)

    def remove(self):
        subprocess.run(["ip", "netns", "del", self.name], capture_output=True, timeout=20)
