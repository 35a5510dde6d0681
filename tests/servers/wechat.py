"""A client as mini-programs have it: `wx.request` with chunks, and the decoders that people really write.

The bugs are those of WIRE 5.3, kept on purpose: what they do to a stream is what our users would see.
"""

from __future__ import annotations

import http.client
import json
import re
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

Decoder = Callable[[Iterator[bytes]], str]


def chunks_of(url: str, token: str, body: dict[str, Any]) -> Iterator[bytes]:
    """Yield what `onChunkReceived` would be given: whatever one read brings, wherever it is cut."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=20)
    headers = {
        "Authorization": f"Bearer {token}",
        "Content-Type": "application/json",
        "Referer": "https://servicewechat.com/wx0123456789abcdef/0/page-frame.html",
    }
    try:
        connection.request("POST", f"{parts.path}?{parts.query}", json.dumps(body).encode(), headers)
        answer = connection.getresponse()
        assert answer.status == 200, answer.read()
        while chunk := answer.read1(65536):
            yield chunk
    finally:
        connection.close()


def cut(chunks: Iterator[bytes], size: int) -> Iterator[bytes]:
    """Yield the same bytes as a network that cuts without mercy."""
    whole = b"".join(chunks)
    yield from (whole[at : at + size] for at in range(0, len(whole), size))


def with_new_decoder_per_chunk(chunks: Iterator[bytes]) -> str:
    """`new TextDecoder().decode(res.data)` per chunk, a buffer, and `split('\\n\\n')`."""
    buffer, text = "", ""
    for chunk in chunks:
        buffer += chunk.decode("utf-8", errors="replace")
        *events, buffer = buffer.split("\n\n")
        for event in events:
            for line in event.split("\n"):
                if line.startswith("data: "):
                    text += json.loads(line[6:]).get("token", "")
    return text


def with_escape_per_chunk(chunks: Iterator[bytes]) -> str:
    """`decodeURIComponent(escape(String.fromCharCode(...)))` per chunk; what throws is swallowed."""
    buffer, text = "", ""
    for chunk in chunks:
        try:
            buffer += chunk.decode("utf-8")
        except UnicodeDecodeError:
            continue
        *events, buffer = buffer.split("\n\n")
        for event in events:
            found = re.search(r"data:\s*({.*})", event)
            if found:
                text += json.loads(found[1]).get("token", "")
    return text


def with_lines_and_no_carry(chunks: Iterator[bytes]) -> str:
    """`chunk.split('\\n')` without a carry-over, the first `data:` of a chunk only: needs one event per write."""
    text = ""
    for chunk in chunks:
        for line in chunk.decode("utf-8", errors="replace").split("\n"):
            if line.startswith("data:"):
                text += json.loads(line[5:]).get("token", "")
    return text
