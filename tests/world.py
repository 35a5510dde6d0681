"""The people whom the tests know, and plain functions that make their rows.

Alice and Bob belong to Acorn, Carol belongs to Birch, Dave waits for approval in Acorn.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from typing import Any

from django.contrib.auth.hashers import make_password
from django.utils import timezone

from conversations.db import tenant
from conversations.models import (
    Conversation,
    InternalCaller,
    Membership,
    Message,
    ReplyChunk,
    Site,
    User,
    VoiceScene,
    VoiceSession,
    Worker,
    WorkerLog,
)
from conversations.tenancy.tokens import TokenPair, start_login
from providers.fields import keep_secret

PASSWORD = "橡果-correct-horse"


@dataclass(frozen=True)
class World:
    """Two sites and four members."""

    acorn: Site
    birch: Site
    alice: Membership
    bob: Membership
    carol: Membership
    dave: Membership


def make_world() -> World:
    """Return the two sites with their people; nobody has said anything yet."""
    acorn, birch = make_site("acorn", name="橡果"), make_site("birch", name="白桦")
    return World(
        acorn=acorn,
        birch=birch,
        alice=make_member(acorn, "alice", nickname="爱丽丝"),
        bob=make_member(acorn, "bob"),
        carol=make_member(birch, "carol"),
        dave=make_member(acorn, "dave", status="pending"),
    )


def make_site(slug: str, *, name: str = "", settings: dict[str, Any] | None = None) -> Site:
    """Return a new active site."""
    return Site.objects.create(slug=slug, name=name or slug, locale="zh-hans", settings=settings or {})


@cache
def _password_hash() -> str:
    return make_password(PASSWORD)


def make_member(
    site: Site, username: str, *, status: str = "approved", role: str = "member", nickname: str = ""
) -> Membership:
    """Return a new user's membership; their password is PASSWORD."""
    user = User.objects.create(username=username, password=_password_hash())
    return Membership.across_sites.create(site=site, user=user, status=status, role=role, nickname=nickname)


def make_tokens(membership: Membership) -> TokenPair:
    """Return the tokens of a new sign-in."""
    with tenant(membership.site_id):
        return start_login(membership)


def bearer(membership: Membership) -> dict[str, str]:
    """Return the header of a fresh sign-in: `client.get(path, headers=bearer(world.alice))`."""
    return {"Authorization": f"Bearer {make_tokens(membership).access}"}


def make_conversation(
    membership: Membership,
    *,
    title: str = "",
    context_type: str = "general",
    context_id: str = "0",
    last_message_at: datetime | None = None,
    **fields: Any,
) -> Conversation:
    """Return an empty conversation of this member."""
    return Conversation.across_sites.create(
        site_id=membership.site_id,
        membership=membership,
        title=title,
        context_type=context_type,
        context_id=context_id,
        last_message_at=last_message_at or timezone.now(),
        **fields,
    )


def make_message(
    conversation: Conversation, content: str = "你好", *, role: str = "user", **fields: Any
) -> Message:
    """Return a message in this conversation; its counters are brought up to date."""
    fields.setdefault("created_at", timezone.now())
    message = Message.across_sites.create(
        site_id=conversation.site_id, conversation=conversation, role=role, content=content, **fields
    )
    conversation.message_count += 1
    conversation.last_message = content[:80]
    conversation.last_message_at = message.created_at
    conversation.save(update_fields=["message_count", "last_message", "last_message_at"])
    return message


def make_exchange(
    conversation: Conversation, question: str = "今天天气如何？", answer: str = "晴，二十度。"
) -> tuple[Message, Message]:
    """Return a question and its finished reply."""
    asked = make_message(conversation, question)
    reply = make_message(
        conversation, answer, role="assistant", reply_to=asked, finish_reason="stop", finished_at=timezone.now()
    )
    return asked, reply


def make_worker(*, host: str = "test", pid: int = 1) -> Worker:
    """Return a worker that was seen just now."""
    now = timezone.now()
    return Worker.objects.create(host=host, pid=pid, started_at=now, seen_at=now)


