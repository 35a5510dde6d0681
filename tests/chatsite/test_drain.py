"""What a server that was told to end says to those who still call it."""

import asyncio

import pytest

from benchmarks.lib.http import fetch
from benchmarks.lib.product import Product
from benchmarks.lib.provider import directive
from benchmarks.lib.sse import Piece
from tests.fakes.provider import expected_text

pytestmark = pytest.mark.servers


def test_a_draining_server_refuses_new_work_at_once_and_serves_readers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DATABASE_URL", raising=False)

    async def run() -> None:
        async with Product(DRAIN_SECONDS="5") as product:
            await product.start(1)
            worker, alice = product.workers[0], product.member("alice")
            chat = await alice.create_chat(worker.address)
            content = f"长一点 {directive(n=40, rate=20)}"
            seen: list[Piece] = []
            first = asyncio.create_task(alice.send(worker.address, chat, content, on_piece=seen.append))
            await asyncio.sleep(0.5)
            worker.terminate()
            await asyncio.sleep(0.3)
            ready = await fetch(worker.address, "GET", "/readyz", timeout=2)
            refused = await alice.send(worker.address, chat, "还收吗", timeout=2)
            again = await alice.read_reply(worker.address, seen[-1].message_id or 0, timeout=10)
            assert (ready.status, ready.json()["checks"]["replies"]) == (503, "draining")
            assert (refused.status, refused.problem()["code"]) == (503, "unavailable")
            assert again.text == (await first).text == expected_text(n=40)
            assert await worker.wait(10) == 0

    asyncio.run(run())
