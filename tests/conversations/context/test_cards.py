"""Reference cards: one shape, whoever knew."""

from __future__ import annotations

from typing import Any

import pytest

from conversations.context.cards import (
    card_from_documents,
    card_from_passages,
    make_card,
    merge_cards,
    web_link,
    without_document,
)
from conversations.context.knowledge import FoundPassage


def passage(document: int, text: str, score: float) -> FoundPassage:
    return FoundPassage(int(score * 100), document, f"手册{document}", "甲 › 乙", text, score)


def test_each_document_gives_its_best_passage() -> None:
    card = card_from_passages([passage(1, "一", 0.9), passage(1, "二", 0.8), passage(2, "三", 0.7)])
    assert (card["title"], card["summary"], "url" in card) == ("乙", "一", False)
    assert [(source["documentId"], source["excerpt"]) for source in card["sources"]] == [(1, "一"), (2, "三")]


def test_a_card_forgets_a_document_with_its_words_and_its_link() -> None:
    first, second = passage(1, "一", 0.9), passage(2, "三", 0.7)
    card = {**card_from_passages([first, second]), "url": "https://example.com/1"}
    assert without_document(card, 1) == {
        "type": "knowledge",
        "title": "手册2",
        "summary": "三",
        "sources": card["sources"][1:],
    }
    assert without_document(card, 2) == {**card, "sources": card["sources"][:1]}
    assert without_document(card_from_passages([first]), 1) is None
    page = make_card("page", title="订单", summary="在路上", sources=[{"title": "订单", "documentId": None}])
    assert without_document(merge_cards(page, card) or {}, 1) == {
        **page,
        "sources": [*page["sources"], card["sources"][1]],
    }


def test_a_vendors_documents_become_sources_with_its_ids_and_no_score() -> None:
    card = card_from_documents(
        {
            "documents": [
                {
                    "index": 1,
                    "title": "手册1",
                    "id": "file_9",
                    "name": "x",
                    "url": "https://a.example/1",
                    "text": "内容",
                },
                {"index": 2, "name": "只有名字", "text": None, "images": ["…"]},
                "garbage",
            ]
        }
    )
    assert card == {
        "type": "documents",
        "title": "手册1",
        "summary": "内容",
        "url": "https://a.example/1",
        "sources": [
            {"title": "手册1", "excerpt": "内容", "score": None, "documentId": "file_9"},
            {"title": "只有名字", "excerpt": "", "score": None, "documentId": None},
        ],
    }


@pytest.mark.parametrize("vendor", [None, {}, {"documents": []}, {"documents": "x"}, {"documents": [5]}])
def test_no_documents_are_no_card(vendor: Any) -> None:
    assert card_from_documents(vendor) is None


def test_cards_are_merged_with_each_source_once() -> None:
    one = make_card("knowledge", title="一", sources=[{"title": "a"}])
    two = make_card("page", title="二", sources=[{"title": "a"}, {"title": "b"}])
    assert merge_cards(one, two) == {**one, "sources": [{"title": "a"}, {"title": "b"}]}
    assert (merge_cards(None, two), merge_cards(one, None), merge_cards(None, None)) == (two, one, None)


@pytest.mark.parametrize(
    ("url", "link"),
    [
        ("https://a.example/x", "https://a.example/x"),
        ("/help", "/help"),
        ("//evil.example", ""),
        ("/\\evil.example", ""),
        ("javascript:alert(1)", ""),
        ("data:text/html,x", ""),
        ("https://a.example/ b", ""),
        ("", ""),
    ],
)
def test_only_links_of_the_web_are_kept(url: str, link: str) -> None:
    assert web_link(url) == link


def test_what_cannot_be_stored_or_is_long_is_mended() -> None:
    card = make_card("tool", title="长" * 500, summary="a\0b\n\n c")
    assert (len(card["title"]), card["title"][-1], card["summary"]) == (200, "…", "a\ufffdb c")
