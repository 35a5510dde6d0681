"""A provider that misbehaves on purpose: a real process, raw bytes over TCP, standard library only.

    python -m tests.fakes.provider --port 0       # first line of output: {"port": 41234, "pid": 99}

It speaks `POST …/chat/completions` with `stream: true`, and picks its behaviour from a directive in the last
user message, such as `[[n=20 rate=50]]` or `[[fault=stall after=5]]`. Without one it says 8 tokens.

Words: `n` tokens, `rate` per second (0: no pause), `seed` (the text), `ttft` ms before the first token,
`head` ms before the response head, `after` tokens before the fault strikes (default 3), `status`,
`retry_after` seconds, `size` bytes, `finish` reason, `te=close` (no chunked coding), `keep=0` (closes the
connection after the reply), `times` (the fault strikes only that often, then all is well), `usage=0`, `tag`
(any word, to tell requests apart in the counters), `delay` ms before anything at all, `at` (the name of the
provider, see --name: for all others there is no fault and no delay; `at=A,B after=5,9 fault=cut,500` gives each
its own), `think` (that many thoughts before the reply).

`tool` names tools to ask for (joined by commas), when the request offers any: `args` is what their arguments say,
`rounds` how often (default 1), `say` tokens before each call, `ids=0` leaves out the ids of the calls,
`tooldelay` ms before the call. Once the tools have answered, the tokens follow.

When the last message is the assistant's, the reply goes on after that text, or is refused with 400 when it is
not what this provider would have said. So it does when a user message follows that tells it to go on (`GO_ON`);
`runup` is how many characters it then says again first, as models like to do.

Faults: slow stall keepalive reset cut halfclose nofinish hangup status (or 400 401 403 404 422 429 500 502
503 529 as the fault itself) quota blocked error errorstring garbage noise nonhttp invalid_utf8 split_utf8
crlf cr bigline endless gzip gzipbomb redirect empty nothing control nul html json jsonerror reasoning
length content_filter toolcall drip.

It also speaks `POST …/apps/{id}/completion`, an application of DashScope that keeps sessions: without one it
begins one, an unknown one it refuses as the vendor does. Its words: `n`, `rate`, `seed`, `lost=1` (forgets all
sessions once it has answered), `documents` and `thoughts` (how many), `fault=apperror` (an error event after
`after` tokens).

`GET /stats` returns counters and the last request bodies, `POST /reset` clears them.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import gzip
import json
import os
import random
import re
import signal
import socket
import struct
import subprocess
import sys
import time
import urllib.request
from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_MASK = (1 << 64) - 1
# fmt: off
TOKENS = (
    " the", " of", " and", " to", " model", " stream", " answer", " with", "ing", "tion", " a", " is",
    " context", " window", ".", ",", "\n", "\n\n", ' "', '"', "\\", "\t", " 42", " 3.14",
    "我", "们", "的", "模型", "回答", "，", "。", "对话", "数据", "学校", "科研", "请", "是", "在", "不",
    "了", "日本", "한국", "é", "ß", "Ж", "😀", "🚀", "data: ", "event: x", "</p>", "{", "}", "[DONE]",
    "&amp;", " code", "```", " def", " return", " x", " =", " token", " server", " time", " user",
)
# fmt: on
CONTROL_TOKENS = (
    "a\r\nb",
    "\u2028",
    "行\u2029",
    "\u0085",
    "\x0b\x0c",
    "\x1b[31m",
    "\x7f",
    "\r",
    "\n",
    "\ttab",
    "\ufeff",
    "尾",
)
GO_ON = "你的上一条回答中断了"
NUL_JSON = ('"空\\u0000字"', '"\\ud800"', '"x\\udc00y"', '"\\ud83d"', '"\\ude00"', '"完"')
NUL_TEXT = "空\ufffd字\ufffdx\ufffdy😀完"
STATUS_FAULTS = {
    "400",
    "401",
    "402",
    "403",
    "404",
    "408",
    "413",
    "422",
    "429",
    "500",
    "502",
    "503",
    "504",
    "529",
}


def token_at(seed: int, position: int) -> str:
    """Return token number `position` of this seed's endless text."""
    x = (seed * 0x9E3779B97F4A7C15 + position + 0x9E3779B97F4A7C15) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return TOKENS[(x ^ (x >> 31)) % len(TOKENS)]


