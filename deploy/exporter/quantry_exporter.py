#!/usr/bin/env python3
"""Exports what only the job resources know: the measured quality of results.

quantryd and the workers export everything else themselves, running jobs
included. This asks the API through the CLI (`quantry list --output json`), at
most once in --interval, and needs Python 3.9 alone. Series stay few: the newest
result of each (model, method, recipe, bits), at most --max-results. Read-only;
listens on loopback unless told otherwise.
"""
import argparse
import calendar
import http.server
import json
import os
import subprocess
import sys
import threading
import time

FAMILIES = {
    "quantry_result_perplexity": "Perplexity of the newest result, dense and quantized.",
    "quantry_result_kl_divergence": "KL divergence of the newest result from the dense model, in nats a token.",
    "quantry_result_top1_agreement_ratio": "Share of tokens whose likeliest successor did not change.",
    "quantry_result_bitwidth": "Bits of a weight: quantized linears alone, whole file.",
    "quantry_result_run_seconds": "Time the newest result took.",
    "quantry_result_end_timestamp_seconds": "When the newest result was committed, in Unix time.",
    "quantry_exporter_up": "1 when the last question to the server was answered.",
}


def model_label(model):
    """A short name; uploads are told apart by their weights' digest."""
    for kind in ("local_path", "uri"):
        if model.get(kind):
            return model[kind].split("?")[0].rstrip("/").rsplit("/", 1)[-1][:64]
    digests = [f["sha256"] for f in model.get("blobs", {}).get("files", ()) if f["path"].endswith(".safetensors")]
    return f"upload-{min(digests)[:8]}" if digests else "upload"


def facts(job):
    """The labels: results that do not compare, of another recipe or of a restored model, are not the same series."""
    spec = job["spec"]
    method, options = next(iter(spec["method"].items()))
    recipe = options.get("first_pass", options).get("recipe", "")  # restore's is its first pass's
    bits = options.get("grid", {}).get("bits")
    return {"model": model_label(spec["model"]), "method": method + ("+lora" if "preprocessing" in spec else ""),
            "recipe": recipe, "bits": str(bits) if bits else "mixed"}


def result_samples(job):
    labels, quality = facts(job), job.get("quality") or {}
    for weights, value in sorted(quality.get("perplexity", {}).items()):
        if weights in ("dense", "quantized") and value is not None:  # null: not finite
            yield "quantry_result_perplexity", {**labels, "weights": weights}, value
    for family, key in (("quantry_result_kl_divergence", "kl_divergence"),
                        ("quantry_result_top1_agreement_ratio", "top1_agreement")):
        if quality.get("perplexity") and quality.get(key, 0) is not None:
            yield family, labels, quality.get(key, 0)
    for scope in ("linears", "file"):
        yield "quantry_result_bitwidth", {**labels, "scope": scope}, job["bits"][scope]
    yield "quantry_result_run_seconds", labels, job["timing"]["run_s"]
    yield "quantry_result_end_timestamp_seconds", labels, unix_time(job["end_time"])


def unix_time(text):
    whole, _, fraction = text.rstrip("Z").partition(".")
    parsed = time.strptime(whole + "UTC", "%Y-%m-%dT%H:%M:%S%Z")
    return calendar.timegm(parsed) + float(f"0.{fraction or 0}")


def samples(succeeded, max_results):
    """`succeeded` newest first, as the server lists them."""
    seen = set()
    for job in succeeded:
        key = tuple(facts(job).values())
        if key in seen or len(seen) >= max_results or "bits" not in job:
            continue
        seen.add(key)
        yield from result_samples(job)


def escape(value):
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def render(values):
    """The Prometheus text format of (family, labels, value)."""
    lines, by_family = [], {}
    for family, labels, value in values:
        by_family.setdefault(family, []).append((labels, value))
    for family, rows in by_family.items():
        lines += [f"# HELP {family} {FAMILIES[family]}", f"# TYPE {family} gauge"]
        for labels, value in rows:
            text = ",".join(f'{name}="{escape(str(v))}"' for name, v in labels.items())
            lines.append(f"{family}{{{text}}} {float(value)!r}" if text else f"{family} {float(value)!r}")
    return "\n".join(lines) + "\n"


class Source:
    """Asks the server, at most once an interval. Thread-safe."""

    def __init__(self, options):
        self.options, self.lock, self.text, self.asked = options, threading.Lock(), "", None

    def list(self, tenant, state, limit):
        command = [self.options.quantry, "--server", self.options.server, "--tenant", tenant, "--timeout", "5",
                   "--output", "json", "list", "--state", state, "--limit", str(limit)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
        if done.returncode != 0:
            raise RuntimeError(done.stderr.strip() or f"quantry ended with {done.returncode}")
        return json.loads(done.stdout)

    def ask(self):
        succeeded = []
        for tenant in self.options.tenant:
            succeeded += self.list(tenant, "succeeded", self.options.history)
        succeeded.sort(key=lambda job: job["end_time"], reverse=True)
        return list(samples(succeeded, self.options.max_results))

    def metrics(self):
        with self.lock:
            now = time.monotonic()
            if self.asked is None or now - self.asked >= self.options.interval:
                try:
                    self.text = render(self.ask() + [("quantry_exporter_up", {}, 1)])
                except (RuntimeError, OSError, subprocess.TimeoutExpired, ValueError, KeyError) as error:
                    print(f"quantry_exporter: {error}", file=sys.stderr, flush=True)
                    self.text = render([("quantry_exporter_up", {}, 0)])
                self.asked = time.monotonic()
            return self.text


def make_handler(source):
    class Handler(http.server.BaseHTTPRequestHandler):
        timeout = 10

        def do_GET(self):
            pages = {"/metrics": source.metrics, "/livez": lambda: "ok\n"}
            page = pages.get(self.path.split("?")[0])
            body = (page() if page else "there are /metrics and /livez\n").encode()
            self.send_response(200 if page else 404)
            self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *unused):
            pass

    return Handler


def parse(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--listen", default="127.0.0.1:7074", help="HTTP address of /metrics (default %(default)s)")
    parser.add_argument("--server", default="127.0.0.1:7070", help="quantryd's tenant address (default %(default)s)")
    parser.add_argument("--tenant", action="append", help="tenant to ask about; repeatable (default: $QUANTRY_TENANT, else default)")
    parser.add_argument("--quantry", default="quantry", type=str, help="the CLI (default: found in PATH)")
    parser.add_argument("--interval", default=5.0, type=float, help="seconds between questions (default %(default)s)")
    parser.add_argument("--history", default=200, type=int, help="newest results looked at (default %(default)s)")
    parser.add_argument("--max-results", default=100, type=int, help="results exported (default %(default)s)")
    options = parser.parse_args(arguments)
    options.tenant = options.tenant or [os.environ.get("QUANTRY_TENANT") or "default"]
    return options


def main():
    options = parse()
    host, _, port = options.listen.rpartition(":")
    server = http.server.ThreadingHTTPServer((host, int(port)), make_handler(Source(options)))
    print(f"quantry_exporter: http://{host}:{server.server_port}/metrics", file=sys.stderr, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
