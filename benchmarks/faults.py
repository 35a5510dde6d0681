"""Is the text exact for every fault of a provider?

Every fault of the fake provider is sent once or more: the stream must end in exactly one terminal event, its
tokens must be the stored content, status and code must be the documented ones, nothing of the provider may
reach the client, and the server must be as healthy afterwards as before.
"""

import argparse
import asyncio
import sys
from dataclasses import dataclass, field
from typing import Any

from benchmarks.lib import report as reports
from benchmarks.lib.api import CHAT, Member
from benchmarks.lib.http import Address
from benchmarks.lib.processes import open_files, status_value
from benchmarks.lib.product import Product
from benchmarks.lib.provider import directive
from benchmarks.lib.sse import Reading
from tests.fakes.provider import CONTROL_TOKENS, NUL_TEXT, big_text, expected_text

MAX_CHARS = 200_000
SEED = 7
FAILED = ("failed",)
DOWN = ("provider_unavailable",)
LATE = ("provider_timeout",)
NO = ("provider_rejected", "provider_unavailable")
SECRETS = (
    "sk-bench",
    "Fake failure",
    "127.0.0.1",
    "insufficient_quota",
    "密钥或请求有误",
    "unexpectedly stopped",
)


@dataclass(frozen=True)
class Case:
    """One misbehaviour and what must come of it."""

    words: dict[str, object]
    text: str = ""
    statuses: tuple[str, ...] = ("complete",)
    codes: tuple[str, ...] = ()
    finish: str | None = None
    prefix_of: str | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """The directive, for people."""
        return directive(**self.words)


def said(n: int = 8) -> str:
    """Return the first n tokens of this program's text."""
    return expected_text(SEED, n)


def cases() -> list[Case]:
    """Return every fault with its documented outcome."""
    full, part = said(), said(3)
    found = [
        Case({"n": 8}, full, finish="stop"),
        Case({"n": 400, "rate": 200}, said(400)),
        Case({"fault": "slow", "rate": 5}, full),
        Case({"fault": "slow", "ttft": 900}, full),
        Case({"fault": "stall"}, part, FAILED, LATE),
        Case({"fault": "stall", "after": 0}, "", FAILED, LATE),
        Case({"head": 60000}, "", FAILED, LATE),
        Case({"fault": "keepalive"}, part, FAILED, LATE),
        Case({"fault": "drip"}, part, FAILED, LATE),
        Case({"n": 10000, "rate": 40}, "", FAILED, LATE, prefix_of=said(10000)),
        Case({"fault": "reset"}, part, FAILED, DOWN),
        Case({"fault": "reset", "after": 0}, "", FAILED, DOWN),
        Case({"fault": "cut"}, part, FAILED, DOWN),
        Case({"fault": "cut", "te": "close"}, part, FAILED, DOWN),
        Case({"fault": "halfclose"}, part, FAILED, DOWN),
        Case({"fault": "halfclose", "te": "close"}, part, FAILED, DOWN),
        Case({"fault": "nofinish"}, full),
        Case({"fault": "hangup"}, "", FAILED, DOWN),
        Case({"fault": "hangup", "times": 1}, full),
        Case({"fault": "quota"}, "", FAILED, (*NO, "provider_rate_limited")),
        Case({"fault": "blocked"}, "", FAILED, ("content_blocked",)),
        Case({"fault": "error"}, part, FAILED, NO),
        Case({"fault": "errorstring"}, part, FAILED, NO),
        Case({"fault": "garbage"}, full),
        Case({"fault": "noise"}, "", FAILED, NO),
        Case({"fault": "nonhttp"}, "", FAILED, NO),
        Case({"fault": "invalid_utf8"}, part + "b\ufffdd" + full[len(part) :]),
        Case({"fault": "split_utf8"}, full),
        Case({"fault": "split_utf8", "te": "close"}, full),
        Case({"fault": "crlf"}, full),
        Case({"fault": "cr"}, full),
        Case({"fault": "bigline", "size": 450_000}, part + big_text(450_000) + full[len(part) :]),
        Case({"fault": "bigline"}, "", FAILED, ("reply_too_long",), prefix_of=part + big_text(5_000_000)),
        Case({"fault": "endless"}, "", FAILED, ("reply_too_long",), prefix_of=said(MAX_CHARS)),
        Case({"fault": "gzip"}, full, ("complete", "failed"), NO, prefix_of=full),
        Case({"fault": "gzipbomb"}, "", FAILED, (*NO, "reply_too_long")),
        Case({"fault": "redirect"}, "", FAILED, NO),
        Case({"fault": "empty"}, "", ("complete", "failed"), NO),
        Case({"fault": "nothing"}, "", FAILED, NO),
        Case({"fault": "control"}, "".join(CONTROL_TOKENS)),
        Case({"fault": "nul"}, NUL_TEXT),
        Case({"fault": "html"}, "", FAILED, NO),
        Case({"fault": "json"}, full),
        Case({"fault": "jsonerror"}, "", FAILED, (*NO, "provider_rate_limited")),
        Case({"fault": "reasoning"}, full),
        Case({"fault": "length"}, full, ("truncated",), finish="length"),
        Case({"fault": "content_filter"}, part, ("truncated",), finish="content_filter"),
        Case({"fault": "toolcall"}, "", ("complete", "failed"), NO),
        Case({"n": 8, "keep": 0}, full),
        Case({"n": 8, "te": "close"}, full),
        Case({"n": 8, "usage": 0}, full),
        Case({"fault": 500, "times": 1}, full),
        Case({"fault": 429, "retry_after": 1, "times": 1}, full),
    ]
    codes = {400: ("provider_rejected",), 422: ("provider_rejected",), 429: ("provider_rate_limited",)}
    for status in (400, 401, 403, 404, 422, 429, 500, 502, 503, 529):
        found.append(Case({"fault": status}, "", FAILED, codes.get(status, (*NO, "provider_rate_limited"))))
    return found


