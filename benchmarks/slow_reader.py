"""What does a reader that never reads cost the server?

Some readers open long, fast replies with a tiny receive buffer and never read. The server's memory is
compared with a run of the same replies whose readers left; others must not notice; the readers are dropped,
come back, and get the rest.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import re
import sys
from dataclasses import dataclass, field
from typing import Any

from benchmarks.lib import report as reports
from benchmarks.lib.api import CHAT, Member
from benchmarks.lib.http import Address, ResponseReader, connect, cut, request_bytes
from benchmarks.lib.processes import status_value
from benchmarks.lib.product import Product, Worker
from benchmarks.lib.provider import FakeProvider, directive
from benchmarks.lib.sse import Event, EventDecoder, Reading

CAP_MIB = 1.0
SLACK_MIB = 0.5  # write buffer, socket, subscriber
DROP_SECONDS = 22.0  # the server looks once per heartbeat of 10 s, and wants to have seen a stall
HAN = 0x4E00


def bulk_text(seed: int, n: int, width: int) -> str:
    """Return n events of this seed: `width` equal Chinese characters each."""
    return "".join(chr(HAN + (seed * 31 + k) % 20000) * width for k in range(n))


class BulkProvider(FakeProvider):
    """A provider in this process that says much with little work: `[[n=500 rate=50 width=2000 seed=1]]`."""

    def __init__(self) -> None:
        super().__init__(log=None)  # type: ignore[arg-type]  # no process, no log
        self.live = 0
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)

    async def open_streams(self) -> int:
        """Return how many replies it is giving at this moment."""
        return self.live

    def stop(self) -> None:
        """Stop listening."""
        if self._server:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
            length = re.search(r"content-length: *(\d+)", head)
            body = json.loads(await reader.readexactly(int(length[1]) if length else 0))
            found = re.findall(r"\[\[([^\]]+)\]\]", json.dumps(body["messages"][-1]))
            words = {name: int(value) for name, value in (word.split("=") for word in found[-1].split())}
            self.live += 1
            try:
                await self._say(writer, **words)
            finally:
                self.live -= 1
        writer.close()

    async def _say(self, writer: asyncio.StreamWriter, *, n: int, rate: int, width: int, seed: int) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
        began = asyncio.get_running_loop().time()
        for k in range(n):
            delta = {"content": chr(HAN + (seed * 31 + k) % 20000) * width}
            self._event(writer, {"choices": [{"index": 0, "delta": delta}]})
            await writer.drain()
            await asyncio.sleep(max(0.0, began + k / rate - asyncio.get_running_loop().time()))
        self._event(writer, {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        writer.write(b"data: [DONE]\n\n")
        await writer.drain()

    @staticmethod
    def _event(writer: asyncio.StreamWriter, payload: dict[str, Any]) -> None:
        writer.write(b"data: " + json.dumps(payload, ensure_ascii=False).encode() + b"\n\n")


@dataclass
class Sloth:
    """A connection on which nothing is read until `wake`."""

    member: Member
    chat_id: int
    seed: int
    reader: asyncio.StreamReader | None = field(default=None, repr=False)
    writer: asyncio.StreamWriter | None = field(default=None, repr=False)
    response: ResponseReader = field(default_factory=ResponseReader, repr=False)
    early: bytes = field(default=b"", repr=False)

    async def open(self, worker: Address, content: str) -> None:
        """Send the message and read no more than the head."""
        self.reader, self.writer = await connect(worker, receive_bytes=4096)
        headers = await self.member.headers(worker)
        body = json.dumps({"chatId": self.chat_id, "content": content}).encode()
        self.writer.write(request_bytes("POST", f"{CHAT}/stream?ascii=1", headers, body))
        while self.response.status is None:
            self.early = self.response.feed(await self.reader.read(4096))
        assert self.response.status == 200, f"{self.response.status} {self.early!r}"
        transport = self.writer.transport
        assert isinstance(transport, asyncio.ReadTransport)
        transport.pause_reading()

    @property
    def message_id(self) -> int:
        """The reply it asked for."""
        return int(self.response.headers["x-message-id"])

    async def wake(self, seconds: float) -> tuple[list[Event], str]:
        """Read what the connection still holds; return its events and how it ended."""
        assert self.reader is not None and self.writer is not None
        decoder = EventDecoder()
        events, ended = decoder.feed(self.early), "timeout"
        transport = self.writer.transport
        assert isinstance(transport, asyncio.ReadTransport)
        with contextlib.suppress(RuntimeError):  # a connection that was lost meanwhile
            transport.resume_reading()
        try:
            async with asyncio.timeout(seconds):
                while not self.response.is_finished:
                    data = await self.reader.read(65536)
                    if not data:
                        ended = "cut off"
                        break
                    events += decoder.feed(self.response.feed(data))
                else:
                    ended = "finished"
        except TimeoutError:
            pass
        except OSError:
            ended = "cut off"
        cut(self.writer)
        return events, ended


@dataclass(frozen=True)
class Load:
    """The replies of one run."""

    readers: int
    events: int
    width: int

    def content(self, seed: int) -> str:
        """Return the message that asks for a reply."""
        return f"长篇 {directive(n=self.events, rate=50, width=self.width, seed=seed)}"

    def text(self, seed: int) -> str:
        """Return the reply."""
        return bulk_text(seed, self.events, self.width)


async def generate(
    product: Product, members: list[Member], worker: Worker, load: Load, *, is_slow: bool
) -> tuple[float, list[Sloth]]:
    """Run the replies, with sloths or readers that leave at once; return the highest MiB and the sloths."""
    sloths: list[Sloth] = []
    for i in range(load.readers):
        member = members[i % 3]
        sloth = Sloth(member, await member.create_chat(worker.address), i + 1)
        await sloth.open(worker.address, load.content(sloth.seed))
        sloths.append(sloth)
        if not is_slow:
            assert sloth.writer is not None
            cut(sloth.writer)
    highest, quiet = 0.0, 0
    for _ in range(480):
        highest = max(highest, status_value(worker.serving_pid, "VmRSS") / 1024)
        quiet = quiet + 1 if await product.provider.open_streams() <= (1 if is_slow else 0) else 0
        if quiet > 12:
            break
        await asyncio.sleep(0.25)
    return highest, sloths


async def bystander(
    report: reports.Report, member: Member, worker: Worker, gaps: list[float], done: asyncio.Event
) -> None:
    """Read ordinary replies meanwhile, and keep the gaps between their tokens."""
    chat_id = await member.create_chat(worker.address)
    for number in itertools.count(1):
        words = directive(n=60, rate=30, width=1, seed=number)
        piece = await member.send(worker.address, chat_id, f"旁人 {words}", timeout=30)
        is_whole = piece.text == bulk_text(number, 60, 1)
        report.check("others get their whole text", is_whole, f"{piece.status} {piece.ended}")
        gaps += [(later.at - event.at) * 1000 for event, later in itertools.pairwise(piece.events)]
        if done.is_set():
            return


async def come_back(report: reports.Report, worker: Worker, sloth: Sloth, load: Load) -> str:
    """Wake one reader, let it resume, and check its text; return how its first connection ended."""
    events, ended = await sloth.wake(20)
    text, whole = "".join(event.token for event in events), load.text(sloth.seed)
    report.check("what it got is a prefix", whole.startswith(text), f"{len(text)} characters")
    reading = Reading(message_id=sloth.message_id, text=text)
    piece = await sloth.member.resume(worker.address, str(reading.last_event_id), timeout=60)
    reading.absorb(piece, start=len(text))
    evidence = f"{len(reading.text)} of {len(whole)}, {piece.status} {piece.ended} {piece.body[:200]!r}"
    report.check("it resumes and has the whole text", reading.text == whole, evidence)
    report.check("ids and pieces are consistent", not reading.violations, str(reading.violations)[:500])
    report.check("it sees the end", reading.status() == "complete", reading.terminal)
    return ended


async def main(arguments: argparse.Namespace) -> int:
    """Compare, wake the readers, resume, and return the exit code."""
    report = reports.Report("a slow reader costs at most its cap", arguments)
    load = Load(arguments.readers, arguments.events, arguments.width)
    provider = BulkProvider()
    async with Product(keep=arguments.keep, provider=provider, REPLY_MAX_CHARS="5000000") as product:
        await product.start(1)
        worker = product.workers[0]
        members = [product.member(name) for name in ("alice", "bob", "carol")]
        await generate(product, members, worker, load, is_slow=False)  # lets the allocator grow to its size
        without, _ = await generate(product, members, worker, load, is_slow=False)
        report.say(f"{without:.0f} MiB without slow readers")
        done, gaps = asyncio.Event(), list[float]()
        other = asyncio.create_task(bystander(report, members[0], worker, gaps, done))
        with_sloths, sloths = await generate(product, members, worker, load, is_slow=True)
        report.say(f"{with_sloths:.0f} MiB with {load.readers} of them")
        done.set()
        await other
        await asyncio.sleep(DROP_SECONDS)
        cost = (with_sloths - without) / load.readers
        report.figure("readers that never read", load.readers)
        report.figure("characters of each reply", len(load.text(1)))
        report.figure("highest RSS without and with them, MiB", f"{without:.0f} and {with_sloths:.0f}")
        report.figure("cost of each, MiB", f"{cost:.2f}")
        report.check("each costs at most its cap", cost <= CAP_MIB + SLACK_MIB, f"{cost:.2f} MiB")
        shown = [f"{reports.percentile(gaps, share):.0f}" for share in (0.5, 0.99)]
        report.figure("gaps of others' tokens, ms, p50 / p99", " / ".join(shown))
        ends = [await come_back(report, worker, sloth, load) for sloth in sloths]
        report.figure("how their connections ended", {end: ends.count(end) for end in sorted(set(ends))})
        report.check("readers too far behind are dropped", set(ends) == {"cut off"}, ends)
    return report.finish()


if __name__ == "__main__":
    parser = reports.parser(__doc__)
    parser.add_argument("--readers", type=int, default=16, help="readers that never read")
    parser.add_argument("--events", type=int, default=500, help="events of each reply")
    parser.add_argument("--width", type=int, default=2000, help="characters of an event; 6 bytes each on the way")
    sys.exit(asyncio.run(main(parser.parse_args())))