def expected_text(seed: int = 1, n: int = 8) -> str:
    """Return the exact text of the first n tokens of this seed: Chinese, emoji, quotes, `[DONE]` and all."""
    return "".join(token_at(seed, position) for position in range(n))


def parse_directive(text: str) -> dict[str, str]:
    """Return the words of the last `[[…]]` in the text."""
    found = re.findall(r"\[\[((?:\s*[a-z_]+=[^\s\]]+)+)\s*\]\]", text)
    return dict(part.split("=", 1) for part in found[-1].split()) if found else {}


def last_user_text(body: dict[str, Any]) -> str:
    """Return the text of the last user message, also when it is a list of parts."""
    for message in reversed(body.get("messages") or []):
        if message.get("role") == "user":
            content = message.get("content")
            if isinstance(content, list):
                return "".join(part.get("text", "") for part in content)
            return content or ""
    return ""


def begun_text(body: dict[str, Any]) -> str:
    """Return the beginning of the answer that the request ends with: what is said must go on after it."""
    last = (body.get("messages") or [{}])[-1]
    content = last.get("content") if last.get("role") == "assistant" else ""
    return content if isinstance(content, str) else ""


def is_told_to_go_on(body: dict[str, Any]) -> bool:
    """Return whether the last message is an instruction to go on after the one before it."""
    messages = body.get("messages") or []
    if len(messages) < 2 or messages[-2].get("role") != "assistant":
        return False
    return messages[-1].get("role") == "user" and str(messages[-1].get("content")).startswith(GO_ON)


class ClientGone(Exception):
    """The client closed the connection."""


class Stats:
    """What happened so far; monotonic times are those of this process."""

    def __init__(self) -> None:
        self.requests = 0
        self.open_streams = 0
        self.open_connections = 0
        self.connections = 0
        self.completed = 0
        self.closed_by_client: deque[dict[str, Any]] = deque(maxlen=5000)
        self.bodies: deque[Any] = deque(maxlen=50)
        self.headers: deque[dict[str, str]] = deque(maxlen=50)
        self.by_directive: Counter[str] = Counter()
        self.tokens = 0
        self.bytes_sent = 0
        self.usages = 0
        # Closed without a byte on a connection that had served before: a client cannot tell that from an idle
        # connection which ended, and sends the request again.
        self.unheard = 0
        self.usage_tokens = 0

    def as_json(self) -> dict[str, Any]:
        """Return everything, ready for json.dumps."""
        return {
            **{name: value for name, value in vars(self).items() if isinstance(value, int)},
            "closed_by_client": list(self.closed_by_client),
            "closed_by_client_count": len(self.closed_by_client),
            "bodies": list(self.bodies),
            "headers": list(self.headers),
            "by_directive": dict(self.by_directive),
            "monotonic": time.monotonic(),
            "unix_ms": int(time.time() * 1000),
        }


