"""The only doors to conversations and messages: each gives a row that the member may see, or refuses.

Another's row and a missing row are refused alike, so that nobody learns which ids exist.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from conversations.db import prepared_cursor
from conversations.errors import NotAllowed, NotFound, NotSignedIn
from conversations.models import Conversation, Document, Membership, Message
from conversations.tenancy.tokens import Claims

BIGINT_MAX = 2**63 - 1


def row_id(value: int | str) -> int:
    """Return an id that the database can hold, from a path or a body.

    Raises: NotFound, since no row can have any other id.
    """
    if isinstance(value, str):
        if not (value.isascii() and value.isdigit()) or len(value) > 19:
            raise NotFound
        value = int(value)
    if isinstance(value, bool) or not 0 < value <= BIGINT_MAX:
        raise NotFound
    return value


def access_conversation(membership: Membership, chat_id: int | str) -> Conversation:
    """Return one conversation of this member, not a deleted one.

    Raises: NotFound.
    """
    rows = Conversation.objects.visible_to(membership)
    conversation: Conversation | None = rows.filter(pk=row_id(chat_id), deleted_at__isnull=True).first()
    if conversation is None:
        raise NotFound
    return conversation


def access_chat_to_write(membership: Membership, chat_id: int | str, *, lock: bool = False) -> Conversation:
    """Return the conversation that this member may say something in; with `lock`, locked for update.

    Raises: NotAllowed not_your_chat, for a missing, deleted, another member's or site's chat alike.
    """
    rows = Conversation.objects.visible_to(membership)
    if lock:
        rows = rows.select_for_update(of=("self",))
    try:
        conversation: Conversation | None = rows.filter(pk=row_id(chat_id), deleted_at__isnull=True).first()
    except NotFound as error:
        raise NotAllowed("not_your_chat") from error
    if conversation is None:
        raise NotAllowed("not_your_chat")
    return conversation


@dataclass(frozen=True, slots=True)
class OpenChat:
    """A conversation that its member may write in, locked for this transaction."""

    chat_id: int
    site_id: int
    membership_id: int
    title: str
    context_cleared_at: datetime | None
    site_settings: Mapping[str, Any]


_OPEN_CHAT = """
WITH chat AS MATERIALIZED (
    SELECT id, title, context_cleared_at FROM conversations_conversation
     WHERE id = %(chat)s AND site_id = %(site)s AND membership_id = %(member)s AND deleted_at IS NULL
       FOR UPDATE)
SELECT member.status = 'approved' AND site.is_active, site.settings::text,
       chat.id, chat.title, chat.context_cleared_at
  FROM conversations_membership member
  JOIN conversations_site site ON site.id = member.site_id
  JOIN conversations_user person ON person.id = member.user_id AND person.is_active
  JOIN conversations_login login
    ON login.id = %(login)s AND login.membership_id = member.id AND login.ended_at IS NULL
  LEFT JOIN chat ON true
 WHERE member.id = %(member)s AND member.site_id = %(site)s
"""


def open_chat(claims: Claims, chat_id: int | str) -> OpenChat:
    """Return the chat that the member named by the claims may say something in, locked, in one query.

    The same three doors as `approved_member_for` and `access_chat_to_write`, as one statement for the hot
    path of sending; tests/conversations/tenancy/test_open_chat.py holds them against each other.
    Raises: NotSignedIn token_invalid; NotAllowed not_approved or not_your_chat.
    """
    try:
        wanted = row_id(chat_id)
    except NotFound:
        wanted = 0  # no row: the member is still checked first
    with prepared_cursor() as cursor:
        cursor.execute(
            _OPEN_CHAT,
            {
                "chat": wanted,
                "site": claims.site_id,
                "member": claims.membership_id,
                "login": claims.login_id,
            },
        )
        row = cursor.fetchone()
    if row is None:
        raise NotSignedIn("token_invalid")
    is_approved, site_settings, found_id, title, context_cleared_at = row
    if not is_approved:
        raise NotAllowed("not_approved")
    if found_id is None:
        raise NotAllowed("not_your_chat")
    return OpenChat(
        found_id, claims.site_id, claims.membership_id, title, context_cleared_at, json.loads(site_settings)
    )


def access_message(membership: Membership, message_id: int | str) -> Message:
    """Return one message of this member, with its conversation.

    Raises: NotFound.
    """
    rows = Message.objects.visible_to(membership).select_related("conversation").exclude(role=Message.Role.TOOL)
    message: Message | None = rows.filter(pk=row_id(message_id), conversation__deleted_at__isnull=True).first()
    if message is None:
        raise NotFound
    return message


def access_document(membership: Membership, document_id: int | str) -> Document:
    """Return one document of this member's site; who may have it at all is the view's to say.

    Raises: NotFound.
    """
    document: Document | None = Document.objects.visible_to(membership).filter(pk=row_id(document_id)).first()
    if document is None:
        raise NotFound
    return document


def access_reply(membership: Membership, message_id: int | str) -> Message:
    """Return one reply (a message of the assistant) of this member, with its conversation.

    Raises: NotFound, also for a message that is no reply.
    """
    message = access_message(membership, message_id)
    if message.role != Message.Role.ASSISTANT:
        raise NotFound
    return message
