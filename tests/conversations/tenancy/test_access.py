from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from django.utils import timezone

from conversations.errors import ChatError
from conversations.models import Membership
from conversations.tenancy import access
from tests.world import World, make_conversation, make_exchange


def refusal(function: Callable[..., Any], member: Membership, row_id: int | str) -> str:
    with pytest.raises(ChatError) as caught:
        function(member, row_id)
    return caught.value.code


def test_the_owner_passes_every_door(world: World) -> None:
    chat = make_conversation(world.alice)
    asked, reply = make_exchange(chat)
    assert access.access_conversation(world.alice, chat.pk) == chat
    assert access.access_conversation(world.alice, str(chat.pk)) == chat
    assert access.access_chat_to_write(world.alice, chat.pk, lock=True) == chat
    assert access.access_message(world.alice, asked.pk) == asked
    assert access.access_reply(world.alice, reply.pk) == reply


def test_a_question_is_no_reply(world: World) -> None:
    asked, _ = make_exchange(make_conversation(world.alice))
    assert refusal(access.access_reply, world.alice, asked.pk) == "not_found"


@pytest.mark.parametrize("stranger", ["bob", "carol", "dave"])
def test_strangers_pass_no_door(world: World, stranger: str) -> None:
    chat = make_conversation(world.alice)
    _, reply = make_exchange(chat)
    member = getattr(world, stranger)
    assert refusal(access.access_conversation, member, chat.pk) == "not_found"
    assert refusal(access.access_chat_to_write, member, chat.pk) == "not_your_chat"
    assert refusal(access.access_message, member, reply.pk) == "not_found"
    assert refusal(access.access_reply, member, reply.pk) == "not_found"


def test_a_deleted_conversation_is_gone_for_its_owner(world: World) -> None:
    chat = make_conversation(world.alice)
    _, reply = make_exchange(chat)
    chat.deleted_at = timezone.now()
    chat.save()
    assert refusal(access.access_conversation, world.alice, chat.pk) == "not_found"
    assert refusal(access.access_chat_to_write, world.alice, chat.pk) == "not_your_chat"
    assert refusal(access.access_reply, world.alice, reply.pk) == "not_found"


@pytest.mark.parametrize("row_id", [0, -1, 2**63, 2**200, True, "", "x", "1.5", "-1", "٣", "9" * 19, "9" * 5000])
def test_ids_that_no_row_can_have_are_not_found(world: World, row_id: int | str) -> None:
    assert refusal(access.access_conversation, world.alice, row_id) == "not_found"
    assert refusal(access.access_message, world.alice, row_id) == "not_found"
    assert refusal(access.access_chat_to_write, world.alice, row_id) == "not_your_chat"
