#!/usr/bin/env python3
"""An HTTP proxy in front of an S3 server that misbehaves by script.

    with FaultProxy("127.0.0.1:9000") as proxy:       # proxy.address is what clients use
        proxy.fail("503", method="PUT", path="/bucket/.*safetensors", times=2)

A fault applies to the requests whose method and path (with query) match, after `skip` of them, `times` of them (None = all
from then on). `proxy.hits` counts what each fault did, `proxy.requests` lists (time, method, path, fault).

    500, 503, 403, 409, 412  that status with S3's XML; the request never reaches the store
    wrong-region         400 that names the bucket's own region, as AWS answers a client of another one
    other-endpoint       301, as AWS answers a client at another region's endpoint
    denied               200 to a deletion of several objects (POST ?delete) that refuses each of them, as AWS does
    error-body           200 whose body is S3's error document
    late-500             the store does what is asked, the client gets 500
    reset                the connection breaks in the middle of the body; of a request with a body: while it is sent
    stall                the request goes nowhere, no answer for `seconds`
    late-stall           the store does what is asked, no answer for `seconds`
    corrupt              one bit of the body is another one
    truncate             the last byte of the body is missing, Content-Length says so too

As a program: fault_proxy.py TARGET FAULT [METHOD [PATH]] prints its address and serves until it is killed.
"""
import argparse
import http.client
import http.server
import re
import socket
import struct
import sys
import threading
import time

STATUSES = {"500": ("InternalError", 500), "503": ("SlowDown", 503), "403": ("AccessDenied", 403), "409": ("ConditionalRequestConflict", 409),
            "412": ("PreconditionFailed", 412), "wrong-region": ("AuthorizationHeaderMalformed", 400),
            "other-endpoint": ("PermanentRedirect", 301)}
# What every client repeats.
TRANSIENT = ("500", "503", "reset", "late-500", "stall", "late-stall")
# 200s that are to be seen through: (kind, methods, path). Of listings a short one is told, not repeated.
LIES = (("error-body", "GET", ""), ("error-body", "PUT", ""), ("error-body", "POST", ""), ("truncate", "GET", "^[^?]*$"))
BUCKET_REGION = "eu-central-1"
MESSAGES = {
    "AuthorizationHeaderMalformed": "The authorization header is malformed; the region 'us-east-1' is wrong; expecting "
                                    f"'{BUCKET_REGION}'",
    "PermanentRedirect": "The bucket you are attempting to access must be addressed using the specified endpoint. Please send all "
                         "future requests to this endpoint."}


def error_document(code):
    message = MESSAGES.get(code, "injected")
    return (f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>{message}</Message>'
            "<RequestId>0</RequestId></Error>").encode()


def denied_document(request):
    """The answer to a deletion of several objects when none of them may be deleted."""
    errors = [b"<Error><Key>%s</Key><Code>AccessDenied</Code><Message>Access Denied</Message></Error>" % key
              for key in re.findall(rb"<Key>(.*?)</Key>", request, re.DOTALL)]
    return b'<?xml version="1.0" encoding="UTF-8"?>\n<DeleteResult>%s</DeleteResult>' % b"".join(errors)


class Fault:
    def __init__(self, kind, method="", path="", times=None, skip=0, seconds=5.0):
        self.kind, self.method, self.path = kind, method, re.compile(path)
        self.left, self.skip, self.seconds = times, skip, seconds
        self.hits = 0

    def takes(self, method, path):
        if (self.method and method not in self.method.split(",")) or not self.path.search(path) or self.left == 0:
            return False
        if self.skip:
            self.skip -= 1
            return False
        if self.left is not None:
            self.left -= 1
        self.hits += 1
        return True


