"""Conversations and their messages. A reply is a message whose role is `assistant`."""

from __future__ import annotations

from typing import ClassVar

from django.db import models
from django.db.models import Q
from django.utils.translation import gettext_lazy as _

from conversations.models.scoping import ScopedManager, TenantModel
from conversations.models.sites import Membership, Site
from providers.models import Endpoint

PREVIEW_CHARS = 80
TITLE_CHARS = 200
CONTENT_MAX_CHARS = 32_768


class Conversation(TenantModel):
    """What one member said and was told, in one context."""

    site = models.ForeignKey(Site, on_delete=models.CASCADE, related_name="+", verbose_name=_("site"))
    # The database ties (site, membership) together: see migration 0002.
    membership = models.ForeignKey(
        Membership,
        on_delete=models.CASCADE,
        related_name="conversations",
        verbose_name=_("member"),
        db_constraint=False,
        db_index=False,
    )
    title = models.CharField(_("title"), max_length=TITLE_CHARS, blank=True)
    context_type = models.CharField(_("context type"), max_length=64, blank=True)
    context_id = models.CharField(_("context id"), max_length=200, blank=True)
    context_cleared_at = models.DateTimeField(null=True, blank=True)
    last_message = models.CharField(_("last message"), max_length=PREVIEW_CHARS, blank=True)
    last_message_at = models.DateTimeField(_("last activity"))
    message_count = models.IntegerField(_("messages"), default=0)
    is_pinned = models.BooleanField(_("pinned"), default=False)
    is_archived = models.BooleanField(_("archived"), default=False)
    deleted_at = models.DateTimeField(_("deleted"), null=True, blank=True)
    created_at = models.DateTimeField(_("created"), auto_now_add=True)

    objects: ClassVar[ScopedManager] = ScopedManager(member_path="membership_id")

    class Meta(TenantModel.Meta):
        db_table = "conversations_conversation"
        verbose_name = _("conversation")
        verbose_name_plural = _("conversations")
        constraints = [
            models.UniqueConstraint(fields=["site", "id"], name="conversation_site_and_id"),
        ]
        indexes = [
            # Read by the history of one member: archived apart, pinned first, newest activity first.
            models.Index(
                fields=["site", "membership", "is_archived", "-is_pinned", "-last_message_at", "-id"],
                condition=Q(deleted_at__isnull=True),
                name="conversation_history",
            ),
            # Read by find-or-create of a context.
            models.Index(
                fields=["site", "membership", "context_type", "context_id", "-last_message_at"],
                condition=Q(deleted_at__isnull=True),
                name="conversation_by_context",
            ),
        ]

    def __str__(self) -> str:
        return self.title or f"#{self.pk}"


