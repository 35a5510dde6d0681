"""The RTC platform as a process of its own: checks signatures, runs rooms, and calls back for what is said.

    python -m tests.fakes.rtc --port 0       # first line of output: {"port": 41234, "pid": 99}

`POST /?Action=StartVoiceChat|StopVoiceChat&Version=…` is the RTC OpenAPI (WIRE 2): the signature is computed again
from the bytes that came, a room runs once, and what is wrong is told in the vendor's envelope.

`POST /say` lets a person speak in a room and answers when the platform has what it wanted:

    {"room", "text", "drop_chars"?, "prefill"?: [texts], "gap"?: seconds, "again"?: n, "at_once"?, "round"?: id}

It calls the room's LLMConfig.Url as WIRE 2.6 says: the scene's instructions, the platform's own last rounds
(HistoryLength), the words. With `prefill` each of those texts is sent before, and dropped after `gap`;
`drop_chars` hangs up when so much has been heard (0: at the first chunk); `again` sends the whole call as often
again, `at_once` while the first is still being answered. The answer lists every call: what was heard, how it
ended, milliseconds to the first chunk and to the first words, and what a chunk had wrong.

`GET /stats` tells which rooms run, and counts starts, stops and refusals.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime as dt
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from providers.signing import volcengine_headers

ACCESS_KEY = "AKLT-for-tests-only-0000"
SECRET_KEY = "c2VjcmV0LWtleS1mb3ItdGVzdHMtb25seQ=="
WELCOME = "您好，我是小助手，请讲。"
CALL_SECONDS = 60.0


@dataclass
class Heard:
    """One call of the callback, as the platform got it."""

    text: str = ""
    status: int = 0
    finish_reason: str | None = None
    is_done: bool = False
    is_dropped: bool = False
    first_chunk_ms: float | None = None
    first_words_ms: float | None = None
    ids: set[tuple[Any, ...]] = field(default_factory=set)
    wrong: list[str] = field(default_factory=list)
    body: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return everything but the marks."""
        return {name: value for name, value in vars(self).items() if name != "ids"}

    def take(self, event: str, since: float) -> None:
        """Take one event, and note whatever WIRE 2.7 does not allow."""
        now = round((time.monotonic() - since) * 1000, 1)
        if not event.startswith("data: ") or "\n" in event:
            self.wrong.append(f"no data line: {event[:80]!r}")
            return
        if self.is_done:
            self.wrong.append("something follows [DONE]")
        if event == "data: [DONE]":
            self.is_done = True
            if self.finish_reason is None:
                self.wrong.append("[DONE] without a finish_reason")
            return
        chunk = json.loads(event[6:])
        self.ids.add((chunk.get("id"), chunk.get("created"), chunk.get("model")))
        choice = (chunk.get("choices") or [{}])[0]
        delta = choice.get("delta", {})
        is_first = self.first_chunk_ms is None
        if is_first:
            self.first_chunk_ms = now
        content = delta.get("content", "")
        if content and self.first_words_ms is None:
            self.first_words_ms = now
        if chunk.get("object") != "chat.completion.chunk" or choice.get("index") != 0 or len(self.ids) != 1:
            self.wrong.append(f"a chunk that is none of this response: {event[:200]}")
        if not all(next(iter(self.ids))) or not isinstance(chunk.get("created"), int):
            self.wrong.append(f"id, created or model is missing: {event[:200]}")
        if is_first is not (delta.get("role") == "assistant"):
            self.wrong.append("the role belongs to the first chunk")
        if set(delta) - {"role", "content", "tool_calls"}:
            self.wrong.append(f"a delta with {sorted(delta)}")
        if self.finish_reason is not None and content:
            self.wrong.append("words after the end")
        self.text += content
        self.finish_reason = choice.get("finish_reason") or self.finish_reason


