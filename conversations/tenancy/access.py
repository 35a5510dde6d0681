"""The only doors to conversations and messages: each gives a row that the member may see, or refuses.

Another's row and a missing row are refused alike, so that nobody learns which ids exist.
"""

from __future__ import annotations

from conversations.errors import NotAllowed, NotFound
from conversations.models import Conversation, Membership, Message

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


def access_message(membership: Membership, message_id: int | str) -> Message:
    """Return one message of this member, with its conversation.

    Raises: NotFound.
    """
    rows = Message.objects.visible_to(membership).select_related("conversation")
    message: Message | None = rows.filter(pk=row_id(message_id), conversation__deleted_at__isnull=True).first()
    if message is None:
        raise NotFound
    return message


def access_reply(membership: Membership, message_id: int | str) -> Message:
    """Return one reply (a message of the assistant) of this member, with its conversation.

    Raises: NotFound, also for a message that is no reply.
    """
    message = access_message(membership, message_id)
    if message.role != Message.Role.ASSISTANT:
        raise NotFound
    return message
