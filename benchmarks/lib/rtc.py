"""The fake RTC platform process, and people who speak in its rooms."""

import json
import subprocess
import sys
import time
from typing import Any

from benchmarks.lib.api import Member, expect
from benchmarks.lib.http import Address, fetch
from benchmarks.lib.product import ROOT

SAY_SECONDS = 120.0


class FakeRtc:
    """`tests/fakes/rtc.py` as a process of its own."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.fakes.rtc", "--port", "0"],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        assert self.process.stdout is not None
        self.address: Address = ("127.0.0.1", int(json.loads(self.process.stdout.readline())["port"]))

    @property
    def base_url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.address[1]}"

    async def stats(self) -> Any:
        """Return which rooms run, and its counts."""
        return (await fetch(self.address, "GET", "/stats", timeout=10)).json()

    async def say(self, room: str, text: str, **more: Any) -> list[dict[str, Any]]:
        """Return the calls that these words made, the one that counts last."""
        payload = {"room": room, "text": text, **more}
        answer = await fetch(self.address, "POST", "/say", payload=payload, timeout=SAY_SECONDS)
        calls: list[dict[str, Any]] = expect(answer)["calls"]
        return calls

    def stop(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait(10)
        assert self.process.stdout is not None
        self.process.stdout.close()


class VoiceRoom:
    """A member's room: opened, started, left."""

    def __init__(self, member: Member, worker: Address) -> None:
        self._member = member
        self._worker = worker
        self.id = ""

    async def open(self) -> "VoiceRoom":
        """Ask for a room, and start it."""
        answer = await self._member.call(self._worker, "POST", "/getScenes?Action=getScenes", {})
        self.id = expect(answer)["Result"]["scenes"][0]["rtc"]["RoomId"]
        await self._proxy("StartVoiceChat")
        return self

    async def leave(self) -> None:
        """Stop it."""
        await self._proxy("StopVoiceChat")

    async def _proxy(self, action: str) -> None:
        payload = {"SceneID": "Custom", "RoomID": self.id}
        answer = expect(await self._member.call(self._worker, "POST", f"/proxy?Action={action}", payload))
        if answer.get("Result") != "ok":
            raise RuntimeError(f"{action}: {answer}")

    async def stored(self, *, seconds: float = 10.0) -> list[dict[str, Any]]:
        """Return the messages of the room's conversation, once nothing is under way."""
        path = f"/api/xcx/chat/messages?contextType=voice&contextId={self.id}&pageSize=100"
        until = time.monotonic() + seconds
        while True:
            items: list[dict[str, Any]] = expect(await self._member.call(self._worker, "GET", path))["items"]
            if all(item["status"] != "streaming" for item in items) or time.monotonic() > until:
                return items
