"""What the migrations promise beyond the models: rows are tied to their site."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from django.db import IntegrityError, connection
from django.utils import timezone

from conversations.models import (
    Conversation,
    Generation,
    IdempotencyKey,
    Login,
    MemberKey,
    Message,
    ReplyChunk,
    VendorSession,
)
from providers.models import Endpoint
from tests.world import World, make_conversation, make_exchange


def check_constraints_now() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")


def hang_conversation(world: World) -> None:
    Conversation.across_sites.create(site=world.birch, membership=world.alice, last_message_at=timezone.now())


def hang_message(world: World) -> None:
    chat = make_conversation(world.alice)
    Message.across_sites.create(site=world.birch, conversation=chat, role="user", created_at=timezone.now())


def hang_answer(world: World) -> None:
    asked, _ = make_exchange(make_conversation(world.alice))
    Message.across_sites.create(
        site=world.birch,
        conversation=make_conversation(world.carol),
        reply_to=asked,
        role="assistant",
        created_at=timezone.now(),
    )


def hang_generation(world: World) -> None:
    _, reply = make_exchange(make_conversation(world.alice))
    Generation.across_sites.create(site=world.birch, message=reply, worker_id=1, queued_at=timezone.now())


def hang_chunk(world: World) -> None:
    _, reply = make_exchange(make_conversation(world.alice))
    ReplyChunk.across_sites.create(
        site=world.birch, message_id=reply.pk, content_offset=0, reasoning_offset=0, content="", reasoning=""
    )


def hang_login(world: World) -> None:
    Login.across_sites.create(site=world.birch, membership=world.alice, refresh_jti="a", expires_at=timezone.now())


def hang_session(world: World) -> None:
    endpoint = Endpoint.objects.create(name="百炼", dialect="dashscope_app", model="app-1")
    VendorSession.across_sites.create(
        site=world.birch,
        conversation=make_conversation(world.alice),
        endpoint=endpoint,
        session="s",
        updated_at=timezone.now(),
    )


def hang_key(world: World) -> None:
    IdempotencyKey.across_sites.create(
        site=world.birch, membership=world.alice, key="k", body_hash="", created_at=timezone.now()
    )


def hang_own_key(world: World) -> None:
    endpoint = Endpoint.objects.create(name="主力", dialect="scripted")
    MemberKey.across_sites.create(site=world.birch, membership=world.alice, endpoint=endpoint)


@pytest.mark.parametrize(
    "hang",
    [
        hang_conversation,
        hang_message,
        hang_answer,
        hang_generation,
        hang_chunk,
        hang_login,
        hang_key,
        hang_session,
        hang_own_key,
    ],
)
def test_no_row_can_hang_on_another_sites(world: World, hang: Callable[[World], None]) -> None:
    hang(world)
    with pytest.raises(IntegrityError):
        check_constraints_now()


def test_rows_of_one_site_hang_together(world: World) -> None:
    _, reply = make_exchange(make_conversation(world.alice))
    Generation.across_sites.create(site=world.acorn, message=reply, worker_id=1, queued_at=timezone.now())
    check_constraints_now()


def test_the_database_removes_what_hangs_on_a_removed_row(world: World) -> None:
    chat = make_conversation(world.alice)
    make_exchange(chat)
    with connection.cursor() as cursor:
        cursor.execute("DELETE FROM conversations_conversation WHERE id = %s", [chat.pk])
    check_constraints_now()
    assert not Message.across_sites.exists()
