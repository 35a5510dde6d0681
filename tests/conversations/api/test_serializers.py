from __future__ import annotations

from datetime import UTC, datetime

import pytest

from conversations.api import serializers


@pytest.mark.parametrize(
    ("name", "wire_name"), [("id", "id"), ("created_at", "createdAt"), ("last_message_at", "lastMessageAt")]
)
def test_names_are_camel_case_on_the_wire(name: str, wire_name: str) -> None:
    assert serializers.camel_case(name) == wire_name


def test_times_carry_the_offset_of_our_zone() -> None:
    moment = datetime(2026, 11, 20, 16, 30, 0, 999_999, UTC)
    assert serializers.local_time(moment) == "2026-11-21T00:30:00.999+08:00"


def test_what_came_in_is_named_in_our_words() -> None:
    body = serializers.ConversationChangeSerializer(data={"title": " 周报 ", "pinned": True, "other": 1})
    assert body.is_valid()
    assert body.validated_data == {"title": "周报", "is_pinned": True}
