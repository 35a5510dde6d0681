"""A site's own server, for tests: a real process-local HTTP server that remembers what it was asked."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit


@dataclass
class Asked:
    """One request as it came."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes


@dataclass
class Backend:
    """A running server; `address` is for the allow-list."""

    address: str
    asked: list[Asked] = field(default_factory=list)

    @property
    def url(self) -> str:
        """Its base URL."""
        return f"http://{self.address}"


@contextlib.contextmanager
def start_backend() -> Iterator[Backend]:
    """Yield a server: /slow takes 3 s, /big never ends, /status/N refuses, /to redirects, the rest is JSON."""
    backend = Backend("")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            headers = {name.lower(): value for name, value in self.headers.items()}
            backend.asked.append(Asked(self.command, parts.path, dict(parse_qsl(parts.query)), headers, body))
            kind = parts.path.split("/")[1]
            if kind == "slow":
                time.sleep(3)
            if kind == "to":
                self.send_response(302)
                self.send_header("Location", "http://169.254.169.254/")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            if kind == "big":
                self.send_response(200)
                self.send_header("Content-Type", "text/plain")
                self.end_headers()
                with contextlib.suppress(OSError):
                    while True:
                        self.wfile.write(b"x" * 65536)
                return
            said: Any = {"城市": dict(parse_qsl(parts.query)).get("city", ""), "天气": "晴"}
            if kind == "long":
                said["长文"] = "长" * 20_000
            if key := headers.get("x-api-key"):
                said["回声"] = key  # it quotes what it must not
            status = int(parts.path.split("/")[2]) if kind == "status" else 200
            answer = json.dumps(said, ensure_ascii=False).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json; charset=utf-8")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            with contextlib.suppress(OSError):
                self.wfile.write(answer)

        do_POST = do_PUT = do_GET

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    backend.address = f"127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield backend
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
