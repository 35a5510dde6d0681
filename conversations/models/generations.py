"""How replies are made: the ledger of attempts, the write-ahead log, and the workers that write it."""

from __future__ import annotations

from typing import ClassVar

from django.db import models
from django.db.models import Q
from django.utils.translation import gettext_lazy as _

from conversations.models.conversations import Message
from conversations.models.scoping import ScopedManager, TenantModel
from conversations.models.sites import Membership, Site
from providers.models import Endpoint


class Worker(models.Model):
    """One incarnation of a serving process. Declared dead, it never writes again: it starts anew as a new row.

    The id is the epoch that fences its writes. All times are the database's.
    """

    id = models.BigAutoField(primary_key=True)
    host = models.CharField(max_length=200)
    pid = models.IntegerField()
    started_at = models.DateTimeField()
    seen_at = models.DateTimeField()
    is_dead = models.BooleanField(default=False)
    is_draining = models.BooleanField(default=False)
    registry_revision = models.BigIntegerField(default=0)
    live_replies = models.IntegerField(default=0)
    # Endpoint id → replies under way on it, at the last heartbeat.
    live_endpoints = models.JSONField(default=dict)
    # Everything the log held up to this sequence is in ReplyChunk or in sealed messages.
    folded_sequence = models.BigIntegerField(default=0)

    class Meta:
        db_table = "conversations_worker"
        verbose_name = _("worker")
        verbose_name_plural = _("workers")
        indexes = [
            # Read by the sweeper every second.
            models.Index(fields=["seen_at"], condition=Q(is_dead=False), name="worker_alive"),
        ]

    def __str__(self) -> str:
        return f"{self.host}/{self.pid}#{self.pk}"


class WorkerLog(models.Model):
    """The write-ahead log of running replies: one row per tick and worker, for all its replies at once.

    `payload` is JSON: a list of [message id, offset, text] or
    [message id, offset, text, reasoning offset, reasoning]; offsets in code points. Rows live for seconds.
    """

    pk = models.CompositePrimaryKey("worker_id", "sequence")
    worker_id = models.BigIntegerField()
    sequence = models.BigIntegerField()
    payload = models.TextField()

    class Meta:
        db_table = "conversations_worker_log"

    def __str__(self) -> str:
        return f"{self.worker_id}:{self.sequence}"


class ReplyChunk(TenantModel):
    """A stretch of a running reply, folded out of the log; gone when the reply is sealed."""

    pk = models.CompositePrimaryKey("message_id", "content_offset", "reasoning_offset")
    site = models.ForeignKey(Site, on_delete=models.CASCADE, related_name="+", db_index=False)
    message_id = models.BigIntegerField()
    content_offset = models.IntegerField()
    reasoning_offset = models.IntegerField()
    content = models.TextField()
    reasoning = models.TextField()

    class Meta(TenantModel.Meta):
        db_table = "conversations_reply_chunk"

    def __str__(self) -> str:
        return f"{self.message_id}:{self.content_offset}"