def make_running_reply(
    conversation: Conversation, worker: Worker, *, question: str = "讲个故事"
) -> tuple[Message, Message]:
    """Return a question and its reply under way, of which nothing has been committed yet."""
    asked = make_message(conversation, question)
    reply = make_message(
        conversation, "", role="assistant", reply_to=asked, status="streaming", worker_id=worker.pk
    )
    return asked, reply


def log_text(worker: Worker, sequence: int, payload: str) -> WorkerLog:
    """Return one row of a worker's log; the payload's format is told in WorkerLog."""
    return WorkerLog.objects.create(worker_id=worker.pk, sequence=sequence, payload=payload)


def fold_text(reply: Message, offset: int, text: str, *, reasoning_offset: int = 0, reasoning: str = "") -> None:
    """Store a stretch of a running reply as the engine does when it folds its log."""
    ReplyChunk.across_sites.create(
        message_id=reply.pk,
        site_id=reply.site_id,
        content_offset=offset,
        reasoning_offset=reasoning_offset,
        content=text,
        reasoning=reasoning,
    )


VOICE_SECRETS = {
    "access_key_id": "AKLT-for-tests-only-0000",
    "secret_key": "c2VjcmV0LWtleS1mb3ItdGVzdHMtb25seQ==",
    "app_key": "0123456789abcdef0123456789abcdef",
    "callback_key": "callback-key-for-tests-only-0001",
}


def make_voice_scene(
    site: Site, key: str = "Custom", *, secrets: dict[str, str] | None = None, **fields: Any
) -> Any:
    """Return a voice scene with keys, whose model is ours (CustomLLM)."""
    fields.setdefault("name", "自定义助手")
    fields.setdefault("rtc_app_id", "661e0000000000000000543c")
    fields.setdefault("callback_base_url", "https://chat.example.com")
    fields.setdefault(
        "voice_chat",
        {
            "AgentConfig": {"UserId": "ChatBot01", "WelcomeMessage": "你好，我是小助手。", "TargetUserId": [""]},
            "Config": {
                "ASRConfig": {"Provider": "volcano", "ProviderParams": {"Mode": "smallmodel", "AppId": "1"}},
                "TTSConfig": {"Provider": "volcano", "ProviderParams": {"app": {"appid": "2"}}},
                "LLMConfig": {"Mode": "CustomLLM", "HistoryLength": 3, "SystemMessages": ["你是小助手。"]},
                "InterruptMode": 0,
            },
        },
    )
    scene = VoiceScene(site=site, key=key, **fields)
    for name, value in {**VOICE_SECRETS, **(secrets or {})}.items():
        keep_secret(scene, name, value)
    scene.save()
    return scene


def make_voice_session(scene: VoiceScene, membership: Membership, **fields: Any) -> VoiceSession:
    """Return a room of this member that is running since just now, with a conversation of its own."""
    now = timezone.now()
    room_id = fields.pop("room_id", f"{scene.site_id}-{uuid.uuid4().hex}")
    fields.setdefault("status", "started")
    if "conversation" not in fields:
        fields["conversation"] = make_conversation(membership, context_type="voice", context_id=room_id)
    running = {"task_id": f"task-{uuid.uuid4().hex}", "started_at": now, "stop_due_at": now + timedelta(hours=1)}
    session: VoiceSession = VoiceSession.across_sites.create(
        site_id=scene.site_id,
        scene=scene,
        membership=membership,
        room_id=room_id,
        user_id=f"user-{uuid.uuid4().hex}",
        bot_id="ChatBot01",
        created_at=now,
        token_expires_at=now + timedelta(hours=24),
        **{**running, **fields},
    )
    return session


def make_internal_caller(
    site: Site,
    key_id: str = "java-mock",
    *,
    secret: str = "internal-secret-for-tests-only-0123456789abcdef",
    **fields: Any,
) -> InternalCaller:
    """Return a server that may act for the members of this site."""
    caller = InternalCaller(site=site, key_id=key_id, **fields)
    keep_secret(caller, "secret", secret)
    caller.save()
    return caller
