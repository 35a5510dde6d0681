"""A headless Chromium for the tests of pages: a small client of its DevTools protocol, nothing more.

Only what a person does: open, look, type, click, reload. Whether the page is right is asked in JavaScript.
Protocol: https://chromedevtools.github.io/devtools-protocol/, over one websocket with flat sessions.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from websockets.sync.client import ClientConnection, connect

FLAGS = (
    "--headless",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-port=0",
)
PATIENCE_SECONDS = 20.0


def find_chromium() -> str | None:
    """Return the path of Debian's chromium, or None when it is not installed."""
    return shutil.which("chromium")


class PageError(AssertionError):
    """The page threw, or did not become what the test waits for."""


class Browser:
    """One Chromium process with a profile of its own; ends, and forgets the profile, on exit."""

    def __init__(self, program: str) -> None:
        self._profile = tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True)
        flags = [*FLAGS, f"--user-data-dir={self._profile.name}"]
        if os.geteuid() == 0:
            flags.append("--no-sandbox")  # Chromium refuses its sandbox to root
        self._process = subprocess.Popen(
            [program, *flags, "about:blank"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            self._line = ExitStack()
            way = connect(self._address(), max_size=None, proxy=None)
            self._socket: ClientConnection = self._line.enter_context(way)
        except BaseException:
            self._end()
            raise
        self._last_id = 0
        self._events: list[dict[str, Any]] = []

    def _address(self) -> str:
        """Return the websocket address, once Chromium has written it down."""
        note = Path(self._profile.name) / "DevToolsActivePort"
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise PageError(f"Chromium ended at once with code {self._process.returncode}")
            lines = note.read_text().splitlines() if note.exists() else []
            if len(lines) == 2:
                return f"ws://127.0.0.1:{lines[0]}{lines[1]}"
            time.sleep(0.05)
        raise PageError("Chromium did not open its DevTools port")

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._line.close()
        self._end()

    def _end(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._profile.cleanup()

    def call(self, method: str, params: dict[str, Any] | None = None, session: str | None = None) -> Any:
        """Return the result of one DevTools command; events that arrive meanwhile are kept."""
        self._last_id += 1
        number = self._last_id
        message: dict[str, Any] = {"id": number, "method": method, "params": params or {}}
        if session:
            message["sessionId"] = session
        self._socket.send(json.dumps(message))
        while True:
            answer = json.loads(self._socket.recv(timeout=PATIENCE_SECONDS))
            if answer.get("id") != number:
                self._events.append(answer)
                continue
            if "error" in answer:
                raise PageError(f"{method}: {answer['error']['message']}")
            return answer["result"]

    def events(self, method: str, session: str) -> list[dict[str, Any]]:
        """Return the parameters of all events of this kind so far."""
        return [
            event["params"]
            for event in self._events
            if event.get("method") == method and event.get("sessionId") == session
        ]

    def page(self, *, width: int, height: int, language: str = "zh-CN", scheme: str = "light") -> Page:
        """Return an empty page in a context of its own (no cookies, no storage shared)."""
        context = self.call("Target.createBrowserContext")["browserContextId"]
        target = self.call("Target.createTarget", {"url": "about:blank", "browserContextId": context})
        attached = self.call("Target.attachToTarget", {"targetId": target["targetId"], "flatten": True})
        page = Page(self, attached["sessionId"])
        for domain in ("Page", "Runtime", "Log"):
            page.call(f"{domain}.enable")
        agent = self.call("Browser.getVersion")["userAgent"]
        page.call("Emulation.setUserAgentOverride", {"userAgent": agent, "acceptLanguage": language})
        feature = {"name": "prefers-color-scheme", "value": scheme}
        page.call("Emulation.setEmulatedMedia", {"features": [feature]})
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        page.call("Emulation.setDeviceMetricsOverride", metrics)
        return page


class Page:
    """One tab."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser = browser
        self._session = session

    def call(self, method: str, params: dict[str, Any] | None = None) -> Any:
        """Return the result of one DevTools command for this tab."""
        return self._browser.call(method, params, self._session)

    def ask(self, script: str) -> Any:
        """Return the value of a JavaScript expression; a promise is waited for."""
        params = {"expression": script, "awaitPromise": True, "returnByValue": True}
        answer = self.call("Runtime.evaluate", params)
        if "exceptionDetails" in answer:
            details = answer["exceptionDetails"]
            told = details.get("exception", {}).get("description") or details.get("text")
            raise PageError(f"{script[:120]}: {told}")
        return answer["result"].get("value")

    def wait_for(self, script: str, *, seconds: float = PATIENCE_SECONDS) -> Any:
        """Return the first true value of an expression; what throws while a page loads counts as not yet."""
        deadline = time.monotonic() + seconds
        trouble: PageError | None = None
        while time.monotonic() < deadline:
            try:
                value = self.ask(script)
            except PageError as error:
                trouble = error
            else:
                if value:
                    return value
            time.sleep(0.05)
        raise PageError(f"not within {seconds:g} s: {script[:200]}") from trouble

    def open(self, url: str) -> None:
        """Go to an address and wait until it has loaded."""
        self.call("Page.navigate", {"url": url})
        self.wait_for(f"location.href.startsWith({json.dumps(url)}) && document.readyState === 'complete'")

    def reload(self) -> None:
        """Load the page anew, as F5 does."""
        self.ask("window.isOldPage = true")
        self.call("Page.reload")
        self.wait_for("!window.isOldPage && document.readyState === 'complete'")

    def type(self, selector: str, text: str) -> None:
        """Replace what a field holds, as an input method does."""
        find = f"document.querySelector({json.dumps(selector)})"
        self.ask(f"(() => {{ const field = {find}; field.focus(); field.select(); }})()")
        self.call("Input.insertText", {"text": text})

    def press_enter(self) -> None:
        """Press and let go of Enter."""
        key = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13, "text": "\r"}
        self.call("Input.dispatchKeyEvent", {"type": "keyDown", **key})
        self.call("Input.dispatchKeyEvent", {"type": "keyUp", **key})

    def click(self, selector: str) -> None:
        """Click with the mouse in the middle of an element, which must be visible."""
        find = f"document.querySelector({json.dumps(selector)})"
        self.wait_for(f"{find}?.getClientRects().length > 0")
        box = self.ask(
            f"(() => {{ const e = {find}; e.scrollIntoView({{block: 'nearest'}});"
            " const b = e.getBoundingClientRect(); return {x: b.x + b.width / 2, y: b.y + b.height / 2}; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", {"type": kind, "button": "left", "clickCount": 1, **box})

    def complaints(self) -> list[str]:
        """Return what the page threw and what the browser refused it (for one, a content security policy)."""
        thrown = self._browser.events("Runtime.exceptionThrown", self._session)
        logged = self._browser.events("Log.entryAdded", self._session)
        told = [event["exceptionDetails"].get("text", "") for event in thrown]
        told += [
            event["entry"]["text"]
            for event in logged
            if event["entry"]["level"] == "error" and event["entry"]["source"] != "network"
        ]
        return told
