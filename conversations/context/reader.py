"""Reading a file in a process of its own: bounded memory, bounded time, none of our secrets.

`python -m conversations.context.reader KIND` takes the file on its standard input and says on its standard
output, one JSON value per line: how far it is (a number), and at the end its passages or what is wrong with the
file. Parsing belongs neither into a request nor beside the streams: a bad file costs this process alone.
"""

from __future__ import annotations

import json
import os
import resource
import selectors
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from conversations.context.formats import CODES, BadFile, BadFileCode, Kind, read_blocks
from conversations.context.splitting import Piece, split

ROOT = Path(__file__).resolve().parents[2]
MEMORY_MAX_BYTES = 1024 * 1024 * 1024
AT_ONCE_MAX = 2
"""So many files are read at the same moment for one of our processes: the bound of memory is for each of them."""
CPU_SECONDS = 120
TEXT_MAX_CHARS = 3_000_000
PIECES_MAX = 20_000


@dataclass(frozen=True, slots=True)
class Reading:
    """What was read from a file."""

    kind: Kind
    pieces: tuple[Piece, ...]


_turns = threading.BoundedSemaphore(AT_ONCE_MAX)


class NotInTime(Exception):
    """Reading takes longer than the caller waits: it belongs into the background."""


def read_file(
    kind: Kind, content: bytes, *, seconds: float, progress: Callable[[int], None] | None = None
) -> Reading:
    """Return the passages of a file, read in a process with bounds; blocks for at most so many seconds.

    `progress` is called with a percentage now and then (-1: nothing new); what it raises ends the reading.
    Raises: BadFile; NotInTime.
    """
    deadline = time.monotonic() + seconds
    while not _turns.acquire(timeout=max(0.0, min(1.0, deadline - time.monotonic()))):
        if time.monotonic() >= deadline:
            raise NotInTime
        if progress is not None:
            progress(-1)
    try:
        return _read(kind, content, seconds=deadline - time.monotonic(), progress=progress)
    finally:
        _turns.release()


def _read(kind: Kind, content: bytes, *, seconds: float, progress: Callable[[int], None] | None) -> Reading:
    with tempfile.TemporaryFile() as file:
        file.write(content)
        file.seek(0)
        with subprocess.Popen(
            [sys.executable, "-m", "conversations.context.reader", kind],
            stdin=file,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=ROOT,
            # What is parsed here comes from outside: it gets none of our environment.
            env={"PATH": os.defpath, "PYTHONUTF8": "1", "PYTHONDONTWRITEBYTECODE": "1"},
            start_new_session=True,
        ) as process:
            try:
                return _hear(kind, process, seconds=seconds, progress=progress)
            finally:
                process.kill()


def _hear(
    kind: Kind, process: subprocess.Popen[bytes], *, seconds: float, progress: Callable[[int], None] | None
) -> Reading:
    assert process.stdout is not None
    deadline = time.monotonic() + seconds
    said = b""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while True:
            if time.monotonic() >= deadline:
                raise NotInTime
            if not selector.select(min(1.0, max(0.0, deadline - time.monotonic()))):
                if progress is not None:
                    progress(-1)
                continue
            part = os.read(process.stdout.fileno(), 1 << 16)
            if not part:
                break
            *lines, said = (said + part).split(b"\n")
            for line in lines:
                value = json.loads(line)
                if isinstance(value, int):
                    if progress is not None:
                        progress(value)
                elif "error" in value:
                    code = value["error"]
                    raise BadFile(cast(BadFileCode, code) if code in CODES else "file_broken")
                else:
                    return Reading(kind, tuple(Piece(heading, text) for heading, text in value["pieces"]))
    process.wait()
    if process.returncode > 0:
        raise BadFile("file_broken")  # a library fell over it in a way that nobody foresaw
    # It ended without a word: the kernel ended it, for memory or for time.
    raise BadFile("file_reading_timeout" if process.returncode == -signal.SIGXCPU else "file_bomb")


def main(kind: Kind, file: IO[bytes], say: IO[str]) -> None:
    """Read one file and say what is in it."""

    def tell(value: object) -> None:
        say.write(json.dumps(value, ensure_ascii=True, separators=(",", ":")) + "\n")
        say.flush()

    told = 0

    def progress(percent: int) -> None:
        nonlocal told
        if percent > told:
            told = percent
            tell(percent)

    try:
        tell({"pieces": read_pieces(kind, file.read(), progress)})
    except BadFile as error:
        tell({"error": error.code})
    except MemoryError:
        tell({"error": "file_bomb"})
    except RecursionError:
        tell({"error": "file_broken"})


def read_pieces(kind: Kind, content: bytes, progress: Callable[[int], None]) -> list[tuple[str, str]]:
    """Return headings and texts of a file's passages.

    Raises: BadFile.
    """
    pieces: list[tuple[str, str]] = []
    chars = 0
    for piece in split(read_blocks(kind, content, progress)):
        # NUL and lone surrogates cannot be stored; a PDF may hold both.
        heading, text = _storable(piece.heading), _storable(piece.text)
        chars += len(text)
        if chars > TEXT_MAX_CHARS or len(pieces) == PIECES_MAX:
            raise BadFile("file_too_long")
        pieces.append((heading, text))
    if not any(character.isalnum() for _heading, text in pieces for character in text):
        raise BadFile("file_has_no_text")
    return pieces


def _storable(text: str) -> str:
    return text.replace("\0", "").encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_MAX_BYTES, MEMORY_MAX_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 1))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    main(cast(Kind, sys.argv[1]), sys.stdin.buffer, sys.stdout)
