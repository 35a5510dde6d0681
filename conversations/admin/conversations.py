"""Conversations and what was said in them. Read-only: nobody rewrites what people said."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from django.contrib import admin
from django.contrib.admin.utils import unquote
from django.core.paginator import Page, Paginator
from django.db.models import Max, QuerySet
from django.http import HttpRequest, HttpResponse
from django.utils.translation import gettext_lazy as _
from unfold.decorators import display

from conversations.admin.base import ScopedAdmin, SiteFilter, is_superuser
from conversations.admin.generations import STATUS_COLOURS as ATTEMPT_COLOURS
from conversations.admin.generations import milliseconds_between
from conversations.models import Conversation, Generation, Message, ReplyChunk

MESSAGES_PER_PAGE = 40
SHOWN_CHARS = 6_000
"""Longer texts show their beginning, and the rest on demand."""

STATUS_COLOURS = {
    "streaming": "info",
    "complete": "",
    "truncated": "warning",
    "stopped": "warning",
    "failed": "danger",
    "interrupted": "danger",
}


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt at a reply, as a line under it."""

    row: Generation
    colour: str
    first_token_after: str | None
    took: str | None


@dataclass(frozen=True, slots=True)
class ToolLine:
    """One run of a tool, as a line after the reply that asked for it."""

    name: str
    arguments: str
    ms: int | None
    problem: str


@dataclass(slots=True)
class Turn:
    """One message as the transcript shows it."""

    message: Message
    text: str
    rest: str = ""
    status_colour: str = ""
    is_newest_version: bool = True
    attempts: list[Attempt] = field(default_factory=list)
    tool: ToolLine | None = None

    @property
    def is_empty(self) -> bool:
        """Return whether there is no text to show."""
        return not self.text.strip()


def transcript_page(conversation: Conversation, wanted: str | None, around: str | None) -> Page[Message]:
    """Return one page of messages, oldest first: the one asked for, or the one with a message, or the last."""
    messages = (
        Message.objects.for_site(conversation.site_id).filter(conversation_id=conversation.pk).order_by("pk")
    )
    paginator = Paginator(messages, MESSAGES_PER_PAGE)
    if around and around.isascii() and around.isdigit() and len(around) < 19:
        before = messages.filter(pk__lt=int(around)).count()
        return paginator.get_page(before // MESSAGES_PER_PAGE + 1)
    return paginator.get_page(wanted or paginator.num_pages)


def turns_of(conversation: Conversation, messages: Sequence[Message]) -> list[Turn]:
    """Return the messages with their attempts, and the text so far of a running reply: four queries at most."""
    site_id = conversation.site_id
    ids = [message.pk for message in messages]
    attempts: dict[int, list[Attempt]] = defaultdict(list)
    for row in Generation.objects.for_site(site_id).filter(message_id__in=ids).order_by("message_id", "attempt"):
        attempts[row.message_id].append(
            Attempt(
                row=row,
                colour=ATTEMPT_COLOURS[row.status],
                first_token_after=milliseconds_between(row.queued_at, row.first_token_at),
                took=milliseconds_between(row.queued_at, row.finished_at),
            )
        )
    questions = {message.reply_to_id for message in messages if message.reply_to_id}
    newest = dict(
        Message.objects.for_site(site_id)
        .filter(conversation_id=conversation.pk, reply_to_id__in=questions)
        .values_list("reply_to_id")
        .annotate(newest=Max("version"))
    )
    running = [message.pk for message in messages if message.status == Message.Status.STREAMING]
    so_far: dict[int, str] = defaultdict(str)
    if running:
        chunks = ReplyChunk.objects.for_site(site_id).filter(message_id__in=running)
        for message_id, text in chunks.order_by("message_id", "content_offset", "reasoning_offset").values_list(
            "message_id", "content"
        ):
            so_far[message_id] += text
    turns = []
    for message in messages:
        text = message.content or so_far[message.pk]
        tool = None
        if message.role == Message.Role.TOOL:
            tool, text = tool_line(message.content)
        turns.append(
            Turn(
                message=message,
                text=text[:SHOWN_CHARS],
                rest=text[SHOWN_CHARS:],
                status_colour=STATUS_COLOURS[message.status],
                is_newest_version=message.version >= newest.get(message.reply_to_id, 0),
                attempts=attempts[message.pk],
                tool=tool,
            )
        )
    return turns


def tool_line(content: str) -> tuple[ToolLine, str]:
    """Return what the row of a tool run says (generation/tool_rows.py), and the tool's result."""
    try:
        said = json.loads(content)
    except ValueError:
        said = {}
    line = ToolLine(
        str(said.get("name", "")), str(said.get("arguments", "")), said.get("ms"), str(said.get("problem", ""))
    )
    return line, str(said.get("result", ""))


@admin.register(Conversation)
class ConversationAdmin(ScopedAdmin):
    """The list of conversations, and each with its transcript. A deleted one is hidden from managers at once."""

    list_display = ("header", "member", "site", "context", "message_count", "flags", "last_message_at")
    list_display_links = ("header",)
    list_filter = (SiteFilter, "is_archived", "is_pinned")
    list_select_related = ("site", "membership__user")
    search_fields = ("title", "context_id", "membership__nickname", "membership__user__username")
    search_help_text = _("Title, context id, nickname or user name")
    ordering = ("-last_message_at", "-pk")
    change_form_template = "admin/conversations/conversation/transcript.html"

    def get_queryset(self, request: HttpRequest) -> QuerySet[Conversation]:
        """Return the conversations this person may see."""
        rows = super().get_queryset(request)
        return rows if is_superuser(request) else rows.filter(deleted_at__isnull=True)

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """Return the transcript page; for a row this person may not see, what Django says of a missing row."""
        conversation = self.get_object(request, unquote(object_id))
        context = dict(extra_context or {})
        if conversation is not None:
            page = transcript_page(conversation, request.GET.get("page"), request.GET.get("message"))
            context |= {
                "conversation": conversation,
                "member": self.member(conversation),
                "page_obj": page,
                "page_range": page.paginator.get_elided_page_range(page.number, on_each_side=2, on_ends=1),
                "turns": turns_of(conversation, list(page.object_list)),
                "is_fullwidth": False,
            }
        return super().change_view(request, object_id, form_url, context)

    @display(description=_("conversation"), ordering="title", header=True)
    def header(self, conversation: Conversation) -> list[str]:
        """Return the title over the beginning of the last message."""
        return [str(conversation), conversation.last_message[:60]]

    @display(description=_("member"), ordering="membership__nickname")
    def member(self, conversation: Conversation) -> str:
        """Return who the conversation belongs to."""
        membership = conversation.membership
        return membership.nickname or membership.user.get_full_name() or membership.user.get_username()

    @display(description=_("context"), ordering="context_type")
    def context(self, conversation: Conversation) -> str:
        """Return what the conversation is about."""
        return " · ".join(filter(None, (conversation.context_type, conversation.context_id))) or "–"

    @display(description=_("state"), label=True)
    def flags(self, conversation: Conversation) -> list[Any]:
        """Return pinned, archived and deleted as words."""
        return [
            word
            for applies, word in (
                (conversation.is_pinned, _("pinned")),
                (conversation.is_archived, _("archived")),
                (conversation.deleted_at, _("deleted")),
            )
            if applies
        ]