@dataclass
class Room:
    """A task that was started, and what the platform remembers of it."""

    task: str
    config: dict[str, Any]
    history: list[dict[str, str]] = field(default_factory=list)

    def messages(self, text: str) -> list[dict[str, str]]:
        """Return what the platform sends with these words."""
        llm = self.config["Config"]["LLMConfig"]
        rounds = int(llm.get("HistoryLength", 3)) * 2
        system = [{"role": "system", "content": line} for line in llm.get("SystemMessages", [])]
        kept = self.history[-rounds:] if rounds else []
        return [*system, *kept, {"role": "user", "content": text}]


class Platform:
    """The whole service."""

    def __init__(self) -> None:
        self.port = 0
        self.rooms: dict[str, Room] = {}
        self.counts: Counter[str] = Counter()

    async def serve(self, host: str, port: int) -> None:
        """Listen."""
        server = await asyncio.start_server(self._connection, host, port)
        self.port = server.sockets[0].getsockname()[1]

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                method, target, _ = head[0].split(" ")
                headers = {
                    name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:-2])
                }
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                status, answer = await self._answer(method, target, headers, body)
                content = json.dumps(answer, ensure_ascii=False).encode()
                head_line = f"HTTP/1.1 {status} OK\r\nContent-Type: application/json\r\n"
                writer.write(f"{head_line}Content-Length: {len(content)}\r\n\r\n".encode() + content)
                await writer.drain()
        writer.close()

    async def _answer(
        self, method: str, target: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, dict[str, Any]]:
        url = urlsplit(target)
        if url.path == "/stats":
            return 200, {"running": sorted(self.rooms), **self.counts}
        if url.path == "/say":
            return 200, await self.say(json.loads(body))
        query = parse_qsl(url.query, keep_blank_values=True)
        return self._act(method, query, headers, body)

    def _act(
        self, method: str, query: list[tuple[str, str]], headers: dict[str, str], body: bytes
    ) -> tuple[int, dict[str, Any]]:
        asked = dict(query)
        action, version = asked.get("Action", ""), asked.get("Version", "")
        metadata: dict[str, Any] = {
            "RequestId": f"rtc-{time.time_ns()}",
            "Action": action,
            "Version": version,
            "Service": "rtc",
            "Region": "cn-north-1",
        }

        def refuse(status: int, code: str, message: str) -> tuple[int, dict[str, Any]]:
            self.counts[f"refused_{code}"] += 1
            return status, {"ResponseMetadata": {**metadata, "Error": {"Code": code, "Message": message}}}

        if not is_signed(method, query, headers, body):
            return refuse(401, "SignatureDoesNotMatch", "The request signature we calculated does not match")
        task = json.loads(body)
        room_id = task.get("RoomId", "")
        if action == "StartVoiceChat":
            if room_id in self.rooms:
                return refuse(
                    200,
                    "InvalidParameter",
                    "The task has been started. Please do not call the startup task interface repeatedly.",
                )
            llm = task.get("Config", {}).get("LLMConfig", {})
            agent = task.get("AgentConfig", {})
            if llm.get("Mode") != "CustomLLM" or not llm.get("Url") or len(agent.get("TargetUserId", [])) != 1:
                return refuse(400, "InvalidParameter", "LLMConfig or AgentConfig")
            room = self.rooms[room_id] = Room(task["TaskId"], task)
            if welcome := agent.get("WelcomeMessage"):
                room.history.append({"role": "assistant", "content": welcome})
            self.counts["starts"] += 1
        elif action == "StopVoiceChat":
            if room_id not in self.rooms or self.rooms[room_id].task != task.get("TaskId"):
                return refuse(200, "InvalidParameter", "The task has not been started.")
            del self.rooms[room_id]
            self.counts["stops"] += 1
        else:
            return refuse(404, "InvalidActionOrVersion", action)
        return 200, {"Result": "ok", "ResponseMetadata": metadata}

    async def say(self, order: dict[str, Any]) -> dict[str, Any]:
        """Let a person speak; return what the platform heard, call by call, the one that counts last."""
        room = self.rooms[order["room"]]
        calls: list[Heard] = []
        for early in order.get("prefill", []):
            calls.append(await self._call(room, early, order, drop_after=order.get("gap", 0.1)))
        times = 1 + int(order.get("again", 0))
        if order.get("at_once"):
            calls += await asyncio.gather(*(self._call(room, order["text"], order) for _ in range(times)))
        else:
            for _ in range(times):
                calls.append(await self._call(room, order["text"], order, drop_chars=order.get("drop_chars")))
        room.history.append({"role": "user", "content": order["text"]})
        if calls[-1].text:
            room.history.append({"role": "assistant", "content": calls[-1].text})
        return {"calls": [heard.as_json() for heard in calls]}

    async def _call(
        self,
        room: Room,
        text: str,
        order: dict[str, Any],
        *,
        drop_chars: int | None = None,
        drop_after: float | None = None,
    ) -> Heard:
        """Return what one call of the callback brings, to its end or until it is dropped."""
        llm = room.config["Config"]["LLMConfig"]
        body: dict[str, Any] = {
            "messages": room.messages(text),
            "stream": True,
            "model": llm.get("ModelName", "ep-rtc"),
            "temperature": llm.get("Temperature", 0.1),
            "max_tokens": llm.get("MaxTokens", 1024),
            "top_p": llm.get("TopP", 0.3),
            "custom": llm.get("Custom", ""),
        }
        if order.get("round"):
            body["round_id"] = order["round"]
        heard = Heard()
        try:
            async with asyncio.timeout(CALL_SECONDS if drop_after is None else drop_after):
                async with self._post(llm["Url"], llm.get("APIKey", ""), body) as (since, heard.status, events):
                    async for event in events:
                        if heard.status != 200:
                            heard.body += event
                            continue
                        heard.take(event, since)
                        if drop_chars is not None and len(heard.text) >= drop_chars and not heard.is_done:
                            heard.is_dropped = True
                            break
        except TimeoutError:
            heard.is_dropped = True
            if drop_after is None:
                heard.wrong.append("no end")
        self.counts["calls"] += 1
        return heard

    @contextlib.asynccontextmanager
    async def _post(
        self, url: str, key: str, body: dict[str, Any]
    ) -> AsyncIterator[tuple[float, int, AsyncIterator[str]]]:
        """Yield when the request left, the status, and the answer's events; close the connection at the end."""
        parts = urlsplit(url)
        content = json.dumps(body, ensure_ascii=False).encode()
        since = time.monotonic()
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port or 80)
        try:
            lines = [
                f"POST {parts.path}?{parts.query} HTTP/1.1",
                f"Host: {parts.netloc}",
                "Content-Type: application/json",
                f"Content-Length: {len(content)}",
            ]
            if key:
                lines.append(f"Authorization: Bearer {key}")
            writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + content)
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
            yield since, int(head.split(" ", 2)[1]), _events(reader, head)
        finally:
            # At once, with what has not been read: so the platform hangs up.
            writer.transport.abort()


