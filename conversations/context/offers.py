"""Which tools a reply is offered: the built-in ones and the site's own that its site has switched on."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from conversations.context.builtin_tools import BUILT_IN, Occasion
from conversations.context.http_tools import tool_of
from conversations.context.tools import Tool, Toolbox
from conversations.db import tenant
from conversations.models import Conversation, SiteTool
from providers.errors import Misconfigured

log = logging.getLogger(__name__)


def load_toolbox(site_id: int, names: Sequence[str], *, chat_id: int, question_id: int) -> Toolbox | None:
    """Return the tools of these names, bound to this reply; None when the site has none of them.

    A tool that is switched off, gone, or cannot be used any more is left out; the last is logged.
    """
    with tenant(site_id):
        chat = (
            Conversation.objects.for_site(site_id).select_related("membership", "site").filter(pk=chat_id).first()
        )
        if chat is None:
            return None
        own = {
            row.name: row
            for row in SiteTool.objects.for_site(site_id).filter(name__in=list(names), is_active=True)
        }
    member = chat.membership
    occasion = Occasion(
        site_id=site_id,
        site_slug=chat.site.slug,
        chat_id=chat_id,
        question_id=question_id,
        membership_id=member.pk,
        user_id=member.user_id,
        role=member.role,
        nickname=member.nickname,
    )
    tools: list[Tool] = []
    for name in dict.fromkeys(names):
        if make := BUILT_IN.get(name):
            tools.append(make(occasion))
        elif row := own.get(name):
            try:
                tools.append(tool_of(row, occasion))
            except (Misconfigured, ValueError) as error:
                log.error("tool_left_out", extra={"site": site_id, "tool": name, "error": type(error).__name__})
    return Toolbox(tools) if tools else None


def known_tools(site_id: int | None) -> list[str]:
    """Return the names that a site may switch on: the built-in ones, then its own."""
    own = (
        []
        if site_id is None
        else SiteTool.objects.for_site(site_id).order_by("name").values_list("name", flat=True)
    )
    return [*BUILT_IN, *own]
