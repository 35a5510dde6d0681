"""Scenes, rooms and callers as rows: secrets that only go in, and ties that the database holds."""

from __future__ import annotations

from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import IntegrityError, connection, transaction

from conversations.models import InternalCaller, VoiceScene, VoiceSession
from conversations.models.voice import site_id_of_room
from providers.credentials import new_key
from providers.fields import keep_secret, move_secret, secret_of
from tests.world import VOICE_SECRETS, World, make_conversation, make_voice_scene, make_voice_session

pytestmark = pytest.mark.django_db


def stored(model: Any) -> str:
    """Every row of a table, as the database has it."""
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT row_to_json(t)::text FROM {model._meta.db_table} t")
        return "".join(row for (row,) in cursor.fetchall())


def test_the_secrets_of_a_scene_are_ciphertext_and_mask(world: World) -> None:
    scene = make_voice_scene(world.acorn)
    text = stored(VoiceScene)
    assert [value for value in VOICE_SECRETS.values() if value in text] == []
    assert scene.app_key_mask == "…cdef"
    assert scene.secret("app_key").reveal() == VOICE_SECRETS["app_key"]
    assert scene.secret("previous_callback_key").reveal() == ""
    assert VOICE_SECRETS["app_key"] not in repr(scene.secret("app_key"))


def test_rotate_keys_takes_the_secrets_of_voice_along(world: World, settings: Any) -> None:
    settings.SECRET_KEYS = [new_key()]
    scene = make_voice_scene(world.acorn)
    caller = InternalCaller(site=world.acorn, key_id="java-mock")
    keep_secret(caller, "secret", "internal-secret-for-tests-only-0123456789abcdef")
    move_secret(caller, "secret", "previous_secret")
    caller.save()
    settings.SECRET_KEYS = [new_key(), *settings.SECRET_KEYS]
    out = StringIO()
    call_command("rotate_keys", stdout=out)
    assert out.getvalue().startswith("6 secrets")
    settings.SECRET_KEYS = settings.SECRET_KEYS[:1]
    scene.refresh_from_db()
    caller.refresh_from_db()
    assert {name: scene.secret(name).reveal() for name in VOICE_SECRETS} == VOICE_SECRETS
    assert secret_of(caller, "previous_secret").reveal() == "internal-secret-for-tests-only-0123456789abcdef"


def test_rotate_keys_names_the_scene_it_cannot_open_and_changes_nothing(world: World, settings: Any) -> None:
    settings.SECRET_KEYS = [new_key()]
    make_voice_scene(world.acorn)
    before = stored(VoiceScene)
    settings.SECRET_KEYS = [new_key()]
    with pytest.raises(CommandError, match=r"自定义助手.*app_key") as refusal:
        call_command("rotate_keys")
    assert VOICE_SECRETS["app_key"] not in str(refusal.value)
    assert stored(VoiceScene) == before


@pytest.mark.parametrize("field", ["scene", "membership", "conversation"])
def test_a_session_cannot_hang_on_another_sites_row(world: World, field: str) -> None:
    scene = make_voice_scene(world.acorn)
    others = {
        "scene": make_voice_scene(world.birch),
        "membership": world.carol,
        "conversation": make_conversation(world.carol),
    }
    with pytest.raises(IntegrityError), transaction.atomic():
        session = make_voice_session(scene, world.alice)
        VoiceSession.across_sites.filter(pk=session.pk).update(**{field: others[field]})
        with connection.cursor() as cursor:
            cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")


def test_erasing_a_conversation_keeps_the_room_that_must_still_be_stopped(world: World) -> None:
    session = make_voice_session(make_voice_scene(world.acorn), world.alice)
    with connection.cursor() as cursor:
        cursor.execute("DELETE FROM conversations_conversation WHERE id = %s", [session.conversation_id])
        cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
    session.refresh_from_db()
    assert (session.conversation_id, session.site_id, session.status) == (None, world.acorn.pk, "started")


@pytest.mark.parametrize(
    ("room_id", "site_id"),
    [
        ("7-abc", 7),
        ("7-", None),
        ("-abc", None),
        ("abc", None),
        ("٣-a", None),
        ("9" * 19 + "-a", None),
        ("", None),
    ],
)
def test_a_room_names_its_site(room_id: str, site_id: int | None) -> None:
    assert site_id_of_room(room_id) == site_id