class FaultProxy:
    def __init__(self, target):
        self.target = target
        self.faults, self.requests = [], []
        self.lock = threading.Lock()
        proxy = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one_request(self):
                try:
                    super().handle_one_request()
                except (ConnectionError, TimeoutError):
                    self.close_connection = True

            def log_message(self, *_):
                pass

            def handle_expect_100(self):
                """Not before an answer that comes at once: Azure's client takes the two for one broken answer."""
                return not proxy._has_body(self) or super().handle_expect_100()

            def serve(self):
                proxy.serve(self)

            do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = serve

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, request, client_address):
                pass

        self.server = Server(("127.0.0.1", 0), Handler)
        self.address = "127.0.0.1:%d" % self.server.server_port
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True)
        self.thread.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def fail(self, kind, **where):
        fault = Fault(kind, **where)
        with self.lock:
            self.faults.append(fault)
        return fault

    def sprinkle(self, every, rounds, method="GET,PUT,HEAD", never_late=None):
        """Each transient fault in its turn, one request in so many. A store that is silent hangs up after a second.

        Requests whose path has `never_late` in it lose no answer of the store's.
        """
        for number in range(rounds):
            kind = TRANSIENT[number % len(TRANSIENT)]
            path = f"^(?!.*{never_late})" if never_late and kind.startswith("late") else ""
            self.fail(kind, method=method, path=path, skip=every * (number + 1), times=1, seconds=1)

    def sprinkle_s3(self, every, rounds):
        """The same, also of deletions and of uploads in parts, and an answer or two of each kind that says 200 and lies."""
        self.sprinkle(every, rounds, method="GET,PUT,HEAD,POST,DELETE")
        for kind, method, path in LIES:
            self.fail(kind, method=method, path=path, skip=3, times=1)
            self.fail(kind, method=method, path=path, skip=every, times=1)

    def happened(self):
        """The kinds of the faults that did."""
        with self.lock:
            return {fault.kind for fault in self.faults if fault.hits}

    def clear(self):
        with self.lock:
            self.faults.clear()

    @property
    def hits(self):
        return sum(fault.hits for fault in self.faults)

    def serve(self, client):
        with self.lock:
            fault = next((f for f in self.faults if f.takes(client.command, client.path)), None)
            self.requests.append((time.monotonic(), client.command, client.path, fault.kind if fault else ""))
        kind = fault.kind if fault else ""
        if kind == "reset" and self._has_body(client):
            client.rfile.read(min(1024, int(client.headers.get("Content-Length") or 1)))
            return self._break(client)
        body = self._read_body(client)
        if kind == "stall":
            time.sleep(fault.seconds)
            return self._break(client)
        if kind in STATUSES:
            code, status = STATUSES[kind]
            region = [("x-amz-bucket-region", BUCKET_REGION)] if code in MESSAGES else []
            return self._answer(client, status, [("Content-Type", "application/xml"), *region], error_document(code))
        if kind == "denied":
            return self._answer(client, 200, [("Content-Type", "application/xml")], denied_document(body))
        if kind == "error-body":
            return self._answer(client, 200, [("Content-Type", "application/xml")], error_document("InternalError"))
        status, headers, answer = self._forward(client, body)
        if kind == "late-stall":
            time.sleep(fault.seconds)
            return self._break(client)
        if kind == "late-500":
            return self._answer(client, 500, [("Content-Type", "application/xml")], error_document("InternalError"))
        if kind == "corrupt" and answer:
            middle = len(answer) // 2
            answer = answer[:middle] + bytes([answer[middle] ^ 1]) + answer[middle + 1:]
        if kind == "truncate" and answer:
            answer = answer[:-1]
        self._answer(client, status, headers, answer, cut=kind == "reset")

    @staticmethod
    def _has_body(client):
        return "chunked" in client.headers.get("Transfer-Encoding", "") or int(client.headers.get("Content-Length") or 0) > 0

    @staticmethod
    def _break(client):
        """RST, as from a peer that died."""
        client.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close_connection = True

    @staticmethod
    def _read_body(client):
        # "100 Continue" is sent already; clients of Azure take a second one for the answer.
        if "chunked" not in client.headers.get("Transfer-Encoding", ""):
            return client.rfile.read(int(client.headers.get("Content-Length") or 0))
        body = b""
        while size := int(client.rfile.readline().split(b";")[0], 16):
            body += client.rfile.read(size)
            client.rfile.readline()
        while client.rfile.readline().strip():
            pass
        return body

    def _forward(self, client, body):
        skipped = {"transfer-encoding", "content-length", "connection", "expect"}
        headers = {name: value for name, value in client.headers.items() if name.lower() not in skipped}
        connection = http.client.HTTPConnection(self.target, timeout=30)
        try:
            connection.request(client.command, client.path, body=body or None,
                               headers={**headers, "Content-Length": str(len(body))})
            answer = connection.getresponse()
            data = answer.read()
            kept = [(name, value) for name, value in answer.getheaders()
                    if name.lower() not in ("transfer-encoding", "connection") and
                    (client.command == "HEAD" or name.lower() != "content-length")]
            return answer.status, kept, data
        finally:
            connection.close()

    def _answer(self, client, status, headers, body, cut=False):
        client.send_response_only(status)
        for name, value in headers:
            client.send_header(name, value)
        if client.command != "HEAD":
            client.send_header("Content-Length", str(len(body)))
        client.end_headers()
        if client.command == "HEAD":
            return
        client.wfile.write(body[: len(body) // 2] if cut else body)
        if cut:
            client.wfile.flush()
            self._break(client)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", help="host:port of the S3 server")
    parser.add_argument("fault")
    parser.add_argument("method", nargs="?", default="")
    parser.add_argument("path", nargs="?", default="")
    parser.add_argument("--times", type=int, default=None)
    options = parser.parse_args()
    with FaultProxy(options.target) as proxy:
        proxy.fail(options.fault, method=options.method, path=options.path, times=options.times)
        print(proxy.address, flush=True)
        proxy.thread.join()


if __name__ == "__main__":
    sys.exit(main())