async def _events(reader: asyncio.StreamReader, head: str) -> AsyncIterator[str]:
    """Yield each whole event of a body; of a body with a length, the body."""
    length = next((int(line[15:]) for line in head.split("\r\n") if line.startswith("content-length:")), None)
    if length is not None:
        yield (await reader.readexactly(length)).decode()
        return
    data = b""
    while True:
        if "transfer-encoding: chunked" in head:
            size = int(await reader.readuntil(b"\r\n"), 16)
            piece = (await reader.readexactly(size + 2))[:-2]
        else:
            piece = await reader.read(65536)
        data += piece
        *whole, data = data.split(b"\n\n")
        for event in whole:
            yield event.decode("utf-8", errors="strict")
        if not piece:
            return


def is_signed(method: str, query: list[tuple[str, str]], headers: dict[str, str], body: bytes) -> bool:
    """Return whether these bytes carry the signature of our keys, made a short time ago."""
    given = headers.get("authorization", "")
    moment = dt.datetime.strptime(headers.get("x-date", ""), "%Y%m%dT%H%M%SZ").replace(tzinfo=dt.UTC)
    names = given.partition("SignedHeaders=")[2].partition(",")[0].split(";")
    made = {"host", "x-date", "x-content-sha256", "x-security-token"}
    ours = volcengine_headers(
        method=method,
        host=headers["host"],
        query=query,
        headers={name: headers[name] for name in names if name and name not in made},
        body=body,
        access_key=ACCESS_KEY,
        secret_key=SECRET_KEY,
        region="cn-north-1",
        service="rtc",
        now=moment,
    )
    is_recent = abs((dt.datetime.now(dt.UTC) - moment).total_seconds()) < 900
    is_whole = headers.get("x-content-sha256") == hashlib.sha256(body).hexdigest()
    return is_recent and is_whole and ours["Authorization"] == given