class Exchange:
    """One request and its misbehaving answer on one connection."""

    def __init__(
        self,
        server: Server,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        words: dict[str, str],
        body: dict[str, Any],
    ) -> None:
        self.server, self.stats = server, server.stats
        self.reader, self.writer = reader, writer
        self.words, self.body = words, body
        self.chunked = words.get("te") != "close"
        self.eol = {"crlf": b"\r\n", "cr": b"\r"}.get(words.get("fault", ""), b"\n")
        self.pieces = words.get("fault") == "split_utf8"
        self.sent = 0
        self.has_answered = False
        self.begun = begun_text(body)
        self.said_before = len(self.begun)
        self.watch: asyncio.Task[bytes] | None = None

    def number(self, name: str, default: float) -> float:
        """Return one numeric word of the directive."""
        try:
            return float(self.words.get(name, default))
        except ValueError:
            return default

    async def wait(self, seconds: float | None) -> None:
        """Sleep, but notice at once when the client goes away."""
        if self.watch is None:
            self.watch = asyncio.ensure_future(self.reader.read(1))
        done, _ = await asyncio.wait({self.watch}, timeout=seconds)
        if done:
            raise ClientGone

    async def raw(self, data: bytes) -> None:
        """Write these very bytes and wait for the kernel to take them."""
        if self.writer.transport.is_closing() or (self.watch is not None and self.watch.done()):
            raise ClientGone
        self.writer.write(data)
        self.has_answered = True
        self.stats.bytes_sent += len(data)
        try:
            if self.writer.transport.get_write_buffer_size() > 65536:
                # A client that does not read holds us here; one that leaves must wake us.
                drain = asyncio.ensure_future(self.writer.drain())
                if self.watch is None:
                    self.watch = asyncio.ensure_future(self.reader.read(1))
                await asyncio.wait({drain, self.watch}, return_when=asyncio.FIRST_COMPLETED)
                if not drain.done():
                    drain.cancel()
                    raise ClientGone
                drain.result()
            else:
                await self.writer.drain()
        except ConnectionError as error:
            raise ClientGone from error

    async def write(self, data: bytes) -> None:
        """Write body bytes in the body's coding; split_utf8 sends every byte by itself."""
        if self.pieces:
            for position in range(len(data)):
                one = data[position : position + 1]
                await self.raw(b"1\r\n" + one + b"\r\n" if self.chunked else one)
                await asyncio.sleep(0)
            return
        await self.raw(b"%x\r\n%b\r\n" % (len(data), data) if self.chunked else data)

    async def head(
        self,
        status: int = 200,
        content_type: str = "text/event-stream; charset=utf-8",
        *extra: str,
        length: int = -1,
    ) -> None:
        """Write the response head."""
        if self.words.get("head"):
            await self.wait(self.number("head", 0) / 1000)
        lines = [f"HTTP/1.1 {status} X", f"Content-Type: {content_type}", "x-request-id: req-fake-1", *extra]
        if length >= 0:
            lines.append(f"Content-Length: {length}")
            self.chunked = False
        elif self.chunked:
            lines.append("Transfer-Encoding: chunked")
        else:
            lines.append("Connection: close")
        await self.raw("\r\n".join([*lines, "", ""]).encode("latin-1"))
        for number in range(int(self.number("think", 0)) if "event-stream" in content_type else 0):
            thought = json.dumps(f"{self.server.name}想{number}", ensure_ascii=False)
            await self.event(self.chunk_json('{"reasoning_content":' + thought + "}"))

    async def event(self, data: str | bytes) -> None:
        """Write one data event."""
        data = data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data
        await self.write(b"data: " + data + self.eol + self.eol)

    def chunk_json(self, delta_json: str, finish: str | None = None, extra: str = "") -> str:
        """Return a chat.completion.chunk with this delta, given as JSON text."""
        return (
            '{"id":"chatcmpl-fake","object":"chat.completion.chunk","created":1790000000,"model":"fake",'
            f'"choices":[{{"index":0,"delta":{delta_json},"finish_reason":{json.dumps(finish)}}}]{extra}}}'
        )

    async def token(self, text: str) -> None:
        """Write one token."""
        await self.event(self.chunk_json('{"content":' + json.dumps(text, ensure_ascii=False) + "}"))
        self.sent += 1
        self.stats.tokens += 1

    async def tokens(self, count: int, *, start: int = 0, rate: float | None = None) -> None:
        """Write count tokens of this seed at the directive's rate."""
        seed = int(self.number("seed", 1))
        rate = self.number("rate", 0) if rate is None else rate
        began = time.monotonic()
        written = 0
        if self.begun and (again := int(self.number("runup", 0))):
            await self.token(self.begun[-again:])
        for position in range(start, start + count):
            text = token_at(seed, position)
            text, self.said_before = text[self.said_before :], max(0, self.said_before - len(text))
            if not text:
                continue
            if rate > 0 and written:
                await self.wait(max(0.0, began + written / rate - time.monotonic()))
            elif self.sent % 64 == 63:
                await self.wait(0)
            await self.token(text)
            written += 1

    async def end(self, finish: str | None = "stop", *, done: bool = True) -> None:
        """Write the finish chunk, the usage chunk, [DONE], and the end of the body."""
        if finish is not None:
            await self.event(self.chunk_json("{}", finish))
        if self.words.get("usage") != "0":
            usage = {"prompt_tokens": 10, "completion_tokens": self.sent, "total_tokens": self.sent + 10}
            await self.event(
                '{"id":"chatcmpl-fake","object":"chat.completion.chunk","choices":[],"usage":'
                + json.dumps(usage)
                + "}"
            )
            self.stats.usages += 1
            self.stats.usage_tokens += self.sent
        if done:
            await self.event("[DONE]")
        await self.close_body()

    async def close_body(self) -> None:
        """End the body properly."""
        if self.chunked:
            await self.raw(b"0\r\n\r\n")

    async def whole(self, status: int, content_type: str, body: bytes, *extra: str) -> None:
        """Write a response with a length."""
        await self.head(status, content_type, *extra, length=len(body))
        await self.raw(body)

    def reset(self) -> None:
        """Send RST."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def fail(self, status: int, *, code: str = "fake_error") -> None:
        """Write an HTTP error as vendors do."""
        message = f"Fake failure {status}: 密钥或请求有误"
        body = json.dumps({"error": {"message": message, "type": "fake", "param": None, "code": code}}).encode()
        extra = [f"Retry-After: {self.words['retry_after']}"] if "retry_after" in self.words else []
        if status == 429 and not extra:
            extra = ["Retry-After: 1"]
        await self.whole(status, "application/json", body, *extra)

    async def answer(self) -> bool:
        """Misbehave as told; return whether the connection may serve another request."""
        fault = self.words.get("fault", "")
        n = int(self.number("n", 8))
        after = min(int(self.number("after", 3)), n)
        keep = self.words.get("keep") != "0" and self.words.get("te") != "close"
        if self.words.get("delay"):
            await self.wait(self.number("delay", 0) / 1000)
        if self.words.get("tool") and self.body.get("tools"):
            done = 0
            for message in reversed(self.body.get("messages") or []):
                if message.get("role") == "user":
                    break
                done += bool(message.get("tool_calls"))
            if done < self.number("rounds", 1):
                return await self.ask_for_tools(done)
        if self.begun and not expected_text(int(self.number("seed", 1)), n).startswith(self.begun):
            await self.fail(400, code="foreign_beginning")
            return keep
        if fault in STATUS_FAULTS or fault == "status":
            await self.fail(int(self.words.get("status", fault if fault.isdigit() else "500")))
            return keep
        method = getattr(self, f"do_{fault}", None)
        if fault and method is None:
            await self.fail(400, code="unknown_fault")
            return keep
        if method is not None:
            return bool(await method(n, after)) and keep
        if self.body.get("stream") is False:
            return bool(await self.do_json(n, after)) and keep
        await self.head()
        await self.wait(self.number("ttft", 0) / 1000)
        await self.tokens(n)
        await self.end(self.words.get("finish", "stop"))
        return keep and self.chunked

    async def do_slow(self, n: int, after: int) -> bool:
        await self.head()
        await self.tokens(n, rate=self.number("rate", 5))
        await self.end()
        return True

    async def do_stall(self, n: int, after: int) -> bool:
        await self.head()
        await self.tokens(after)
        await self.wait(None)
        return False

    async def do_keepalive(self, n: int, after: int) -> bool:
        await self.head()
        await self.tokens(after)
        while True:
            await self.write(b": keep-alive\n\n")
            await self.wait(0.05)

    async def do_drip(self, n: int, after: int) -> bool:
        """One byte of an endless line from time to time: bytes arrive, payload never does."""
        await self.head()
        await self.tokens(after)
        await self.write(b"data: ")
        while True:
            await self.write(b"x")
            await self.wait(0.05)

    async def do_reset(self, n: int, after: int) -> bool:
        await self.head()
        await self.tokens(after)
        await self.wait(0.05)
        self.reset()
        return False

    async def do_cut(self, n: int, after: int) -> bool:
        """Close the connection inside an event."""
        await self.head()
        await self.tokens(after)
        await self.write(b'data: {"id":"chatcmpl-fake","choices":[{"index":0,"delta":{"content":"los')
        return False

    async def do_halfclose(self, n: int, after: int) -> bool:
        """A clean end of the body, without finish_reason and [DONE]."""
        await self.head()
        await self.tokens(after)
        await self.close_body()
        return True

    async def do_nofinish(self, n: int, after: int) -> bool:
        """[DONE] without any finish_reason: complete by policy P 13."""
        await self.head()
        await self.tokens(n)
        await self.end(None)
        return True

    async def do_hangup(self, n: int, after: int) -> bool:
        """Close without a single byte of answer."""
        return False

    async def do_quota(self, n: int, after: int) -> bool:
        await self.fail(429, code="insufficient_quota")
        return True

    async def do_blocked(self, n: int, after: int) -> bool:
        await self.fail(400, code="content_policy_violation")
        return True

    async def do_error(self, n: int, after: int) -> bool:
        await self.head()
        await self.tokens(after)
        error = {"message": "The server had an error", "type": "server_error", "code": self.words.get("code")}
        await self.event(json.dumps({"error": error}))
        await self.event("[DONE]")
        await self.close_body()
        return True

    async def do_errorstring(self, n: int, after: int) -> bool:
        await self.head()
        await self.tokens(after)
        await self.event('{"error":"model runner has unexpectedly stopped"}')
        await self.close_body()
        return True

    async def do_garbage(self, n: int, after: int) -> bool:
        """Malformed events and unknown fields between good tokens; the reply is whole."""
        await self.head()
        await self.tokens(after)
        await self.event("{not json}")
        await self.write(b"nonsense: \xde\xad\xbe\xef\nid\nretry: x\n\n")
        await self.event('"just a string"')
        await self.event("[1, 2")
        await self.event('{"choices": 7}')
        await self.tokens(n - after, start=after)
        await self.end()
        return True

    async def do_noise(self, n: int, after: int) -> bool:
        """Random bytes under the right content type."""
        await self.head()
        noise = random.Random(7)  # the same noise every time
        for _ in range(20):
            await self.write(noise.randbytes(500))
        await self.close_body()
        return True

    async def do_nonhttp(self, n: int, after: int) -> bool:
        """Not even HTTP."""
        await self.raw(b"SSH-2.0-OpenSSH_9.2\r\n\x00\xff\xfe nonsense\r\n\r\n")
        return False

    async def do_invalid_utf8(self, n: int, after: int) -> bool:
        await self.head()
        await self.tokens(after)
        await self.event(b'{"choices":[{"index":0,"delta":{"content":"b\xffd"}}]}')
        await self.tokens(n - after, start=after)
        await self.end()
        return True

    async def do_split_utf8(self, n: int, after: int) -> bool:
        await self.head()
        await self.tokens(n)
        await self.end()
        return True

    do_crlf = do_cr = do_split_utf8

    async def do_bigline(self, n: int, after: int) -> bool:
        """One event of `size` bytes (5 MB) between ordinary tokens."""
        await self.head()
        await self.tokens(after)
        size = int(self.number("size", 5_000_000))
        await self.event(self.chunk_json('{"content":"' + big_text(size) + '"}'))
        await self.tokens(n - after, start=after)
        await self.end()
        return True

    async def do_endless(self, n: int, after: int) -> bool:
        await self.head()
        position = 0
        while True:
            await self.tokens(1000, start=position)
            position += 1000

    async def do_gzip(self, n: int, after: int) -> bool:
        """A compressed event stream nobody asked for; decodable."""
        seed = int(self.number("seed", 1))
        text = "".join(
            "data: " + self.chunk_json('{"content":' + json.dumps(token_at(seed, k)) + "}") + "\n\n"
            for k in range(n)
        )
        text += "data: " + self.chunk_json("{}", "stop") + "\n\ndata: [DONE]\n\n"
        await self.head(200, "text/event-stream", "Content-Encoding: gzip")
        packed = gzip.compress(text.encode())
        for position in range(0, len(packed), 50):
            await self.write(packed[position : position + 50])
        await self.close_body()
        return True

    async def do_gzipbomb(self, n: int, after: int) -> bool:
        """64 MiB of blanks in 64 KiB."""
        await self.head(200, "text/event-stream", "Content-Encoding: gzip")
        await self.write(bomb())
        await self.close_body()
        return True

    async def do_redirect(self, n: int, after: int) -> bool:
        location = f"http://127.0.0.1:{self.server.port}/v1/redirected/chat/completions"
        await self.whole(302, "text/html", b"<html>moved</html>", f"Location: {location}")
        return True

    async def do_empty(self, n: int, after: int) -> bool:
        """A reply that ends properly and says nothing."""
        await self.head()
        await self.event(self.chunk_json('{"role":"assistant","content":""}'))
        await self.end()
        return True

    async def do_nothing(self, n: int, after: int) -> bool:
        """A head and no body at all."""
        await self.head()
        await self.close_body()
        return True

    async def do_control(self, n: int, after: int) -> bool:
        await self.head()
        for text in CONTROL_TOKENS:
            await self.token(text)
        await self.end()
        return True

    async def do_nul(self, n: int, after: int) -> bool:
        await self.head()
        for text in NUL_JSON:
            await self.event(self.chunk_json('{"content":' + text + "}"))
            await self.wait(0.005)
        await self.end()
        return True

    async def do_html(self, n: int, after: int) -> bool:
        body = "<!DOCTYPE html><html><body>登录以继续 please sign in</body></html>"
        await self.whole(200, "text/html; charset=utf-8", body.encode())
        return True

    async def do_json(self, n: int, after: int) -> bool:
        """The server ignored stream: true."""
        text = expected_text(int(self.number("seed", 1)), n)
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 10, "completion_tokens": n, "total_tokens": n + 10}
        body = json.dumps({"object": "chat.completion", "choices": [choice], "usage": usage}, ensure_ascii=False)
        await self.whole(200, "application/json", body.encode())
        return True

    async def do_jsonerror(self, n: int, after: int) -> bool:
        await self.whole(200, "application/json", b'{"error":{"message":"quota","code":"insufficient_quota"}}')
        return True

    async def do_reasoning(self, n: int, after: int) -> bool:
        await self.head()
        for text in ("想一想", "…", "好了"):
            await self.event(
                self.chunk_json(json.dumps({"content": None, "reasoning_content": text}, ensure_ascii=False))
            )
            await self.wait(0.005)
        await self.tokens(n)
        await self.end()
        return True

    async def do_length(self, n: int, after: int) -> bool:
        await self.head()
        await self.tokens(n)
        await self.end("length")
        return True

    async def do_content_filter(self, n: int, after: int) -> bool:
        await self.head()
        await self.tokens(after)
        await self.end("content_filter")
        return True

    async def ask_for_tools(self, done: int) -> bool:
        """Say some tokens, then ask for the tools of the directive, their arguments in pieces."""
        await self.head()
        await self.tokens(int(self.number("say", 0)))
        await self.wait(self.number("tooldelay", 0) / 1000)
        arguments = self.words.get("args", "{}")
        for index, name in enumerate(self.words["tool"].split(",")):
            first: dict[str, Any] = {
                "index": index,
                "type": "function",
                "function": {"name": name, "arguments": ""},
            }
            if self.words.get("ids") != "0":
                first["id"] = f"call_{done}_{index}"
            half = len(arguments) // 2
            for call in (
                first,
                {"index": index, "function": {"arguments": arguments[:half]}},
                {"index": index, "function": {"arguments": arguments[half:]}},
            ):
                await self.event(self.chunk_json(json.dumps({"tool_calls": [call]}, ensure_ascii=False)))
        await self.end("tool_calls")
        return True

    async def do_toolcall(self, n: int, after: int) -> bool:
        await self.head()
        for call in (
            {"index": 0, "id": "call_1", "type": "function", "function": {"name": "查天气", "arguments": ""}},
            {"index": 0, "function": {"arguments": '{"city":'}},
            {"index": 0, "function": {"arguments": '"北京"}'}},
        ):
            await self.event(self.chunk_json(json.dumps({"tool_calls": [call]}, ensure_ascii=False)))
        await self.end("tool_calls")
        return True


class AppExchange(Exchange):
    """One request to an application of DashScope."""

    async def frame(self, output: dict[str, Any], usage: dict[str, Any] | None = None) -> None:
        """Write one frame in the vendor's own way of spacing."""
        body = {"output": output, "usage": usage or {}, "request_id": "req-app-1"}
        data = json.dumps(body, ensure_ascii=False)
        await self.write(f"id:{self.sent + 1}\nevent:result\n:HTTP_STATUS/200\ndata:{data}\n\n".encode())
        self.sent += 1

    async def answer(self) -> bool:
        """Answer as the application; return whether the connection may serve another request."""
        asked = self.body.get("input") or {}
        sessions = self.server.sessions
        session = asked.get("session_id")
        if bool(asked.get("prompt")) == bool(asked.get("messages")) or (session and asked.get("messages")):
            return await self.refuse("BadRequest.Input", "prompt or messages, and no history with a session")
        if session is None:
            self.server.sessions_begun += 1
            session = f"session-{self.server.sessions_begun}"
            sessions.add(session)
        elif session not in sessions:
            return await self.refuse("InvalidParameter", "The session_id is invalid or expired.")
        n = int(self.number("n", 8))
        is_cumulative = (self.body.get("parameters") or {}).get("incremental_output") is not True
        seed, rate, said = int(self.number("seed", 1)), self.number("rate", 0), ""
        await self.head(200, "text/event-stream;charset=UTF-8")
        for number in range(int(self.number("thoughts", 0))):
            thought = {"action_type": "reasoning", "thought": f"想{number}"}
            await self.frame({"session_id": session, "finish_reason": "null", "text": None, "thoughts": [thought]})
        for position in range(n):
            if position and rate > 0:
                await self.wait(1 / rate)
            token = token_at(seed, position)
            said += token
            text = said if is_cumulative else token
            await self.frame({"session_id": session, "finish_reason": "null", "text": text})
            if self.words.get("fault") == "apperror" and position + 1 == int(self.number("after", 3)):
                error = '{"code":"DataInspectionFailed","message":"blocked","request_id":"req-app-1"}'
                await self.write(f"id:9\nevent: error\n:HTTP_STATUS/400\ndata:{error}\n\n".encode())
                await self.close_body()
                return True
        documents = [
            {"index_id": str(k), "title": f"手册{k}", "doc_name": "手册.pdf", "text": "…", "page_number": [k]}
            for k in range(1, int(self.number("documents", 0)) + 1)
        ]
        usage = {"models": [{"model_id": "qwen-max", "input_tokens": 10, "output_tokens": n}]}
        last = {"session_id": session, "finish_reason": "stop", "text": said if is_cumulative else ""}
        await self.frame(last | ({"doc_references": documents} if documents else {}), usage)
        if self.words.get("lost"):
            sessions.clear()
        await self.close_body()
        return True

    async def refuse(self, code: str, message: str) -> bool:
        """Write an HTTP error as this vendor does."""
        body = json.dumps({"code": code, "message": message, "request_id": "req-app-1"})
        await self.whole(400, "application/json", body.encode())
        return True


