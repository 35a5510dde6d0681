"""Do the decoders in the field get the reply right?"""

from __future__ import annotations

import pytest

from tests.fakes.provider import expected_text
from tests.servers.conftest import Person
from tests.servers.wechat import (
    Decoder,
    chunks_of,
    cut,
    with_escape_per_chunk,
    with_lines_and_no_carry,
    with_new_decoder_per_chunk,
)

pytestmark = pytest.mark.servers


def call_of(person: Person, chat: int, content: str, *, ascii_only: bool) -> tuple[str, str, dict[str, object]]:
    token = person.client.headers["authorization"].partition(" ")[2]
    url = f"{person.server.url}/api/xcx/chat/stream" + ("?ascii=1" if ascii_only else "")
    return url, token, {"chatId": chat, "content": content}


@pytest.mark.parametrize("decode", [with_new_decoder_per_chunk, with_escape_per_chunk], ids=lambda f: f.__name__)
@pytest.mark.parametrize("size", [1, 2, 3, 7, 64])
def test_in_ascii_mode_a_decoder_per_chunk_gets_the_text_wherever_it_is_cut(
    alice: Person, decode: Decoder, size: int
) -> None:
    chat = alice.new_chat()
    chunks = chunks_of(*call_of(alice, chat, "[[n=60 seed=3]]", ascii_only=True))
    assert decode(cut(chunks, size)) == expected_text(3, 60) == alice.messages(chat)[1]["content"]


def test_without_ascii_mode_such_a_decoder_would_lose_characters(alice: Person) -> None:
    chunks = chunks_of(*call_of(alice, alice.new_chat(), "[[n=60 seed=3]]", ascii_only=False))
    assert with_new_decoder_per_chunk(cut(chunks, 1)) != expected_text(3, 60)


@pytest.mark.parametrize("ascii_only", [False, True])
def test_a_client_without_any_buffer_gets_whole_events(alice: Person, ascii_only: bool) -> None:
    chunks = chunks_of(*call_of(alice, alice.new_chat(), "[[n=25 rate=50 seed=4]]", ascii_only=ascii_only))
    assert with_lines_and_no_carry(chunks) == expected_text(4, 25)