class Message(TenantModel):
    """One thing said. Terminal states never change; a running reply's text is in the log until sealed."""

    class Role(models.TextChoices):
        """Who said it."""

        USER = "user", _("user")
        ASSISTANT = "assistant", _("assistant")
        SYSTEM = "system", _("system")
        TOOL = "tool", _("tool")

    class Status(models.TextChoices):
        """What happened to our run; `finish_reason` is what the model said."""

        STREAMING = "streaming", _("streaming")
        COMPLETE = "complete", _("complete")
        TRUNCATED = "truncated", _("truncated")
        STOPPED = "stopped", _("stopped")
        FAILED = "failed", _("failed")
        INTERRUPTED = "interrupted", _("interrupted")

    site = models.ForeignKey(Site, on_delete=models.CASCADE, related_name="+", db_index=False)
    conversation = models.ForeignKey(
        Conversation, on_delete=models.CASCADE, related_name="messages", db_constraint=False, db_index=False
    )
    role = models.CharField(_("role"), max_length=16, choices=Role.choices)
    content = models.TextField(_("content"), blank=True)
    reasoning = models.TextField(_("reasoning"), blank=True)
    status = models.CharField(_("status"), max_length=16, choices=Status.choices, default=Status.COMPLETE)
    finish_reason = models.CharField(_("finish reason"), max_length=64, null=True, blank=True)  # noqa: DJ001  # NULL: it said none
    error_code = models.CharField(_("error"), max_length=64, blank=True)
    reference_card = models.JSONField(null=True, blank=True)
    reply_to = models.ForeignKey(
        "self", null=True, blank=True, on_delete=models.CASCADE, related_name="replies", db_index=False
    )
    version = models.IntegerField(_("version"), default=1)
    usage = models.JSONField(null=True, blank=True)
    channel = models.CharField(
        _("channel"), max_length=8, choices=[("chat", _("chat")), ("voice", _("voice"))], default="chat"
    )
    source_page = models.CharField(max_length=200, blank=True)
    page_context = models.JSONField(null=True, blank=True)
    feedback = models.CharField(max_length=8, blank=True, choices=[("up", "+"), ("down", "-")])
    feedback_reason = models.CharField(max_length=500, blank=True)
    # The incarnation of the worker that runs the reply (Worker.id); kept after the end for the record.
    worker_id = models.BigIntegerField(null=True, blank=True)
    stop_requested_at = models.DateTimeField(null=True, blank=True)
    created_at = models.DateTimeField(_("created"))
    finished_at = models.DateTimeField(null=True, blank=True)

    objects: ClassVar[ScopedManager] = ScopedManager(member_path="conversation__membership_id")

    class Meta(TenantModel.Meta):
        db_table = "conversations_message"
        verbose_name = _("message")
        verbose_name_plural = _("messages")
        constraints = [
            models.UniqueConstraint(fields=["site", "id"], name="message_site_and_id"),
            models.UniqueConstraint(
                fields=["conversation"], condition=Q(status="streaming"), name="message_one_running_per_chat"
            ),
            models.CheckConstraint(
                condition=Q(role__in=["user", "assistant", "system", "tool"]), name="message_role_is_known"
            ),
            models.CheckConstraint(
                condition=Q(status__in=["streaming", "complete", "truncated", "stopped", "failed", "interrupted"]),
                name="message_status_is_known",
            ),
            models.CheckConstraint(condition=Q(channel__in=["chat", "voice"]), name="message_channel_is_known"),
            models.CheckConstraint(condition=Q(feedback__in=["", "up", "down"]), name="message_feedback_is_known"),
            models.CheckConstraint(
                condition=~Q(status="streaming") | Q(role="assistant", worker_id__isnull=False),
                name="message_running_has_worker",
            ),
        ]
        indexes = [
            # Read by the message list and by the prompt window: ORDER BY id DESC LIMIT n. With the role: runs
            # of tools are left out of the list and pages are counted off in the index alone.
            models.Index(fields=["site", "conversation", "-id"], include=["role"], name="message_by_chat"),
            # Read by regenerate, which numbers the versions of one answer, and by readers of a reply's tools.
            models.Index(fields=["reply_to"], condition=Q(reply_to__isnull=False), name="message_by_question"),
            # Read by the sweeper, when a worker is declared dead.
            models.Index(fields=["worker_id"], condition=Q(status="streaming"), name="message_running"),
            # Read by the owner's writer on every tick; almost always empty.
            models.Index(
                fields=["worker_id", "id"],
                condition=Q(status="streaming", stop_requested_at__isnull=False),
                name="message_stop_requested",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.role} #{self.pk}"


class VendorSession(TenantModel):
    """What a vendor calls a conversation that it keeps itself, for one endpoint. It has seen all up to updated_at.

    The database ties (site, conversation) together, and removes what hangs on a removed endpoint: migration 0004.
    """

    site = models.ForeignKey(Site, on_delete=models.CASCADE, related_name="+", db_index=False)
    conversation = models.ForeignKey(
        Conversation, on_delete=models.CASCADE, related_name="vendor_sessions", db_constraint=False, db_index=False
    )
    endpoint = models.ForeignKey(Endpoint, on_delete=models.CASCADE, related_name="+", db_constraint=False)
    session = models.CharField(max_length=200)
    updated_at = models.DateTimeField()

    objects: ClassVar[ScopedManager] = ScopedManager(member_path="conversation__membership_id")

    class Meta(TenantModel.Meta):
        db_table = "conversations_vendor_session"
        constraints = [
            # Also read when a reply begins on an endpoint whose vendor keeps the conversation.
            models.UniqueConstraint(
                fields=["site", "conversation", "endpoint"], name="vendor_session_once_per_endpoint"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.conversation_id}@{self.endpoint_id}"
