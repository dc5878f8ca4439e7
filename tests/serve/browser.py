"""A headless Chromium that is told what to do through a pipe, as a person would use a page."""

import base64
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
_OPEN = (  # the pipe's ends as the descriptors that Chromium reads and writes
    "import os, sys; r, w = map(int, sys.argv[1:3]); os.dup2(r, 60); os.dup2(w, 61);"
    "os.dup2(60, 3); os.dup2(61, 4); os.execvp(sys.argv[3], sys.argv[3:])"
)


def program() -> str | None:
    """Where a Chromium is; None where there is none."""
    return next(filter(None, map(shutil.which, PROGRAMS)), None)


class Browser:
    """One page of a Chromium; what it complains of is kept in `complaints`."""

    def __init__(self, profile: Path) -> None:
        self._profile = profile
        self._last = 0
        self._unread = b""
        self.complaints: list[str] = []

    def __enter__(self) -> Self:
        read, self._out = os.pipe()
        self._in, write = os.pipe()
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        flags += ["--no-first-run", "--hide-scrollbars", "--remote-debugging-pipe"]
        command = [str(program()), *flags, f"--user-data-dir={self._profile}", "about:blank"]
        self._process = subprocess.Popen(
            [sys.executable, "-c", _OPEN, str(read), str(write), *command],
            pass_fds=(read, write),
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        os.close(read)
        os.close(write)
        self._session = ""
        pages = self._tell("Target.getTargets")["targetInfos"]
        page = next(one["targetId"] for one in pages if one["type"] == "page")
        attached = self._tell("Target.attachToTarget", targetId=page, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._tell(f"{domain}.enable")
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(20)
        os.close(self._in)
        os.close(self._out)

    def screen(self, width: int, height: int) -> None:
        """The size of the page, in pixels of the style."""
        self._tell(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )

    def open(self, address: str) -> None:
        """Load a page."""
        self._tell("Page.navigate", url=address)
        self.until("document.readyState === 'complete'")

    def ask(self, expression: str) -> Any:
        """What an expression of JavaScript is worth."""
        found = self._tell(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in found:
            raise AssertionError(found["exceptionDetails"])
        return found["result"].get("value")

    def until(self, expression: str, *, timeout_s: float = 30.0) -> None:
        """Wait for an expression to be true."""
        end = time.monotonic() + timeout_s
        while not self._true(expression):
            assert time.monotonic() < end, f"never true: {expression}"
            time.sleep(0.05)

    def press(self, *keys: str) -> None:
        """Press keys one after the other: Tab, Enter, Space, or a character."""
        for key in keys:
            about = _KEYS.get(key, {"text": key, "key": key})
            self._tell("Input.dispatchKeyEvent", type="keyDown", **about)
            named = {name: value for name, value in about.items() if name != "text"}
            self._tell("Input.dispatchKeyEvent", type="keyUp", **named)

    def picture(self, path: Path, *, whole: bool = False) -> None:
        """What is on the screen, or the whole page, to a PNG file."""
        options: dict[str, Any] = {}
        if whole:
            size = self._tell("Page.getLayoutMetrics")["cssContentSize"]
            options = {"captureBeyondViewport": True, "clip": {**size, "scale": 1}}
        found = self._tell("Page.captureScreenshot", format="png", **options)
        path.write_bytes(base64.b64decode(found["data"]))

    def _true(self, expression: str) -> bool:
        try:
            return bool(self.ask(expression))
        except AssertionError:  # a page that is just being left
            return False

    def _tell(self, method: str, **params: Any) -> dict[str, Any]:
        self._last += 1
        message: dict[str, Any] = {"id": self._last, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            said = self._heard()
            if said.get("id") == self._last:
                if "error" in said:
                    raise AssertionError(f"{method}: {said['error']}")
                result: dict[str, Any] = said["result"]
                return result
            if complain := _COMPLAINTS.get(said.get("method", "")):
                self.complaints.append(complain(said["params"]))

    def _heard(self) -> dict[str, Any]:
        while b"\0" not in self._unread:
            more = os.read(self._in, 1 << 16)
            assert more, "Chromium went away"
            self._unread += more
        line, _, self._unread = self._unread.partition(b"\0")
        said: dict[str, Any] = json.loads(line)
        return said


_KEYS: Mapping[str, dict[str, Any]] = {
    "Tab": {"key": "Tab", "code": "Tab", "windowsVirtualKeyCode": 9},
    "Enter": {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13, "text": "\r"},
    "Space": {"key": " ", "code": "Space", "windowsVirtualKeyCode": 32, "text": " "},
}
_COMPLAINTS: Mapping[str, Callable[[dict[str, Any]], str]] = {
    "Log.entryAdded": lambda said: f"{said['entry']['level']}: {said['entry']['text']}",
    "Runtime.exceptionThrown": lambda said: str(said["exceptionDetails"].get("exception")),
    "Page.javascriptDialogOpening": lambda said: f"dialog: {said['message']}",
}
