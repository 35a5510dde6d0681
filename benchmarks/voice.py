"""Do a hundred conversations by voice at once stay what was said?

A platform of its own process starts the rooms and calls back: plainly, hanging up in mid-answer, with the sentence
growing (Prefill), and with the same call several times. History right, nothing doubled, the first chunk in time,
every room stopped at the end.
"""

import argparse
import asyncio
import random
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.lib import report as reports
from benchmarks.lib.product import Product
from benchmarks.lib.provider import FakeProvider, directive
from benchmarks.lib.rtc import FakeRtc, VoiceRoom
from tests.fakes.provider import expected_text
from tests.fakes.rtc import scene_script

FIRST_CHUNK_MS = 200.0
CALLBACK_KEY = "bench-callback-key-0123456789"


@dataclass
class Turn:
    """What a person says, how the platform brings it, and what came of it."""

    kind: str
    text: str
    seed: int
    tokens: int
    ttft_ms: int
    tag: str
    order: dict[str, Any]
    calls: list[dict[str, Any]] = field(default_factory=list)


def plan(dice: random.Random, conversation: int, number: int, *, rate: int) -> Turn:
    """Return one turn: of ten, five are plain, two are interrupted, and the rest grow or come several times."""
    kind = dice.choice(["plain"] * 5 + ["interrupted"] * 2 + ["growing", "again", "at once"])
    seed, tag = dice.randint(1, 10**6), f"c{conversation}t{number}"
    tokens = 400 if kind == "interrupted" else dice.randint(10, 40)
    ttft = dice.randint(50, 300)
    words: dict[str, object] = {"n": tokens, "rate": rate, "seed": seed, "ttft": ttft, "tag": tag}
    text = f"{tag} 请说 {directive(**words)}"
    order: dict[str, Any] = {}
    if kind == "interrupted":
        order["drop_chars"] = dice.randint(5, 40)
    elif kind == "growing":
        early = f"{tag} 请 {directive(n=300, rate=rate, ttft=ttft, tag=tag)}"
        order |= {"prefill": [early, f"{early} 你说"], "gap": dice.uniform(0.05, 0.6)}
        text = f"{early} 你说吧 {directive(**words)}"
    elif kind != "plain":
        order |= {"again": dice.randint(1, 3), "at_once": kind == "at once"}
    return Turn(kind, text, seed, tokens, ttft, tag, order)


async def converse(rtc: FakeRtc, room: VoiceRoom, turns: list[Turn], *, pause: float, dice: random.Random) -> None:
    """Say one turn after the other, with the time a person takes to listen and to speak."""
    for turn in turns:
        await asyncio.sleep(pause * dice.uniform(0.2, 1.8))
        turn.calls = await rtc.say(room.id, turn.text, **turn.order)


def judge(report: reports.Report, turns: list[Turn], stored: list[dict[str, Any]]) -> None:
    """Check one conversation: each turn one question and one reply, in order, with the words that were heard."""
    roles = [item["role"] for item in stored]
    if not report.check(
        "one question and one reply for each turn", roles == ["user", "assistant"] * len(turns), roles
    ):
        return
    for turn, question, reply in zip(turns, stored[::2], stored[1::2], strict=True):
        ends = [
            (call["text"][-20:], call["finish_reason"], call["is_dropped"], call["wrong"]) for call in turn.calls
        ]
        where = f"{turn.kind} {turn.text} {reply['status']} {reply['content'][-40:]!r} {ends}"
        heard = turn.calls[-1]["text"]
        report.check("the question is what was said", question["content"] == turn.text, where)
        report.check("chunks are as the platform wants them", not any(call["wrong"] for call in turn.calls), where)
        whole = expected_text(turn.seed, turn.tokens)
        if turn.kind == "interrupted":
            report.check("an interrupted reply is stored as stopped", reply["status"] == "stopped", where)
            is_heard = whole.startswith(reply["content"]) and reply["content"].startswith(heard)
            report.check("with what was delivered", is_heard and len(reply["content"]) < len(heard) + 200, where)
        else:
            report.check("any other reply is complete", reply["status"] == "complete", where)
            report.check("and is what was heard", heard == reply["content"] == whole, where)
            if turn.kind in {"again", "at once"}:
                report.check("by every call of it", {call["text"] for call in turn.calls} == {whole}, where)


