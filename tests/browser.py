"""A page in headless Chromium, driven over a pipe by the DevTools protocol (https://chromedevtools.github.io)."""

import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PATIENCE = 60  # seconds for any answer
FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-background-networking --disable-component-update "
    "--disable-sync --no-first-run --no-default-browser-check --disable-dev-shm-usage --hide-scrollbars "
    "--remote-debugging-pipe"
).split()
KEYS = {" ": 32, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Tab": 9}


class Navigated(Exception):
    """The page was left while it was asked something."""


class Page:
    """One page. What goes wrong in it is in `errors`, what it loads from outside its file in `requests`."""

    def __init__(self, folder: Path) -> None:
        self.errors: list[str] = []
        self.requests: list[str] = []
        theirs_in, self._to = os.pipe()
        self._from, theirs_out = os.pipe()
        # out of the way of 3 and 4, where Chromium wants them
        theirs = [fcntl.fcntl(end, fcntl.F_DUPFD, 20) for end in (theirs_in, theirs_out)]
        self._process = subprocess.Popen(
            [PROGRAM, *FLAGS, f"--user-data-dir={folder}", "about:blank"], pass_fds=(3, 4), stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, preexec_fn=lambda: [os.dup2(end, place) for place, end in enumerate(theirs, 3)],
        )  # fmt: skip
        for end in (theirs_in, theirs_out, *theirs):
            os.close(end)
        self._buffer, self._count, self._session = b"", 0, None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> "Page":
        return self

    def __exit__(self, *error) -> None:
        self._process.terminate()
        self._process.wait()
        os.close(self._to)
        os.close(self._from)

    def call(self, method: str, **parameters) -> dict:
        """Send a command; its result."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._count:
                if "navigated" in answer.get("error", {}).get("message", ""):
                    raise Navigated
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]

    def _next(self) -> dict:
        """The next message of the browser, whose events are noted."""
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._from], [], [], PATIENCE)
            assert ready, "Chromium does not answer"
            part = os.read(self._from, 2**20)
            assert part, "Chromium has ended"
            self._buffer += part
        text, self._buffer = self._buffer.split(b"\0", 1)
        message = json.loads(text)
        event, about = message.get("method"), message.get("params", {})
        if event == "Runtime.exceptionThrown":
            self.errors.append(str(about["exceptionDetails"]))
        elif event == "Runtime.consoleAPICalled" and about["type"] in ("error", "warning", "assert"):
            self.errors.append(str(about["args"]))
        elif event == "Log.entryAdded" and about["entry"]["level"] in ("error", "warning"):
            self.errors.append(about["entry"]["text"])
        elif event == "Network.requestWillBeSent":
            self.requests.append(about["request"]["url"])
        return message

    def open(self, path: Path, width: int = 900, height: int = 900, *, dark: bool = False, touch: bool = False) -> None:
        """Load a file into a window of so many CSS pixels."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=touch)
        self.call("Emulation.setTouchEmulationEnabled", enabled=touch)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=path.resolve().as_uri())
        self.wait_for("document.readyState === 'complete'")

    def evaluate(self, expression: str):
        """The value of a JavaScript expression."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait_for(self, expression: str, seconds: float = PATIENCE) -> None:
        """Until an expression is true, be it on the page that a link leads to."""
        until = time.monotonic() + seconds
        while True:
            with contextlib.suppress(Navigated):
                if self.evaluate(expression):
                    return
            assert time.monotonic() < until, f"{expression} stays false; {self.errors}"
            time.sleep(0.02)

    def press(self, key: str) -> None:
        """Press and release a key."""
        text = {"text": key} if key == " " else {}
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code="Space" if key == " " else key,
                      windowsVirtualKeyCode=KEYS[key], **text)  # fmt: skip

    def place(self, selector: str, x: float, y: float) -> tuple[float, float]:
        """The point at shares x, y of an element, scrolled into view, in the window."""
        self.evaluate(f"document.querySelector({selector!r}).scrollIntoView({{block: 'center', behavior: 'instant'}})")
        box = self.evaluate(
            f"(({{left, top, width, height}}) => [left, top, width, height])"
            f"(document.querySelector({selector!r}).getBoundingClientRect())"
        )
        return box[0] + x * box[2], box[1] + y * box[3]

    def drag(self, selector: str, *points: tuple[float, float]) -> None:
        """Press the mouse at the first of the points, shares of an element; move over the others; release."""
        places = [self.place(selector, *point) for point in points]
        moves = [("mouseMoved", place) for place in places]
        for kind, (x, y) in [("mousePressed", places[0]), *moves, ("mouseReleased", places[-1])]:
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1)

    def touch(self, selector: str, *points: tuple[float, float]) -> None:
        """Put a finger on the first of the points, shares of an element; move over the others; lift it."""
        places = [self.place(selector, *point) for point in points]
        # where a finger may scroll is known once the page is painted
        self.evaluate("new Promise(done => requestAnimationFrame(() => setTimeout(done, 50)))")
        kinds = ["touchStart", *["touchMove"] * (len(places) - 1)]
        for kind, (x, y) in zip(kinds, places, strict=True):
            self.call("Input.dispatchTouchEvent", type=kind, touchPoints=[{"x": x, "y": y}])
        self.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

    def screenshot(self, path: Path) -> None:
        """The whole page as PNG."""
        answer = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(answer["data"]))
