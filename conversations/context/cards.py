"""The reference card of a reply: what it leans on, in the one shape that clients know.

`{type, title, summary, url?, data?, sources: [{title, excerpt, score, documentId}]}`
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from providers.types import storable

if TYPE_CHECKING:
    from conversations.context.knowledge import FoundPassage

CardType = Literal["knowledge", "page", "tool", "documents"]

TITLE_CHARS = 200
SUMMARY_CHARS = 200
EXCERPT_CHARS = 300
SOURCES_MAX = 10
URL_CHARS = 2000


def make_card(
    card_type: CardType,
    *,
    title: str,
    summary: str = "",
    url: str = "",
    data: Mapping[str, Any] | None = None,
    sources: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """Return a card; a link that is none of the web's, and data that is not there, are left out."""
    card: dict[str, Any] = {
        "type": card_type,
        "title": shorten(title, TITLE_CHARS),
        "summary": shorten(summary, SUMMARY_CHARS),
    }
    if link := web_link(url):
        card["url"] = link
    if data:
        card["data"] = dict(data)
    card["sources"] = [dict(source) for source in sources[:SOURCES_MAX]]
    return card


def card_from_passages(passages: Iterable[FoundPassage], *, card_type: CardType = "knowledge") -> dict[str, Any]:
    """Return the card of passages that were found, best first; each document gives its best passage.

    Raises: ValueError when there are none.
    """
    best: dict[int, FoundPassage] = {}
    for passage in passages:
        best.setdefault(passage.document_id, passage)
    if not best:
        raise ValueError("a card needs at least one passage")
    first = next(iter(best.values()))
    return make_card(
        card_type,
        title=first.heading.rpartition(" › ")[2] or first.title,
        summary=first.text,
        url=first.url,
        sources=[source_of(passage) for passage in best.values()],
    )


def source_of(passage: FoundPassage) -> dict[str, Any]:
    """Return one source of a card."""
    return {
        "title": shorten(passage.title, TITLE_CHARS),
        "excerpt": shorten(passage.text, EXCERPT_CHARS),
        "score": round(passage.score, 4),
        "documentId": passage.document_id,
    }


def card_from_documents(vendor: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return the card of a vendor's own document references, None when it named none.

    `{"documents": [{"index", "title", "id", "name", "url", "text", "pages", "images"}]}` is what our clients of
    vendors give; their documents have ids of the vendor's, and no score.
    """
    documents = vendor.get("documents") if vendor else None
    if not isinstance(documents, Sequence) or isinstance(documents, str):
        return None
    known = [document for document in documents if isinstance(document, Mapping)]
    if not known:
        return None
    first = known[0]
    return make_card(
        "documents",
        title=_text(first, "title", "name"),
        summary=_text(first, "text"),
        url=_text(first, "url"),
        sources=[
            {
                "title": shorten(_text(document, "title", "name"), TITLE_CHARS),
                "excerpt": shorten(_text(document, "text"), EXCERPT_CHARS),
                "score": None,
                "documentId": _text(document, "id") or None,
            }
            for document in known
        ],
    )


def merge_cards(card: Mapping[str, Any] | None, other: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return one card: the first one's words, with the sources of both, each once."""
    if card is None or other is None:
        known = card if other is None else other
        return None if known is None else dict(known)
    sources = list(card.get("sources", []))
    for source in other.get("sources", []):
        if source not in sources:
            sources.append(source)
    return {**card, "sources": sources[:SOURCES_MAX]}


def without_document(card: Mapping[str, Any], document_id: int) -> dict[str, Any] | None:
    """Return a card without what it says of a document of ours; None when it says nothing else."""
    sources = list(card.get("sources", []))
    kept = [source for source in sources if source.get("documentId") != document_id]
    first = sources[0] if sources else {}
    if card.get("type") != "knowledge" or first.get("documentId") != document_id:
        return {**card, "sources": kept}
    if not kept:
        return None
    # The words of the card were that document's.
    words = {"title": kept[0]["title"], "summary": shorten(kept[0]["excerpt"], SUMMARY_CHARS), "sources": kept}
    return {**{name: value for name, value in card.items() if name != "url"}, **words}


def shorten(text: str, most: int) -> str:
    """Return the text on one line, cut with an ellipsis; storable, wherever it came from."""
    plain = " ".join(storable(text).split())
    return plain if len(plain) <= most else plain[: most - 1] + "…"


def web_link(url: str) -> str:
    """Return the address if a browser may follow it: the web's, or a path of this site; "" otherwise."""
    url = storable(url).strip()
    is_path = url.startswith("/") and not url.startswith(("//", "/\\"))
    is_web = url.lower().startswith(("https://", "http://"))
    return url if (is_path or is_web) and len(url) <= URL_CHARS and not any(map(str.isspace, url)) else ""


def _text(document: Mapping[str, Any], *names: str) -> str:
    """Return the first of these fields that has something to read."""
    for name in names:
        value = document.get(name)
        if value is not None and not isinstance(value, (list, dict, bool)) and str(value).strip():
            return str(value)
    return ""
