"""The status page in a real browser: a job from the queue to its end, on a desk and on a phone."""
import json
import urllib.error
import urllib.request

import pytest

from browser import Browser
from conftest import EXAMPLES, cli, http_get, start_service, wait_for


EVIL = "<img src=x onerror=\"document.title='owned'\">&amp;"


@pytest.fixture(scope="module")
def browser():
    with Browser() as opened:
        yield opened


@pytest.fixture
def service(processes, binaries, tmp_path):
    return start_service(processes, binaries, tmp_path)


def submit(binaries, service, job_id, method, *extra):
    cli(binaries, service["tenant"], "submit", EXAMPLES / "stories260k", "--id", job_id, "--method", method, "--bits", 4,
        "--group-size", -1, "--calibration", EXAMPLES / "text/calibration.txt", "--calibration-samples", 16,
        "--calibration-length", 64, "--evaluation", EXAMPLES / "text/evaluation.txt", "--evaluation-length", 64,
        "--evaluation-windows", 8, *extra)


def test_shows_a_job_from_the_queue_to_its_end(browser, binaries, service):
    page = browser.open(f"http://{service['admin']}/")
    page.wait("document.querySelector('#workers td') !== null")
    assert "Nothing runs." in page.text() and "worker-1" in page.text()
    submit(binaries, service, "slow-one", "tesseraq", "--stages", 4, "--steps-per-stage", 200, "--title", EVIL,
           "--label", "team=search")
    submit(binaries, service, "next-one", "awq")
    job = browser.open(f"http://{service['admin']}/jobs/default/slow-one")
    # The list: progress, losses of the blocks so far, what waits behind.
    page.wait("document.querySelector('#running .spark path') !== null", 60)
    assert page.evaluate("document.querySelector('#running progress').value") > 0
    assert page.evaluate("document.querySelector('#running td').textContent").startswith("slow-one")
    assert "quantizing" in page.evaluate("document.querySelector('#running').innerText")
    assert "next-one" in page.evaluate("document.querySelector('#waiting').innerText")
    # The job's own page, without a reload.
    job.wait("document.querySelector('#plot path.final') !== null", 60)
    assert job.evaluate("document.querySelector('#head progress').value") > 0
    job.wait("document.querySelector('#head .state').textContent === 'SUCCEEDED'", 90)
    shown = job.text()
    for text in ("perplexity, dense → quantized", "bits a weight, linears", "compressed-tensors", "team=search", EVIL):
        assert text in shown, shown
    assert job.evaluate("document.querySelectorAll('#plot circle.final').length") == 5
    page.wait("document.querySelector('#ended')?.innerText.includes('next-one')", 90)
    assert "SUCCEEDED" in page.evaluate("document.querySelector('#ended').innerText")
    # What is focused stays so while ages are drawn anew.
    page.evaluate("document.querySelector('#ended a').focus()")
    told = page.evaluate("document.querySelector('#ended').innerText")
    page.wait(f"document.querySelector('#ended').innerText !== {json.dumps(told)}", 30)
    assert page.evaluate("document.activeElement.matches('#ended a')")
    for one in (page, job):
        assert one.problems == [] and one.overflows() == 0
        assert one.evaluate("document.images.length") == 0 and "owned" not in one.evaluate("document.title")
        assert all(url.startswith(f"http://{service['admin']}/") for url in one.urls if url != "about:blank")


def test_tells_recipes_and_preprocessing_apart(browser, binaries, service):
    cli(binaries, service["tenant"], "queue", "pause", "--reason", "tea")
    text = EXAMPLES / "text/calibration.txt"
    for name, more in (("plain", []), ("plus", ["--recipe", "ptq161-plus"]),
                       ("restored", ["--preprocessing", "lora", "--preprocessing-corpus", text])):
        cli(binaries, service["tenant"], "submit", EXAMPLES / "stories260k", "--id", name, "--method", "ptq161",
            "--calibration", text, "--calibration-samples", 8, "--calibration-length", 64, *more)
    page = browser.open(f"http://{service['admin']}/")
    page.wait("document.querySelectorAll('#waiting tbody tr').length === 3")
    cells = "[...document.querySelectorAll('#waiting td[data-label=method]')].map((cell) => cell.textContent).sort()"
    assert page.evaluate(cells) == ["ptq161", "ptq161 +lora", "ptq161-plus"]
    job = browser.open(f"http://{service['admin']}/jobs/default/restored")
    job.wait("document.querySelector('#head')?.textContent.includes('ptq161 +lora')")


@pytest.mark.parametrize("width,dark", [(390, False), (390, True), (1280, True)])
def test_fits_a_phone_and_the_night(browser, binaries, service, width, dark):
    name = "a-job-with-a-rather-long-name-that-somebody-found-to-be-useful"
    cli(binaries, service["tenant"], "submit", EXAMPLES / "stories260k", "--method", "rtn", "--group-size", -1,
        "--id", name, "--title", "word" * 50, "--wait")
    for path, ready in (("/", "#ended td"), (f"/jobs/default/{name}", "#events td")):
        page = browser.open(f"http://{service['admin']}{path}", width=width, height=844, dark=dark)
        page.wait(f"document.querySelector('{ready}') !== null")
        assert page.overflows() == 0 and page.problems == []
        back = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (back == "rgb(255, 255, 255)") != dark


def test_says_when_the_server_is_gone_and_when_there_is_no_such_job(browser, binaries, processes, service):
    missing = browser.open(f"http://{service['admin']}/jobs/default/no-such-job")
    missing.wait("document.querySelector('#problem')?.hidden === false")
    assert "no-such-job" in missing.evaluate("document.querySelector('#problem').textContent")
    cli(binaries, service["tenant"], "queue", "pause", "--reason", "tea <b>time</b>")
    page = browser.open(f"http://{service['admin']}/")
    page.wait("document.querySelector('#pause')?.textContent.includes('tea <b>time</b>')")
    processes.stop()
    page.wait("document.querySelector('#problem').textContent === 'The server does not answer.'")


def test_only_reads_and_can_be_switched_off(processes, binaries, service, tmp_path):
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        request = urllib.request.Request(f"http://{service['admin']}/status.json", method=method, data=b"")
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=10)
        assert refused.value.code == 405
    assert json.loads(http_get(f"http://{service['admin']}/status.json"))["queue"]["depth"] == 0
    processes.start("dark", [binaries / "quantryd", f"--data-dir={tmp_path}/dark", "--listen=127.0.0.1:0",
                             "--worker-listen=127.0.0.1:0", "--admin-listen=127.0.0.1:0", "--embedded=false",
                             "--status-page=false"])
    admin = wait_for(lambda: (tmp_path / "dark/run/admin").read_text().strip(), 40, "the other server")
    assert "quantry_jobs_submitted_total" in http_get(f"http://{admin}/metrics")
    with pytest.raises(urllib.error.HTTPError) as refused:
        http_get(f"http://{admin}/status.json")
    assert refused.value.code == 404
