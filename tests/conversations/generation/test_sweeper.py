"""What the house forgets, and how a text is put together again."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.utils import timezone

from conversations.generation import sweeper
from conversations.models import Conversation, Generation, Message
from tests.world import World, make_conversation, make_exchange


@pytest.mark.parametrize(
    ("chunks", "entries", "whole"),
    [
        ([(0, "你好", 0, "")], [(2, "，世界", 0, "想")], ("你好，世界", "想")),
        ([(0, "你好，", 0, "")], [(1, "好，世", 0, ""), (4, "界", 0, "")], ("你好，世界", "")),
        ([], [(0, "ab", 0, "x"), (5, "missing before", 0, "")], ("ab", "x")),
        ([], [], ("", "")),
    ],
)
def test_stretches_are_put_together_by_offset(chunks: list, entries: list, whole: tuple) -> None:  # type: ignore[type-arg]
    assert sweeper.fold_entries(chunks, entries) == whole


def test_deleted_conversations_are_erased_after_their_time(world: World) -> None:
    long_ago = timezone.now() - timedelta(days=31)
    gone = make_conversation(world.alice, deleted_at=long_ago)
    make_exchange(gone)
    recent = make_conversation(world.alice, deleted_at=timezone.now())
    make_exchange(recent)
    assert sweeper.erase_conversations() == 1
    assert list(Conversation.across_sites.values_list("pk", flat=True)) == [recent.pk]
    assert set(Message.across_sites.values_list("conversation_id", flat=True)) == {recent.pk}


def test_a_site_may_keep_conversations_for_days_only(world: World) -> None:
    world.acorn.settings = {"retention_days": 7}
    world.acorn.save()
    old = timezone.now() - timedelta(days=8)
    for member in (world.alice, world.carol):
        chat = make_conversation(member)
        _, reply = make_exchange(chat)
        Generation.across_sites.create(site_id=chat.site_id, message=reply, worker_id=1, queued_at=old)
        Conversation.across_sites.filter(pk=chat.pk).update(last_message_at=old)
    fresh = make_conversation(world.bob)
    assert sweeper.erase_conversations() == 1
    kept = Conversation.across_sites.values_list("membership_id", flat=True)
    assert set(kept) == {world.carol.pk, fresh.membership_id}
    assert Generation.across_sites.get().site_id == world.birch.pk


def test_a_running_reply_keeps_its_conversation(world: World) -> None:
    chat = make_conversation(world.alice, deleted_at=timezone.now() - timedelta(days=99))
    Message.across_sites.create(
        site_id=chat.site_id,
        conversation=chat,
        role="assistant",
        status="streaming",
        worker_id=1,
        created_at=timezone.now(),
    )
    assert sweeper.erase_conversations() == 0
