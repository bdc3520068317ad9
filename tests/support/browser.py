"""A headless Chromium, driven over its debugging pipe: no port, no driver, no package.

with Browser() as browser:
    page = browser.open("http://127.0.0.1:7072/", width=390, height=844, dark=True)
    page.wait("document.title === 'quantry'")
    page.screenshot("phone.png")
    assert page.problems == []
"""
import base64
import json
import os
import pathlib
import select
import subprocess
import tempfile
import time

BINARIES = ("chromium-headless-shell", "chromium")


def find_browser():
    for folder in os.get_exec_path():
        for name in BINARIES:
            path = pathlib.Path(folder) / name
            if path.exists():
                return path
    raise RuntimeError("no Chromium: run scripts/bootstrap")


class Browser:
    def __init__(self):
        self.profile = tempfile.TemporaryDirectory(prefix="quantry-browser-", ignore_cleanup_errors=True)
        to_browser, self.write_to = os.pipe()
        self.read_from, from_browser = os.pipe()
        # The pipe's ends must be the browser's descriptors 3 and 4; as root it has no sandbox to offer.
        command = ["bash", "-c", f'exec "$0" "$@" 3<&{to_browser} 4>&{from_browser}', find_browser(), "--headless",
                   "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
                   "--disable-background-networking", "--disable-component-update", "--hide-scrollbars",
                   f"--user-data-dir={self.profile.name}", "--remote-debugging-pipe"]
        self.process = subprocess.Popen(command, pass_fds=(to_browser, from_browser), stdout=subprocess.DEVNULL,
                                        stderr=subprocess.DEVNULL)
        os.close(to_browser)
        os.close(from_browser)
        self.buffer, self.last_id, self.pages = b"", 0, {}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.call("Browser.close")  # ends the processes it started, too
        self.process.wait(timeout=20)
        os.close(self.write_to)
        os.close(self.read_from)
        self.profile.cleanup()

    def call(self, method, session=None, timeout=30, **params):
        """One command; events that come before its answer go to their pages."""
        self.last_id += 1
        message = {"id": self.last_id, "method": method, "params": params}
        if session:
            message["sessionId"] = session
        os.write(self.write_to, json.dumps(message).encode() + b"\0")
        wanted, deadline = self.last_id, time.monotonic() + timeout
        while True:
            answer = self._receive(deadline)
            if answer.get("id") == wanted:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]

    def _receive(self, deadline):
        while b"\0" not in self.buffer:
            if not select.select([self.read_from], [], [], max(0, deadline - time.monotonic()))[0]:
                raise TimeoutError("the browser does not answer")
            data = os.read(self.read_from, 1 << 16)
            if not data:
                raise RuntimeError(f"the browser ended with {self.process.wait()}")
            self.buffer += data
        text, self.buffer = self.buffer.split(b"\0", 1)
        message = json.loads(text)
        if message.get("sessionId") in self.pages and "method" in message:
            self.pages[message["sessionId"]].saw(message["method"], message["params"])
        return message

    def open(self, url, width=1280, height=900, dark=False):
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, session)
        self.pages[session] = page
        for domain in ("Page", "Runtime", "Log", "Network"):
            page.call(f"{domain}.enable")
        page.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1,
                  mobile=width < 600)
        page.call("Emulation.setEmulatedMedia",
                  features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])
        page.call("Page.navigate", url=url)
        return page


class Page:
    def __init__(self, browser, session):
        self.browser, self.session = browser, session
        self.problems = []  # console errors, exceptions, CSP violations, failed requests
        self.bytes = {}  # of every response, by request
        self.urls = []

    def call(self, method, **params):
        return self.browser.call(method, session=self.session, **params)

    def saw(self, method, params):
        if method == "Runtime.exceptionThrown":
            self.problems.append(params["exceptionDetails"].get("exception", {}).get("description", "exception"))
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.problems.append(f"{params['entry']['source']}: {params['entry']['text']}")
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.problems.append(str(params["args"]))
        elif method == "Network.requestWillBeSent":
            self.urls.append(params["request"]["url"])
        elif method == "Network.loadingFinished":
            self.bytes[params["requestId"]] = params["encodedDataLength"]

    def evaluate(self, expression):
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            raise RuntimeError(result["exceptionDetails"])
        return result["result"].get("value")

    def wait(self, expression, seconds=30):
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            value = self.evaluate(expression)
            if value:
                return value
            time.sleep(0.05)
        raise AssertionError(f"waited {seconds} s for {expression}; the page shows:\n{self.text()}")

    def text(self):
        return self.evaluate("document.body.innerText")

    def overflows(self):
        """How many pixels the page is wider than its window: 0 is right."""
        return self.evaluate("Math.max(0, document.documentElement.scrollWidth - window.innerWidth)")

    def screenshot(self, path, full=True):
        data = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=full,
                         **({"clip": self._whole()} if full else {}))["data"]
        pathlib.Path(path).write_bytes(base64.b64decode(data))

    def _whole(self):
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        return {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
