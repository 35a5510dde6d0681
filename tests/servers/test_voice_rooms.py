"""Voice rooms on real servers: one start for many calls, one stop when the time is over, and none left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from tests.conversations.voice.platform import Platform, start_platform
from tests.serving import ROOT, Server, environment, new_database, serving
from tests.world import VOICE_SECRETS

pytestmark = pytest.mark.servers

FILE = {
    "SceneConfig": {"name": "客服"},
    "AccountConfig": {
        "accessKeyId": VOICE_SECRETS["access_key_id"],
        "secretKey": VOICE_SECRETS["secret_key"],
    },
    "RTCConfig": {"AppId": "661e0000000000000000543c", "AppKey": VOICE_SECRETS["app_key"]},
    "VoiceChat": {"Config": {"LLMConfig": {"Mode": "CustomLLM"}}},
}
START, STOP = "/proxy?Action=StartVoiceChat", "/proxy?Action=StopVoiceChat"


@dataclass
class Site:
    """A server whose demo site has a scene on a platform."""

    server: Server
    platform: Platform
    database: str

    def post(self, path: str, body: Any, headers: dict[str, str]) -> Any:
        """Return what a call answers; each has a connection of its own, so that all workers are met."""
        answer = httpx.post(self.server.url + path, json=body, headers=headers, timeout=30)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def sql(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        """Run a statement, and return what it gives."""
        with psycopg.connect(self.database, autocommit=True) as connection:
            cursor = connection.execute(statement, values)
            return cursor.fetchall() if cursor.description else []


def until(condition: Callable[[], Any], *, seconds: float = 20) -> None:
    """Return when the condition is true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never became true"
        time.sleep(0.05)


@pytest.fixture(params=["uvicorn", "daphne"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    """Two workers of uvicorn, or daphne."""
    file = tmp_path / "Custom.json"
    file.write_text(json.dumps(FILE), encoding="utf-8")
    with start_platform() as platform, new_database() as url:
        more = {
            "PROVIDER_ALLOWED_ADDRESSES": platform.address,
            "VOICE_CALLBACK_BASE_URL": "https://chat.example.com",
            "VOICE_PLATFORM_SECONDS": "1",
        }
        subprocess.run(
            [sys.executable, "manage.py", "import_scene", "demo", str(file)],
            cwd=ROOT,
            env=environment(url),
            check=True,
            stdout=subprocess.DEVNULL,
        )
        workers = 2 if request.param == "uvicorn" else 1
        with serving(request.param, url, tmp_path / "server.log", workers=workers, **more) as server:
            made = Site(server, platform, url)
            made.sql("UPDATE conversations_voice_scene SET base_url = %s", platform.base_url)
            yield made
        log = (tmp_path / "server.log").read_text(errors="replace")
        assert [secret for secret in VOICE_SECRETS.values() if secret in log] == []


def test_rooms_are_started_once_and_none_is_left_behind(site: Site) -> None:
    people = [site.server.sign_in(name) for name in ("alice", "bob")]
    opened = [site.post("/getScenes?Action=getScenes", {}, who)["Result"]["scenes"][0]["rtc"] for who in people]
    site.platform.seconds = 0.2
    with ThreadPoolExecutor(12) as threads:
        calls = [threads.submit(site.post, START, {"SceneID": "Custom"}, who) for who in people * 6]
        answers = [call.result() for call in calls]
    assert {answer["Result"] for answer in answers} == {"ok"}
    starts = [body for action, body in site.platform.calls if action == "StartVoiceChat"]
    assert sorted(body["RoomId"] for body in starts) == sorted(rtc["RoomId"] for rtc in opened)
    assert {body["RoomId"]: body["AgentConfig"]["TargetUserId"] for body in starts} == {
        rtc["RoomId"]: [rtc["UserId"]] for rtc in opened
    }

    # The time of both is over: one worker stops each.
    site.sql("UPDATE conversations_voice_session SET stop_due_at = now() WHERE status = 'started'")
    until(lambda: not site.platform.running)
    time.sleep(1.5)
    assert site.platform.actions().count("StopVoiceChat") == 2
    rows = site.sql("SELECT status, stopped_by FROM conversations_voice_session WHERE task_id <> ''")
    assert rows == [("stopped", "limit")] * 2


@pytest.mark.parametrize("site", ["uvicorn"], indirect=True)  # daphne is one process: nobody would be left
def test_a_room_whose_worker_was_killed_in_mid_start_is_stopped(site: Site) -> None:
    who = site.server.sign_in("alice")
    site.post("/getScenes", {}, who)
    site.platform.seconds = 0.7
    with ThreadPoolExecutor(1) as threads:
        call = threads.submit(httpx.post, site.server.url + START, json={"SceneID": "Custom"}, headers=who)
        until(lambda: site.platform.calls)
        children = subprocess.run(
            ["pgrep", "-P", str(site.server.process.pid)], capture_output=True, text=True, check=True
        )
        for pid in children.stdout.split():
            os.kill(int(pid), signal.SIGKILL)
        assert isinstance(call.exception(), httpx.TransportError)
    until(lambda: site.platform.running)  # the platform did what it was asked
    assert site.sql("SELECT status FROM conversations_voice_session") == [("starting",)]
    site.platform.seconds = 0
    until(lambda: not site.platform.running)
    until(lambda: site.sql("SELECT status, stopped_by FROM conversations_voice_session") == [("stopped", "limit")])
