"""The door of the callback: from a room and a key to whose room it is, or a refusal that tells nothing."""

from __future__ import annotations

import hashlib
import hmac
import json
import time
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.db import connection

from conversations.db import tenant
from conversations.events import is_storable
from conversations.history.actions import find_or_create_for_context
from conversations.models import VoiceScene, VoiceSession
from conversations.models.site_settings import setting_of
from conversations.models.voice import site_id_of_room
from conversations.voice.callback import CallbackError, not_let_in
from providers.errors import Misconfigured

KEY_MAX_CHARS = 512
OVER = ("stopping", "stopped")
"""Who ends a room ends its context: what is said after that belongs to no conversation."""


@dataclass(frozen=True, slots=True)
class Room:
    """A room that the platform may call back for."""

    site_id: int
    session_id: int
    membership_id: int
    task_id: str
    apology: str
    arrived_at: datetime
    """When this call came, by the database: of two calls the later one counts, whichever is served first."""


def bearer_key(authorization: str) -> str:
    """Return the key of an Authorization header, "" without one."""
    scheme, _, key = authorization.strip().partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""


_ROOM = """
SELECT session.id, session.membership_id, session.task_id, site.settings::text, clock_timestamp(),
       session.status <> ALL(%s) AND scene.is_active AND member.status = 'approved' AND site.is_active
           AND person.is_active,
       scene.callback_key_encrypted, scene.previous_callback_key_encrypted
  FROM conversations_voice_session session
  JOIN conversations_voice_scene scene ON scene.site_id = session.site_id AND scene.id = session.scene_id
  JOIN conversations_membership member
    ON member.site_id = session.site_id AND member.id = session.membership_id
  JOIN conversations_site site ON site.id = session.site_id
  JOIN conversations_user person ON person.id = member.user_id
 WHERE session.site_id = %s AND session.room_id = %s
"""


def access_room(room_id: str, key: str, received: float) -> Room:
    """Return the room that the platform names, when the key is that of its scene.

    As SQL, since the platform's first chunk waits for it: the ORM takes three times as long.
    Units:  received is this process's monotonic clock when the call came.
    Raises: CallbackError AuthenticationError: for an unknown room, a wrong key, another site's room, a room that
    is over, and a member who may not chat any more, alike.
    """
    site_id = site_id_of_room(room_id)
    row = None
    if site_id is not None and is_storable(room_id):
        with tenant(site_id), connection.cursor() as cursor:
            cursor.execute(_ROOM, [list(OVER), site_id, room_id])
            row = cursor.fetchone()
    is_key = _is_key(key, *(("", "") if row is None else _keys(row[6], row[7])))
    if site_id is None or row is None or not is_key or not row[5]:
        raise not_let_in()
    session_id, membership_id, task_id, settings, now = row[:5]
    return Room(
        site_id=site_id,
        session_id=session_id,
        membership_id=membership_id,
        task_id=task_id,
        apology=setting_of(json.loads(settings), "voice_apology"),
        arrived_at=now - timedelta(seconds=time.monotonic() - received),
    )


def _keys(current: str, previous: str) -> tuple[str, str]:
    scene = VoiceScene(callback_key_encrypted=current, previous_callback_key_encrypted=previous)
    try:
        return scene.secret("callback_key").reveal(), scene.secret("previous_callback_key").reveal()
    except Misconfigured as error:
        raise CallbackError("InternalError", 500, "语音场景的密钥无法读取，请联系管理员。") from error


def ensure_conversation(room: Room) -> None:
    """Give the room a conversation when it has none, or when its member has deleted it.

    Within `tenant(room.site_id)`.
    """
    session: VoiceSession = (
        VoiceSession.objects.for_site(room.site_id)
        .select_related("conversation", "membership__site")
        .get(pk=room.session_id)
    )
    if session.conversation is None or session.conversation.deleted_at is not None:
        session.conversation, _ = find_or_create_for_context(
            session.membership, context_type="voice", context_id=session.room_id
        )
        session.save(update_fields=["conversation"])


def _is_key(given: str, *keys: str) -> bool:
    """Return whether the given key is one of these, in a time that says nothing of them; "" is no key."""
    mark = hashlib.sha256(given[:KEY_MAX_CHARS].encode("utf-8", "surrogatepass")).digest()
    found = [hmac.compare_digest(mark, hashlib.sha256(key.encode()).digest()) and bool(key) for key in keys]
    return any(found)
