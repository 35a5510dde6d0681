"""Is one POST, sent 20 times in parallel with one key, one message, one reply, one upstream call?

Half of each volley goes to one worker, half to the other. All the streams must be identical, and so must a
late repeat after the reply's end; the same key with another body is refused and changes nothing.
"""

import argparse
import asyncio
import sys

from benchmarks.lib import report as reports
from benchmarks.lib.api import CHAT, Member
from benchmarks.lib.product import Product
from benchmarks.lib.provider import directive
from benchmarks.lib.sse import Piece, Reading
from tests.fakes.provider import expected_text


def as_seen(piece: Piece) -> tuple[object, ...]:
    """Return what must be the same for every sender: ids, text and end."""
    end = (piece.terminal.name, piece.terminal.payload) if piece.terminal else None
    return piece.status, piece.user_message_id, piece.message_id, piece.text, str(end)


async def volley(
    report: reports.Report, product: Product, member: Member, *, number: int, size: int, rate: int
) -> None:
    """Send one message many times at once and check that it happened once."""
    workers = product.addresses
    chat_id = await member.create_chat(workers[0])
    tag, key = f"d{number}", f"doubles-{number}"
    content = f"只说一次{number} {directive(n=30, rate=rate, seed=number + 1, tag=tag)}"
    pieces = await asyncio.gather(
        *[member.send(workers[i % 2], chat_id, content, key=key, timeout=30) for i in range(size)]
    )
    pieces.append(await member.send(workers[number % 2], chat_id, content, key=key, timeout=30))
    where = f"volley {number} at rate {rate}: "
    bad = [f"{p.status} {p.ended} {p.body[:200]!r}" for p in pieces if p.status != 200]
    report.check("every sender is answered with 200", not bad, f"{where}{len(bad)} x {bad[:2]}")
    report.check(
        "all streams are identical",
        len({as_seen(piece) for piece in pieces}) == 1,
        where + str({as_seen(p) for p in pieces})[:900],
    )
    for piece in pieces:
        reading = Reading()
        reading.absorb(piece, start=0)
        report.check("each stream keeps the contract", not reading.violations, where + str(reading.violations))
    report.check("the text is whole", pieces[0].text == expected_text(number + 1, 30), where + pieces[0].text)
    items = await member.transcript(workers[1], chat_id)
    roles = [item["role"] for item in items]
    report.check("one user message and one reply", roles == ["user", "assistant"], where + str(roles))
    calls = await product.provider.calls(tag)
    report.check("one upstream call", calls == 1, f"{where}{calls} calls")
    other = await member.send(workers[1], chat_id, content + "？", key=key)
    report.check(
        "the same key with another body is 422 idempotency_mismatch",
        other.status == 422 and (other.problem() or {}).get("code") == "idempotency_mismatch",
        f"{where}{other.status} {other.body[:300]!r}",
    )
    whole = await asyncio.gather(
        *[
            member.call(
                workers[i % 2],
                "POST",
                f"{CHAT}/{chat_id}/messages",
                {"content": f"整段{directive(n=9, tag=tag + 'w')}"},
                key=key + "-whole",
            )
            for i in range(size)
        ]
    )
    bodies = {(answer.status, answer.body) for answer in whole}
    report.check(
        "all whole replies are identical",
        len(bodies) == 1 and whole[0].status == 200,
        where + str(bodies)[:600],
    )
    report.check("one upstream call for the whole reply", await product.provider.calls(tag + "w") == 1, where)


async def conversations_once(
    report: reports.Report, product: Product, member: Member, *, number: int, size: int
) -> None:
    """Create one conversation many times at once, by key and by context."""
    payload = {"contextType": "general", "title": f"一次{number}"}
    made = await asyncio.gather(
        *[
            member.call(
                product.addresses[i % 2], "POST", f"{CHAT}/conversations", payload, key=f"conversation-{number}"
            )
            for i in range(size)
        ]
    )
    ids = {(answer.json() or {}).get("chatId") for answer in made}
    report.check(
        "one key makes one conversation",
        len(ids) == 1 and None not in ids,
        f"{ids} {made[0].status} {made[0].body[:200]!r}",
    )
    path = f"{CHAT}/messages?contextType=task&contextId=task-{number}"
    found = await asyncio.gather(*[member.call(product.addresses[i % 2], "GET", path) for i in range(50)])
    ids = {(answer.json() or {}).get("chatId") for answer in found}
    report.check(
        "50 first calls of a context make one chat",
        len(ids) == 1 and None not in ids,
        f"{ids} {found[0].status} {found[0].body[:200]!r}",
    )


async def main(arguments: argparse.Namespace) -> int:
    """Fire all volleys and return the exit code."""
    report = reports.Report("the same POST many times is one message", arguments)
    async with Product(keep=arguments.keep) as product:
        await product.start(2)
        for number in range(arguments.rounds):
            member = product.member(("alice", "bob", "carol")[number % 3])
            rate = (0, 30, 200)[number % 3]
            await volley(report, product, member, number=number, size=arguments.parallel, rate=rate)
            await conversations_once(report, product, member, number=number, size=arguments.parallel)
        report.figure("volleys", arguments.rounds)
        report.figure("senders in each", arguments.parallel)
        report.figure("upstream calls", (await product.provider.stats())["requests"])
    return report.finish()


if __name__ == "__main__":
    parser = reports.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=12, help="volleys")
    parser.add_argument("--parallel", type=int, default=20, help="senders in a volley")
    sys.exit(asyncio.run(main(parser.parse_args())))
