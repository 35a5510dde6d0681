"""What a member is looking at: page sources that a site defines, and what they say to one question.

A text with placeholders, or a call to the site's own backend. It goes into the prompt (`enrich`), never into the
stored question; a source that fails is logged, and the reply goes on without it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from conversations.context.cards import make_card
from conversations.models import PageSource
from providers.calls import CallFailed, call_backend, check_text, compile_call, fill_text
from providers.errors import ProviderError
from providers.fields import secret_of
from providers.types import storable

log = logging.getLogger(__name__)

TEXT_MAX_CHARS = 8000
SOURCES_MAX = 5
CONTEXT_MAX_CHARS = 32_768
CONTEXT_MAX_DEPTH = 16
CONTEXT_MAX_VALUES = 2000

NAMES = frozenset({"sourcePage", "pageContext", "question", "member"})
"""What a template may name; a request `secret` too, and texts about an answer `result`."""
REQUEST_FIELDS = frozenset({"method", "url", "headers", "query", "body"})
CARD_FIELDS = frozenset({"title", "summary", "url", "data"})


@dataclass(frozen=True, slots=True)
class Visit:
    """A question, the page it was asked on, and who asks."""

    site_id: int
    page: str
    context: Mapping[str, Any] = field(repr=False)
    question: str = field(repr=False)
    user_id: int
    membership_id: int
    role: str
    nickname: str = field(repr=False)

    @property
    def member(self) -> dict[str, Any]:
        """Who asks, as templates and backends see it."""
        return {
            "userId": self.user_id,
            "membershipId": self.membership_id,
            "role": self.role,
            "nickname": self.nickname,
        }

    def values(self) -> dict[str, Any]:
        """Return what templates may name."""
        return {
            "sourcePage": self.page,
            "pageContext": dict(self.context),
            "question": self.question,
            "member": self.member,
        }


@dataclass(frozen=True, slots=True)
class PageAnswer:
    """What a source says: words for the model, and a card when it has one."""

    name: str
    text: str = field(repr=False)
    card: dict[str, Any] | None = None


def context_trouble(value: Mapping[str, Any]) -> str | None:
    """Return what is wrong with the size of a pageContext, None when nothing is."""
    layer: list[Any] = [value]
    values = chars = 0
    for _ in range(CONTEXT_MAX_DEPTH):
        inner: list[Any] = []
        for item in layer:
            if isinstance(item, dict):
                chars += sum(map(len, item))
                inner += item.values()
            elif isinstance(item, list):
                inner += item
            elif isinstance(item, str):
                chars += len(item)
            else:
                chars += len(str(item))
        values += len(inner)
        if values > CONTEXT_MAX_VALUES or chars > CONTEXT_MAX_CHARS:
            return f"must have at most {CONTEXT_MAX_VALUES} values and {CONTEXT_MAX_CHARS} characters"
        if not inner:
            return None
        layer = inner
    return f"must not be nested more than {CONTEXT_MAX_DEPTH} levels deep"


def check_source(source: PageSource) -> None:
    """Return nothing when a source can be used. Raises: ValueError `<field>: <what is wrong>`."""
    if not isinstance(source.request, dict):
        raise ValueError("request: must be a JSON object")
    if source.kind == PageSource.Kind.TEXT:
        if not source.template.strip():
            raise ValueError("template: is missing")
        _check("template", source.template, NAMES)
        if set(source.request) - {"card"}:
            raise ValueError("request: a text has none but its card")
    else:
        config = source.request
        if unknown := sorted(set(config) - REQUEST_FIELDS - {"card"}):
            raise ValueError(f"request: {unknown[0]} is unknown")
        try:
            compile_call(_request_of(config), names=NAMES | {"secret"})
        except ValueError as error:
            raise ValueError(f"request: {error}") from error
        _check("template", source.template, NAMES | {"result"})
    card = source.request.get("card")
    if card is None:
        return
    if not isinstance(card, dict) or set(card) - CARD_FIELDS or not isinstance(card.get("title"), str):
        raise ValueError("request: card must have a title, and may have summary, url and data")
    if not all(isinstance(text, str) for text in card.values()):
        raise ValueError("request: card must hold texts")
    for text in card.values():
        _check("request", text, NAMES | {"result"})


def _check(name: str, text: str, names: frozenset[str]) -> None:
    try:
        check_text(text, names=names)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def sources_for(site_id: int, page: str) -> list[PageSource]:
    """Return the active sources of a page, by name; none for a question without one."""
    if not page:
        return []
    rows: Iterable[PageSource] = PageSource.objects.for_site(site_id).filter(is_active=True).order_by("name")
    return [source for source in rows if matches(source.page, page)][:SOURCES_MAX]


def matches(pattern: str, page: str) -> bool:
    """Return whether a page is meant by a pattern, in which * stands for anything; case does not matter."""
    # By hand: a regular expression with many stars takes for ever on a page made for it.
    page = page.casefold()
    first, *others = pattern.casefold().split("*")
    if not others:
        return page == first
    last = others.pop()
    if not (page.startswith(first) and page.endswith(last) and len(page) >= len(first) + len(last)):
        return False
    place, end = len(first), len(page) - len(last)
    for part in others:
        place = page.find(part, place, end)
        if place < 0:
            return False
        place += len(part)
    return True


async def ask_pages(sources: Iterable[PageSource], visit: Visit, *, trace: Mapping[str, Any]) -> list[PageAnswer]:
    """Return what the sources say, all asked at once, in their order; those that fail are left out."""
    answers = await asyncio.gather(*(_ask(source, visit, trace) for source in sources))
    return [answer for answer in answers if answer is not None]


async def _ask(source: PageSource, visit: Visit, trace: Mapping[str, Any]) -> PageAnswer | None:
    try:
        return await ask_page(source, visit)
    except (CallFailed, ProviderError) as error:
        code = error.code
    except ValueError:  # a template that was sound when it was stored, by an older version
        code = "bad_template"
    log.warning("page_source_failed", extra={**trace, "source": source.pk, "code": code})
    return None


async def ask_page(source: PageSource, visit: Visit) -> PageAnswer:
    """Return what one source says. Raises: CallFailed, Misconfigured, ValueError."""
    values = visit.values()
    if source.kind == PageSource.Kind.HTTP:
        answer = await call_backend(
            compile_call(_request_of(source.request), names=NAMES | {"secret"}),
            values,
            secret=secret_of(source, "secret"),
            key_id=f"site-{visit.site_id}",
            identity={"site": visit.site_id, **visit.member},
        )
        values["result"] = answer.value
        text = fill_text(source.template, values) if source.template.strip() else answer.text
    else:
        text = fill_text(source.template, values)
    text = storable(text).strip()[:TEXT_MAX_CHARS]
    return PageAnswer(source.name, text, _card(source, values, text))


def _request_of(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name in REQUEST_FIELDS}


def _card(source: PageSource, values: Mapping[str, Any], text: str) -> dict[str, Any] | None:
    """Return the card that the source describes, None when it describes none or its title is empty."""
    card = source.request.get("card") if isinstance(source.request, dict) else None
    if not card:
        return None
    said = {name: fill_text(template, values) for name, template in card.items()}
    if not said["title"].strip():
        return None
    return make_card(
        "page",
        title=said["title"],
        summary=said.get("summary", ""),
        url=said.get("url", ""),
        data={"text": said["data"]} if said.get("data") else None,
        sources=[{"title": source.name, "excerpt": text[:300], "score": None, "documentId": None}],
    )