async def judge_upstream(report: reports.Report, provider: FakeProvider, turns: list[Turn]) -> None:
    """Check how often the model was asked, and that nothing stands twice in what it was asked."""
    stats = await provider.stats()
    asked: Counter[str] = Counter()
    for words, count in stats["by_directive"].items():
        asked.update({word[4:]: count for word in words.split() if word.startswith("tag=")})
    for turn in turns:
        most = len(turn.calls) if turn.kind == "growing" else 1
        report.check(
            "the model is asked once for a turn", 1 <= asked[turn.tag] <= most, f"{turn.kind} {asked[turn.tag]}"
        )
    for body in stats["bodies"]:
        said = [message["content"] for message in body["messages"] if message["role"] == "user"]
        report.check("no question stands twice in a prompt", len(said) == len(set(said)), said)


async def main(arguments: argparse.Namespace) -> int:
    """Hold the conversations and return the exit code."""
    report = reports.Report("conversations by voice", arguments)
    dice = random.Random(arguments.seed)
    rtc = FakeRtc()
    provider = FakeProvider(Path(tempfile.mkdtemp(prefix="chat-voice-")) / "provider.log")
    allowed = f"127.0.0.1:{provider.port},127.0.0.1:{rtc.address[1]}"
    try:
        async with Product(
            keep=arguments.keep,
            provider=provider,
            WORKERS=str(arguments.workers),
            PROVIDER_ALLOWED_ADDRESSES=allowed,
        ) as product:
            await product.start(1)
            worker = product.workers[0]
            server = f"http://127.0.0.1:{worker.address[1]}"
            script = scene_script(rtc=rtc.base_url, server=server, callback_key=CALLBACK_KEY)
            await asyncio.to_thread(product.manage, "shell", "-c", script)
            members = [product.member("alice"), product.member("bob")]
            rooms = [VoiceRoom(members[index % 2], worker.address) for index in range(arguments.conversations)]
            for begin in range(0, len(rooms), 10):
                await asyncio.gather(*(room.open() for room in rooms[begin : begin + 10]))
            talks = [
                [plan(dice, index, number, rate=arguments.rate) for number in range(arguments.turns)]
                for index in range(len(rooms))
            ]
            report.say(f"{len(rooms)} rooms are open")
            pairs = zip(rooms, talks, strict=True)
            await asyncio.gather(*(converse(rtc, *pair, pause=arguments.pause, dice=dice) for pair in pairs))
            report.say("all has been said")
            for room, turns in zip(rooms, talks, strict=True):
                judge(report, turns, await room.stored())
            everything = [turn for turns in talks for turn in turns]
            await judge_upstream(report, provider, everything)
            for begin in range(0, len(rooms), 10):
                await asyncio.gather(*(room.leave() for room in rooms[begin : begin + 10]))
            stats = await rtc.stats()
            report.check("every room is stopped at the end", stats["running"] == [], stats["running"])
            measure(report, everything, stats)
    finally:
        rtc.stop()
    return report.finish()


def measure(report: reports.Report, turns: list[Turn], stats: dict[str, Any]) -> None:
    """Tell how long the platform waited: for the first chunk, and for the first words less the model's own."""
    calls = [call for turn in turns for call in turn.calls]
    first = [call["first_chunk_ms"] for call in calls if call["first_chunk_ms"] is not None]
    words = [
        turn.calls[0]["first_words_ms"] - turn.ttft_ms
        for turn in turns
        if turn.kind in {"plain", "interrupted"} and turn.calls[0]["first_words_ms"] is not None
    ]
    report.figure("turns", dict(Counter(turn.kind for turn in turns)))
    report.figure("calls of the platform", stats["calls"])
    for name, values in (("first chunk", first), ("first words less the model's time", words)):
        spread = " / ".join(f"{reports.percentile(values, share):.0f}" for share in (0.5, 0.99, 1.0))
        report.figure(f"{name}, ms, p50 / p99 / max", spread)
        slow = sum(value > FIRST_CHUNK_MS for value in values)
        report.check(
            f"{name} within {FIRST_CHUNK_MS:.0f} ms, 99 of 100", slow <= len(values) / 100, f"{slow} slow"
        )


if __name__ == "__main__":
    parser = reports.parser(__doc__)
    parser.add_argument("--conversations", type=int, default=100, help="rooms at once")
    parser.add_argument("--turns", type=int, default=10, help="turns of each")
    parser.add_argument("--rate", type=int, default=25, help="tokens per second of the model")
    parser.add_argument("--pause", type=float, default=4.0, help="seconds between turns, on average")
    parser.add_argument("--workers", type=int, default=2, help="serving processes")
    sys.exit(asyncio.run(main(parser.parse_args())))
