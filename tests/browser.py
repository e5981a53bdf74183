"""A headless Chromium that is spoken to through a pipe, by its own DevTools protocol."""

import base64
import contextlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
SIZE = {"deviceScaleFactor": 1, "mobile": False}
DRAWN = """new Promise((done) => {
  const drawn = (chart) => chart._fullLayout && chart.querySelector("svg");
  const look = () => document.readyState == "complete"
    && [...document.querySelectorAll(".chart")].every(drawn) ? done() : setTimeout(look, 50);
  look();
})"""


class Browser:
    """One page of a browser without a network."""

    def __init__(self, requests: Any, answers: Any):
        self.requests, self.answers, self.count, self.session = requests, answers, 0, None
        self.errors: list[str] = []
        target = self("Target.createTarget", url="about:blank")["targetId"]
        self.session = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self(f"{domain}.enable")

    def __call__(self, method: str, **params: Any) -> dict[str, Any]:
        """Call a method of the protocol and return its result; note what the page complains of."""
        self.count += 1
        call = {"id": self.count, "method": method, "params": params}
        call |= {"sessionId": self.session} if self.session else {}
        self.requests.write(json.dumps(call).encode() + b"\0")
        self.requests.flush()
        while (answer := self._read()).get("id") != self.count:
            what, said = answer.get("method"), answer.get("params", {})
            loud = what == "Runtime.consoleAPICalled" and said["type"] in ("error", "warning")
            if (
                loud
                or what == "Runtime.exceptionThrown"
                or (what == "Log.entryAdded" and said["entry"]["level"] in ("error", "warning"))
            ):
                self.errors.append(json.dumps(said)[:500])
        assert "error" not in answer, answer
        return answer["result"]

    def _read(self) -> dict[str, Any]:
        message = bytearray()
        while (byte := self.answers.read(1)) != b"\0":
            assert byte, "the browser has ended"
            message += byte
        return json.loads(message)

    def open(self, page: Path, width: int = 1150, height: int = 900) -> None:
        """Open a page of this width and wait until all of its charts are drawn."""
        self("Emulation.setDeviceMetricsOverride", width=width, height=height, **SIZE)
        self("Page.navigate", url=page.as_uri())
        self("Page.bringToFront")
        self.see(DRAWN)

    def see(self, expression: str) -> Any:
        """Return the value of an expression in the page, once it is there."""
        given = {"expression": expression, "awaitPromise": True, "returnByValue": True}
        return self("Runtime.evaluate", **given, userGesture=True)["result"].get("value")

    def until(self, expression: str, seconds: float = 20.0) -> None:
        """Wait until an expression in the page is true."""
        end = time.monotonic() + seconds
        while not self.see(expression):
            assert time.monotonic() < end, expression
            time.sleep(0.1)

    def click(self, selector: str) -> None:
        """Click with the mouse on the middle of an element."""
        where = f"document.querySelector({json.dumps(selector)})"
        self.see(f"{where}.scrollIntoView({{block: 'center'}})")
        box = self.see(f"{where}.getBoundingClientRect().toJSON()")
        place = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}
        for kind in ("mousePressed", "mouseReleased"):
            self("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **place)

    def picture(self, path: Path) -> None:
        """Write the whole page as a PNG."""
        data = self("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        path.write_bytes(base64.b64decode(data))


@contextlib.contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """Start a browser with its profile in a folder, and end it."""
    assert CHROMIUM
    (theirs, requests), (answers, ours) = os.pipe(), os.pipe()
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe"]
    options += [f"--user-data-dir={folder}", "--host-resolver-rules=MAP * ~NOTFOUND"]
    # Chromium reads from the file 3 and writes to 4
    shell = ["bash", "-c", f'exec "$@" 3<&{theirs} 4>&{ours}', "-", CHROMIUM, *options]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(shell, pass_fds=(theirs, ours), start_new_session=True, **quiet)
    os.close(theirs)
    os.close(ours)
    with os.fdopen(requests, "wb") as write, os.fdopen(answers, "rb") as read:
        try:
            page = Browser(write, read)
            yield page
            page.session = None
            page("Browser.close")
        finally:
            process.terminate()
            process.wait(30)
