"""What was last said in a voice room, so that the platform may send it again, or longer, without doubling it."""

from __future__ import annotations

from typing import ClassVar

from django.db import models

from conversations.models.scoping import ScopedManager, TenantModel
from conversations.models.sites import Site
from conversations.models.voice import VoiceSession


class VoiceTurn(TenantModel):
    """The latest turn of a room: its question and reply, and what tells its repetition from a new turn.

    The database ties (site, session) together: migration 0009. Question and reply are plain numbers, as in
    IdempotencyKey: what was erased is simply not found again.
    """

    site = models.ForeignKey(Site, on_delete=models.CASCADE, related_name="+", db_index=False)
    session = models.ForeignKey(
        VoiceSession, on_delete=models.CASCADE, related_name="+", db_constraint=False, db_index=False
    )
    # The platform's task in which it was said: a room that was started again begins anew.
    task_id = models.CharField(max_length=128, blank=True)
    question_id = models.BigIntegerField()
    reply_id = models.BigIntegerField()
    # The platform's number of the turn, when the scene asks for it (EnableRoundId).
    round_id = models.CharField(max_length=128, blank=True)
    # Of all that the platform says went before; equal for one turn that arrives several times.
    before_hash = models.CharField(max_length=64)
    # The response that carries the reply now: only when that one is hung up on has the person left.
    response_id = models.CharField(max_length=64)
    # Code points that were delivered when it was hung up on; empty while it was not.
    heard_chars = models.IntegerField(null=True)
    arrived_at = models.DateTimeField()

    objects: ClassVar[ScopedManager] = ScopedManager(member_path="session__membership_id")

    class Meta(TenantModel.Meta):
        db_table = "conversations_voice_turn"
        constraints = [
            # Also read by each call of the platform.
            models.UniqueConstraint(fields=["site", "session"], name="voice_turn_latest_of_room"),
            # Also read by the worker that ends a spoken reply: how much of it was heard.
            models.UniqueConstraint(fields=["site", "reply_id"], name="voice_turn_of_reply"),
        ]

    def __str__(self) -> str:
        return f"turn of #{self.session_id}"
