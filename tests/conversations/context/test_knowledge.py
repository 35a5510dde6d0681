"""Search in what a site knows."""

from __future__ import annotations

import pytest

from conversations.context.cards import card_from_passages
from conversations.context.documents import add_document, delete_document
from conversations.context.knowledge import search_passages
from conversations.db import tenant
from conversations.models import Document, Membership, Message, Site
from tests.world import World, make_conversation, make_exchange

pytestmark = pytest.mark.django_db

FAQ = """# 退款

## 多久能收到退款？
审核通过后，款项在三个工作日内原路退回。

## 运费谁承担？
质量问题由商家承担运费，其他情况由买家承担。

# 会员

## 如何升级为 VIP 会员？
累计消费满 2000 元，系统自动升级；refunds 不计入。

## 税
开具增值税发票请联系客服，税率为 6%。
"""


def know(site: Site, text: str = FAQ, *, filename: str = "帮助.md", title: str = "") -> Document:
    with tenant(site.pk):
        return add_document(site.pk, filename=filename, content=text.encode(), title=title)


def found(site: Site, query: str, limit: int = 3) -> list[str]:
    with tenant(site.pk):
        return [passage.heading for passage in search_passages(site.pk, query, limit=limit)]


def test_the_passage_that_answers_comes_first(world: World) -> None:
    know(world.acorn)
    assert found(world.acorn, "钱退回来要多久，几个工作日？")[0] == "退款 › 多久能收到退款？"


@pytest.mark.parametrize("query", ["运费", "VIP", "vip", "ＶＩＰ", "2000", "refund", "发票"])
def test_two_characters_or_one_word_are_enough(world: World, query: str) -> None:
    know(world.acorn)
    assert len(found(world.acorn, query)) == 1


def test_one_character_is_found_in_the_middle_and_at_the_end_of_words(world: World) -> None:
    know(world.acorn, "# 甲\n应缴的税\n\n# 乙\n税率为百分之六\n\n# 丙\n别的事情")
    assert sorted(found(world.acorn, "税")) == ["乙", "甲"]


def test_a_query_without_words_finds_nothing(world: World) -> None:
    know(world.acorn)
    assert [found(world.acorn, query) for query in ("", "？！", "🙂", "\\ ' & | :*", "不存在之词汇组")] == [[]] * 5


def test_another_site_finds_nothing(world: World) -> None:
    know(world.acorn)
    know(world.birch, "# 别家\n运费我们包")
    assert found(world.birch, "运费") == ["别家"]
    assert found(world.acorn, "运费") == ["退款 › 运费谁承担？"]


def test_scores_fall_from_the_best_and_lie_between_nought_and_one(world: World) -> None:
    know(world.acorn)
    with tenant(world.acorn.pk):
        passages = search_passages(world.acorn.pk, "退款的运费由买家承担吗")
    scores = [passage.score for passage in passages]
    assert scores == sorted(scores, reverse=True)
    assert 0 < scores[-1] <= scores[0] <= 1


def reply_leaning_on(member: Membership, query: str) -> Message:
    _question, reply = make_exchange(make_conversation(member), query, "好")
    with tenant(member.site_id):
        reply.reference_card = card_from_passages(search_passages(member.site_id, query, limit=1))
        reply.save(update_fields=["reference_card"])
    return reply


def test_a_deleted_document_is_on_no_card_any_more(world: World) -> None:
    document = know(world.acorn)
    know(world.birch)
    ours, theirs = reply_leaning_on(world.alice, "运费谁承担"), reply_leaning_on(world.carol, "运费谁承担")
    other = theirs.reference_card
    with tenant(world.acorn.pk):
        delete_document(document)
    ours.refresh_from_db()
    theirs.refresh_from_db()
    assert (ours.reference_card, ours.content, theirs.reference_card) == (None, "好", other)
