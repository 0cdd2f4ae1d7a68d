"""A headless Chromium that the tests drive through the DevTools protocol, over a pipe: no port, no package.

Messages are JSON objects that end in a zero byte; Chromium reads them from file descriptor 3 and answers on 4.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-pipe",
)
START = """
import os, sys
pipe = [os.dup(int(number)) for number in sys.argv[1:3]]
while min(pipe) < 5:
    pipe = [os.dup(number) for number in pipe]
for number, target in zip(pipe, (3, 4)):
    os.dup2(number, target)
os.execv(sys.argv[3], sys.argv[3:])
"""
"""Becomes Chromium, with the ends of the pipes where it looks for them."""

SECONDS = 120
"""How long an answer or a condition is waited for."""


class Browser:
    """One page in a Chromium of its own, with the errors and the requests that were seen since it was opened.

    Its window is so high that all charts can be seen, and so are drawn, unless another height is given.
    """

    def __init__(self, profile: Path, width: int = 1366, height: int = 8000) -> None:
        program = next(filter(None, map(shutil.which, NAMES)), None)
        if program is None:
            pytest.skip(f"no Chromium on the PATH (looked for {', '.join(NAMES)}): the page cannot be opened")
        to_chromium, self._in = os.pipe()
        self._out, from_chromium = os.pipe()
        flags = [*FLAGS, f"--user-data-dir={profile}", f"--window-size={width},{height}", "about:blank"]
        self._process = subprocess.Popen(
            [sys.executable, "-S", "-c", START, str(to_chromium), str(from_chromium), program, *flags],
            pass_fds=(to_chromium, from_chromium),
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_chromium)
        os.close(from_chromium)
        self._last = 0
        self._buffer = b""
        self._session: str | None = None
        self.errors: list[str] = []
        self.requests: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.wait(SECONDS)
        os.close(self._in)
        os.close(self._out)

    def open(self, page: Path) -> float:
        """Open a file and wait until all charts that can be seen are drawn; return the seconds that took."""
        self.errors, self.requests = [], []
        start = time.perf_counter()
        self.call("Page.navigate", url=page.resolve().as_uri())
        self.wait("document.readyState === 'complete' && document.documentElement.dataset.ready === 'true'")
        return time.perf_counter() - start

    def run(self, expression: str) -> Any:
        """Return the value of a JavaScript expression, awaited when it is a promise."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, condition: str) -> None:
        """Wait until a JavaScript condition holds."""
        end = time.monotonic() + SECONDS
        while not self.run(condition):
            assert time.monotonic() < end, f"did not become true: {condition}; errors: {self.errors}"
            time.sleep(0.02)

    def press(self, key: str) -> None:
        """Press and release a key on what has the focus."""
        text = {"Enter": "\r", " ": " "}.get(key, "")
        code = {"Enter": 13, "Escape": 27, "Tab": 9, " ": 32}[key]
        for kind in ("keyDown", "keyUp"):
            typed = {"text": text} if text and kind == "keyDown" else {}
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **typed)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send one command and return its answer; what happens on the page meanwhile is noted."""
        self._last += 1
        message: dict[str, Any] = {"id": self._last, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._in, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._last:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]
            self._note(answer.get("method"), answer.get("params", {}))

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._out], [], [], SECONDS)
            assert ready, f"Chromium has not answered for {SECONDS} s"
            data = os.read(self._out, 1 << 20)
            assert data, "Chromium has ended"
            self._buffer += data
        text, self._buffer = self._buffer.split(b"\0", 1)
        return json.loads(text)

    def _note(self, method: str | None, params: dict[str, Any]) -> None:
        if method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description", details["text"]))
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "assert"):
            self.errors.append(str(params["args"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.errors.append(params["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