@functools.cache
def bomb() -> bytes:
    """Return the bomb; packed once, for a hundred calls at a time would keep a core busy for a minute."""
    return gzip.compress(b"data: " + b" " * (64 << 20))


def big_text(size: int) -> str:
    """Return the one token of the bigline fault: about `size` bytes of Chinese."""
    return "大" * (size // 3)


class Server:
    """The listening process."""

    def __init__(self, *, tokens: int = 8, rate: float = 0.0, name: str = "") -> None:
        self.stats = Stats()
        self.name = name
        self.sessions: set[str] = set()
        self.sessions_begun = 0
        self.port = 0
        self.defaults = {"n": str(tokens), "rate": str(rate)}

    async def serve(self, host: str, port: int) -> asyncio.Server:
        """Listen, and return the listening server."""
        server = await asyncio.start_server(self.connected, host, port, backlog=4096, limit=1 << 20)
        self.port = server.sockets[0].getsockname()[1]
        return server

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection until somebody has had enough."""
        self.stats.connections += 1
        self.stats.open_connections += 1
        writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            is_reused = False
            while await self.request(reader, writer, is_reused=is_reused):
                is_reused = True
        except (ConnectionError, asyncio.IncompleteReadError, ClientGone):
            pass
        finally:
            self.stats.open_connections -= 1
            writer.close()

    async def request(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, is_reused: bool = False
    ) -> bool:
        """Serve one request; return whether the connection is good for another."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        line, *rest = head.split("\r\n")
        method, path, _ = line.split(" ", 2)
        headers = {k.strip().lower(): v.strip() for k, v in (h.split(":", 1) for h in rest if ":" in h)}
        raw = await reader.readexactly(int(headers.get("content-length", 0)))
        is_app = "/apps/" in path and path.endswith("/completion")
        if not (is_app or path.endswith("/chat/completions")) or method != "POST":
            return await self.other(writer, method, path)
        body = json.loads(raw or b"{}")
        self.stats.bodies.append(body)
        is_told = is_told_to_go_on(body)
        if is_told:
            body = {**body, "messages": body["messages"][:-1]}
        asked = body.get("input") or {}
        text = asked.get("prompt") or last_user_text(asked) if is_app else last_user_text(body)
        words = parse_directive(text)
        key = " ".join(f"{k}={v}" for k, v in words.items())
        self.stats.requests += 1
        self.stats.by_directive[key] += 1
        self.stats.headers.append({k: v for k, v in headers.items() if k != "authorization"} | {"path": path})
        if "times" in words and self.stats.by_directive[key] > int(words["times"]):
            words.pop("fault", None)
        places = words.get("at", self.name).split(",")
        if self.name not in places:
            words = {name: word for name, word in words.items() if name not in ("fault", "delay")}
        else:
            for name in ("fault", "after"):
                if "," in words.get(name, ""):
                    words[name] = words[name].split(",")[places.index(self.name)]
        if not is_told:
            words.pop("runup", None)
        exchange = (AppExchange if is_app else Exchange)(self, reader, writer, {**self.defaults, **words}, body)
        self.stats.open_streams += 1
        try:
            keep = await exchange.answer()
            self.stats.completed += 1
            self.stats.unheard += is_reused and not exchange.has_answered
        except (ClientGone, ConnectionError):
            self.stats.closed_by_client.append(
                {
                    "directive": key,
                    "tokens_sent": exchange.sent,
                    "monotonic": time.monotonic(),
                    "unix_ms": int(time.time() * 1000),
                }
            )
            return False
        finally:
            self.stats.open_streams -= 1
            if exchange.watch is not None:
                exchange.watch.cancel()
                with contextlib.suppress(asyncio.CancelledError, ConnectionError):
                    await exchange.watch
        return keep and not (
            exchange.watch is not None and exchange.watch.done() and not exchange.watch.cancelled()
        )

    async def other(self, writer: asyncio.StreamWriter, method: str, path: str) -> bool:
        """Answer /stats, /reset and /v1/models."""
        answer: Any = {"error": {"message": "no such path", "code": "not_found"}}
        status = 404
        if path == "/stats":
            answer, status = self.stats.as_json(), 200
        elif path == "/reset" and method == "POST":
            open_now = (self.stats.open_streams, self.stats.open_connections)
            self.stats.__init__()  # type: ignore[misc]
            self.stats.open_streams, self.stats.open_connections = open_now
            answer, status = {}, 200
        elif path.endswith("/models"):
            answer, status = {"object": "list", "data": [{"id": "fake", "object": "model"}]}, 200
        body = json.dumps(answer).encode()
        head = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        await writer.drain()
        return True


class FakeProvider:
    """A running fake provider, as tests see it."""

    def __init__(self, port: int, process: subprocess.Popen[str]) -> None:
        self.port, self.process = port, process
        self.address = f"127.0.0.1:{port}"
        self.base_url = f"http://127.0.0.1:{port}/v1"

    def stats(self) -> dict[str, Any]:
        """Return the counters now."""
        with urllib.request.urlopen(f"http://{self.address}/stats", timeout=10) as response:
            return json.load(response)

    def reset(self) -> None:
        """Clear the counters."""
        request = urllib.request.Request(f"http://{self.address}/reset", method="POST", data=b"")
        urllib.request.urlopen(request, timeout=10).close()


@contextlib.contextmanager
def start_fake_provider(*arguments: str, port: int = 0) -> Iterator[FakeProvider]:
    """Run a fake provider in a process of its own for the length of the block."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.fakes.provider", "--port", str(port), *arguments],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        yield FakeProvider(json.loads(process.stdout.readline())["port"], process)
    finally:
        process.terminate()
        process.wait(10)
        process.stdout.close()


async def amain(host: str, port: int, *, tokens: int, rate: float, name: str) -> None:
    """Serve until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    for which in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(which, stop.set)
    fake = Server(tokens=tokens, rate=rate, name=name)
    await fake.serve(host, port)
    print(json.dumps({"port": fake.port, "pid": os.getpid()}), flush=True)
    await stop.wait()


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="A provider that misbehaves on purpose.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--tokens", type=int, default=8, help="tokens of a reply without a directive")
    parser.add_argument("--rate", type=float, default=0.0, help="tokens per second without a directive")
    parser.add_argument("--name", default="", help="what `at` in a directive calls this provider")
    options = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(amain(options.host, options.port, tokens=options.tokens, rate=options.rate, name=options.name))
    os._exit(0)  # open streams are not worth waiting for


if __name__ == "__main__":
    main()
