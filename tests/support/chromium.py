"""A headless Chromium, driven over its DevTools protocol."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

_START_SECONDS = 30
_ANSWER_SECONDS = 30
_FLAGS = (
    "--headless",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-port=0",
)


def require_chromium() -> str:
    """The browser's path; skips the test where there is none."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return path
    pytest.skip("no Chromium on PATH (on Debian: apt-get install chromium)")


class Page:
    """One tab: sends commands, and keeps the events that come meanwhile."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._last = 0
        self.events: list[dict[str, Any]] = []

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command of the DevTools protocol and wait for its answer."""
        self._last += 1
        self._connection.send(json.dumps({"id": self._last, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._connection.recv(timeout=_ANSWER_SECONDS))
            if message.get("id") != self._last:
                self.events.append(message)
            elif "error" in message:
                raise RuntimeError(f"{method}: {message['error']}")
            else:
                return message["result"]

    def evaluate(self, expression: str) -> Any:
        """A JavaScript expression's value, awaited if it is a promise."""
        answer = self.send("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{expression}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def wait_for(self, condition: str, *, doing: Callable[[], None] = lambda: None) -> None:
        """Wait until an expression is true, doing something before each look."""
        deadline = time.monotonic() + _ANSWER_SECONDS
        while True:
            doing()
            if self.evaluate(condition):
                return
            if time.monotonic() > deadline:
                raise TimeoutError(f"{condition} did not become true; events: {self.console()}")
            time.sleep(0.1)

    def prefer(self, scheme: str) -> None:
        """Emulate a reader who prefers ``light`` or ``dark``."""
        self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def hover(self, selector: str, *, until: str) -> None:
        """Move the pointer onto the last element that a selector finds, until an expression is true.

        Again and again, because a browser drops what comes while it takes a screenshot.
        """
        self.wait_for(until, doing=lambda: self._point_at(selector))

    def click(self, selector: str) -> None:
        """Press and release the mouse on the element that a selector finds."""
        x, y = self._centre_of(selector)
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def type(self, selector: str, text: str) -> None:
        """Put the focus into a field and type over what it holds."""
        self.evaluate(f"document.querySelector({json.dumps(selector)}).select()")
        self.send("Input.insertText", text=text)

    def press(self, key: str, *, ctrl: bool = False) -> None:
        """Press and release a key."""
        code = {"Enter": 13, "Tab": 9, "ArrowRight": 39, "ArrowLeft": 37, " ": 32}[key]
        text = {"text": "\r"} if key == "Enter" else {"text": " "} if key == " " else {}
        common = {"key": key, "code": key, "windowsVirtualKeyCode": code, "modifiers": 2 if ctrl else 0}
        self.send("Input.dispatchKeyEvent", type="keyDown", **common, **text)
        self.send("Input.dispatchKeyEvent", type="keyUp", **common)

    def _point_at(self, selector: str) -> None:
        x, y = self._centre_of(selector)
        for position in ({"x": 1, "y": 1}, {"x": x, "y": y}):
            self.send("Input.dispatchMouseEvent", type="mouseMoved", **position)

    def _centre_of(self, selector: str) -> tuple[float, float]:
        x, y = self.evaluate(
            f"""(() => {{
                const element = [...document.querySelectorAll({json.dumps(selector)})].at(-1);
                element.scrollIntoView({{block: "center"}});
                const box = element.getBoundingClientRect();
                return [box.x + box.width / 2, box.y + box.height / 2];
            }})()"""
        )
        return x, y

    def console(self) -> list[dict[str, Any]]:
        """What the page printed, logged or threw so far."""
        kinds = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
        return [event for event in self.events if event["method"] in kinds]

    def requests(self) -> list[str]:
        """The addresses that the page asked for so far."""
        return [e["params"]["request"]["url"] for e in self.events if e["method"] == "Network.requestWillBeSent"]

    def screenshot(self, path: Path) -> None:
        """The whole page as a PNG."""
        answer = self.send("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(answer["data"]))


@contextmanager
def open_page(folder: Path, *, width: int = 1200, height: int = 900) -> Iterator[Page]:
    """A blank tab of a fresh Chromium whose profile lies in ``folder``; it ends with the context."""
    from websockets.sync.client import connect

    flags = [*_FLAGS, f"--user-data-dir={folder}", f"--window-size={width},{height}"]
    if os.geteuid() == 0:  # Chromium's sandbox refuses root
        flags.append("--no-sandbox")
    with (folder / "chromium.log").open("wb") as log:
        browser = subprocess.Popen([require_chromium(), *flags, "about:blank"], stdout=log, stderr=log)
    try:
        with connect(_debugger_address(browser, folder), max_size=None) as connection:
            page = Page(connection)
            for domain in ("Page", "Runtime", "Log", "Network"):
                page.send(f"{domain}.enable")
            yield page
    finally:
        browser.terminate()
        browser.wait(timeout=_START_SECONDS)


def _debugger_address(browser: subprocess.Popen[bytes], folder: Path) -> str:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and browser.poll() is None:
        try:
            port = (folder / "DevToolsActivePort").read_text().split()[0]
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=5) as answer:
                targets = json.load(answer)
        except (OSError, IndexError):
            time.sleep(0.05)
            continue
        for target in targets:
            if target["type"] == "page":
                return str(target["webSocketDebuggerUrl"])
        time.sleep(0.05)
    log = (folder / "chromium.log").read_text(errors="replace")[-2000:]
    raise RuntimeError(f"Chromium did not start (exit status {browser.poll()}): {log}")
