"""A TCP relay between two processes that can be cut, stopped one way, or lose single replies.

    with Link("127.0.0.1:7071") as link:      # link.address stands for it
        link.hold("back")                     # nothing comes back any more; what goes there still arrives
        link.release()
        link.cut()                            # connections break, new ones are refused
        link.heal()

One thread for all connections. Not a packet filter: both ends see a peer that takes their bytes and says nothing.
"""
import selectors
import socket
import threading
import time

CHUNK = 1 << 16


class _Pipe:
    """One direction of one connection."""

    def __init__(self, source, target, direction):
        self.source, self.target, self.direction = source, target, direction
        self.waiting = []  # (due, bytes)
        self.seen = {}  # of each trigger, how many needles


class Link:
    def __init__(self, target):
        self.lead_to(target)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = "127.0.0.1:%d" % self.listener.getsockname()[1]
        self.delay_s = 0.0
        self._held = set()
        self._triggers = []
        self._cut = False
        self._pipes = []
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self.listener, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def lead_to(self, target):
        """Of new connections; those that stand stay."""
        host, port = target.rsplit(":", 1)
        self.target = (host, int(port))

    def hold(self, *directions):
        """Stops what goes "there" and / or comes "back"; the bytes are kept."""
        self._held |= set(directions or ("there", "back"))

    @property
    def held(self):
        return frozenset(self._held)

    def release(self):
        self._held.clear()

    def when(self, direction, needles, action, forward=True):
        """Calls action() once, from the relay's thread, when bytes with the last of `needles` are about to go on, on a
        connection that carried the ones before it; forward=False: those bytes do not. Returns an event, set afterwards."""
        done = threading.Event()
        self._triggers.append({"direction": direction, "needles": needles, "action": action, "forward": forward, "done": done})
        return done

    def _fires(self, pipe, data):
        """The trigger whose last needle is in `data`, if there is one."""
        for trigger in [t for t in self._triggers if t["direction"] == pipe.direction]:
            seen, at = pipe.seen.get(id(trigger), 0), 0
            while seen < len(trigger["needles"]) and (found := data.find(trigger["needles"][seen], at)) >= 0:
                seen, at = seen + 1, found
            pipe.seen[id(trigger)] = seen
            if seen == len(trigger["needles"]):
                self._triggers.remove(trigger)
                return trigger
        return None

    def cut(self):
        """Breaks the connections and refuses new ones."""
        with self._lock:
            self._cut = True
            self._close_all()

    def reset(self):
        """Breaks the connections; new ones are welcome. What is held is lost."""
        with self._lock:
            self._close_all()
            self._held.clear()

    def heal(self):
        with self._lock:
            self._close_all()
            self._held.clear()
            self._cut = False

    def close(self):
        self._ended.set()
        self._thread.join(timeout=5)
        with self._lock:
            self._close_all()
        self.listener.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _run(self):
        while not self._ended.is_set():
            for key, _ in self._selector.select(timeout=0.01):
                with self._lock:
                    if key.fileobj is self.listener:
                        self._accept()
                    elif key.data in self._pipes:
                        self._read(key.data)
            with self._lock:
                for pipe in list(self._pipes):
                    self._write(pipe)

    def _accept(self):
        client, _ = self.listener.accept()
        if self._cut:
            client.close()
            return
        try:
            server = socket.create_connection(self.target, timeout=2)
        except OSError:
            client.close()
            return
        for source, target, direction in ((client, server, "there"), (server, client, "back")):
            source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            pipe = _Pipe(source, target, direction)
            self._pipes.append(pipe)
            self._selector.register(source, selectors.EVENT_READ, pipe)

    def _read(self, pipe):
        try:
            data = pipe.source.recv(CHUNK)
        except OSError:
            data = b""
        if not data:
            self._close(pipe)
            return
        pipe.waiting.append((time.monotonic() + self.delay_s, data))

    def _write(self, pipe):
        if pipe.direction in self._held:
            return
        while pipe.waiting and pipe.waiting[0][0] <= time.monotonic():
            data = pipe.waiting.pop(0)[1]
            trigger = self._fires(pipe, data)
            try:
                pipe.target.settimeout(2)
                if trigger is None or trigger["forward"]:
                    pipe.target.sendall(data)
            except OSError:
                self._close(pipe)
                return
            if trigger is not None:
                trigger["action"]()
                trigger["done"].set()
                return

    def _close(self, pipe):
        for other in [p for p in self._pipes if p.source in (pipe.source, pipe.target)]:
            self._pipes.remove(other)
            try:
                self._selector.unregister(other.source)
            except (KeyError, ValueError):
                pass
            other.source.close()

    def _close_all(self):
        while self._pipes:
            self._close(self._pipes[0])
