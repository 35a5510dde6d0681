"""Endpoints that change while replies run on four real workers: each is acknowledged, no reply disturbed."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fakes.provider import FakeProvider, expected_text, start_fake_provider
from tests.servers.conftest import Person, person
from tests.serving import ROOT, environment, new_database, serving

pytestmark = pytest.mark.servers

KEY = "sk-canary-hot-0123456789"
WORKERS, READERS, UPDATES = 4, 12, 50
QUESTION, ANSWER = "讲下去 [[n=40 rate=50]]", expected_text(1, 40)
MODELS = "/api/v1/admin/models"
PROMOTE = """
from conversations.models import User
User.objects.filter(username="alice").update(is_staff=True, is_superuser=True)
"""


@pytest.fixture(scope="module")
def provider() -> Iterator[FakeProvider]:
    """A provider of this module's own."""
    with start_fake_provider() as fake:
        yield fake


@pytest.fixture(scope="module")
def alice(provider: FakeProvider, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Person]:
    """Alice, now a superuser, in front of four workers without any endpoint."""
    log = Path(tmp_path_factory.mktemp("hot") / "server.log")
    more = {"PROVIDER_ALLOWED_ADDRESSES": provider.address, "LEASE_SECONDS": "5"}
    with new_database() as url:
        subprocess.run(
            [sys.executable, "manage.py", "shell", "-c", PROMOTE], cwd=ROOT, env=environment(url), check=True
        )
        with serving("uvicorn", url, log, workers=WORKERS, **more) as server, person(server) as found:
            yield found
    assert KEY not in log.read_text(errors="replace")


def staff(alice: Person, method: str, path: str = "", body: Any = None) -> Any:
    """Return what the models API answers."""
    answer = alice.client.request(method, MODELS + path, json=body)
    assert answer.status_code < 300, answer.text
    return answer.json() if answer.content else None


def seconds_until_all_follow(alice: Person) -> float:
    """Return how long it took until each worker acknowledged the present revision."""
    began = time.monotonic()
    while time.monotonic() - began < 10:
        now = staff(alice, "GET", "/revision")
        if len(now["workers"]) == WORKERS and {worker["revision"] for worker in now["workers"]} == {
            now["revision"]
        }:
            break
        time.sleep(0.01)
    return time.monotonic() - began


def test_fifty_changes_reach_four_workers_and_disturb_no_reply(alice: Person, provider: FakeProvider) -> None:
    common = {"baseUrl": provider.base_url, "model": "fake-1", "apiKey": KEY}
    rows = [staff(alice, "POST", "", {**common, "name": name})["id"] for name in ("甲", "乙")]
    for _ in range(300):  # until all four have started their engines
        if len(staff(alice, "GET", "/revision")["workers"]) == WORKERS:
            break
        httpx.get(f"{alice.server.url}/livez")
        alice.say(alice.new_chat(), "热身 [[n=1]]")
    assert seconds_until_all_follow(alice) < 5
    first_revision = staff(alice, "GET", "/revision")["revision"]
    is_over = threading.Event()
    spoiled: list[str] = []
    counted: list[int] = []

    def chat_on() -> None:
        with person(alice.server) as reader:
            while not is_over.is_set():
                reading = reader.say(reader.new_chat(), QUESTION)
                event = None if reading.terminal is None else reading.terminal[0]
                if (event, reading.text) != ("done", ANSWER):
                    spoiled.append(f"{event} {len(reading.text)}")
                counted.append(1)

    readers = [threading.Thread(target=chat_on) for _ in range(READERS)]
    for reader in readers:
        reader.start()
    waits = []
    try:
        for number in range(UPDATES):
            row = rows[number % 2]
            match number % 5:
                case 0:
                    staff(alice, "POST", f"/{row}/deactivate")
                case 1:
                    staff(alice, "POST", f"/{rows[(number - 1) % 2]}/activate")
                case 2:
                    staff(alice, "PATCH", f"/{row}", {"weight": number + 1, "apiKey": f"{KEY}-{number}"})
                case 3:
                    staff(alice, "PATCH", f"/{row}", {"model": f"fake-{number}", "params": {"temperature": 0.5}})
                case _:
                    kept = staff(alice, "GET", "/revision")["kept"]
                    staff(alice, "POST", "/revision/restore", {"revision": kept[1]})
            waits.append(seconds_until_all_follow(alice))
            time.sleep(0.05)
    finally:
        is_over.set()
        for reader in readers:
            reader.join()
    assert spoiled == [] and len(counted) >= READERS
    assert staff(alice, "GET", "/revision")["revision"] >= first_revision + UPDATES
    assert max(waits) < 1.0, sorted(waits)[-5:]