async def prove(report: reports.Report, member: Member, worker: Address, case: Case, run: int) -> None:
    """Send one fault, check everything the client can see, then that the conversation goes on."""
    chat_id = await member.create_chat(worker)
    words = directive(seed=SEED, **case.words, tag=f"f{run}")
    piece = await member.send(worker, chat_id, f"故障 {words}", timeout=40)
    reading = Reading()
    reading.absorb(piece, start=0)
    where = f"{case.name}: "
    if not report.check(
        "the stream opens with 200", piece.status == 200, f"{where}{piece.status} {piece.body[:300]!r}"
    ):
        return
    report.check("the contract of the stream is kept", not reading.violations, where + str(reading.violations))
    if not report.check(
        "exactly one terminal event, and the connection ends after it",
        reading.terminal is not None and piece.ended in ("finished", "eof"),
        f"{where}{piece.ended} after {piece.received_bytes} bytes",
    ):
        return
    stored = await member.message(worker, chat_id, int(reading.message_id or 0))
    check_outcome(report, case, reading, stored)
    seen = "".join(event.data for event in piece.events if event.name != "message") + str(stored)
    report.check(
        "nothing of the provider reaches the client", not any(s in seen for s in SECRETS), where + seen[-600:]
    )
    again = await member.send(worker, chat_id, f"还在吗？{directive(n=3, seed=SEED)}", timeout=20)
    report.check(
        "the conversation goes on",
        again.text == said(3),
        f"{where}{again.status} {again.ended} {again.text!r}",
    )


