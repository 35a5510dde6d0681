"""A document from the upload to the card under an answer, over HTTP and against both servers."""

from __future__ import annotations

from collections.abc import Callable
from uuid import uuid4

import pytest

from tests.servers.conftest import Person

pytestmark = pytest.mark.servers


def test_a_question_about_an_uploaded_document_is_answered_with_its_card(
    alice: Person, meet: Callable[..., Person]
) -> None:
    staff = meet("staff")
    title = f"门店须知 {uuid4().hex[:6]}"
    text = "# 门店营业时间\n周末从十点开到二十二点，春节初一休息。"
    answer = staff.client.post(
        "/api/knowledge/documents", data={"title": title}, files={"file": ("门店.md", text.encode())}
    )
    document = answer.json()
    assert (answer.status_code, document["status"], document["filename"]) == (201, "ready", "门店.md")
    chat = alice.new_chat()
    reading = alice.say(chat, "门店周末开到几点？[[n=5]]")
    assert reading.terminal is not None
    event, done = reading.terminal
    assert (event, done["referenceCard"]["type"]) == ("done", "knowledge")
    assert title in [source["title"] for source in done["referenceCard"]["sources"]]
    question, reply = alice.messages(chat)
    assert (question["content"], reply["referenceCard"]) == ("门店周末开到几点？[[n=5]]", done["referenceCard"])
    gone = staff.client.delete(f"/api/knowledge/documents/{document['id']}")
    left = staff.client.get("/api/knowledge/search", params={"q": "门店营业时间"}).json()["items"]
    assert (gone.status_code, [found for found in left if found["title"] == title]) == (204, [])


def test_a_file_over_the_limit_is_refused_before_it_is_read(meet: Callable[..., Person]) -> None:
    staff = meet("staff")
    answer = staff.client.post(
        "/api/knowledge/documents", files={"file": ("a.txt", b"x" * (20 * 1024 * 1024 + 100_000))}
    )
    assert (answer.status_code, answer.json()["code"]) == (413, "file_too_large")
