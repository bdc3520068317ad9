"""check-grafana against a server that answers as Grafana's HTTP API does; what it passes on goes to a real Prometheus.

Grafana itself is not installable here.
"""
import http.server
import json
import subprocess
import threading

import pytest

from conftest import DEPLOY, free_ports, http_get, start_prometheus
from queries import dashboards

SCRIPT = DEPLOY / "grafana/check-grafana"
SOURCE = {"uid": "p1", "name": "Prometheus", "type": "prometheus", "isDefault": True}


class FakeGrafana:
    """What of Grafana's API the script asks for."""

    def __init__(self, prometheus, sources=None, boards=None, token="right"):
        self.sources = [{**SOURCE, "url": f"http://{prometheus}"}] if sources is None else sources
        self.boards = {board["uid"] for board in dashboards().values()} if boards is None else boards
        self.token = token
        fake = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                status, body = fake.answer(self.path, self.headers.get("Authorization"))
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *unused):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def answer(self, target, authorization):
        path, _, query = target.partition("?")
        if authorization != f"Bearer {self.token}":
            return 401, b'{"message": "Unauthorized"}'
        if path == "/api/datasources":
            return 200, json.dumps(self.sources).encode()
        if path.startswith("/api/dashboards/uid/"):
            return (200 if path.rsplit("/", 1)[1] in self.boards else 404), b"{}"
        url = self.sources[0].get("url", "")
        try:
            if path.endswith("/health"):
                http_get(f"{url}/-/ready")
                return 200, b'{"status": "OK"}'
            return 200, http_get(f"{url}/{path.split('/p1/')[1]}?{query}").encode()
        except (OSError, ValueError) as error:
            return 400, json.dumps({"status": "ERROR", "message": f"Get \"{url}/api/v1/query\": {error}"}).encode()


@pytest.fixture
def token(tmp_path):
    (tmp_path / "token").write_text("right\n")
    return tmp_path / "token"


def run(fake, token):
    done = subprocess.run([SCRIPT, getattr(fake, "url", fake), "--token-file", token], capture_output=True, text=True, timeout=60)
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture
def empty_prometheus(processes, tmp_path):
    (tmp_path / "prometheus.yml").write_text("{}")
    return start_prometheus(processes, tmp_path, tmp_path / "prometheus.yml").prometheus


def test_all_is_there(live_run, token):
    done = run(FakeGrafana(live_run.prometheus), token)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("sources, text", [([], "got none at all"), ([{"uid": "l", "name": "Loki", "type": "loki"}], "got loki")])
def test_the_data_source_is_missing(token, sources, text):
    done = run(FakeGrafana("", sources=sources), token)
    assert done.returncode == 1 and "wanted a data source of type prometheus" in done.stderr and text in done.stderr
    assert "PROMETHEUS_URL" in done.stderr and "nothing recorded is lost" in done.stderr


@pytest.mark.parametrize("url", ["", f"http://127.0.0.1:{free_ports(1)[0]}"], ids=["empty", "nobody"])
def test_the_data_source_leads_nowhere(token, url):
    done = run(FakeGrafana("", sources=[{**SOURCE, "url": url}]), token)
    assert done.returncode == 1 and f'to reach Prometheus at "{url}"' in done.stderr


def test_nothing_is_scraped_and_a_board_is_missing(token, empty_prometheus):
    done = run(FakeGrafana(empty_prometheus, boards={"quantry-job"}), token)
    assert done.returncode == 1
    for text in ("scrape quantryd", "scrape a worker", "scrape quantry_exporter", "dashboard quantry-fleet, got HTTP 404"):
        assert text in done.stderr
    assert "quantry-job" not in done.stderr


def test_who_may_not_look_and_who_is_not_there(token, tmp_path):
    fake = FakeGrafana("", token="another")
    assert "wanted an account that may read data sources, got HTTP 401" in run(fake, token).stderr
    done = run(f"http://127.0.0.1:{free_ports(1)[0]}", token)
    assert done.returncode == 1 and "got no answer" in done.stderr
    done = run("no-address", token)
    assert done.returncode == 1 and "got no answer" in done.stderr
    assert run(fake, tmp_path / "none").returncode == 2