class Generation(TenantModel):
    """One attempt at one reply against one endpoint: the ledger, failed-over and aborted attempts included."""

    class Status(models.TextChoices):
        """How the attempt ended."""

        RUNNING = "running", _("running")
        COMPLETE = "complete", _("complete")
        STOPPED = "stopped", _("stopped")
        FAILED = "failed", _("failed")
        INTERRUPTED = "interrupted", _("interrupted")

    site = models.ForeignKey(Site, on_delete=models.CASCADE, related_name="+", db_index=False)
    message = models.ForeignKey(
        Message, on_delete=models.CASCADE, related_name="generations", db_constraint=False, db_index=False
    )
    attempt = models.IntegerField(default=1)
    endpoint = models.ForeignKey(Endpoint, null=True, blank=True, on_delete=models.SET_NULL, related_name="+")
    endpoint_name = models.CharField(max_length=100, blank=True)
    model = models.CharField(max_length=200, blank=True)
    worker_id = models.BigIntegerField()
    status = models.CharField(max_length=16, choices=Status.choices, default=Status.RUNNING)
    error_code = models.CharField(max_length=64, blank=True)
    finish_reason = models.CharField(max_length=64, blank=True)
    vendor_request_id = models.CharField(max_length=200, blank=True)
    prompt_messages = models.IntegerField(default=0)
    prompt_chars = models.IntegerField(default=0)
    # How many characters of the reply other endpoints had written when this one was asked; its tokens are its own.
    continued_from = models.IntegerField(default=0, db_default=0)
    input_tokens = models.IntegerField(null=True)
    output_tokens = models.IntegerField(null=True)
    tokens_source = models.CharField(
        max_length=10,
        choices=[("provider", _("provider")), ("estimated", _("estimated"))],
        default="estimated",
    )
    # Whose key the provider was called with: whoever owns it pays the provider, and the cost is theirs.
    credential = models.CharField(
        max_length=10,
        choices=[
            ("endpoint", _("the endpoint's")),
            ("site", _("the site's own")),
            ("member", _("the member's own")),
        ],
        default="endpoint",
        db_default="endpoint",
    )
    # In millionths of the currency in which the endpoint's prices stand; None: no price was known.
    cost_micros = models.BigIntegerField(null=True)
    queued_at = models.DateTimeField()
    called_at = models.DateTimeField(null=True)
    first_token_at = models.DateTimeField(null=True)
    last_token_at = models.DateTimeField(null=True)
    finished_at = models.DateTimeField(null=True)
    upstream_closed_at = models.DateTimeField(null=True)
    # What this call of the model asked of tools: [{"name", "ms", "outcome", "problem"}]; None: nothing.
    tools = models.JSONField(null=True)

    objects: ClassVar[ScopedManager] = ScopedManager(member_path="message__conversation__membership_id")

    class Meta(TenantModel.Meta):
        db_table = "conversations_generation"
        verbose_name = _("generation")
        verbose_name_plural = _("generations")
        constraints = [
            # Also read by whoever asks for the attempts at one reply.
            models.UniqueConstraint(fields=["message", "attempt"], name="generation_attempt_once"),
            models.CheckConstraint(
                condition=Q(status__in=["running", "complete", "stopped", "failed", "interrupted"]),
                name="generation_status_is_known",
            ),
            models.CheckConstraint(
                condition=Q(tokens_source__in=["provider", "estimated"]), name="generation_source_is_known"
            ),
            models.CheckConstraint(
                condition=Q(credential__in=["endpoint", "site", "member"]), name="generation_credential_is_known"
            ),
        ]
        indexes = [
            # Read by usage reports of one site over time.
            models.Index(fields=["site", "-queued_at"], name="generation_by_time"),
        ]

    def __str__(self) -> str:
        return f"#{self.message_id}/{self.attempt}"


class IdempotencyKey(TenantModel):
    """What a request with this key made, so that its repetition makes nothing; kept for a day."""

    site = models.ForeignKey(Site, on_delete=models.CASCADE, related_name="+", db_index=False)
    membership = models.ForeignKey(Membership, on_delete=models.CASCADE, related_name="+", db_index=False)
    key = models.CharField(max_length=128)
    body_hash = models.CharField(max_length=64)
    conversation_id = models.BigIntegerField(null=True)
    user_message_id = models.BigIntegerField(null=True)
    reply_id = models.BigIntegerField(null=True)
    created_at = models.DateTimeField()

    objects: ClassVar[ScopedManager] = ScopedManager(member_path="membership_id")

    class Meta(TenantModel.Meta):
        db_table = "conversations_idempotency_key"
        constraints = [models.UniqueConstraint(fields=["site", "membership", "key"], name="idempotency_once")]
        indexes = [
            # Read by the sweeper, which forgets keys after a day.
            models.Index(fields=["created_at"], name="idempotency_by_age"),
        ]

    def __str__(self) -> str:
        return f"key {self.pk}"