_SCENE = """
from conversations.models import Site, VoiceScene
from providers.fields import keep_secret
site = Site.objects.get(slug={site!r})
# Prompts are compared word for word: nothing of the demo's documents goes in.
site.settings = {{**site.settings, "knowledge": "off"}}
site.save()
scene = VoiceScene(
    site=site, key="Custom", name="小助手", rtc_app_id="661e0000000000000000543c",
    base_url={rtc!r}, callback_base_url={server!r},
    voice_chat={{
        "AgentConfig": {{"UserId": "bot", "WelcomeMessage": {welcome!r}, "TargetUserId": [""]}},
        "Config": {{
            "ASRConfig": {{"Provider": "volcano", "ProviderParams": {{"Mode": "smallmodel", "AppId": "1"}}}},
            "TTSConfig": {{"Provider": "volcano", "ProviderParams": {{"app": {{"appid": "2"}}}}}},
            "LLMConfig": {{"Mode": "CustomLLM", "HistoryLength": 3, "SystemMessages": ["说话简短。"]}},
        }},
    }},
)
for name, value in {secrets!r}.items():
    keep_secret(scene, name, value)
scene.save()
"""


def scene_script(*, rtc: str, server: str, callback_key: str, site: str = "demo") -> str:
    """Return what `manage.py shell -c` runs to connect a site of a product to this platform."""
    secrets = {
        "access_key_id": ACCESS_KEY,
        "secret_key": SECRET_KEY,
        "app_key": "0123456789abcdef0123456789abcdef",
        "callback_key": callback_key,
    }
    return _SCENE.format(site=site, rtc=rtc, server=server, welcome=WELCOME, secrets=secrets)


class FakeRtc:
    """A running platform, as tests see it."""

    def __init__(self, port: int) -> None:
        self.address = f"127.0.0.1:{port}"
        self.base_url = f"http://{self.address}"

    def stats(self) -> dict[str, Any]:
        """Return what runs, and the counts."""
        with urllib.request.urlopen(f"{self.base_url}/stats", timeout=10) as response:
            return json.load(response)

    def say(self, room: str, text: str, **more: Any) -> list[dict[str, Any]]:
        """Return the calls that these words made."""
        data = json.dumps({"room": room, "text": text, **more}).encode()
        request = urllib.request.Request(f"{self.base_url}/say", method="POST", data=data)
        with urllib.request.urlopen(request, timeout=90) as response:
            calls: list[dict[str, Any]] = json.load(response)["calls"]
        return calls


@contextlib.contextmanager
def start_fake_rtc() -> Iterator[FakeRtc]:
    """Run a platform in a process of its own for the length of the block."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.fakes.rtc", "--port", "0"],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        yield FakeRtc(json.loads(process.stdout.readline())["port"])
    finally:
        process.terminate()
        process.wait(10)
        process.stdout.close()


async def amain(host: str, port: int) -> None:
    """Serve until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    for which in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(which, stop.set)
    platform = Platform()
    await platform.serve(host, port)
    print(json.dumps({"port": platform.port, "pid": os.getpid()}), flush=True)
    await stop.wait()


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="The RTC platform, for tests.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    options = parser.parse_args()
    asyncio.run(amain(options.host, options.port))


if __name__ == "__main__":
    main()
