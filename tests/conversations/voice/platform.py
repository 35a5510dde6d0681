"""A small RTC platform in this process: checks signatures, knows which tasks run, and fails as it is told."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast
from urllib.parse import parse_qsl, urlsplit

from providers.signing import volcengine_headers
from tests.world import VOICE_SECRETS

Answer = tuple[int, bytes]


def envelope(action: str, *, error: str = "", message: str = "") -> bytes:
    """What the platform says, with white space of its own."""
    metadata: dict[str, Any] = {"RequestId": "20261120-平台", "Action": action, "Service": "rtc"}
    if error:
        metadata["Error"] = {"Code": error, "Message": message or error}
        return json.dumps({"ResponseMetadata": metadata}, ensure_ascii=False, indent=1).encode()
    return json.dumps({"Result": "ok", "ResponseMetadata": metadata}, ensure_ascii=False, indent=1).encode()


class Platform:
    """What it was asked, which tasks run in which room, and what it should answer instead of working."""

    def __init__(self) -> None:
        self.address = ""
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.versions: list[str] = []
        self.running: dict[str, str] = {}
        self.seconds = 0.0
        self.instead: Callable[[str, dict[str, Any]], Answer | None] = lambda action, body: None
        self._lock = threading.Lock()

    @property
    def base_url(self) -> str:
        return f"http://{self.address}"

    def actions(self) -> list[str]:
        """The actions of all calls, in order."""
        return [action for action, _ in self.calls]

    def answer(self, handler: BaseHTTPRequestHandler, body: bytes) -> Answer:
        """Work, and say how it went."""
        url = urlsplit(handler.path)
        query = parse_qsl(url.query)
        action = dict(query)["Action"]
        if not _is_signed(handler, query, body):
            return 401, envelope(action, error="SignatureDoesNotMatch")
        asked = json.loads(body)
        with self._lock:
            self.calls.append((action, asked))
            self.versions.append(dict(query)["Version"])
        time.sleep(self.seconds)
        if (instead := self.instead(action, asked)) is not None:
            return instead
        with self._lock:
            room, task = asked["RoomId"], asked["TaskId"]
            if action == "StartVoiceChat":
                if room in self.running:
                    return 200, envelope(action, error="InvalidParameter", message="The task has been started.")
                self.running[room] = task
            elif self.running.get(room) == task:
                del self.running[room]
            else:
                return 200, envelope(action, error="InvalidParameter", message="The task has not been started.")
        return 200, envelope(action)


def _is_signed(handler: BaseHTTPRequestHandler, query: list[tuple[str, str]], body: bytes) -> bool:
    moment = dt.datetime.strptime(handler.headers["X-Date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=dt.UTC)
    ours = volcengine_headers(
        method="POST",
        host=handler.headers["Host"],
        query=query,
        headers={"Content-Type": handler.headers["Content-Type"]},
        body=body,
        access_key=VOICE_SECRETS["access_key_id"],
        secret_key=VOICE_SECRETS["secret_key"],
        region="cn-north-1",
        service="rtc",
        now=moment,
    )
    return (ours["Authorization"], hashlib.sha256(body).hexdigest()) == (
        handler.headers["Authorization"],
        handler.headers["X-Content-Sha256"],
    )


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        status, answer = cast(Any, self.server).platform.answer(self, body)
        if not status:  # hang up without a word
            self.close_connection = True
            return
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *args: Any) -> None:
        """Say nothing."""


@contextmanager
def start_platform() -> Iterator[Platform]:
    """Yield a running platform."""
    platform = Platform()
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    server.platform = platform
    platform.address = f"127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield platform
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