def check_outcome(report: reports.Report, case: Case, reading: Reading, stored: dict[str, Any]) -> None:
    """Compare text, status, code and finish reason with the documented ones, and the row with the stream."""
    where = f"{case.name}: "
    assert reading.terminal is not None
    payload = reading.terminal.payload
    report.check(
        "concatenated tokens are the stored content",
        reading.text == stored["content"],
        where + repr(stored)[:300],
    )
    report.check(
        "the stored status is the one sent", stored["status"] == payload["status"], where + repr(stored)[:300]
    )
    report.check("the right status", payload["status"] in case.statuses, f"{where}{reading.terminal.data}")
    if reading.terminal.name == "error" and case.codes:
        report.check("the right code", payload["code"] in case.codes, f"{where}{reading.terminal.data}")
    if case.finish:
        report.check(
            "the right finish reason",
            payload.get("finishReason") == case.finish,
            f"{where}{reading.terminal.data}",
        )
    if case.prefix_of is None:
        report.check(
            "the right text",
            reading.text == case.text,
            f"{where}{reading.text[:200]!r} for {case.text[:200]!r}",
        )
    else:
        is_prefix = case.prefix_of.startswith(reading.text) and len(reading.text) <= MAX_CHARS
        report.check("a prefix of what was said", is_prefix, f"{where}{len(reading.text)} characters")


async def main(arguments: argparse.Namespace) -> int:
    """Run all faults, several at a time, and return the exit code."""
    report = reports.Report("text is exact under every fault", arguments)
    settings: dict[str, Any] = {
        "PROVIDER_CONNECT_SECONDS": "2",
        "PROVIDER_FIRST_SECONDS": "2",
        "PROVIDER_IDLE_SECONDS": "2",
        "PROVIDER_TOTAL_SECONDS": "8",
        "REPLY_MAX_CHARS": str(MAX_CHARS),
    }
    chosen = [case for case in cases() if arguments.only in case.name]
    async with Product(keep=arguments.keep, **settings) as product:
        await product.start(1)
        worker = product.workers[0]
        members = [product.member(name) for name in ("alice", "bob", "carol")]
        before = status_value(worker.serving_pid, "VmRSS")
        gate = asyncio.Semaphore(arguments.parallel)

        async def one(run: int, case: Case) -> None:
            async with gate:
                await prove(report, members[run % 3], worker.address, case, run)

        jobs = [one(run, case) for run, case in enumerate(chosen * arguments.rounds)]
        for outcome in await asyncio.gather(*jobs, return_exceptions=True):
            report.check("the program could finish each case", outcome is None, repr(outcome))
        await asyncio.sleep(1)
        for path in ("/livez", "/readyz", "/metrics"):
            answer = await worker.get(path)
            report.check(
                "healthy afterwards", answer.status == 200, f"{path} {answer.status} {answer.body[:200]!r}"
            )
        left = await product.provider.open_streams()
        report.check("no upstream connection is left streaming", left == 0, left)
        whole = await members[0].call(
            worker.address,
            "POST",
            f"{CHAT}/{await members[0].create_chat(worker.address)}/messages",
            {"content": f"好{directive(n=5, seed=SEED)}"},
        )
        text = (whole.json() or {}).get("aiReply", {}).get("content")
        report.check("the whole-reply call gives the same text", text == said(5), whole.body[:300])
        log = worker.log_path.read_text(errors="replace")
        report.check(
            "no secret and no content in the log",
            "sk-bench" not in log and "故障" not in log,
            worker.log_path,
        )
        report.figure("faults", len(chosen) * arguments.rounds)
        report.figure(
            "RSS before and after, MiB",
            f"{before / 1024:.0f} and {status_value(worker.serving_pid, 'VmRSS') / 1024:.0f}",
        )
        report.figure("open files afterwards", open_files(worker.serving_pid))
    return report.finish()


if __name__ == "__main__":
    parser = reports.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=1, help="how often each fault is tried")
    parser.add_argument("--parallel", type=int, default=6, help="cases at a time")
    parser.add_argument("--only", default="", help="only cases whose directive contains this")
    sys.exit(asyncio.run(main(parser.parse_args())))
