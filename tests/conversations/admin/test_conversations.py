"""The list of conversations, and the transcript of one."""

from __future__ import annotations

import re

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from conversations.admin.conversations import MESSAGES_PER_PAGE, SHOWN_CHARS
from conversations.models import Conversation, Generation
from tests.conversations.admin.people import client_of, make_manager
from tests.world import (
    World,
    fold_text,
    make_conversation,
    make_exchange,
    make_message,
    make_running_reply,
    make_worker,
)


@pytest.fixture
def manager(world: World) -> Client:
    return client_of(make_manager(world.acorn, "erin").user)


def transcript(client: Client, chat: Conversation, query: str = "") -> str:
    """Return the page of one conversation, without runs of white space."""
    answer = client.get(reverse("admin:conversations_conversation_change", args=[chat.pk]) + query)
    assert answer.status_code == 200
    return re.sub(r"\s+", " ", answer.content.decode())


def test_a_transcript_shows_who_said_what(world: World, manager: Client) -> None:
    chat = make_conversation(world.alice, title="天气")
    make_exchange(chat, "今天天气如何？", "晴，二十度。")
    page = transcript(manager, chat)
    assert page.index("爱丽丝") < page.index("今天天气如何？") < page.index("晴，二十度。")
    assert "助手" in page and "<code>stop</code>" in page


def test_what_was_said_is_text_and_never_markup(world: World, manager: Client) -> None:
    chat = make_conversation(world.alice, title="<b>标题</b>")
    make_exchange(chat, "<script>alert(1)</script>", '<img src=x onerror="alert(2)"> & {{ 1 }} {% now "Y" %}')
    page = transcript(manager, chat)
    for markup in ("<script>alert(1)", "<img src=x", "<b>标题"):
        assert markup not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "&lt;img src=x onerror=&quot;alert(2)&quot;&gt; &amp; {{ 1 }} {% now &quot;Y&quot; %}" in page


def test_line_breaks_and_spaces_of_a_text_arrive_unchanged(world: World, manager: Client) -> None:
    chat = make_conversation(world.alice)
    make_exchange(chat, "问", "第一行\n\n  缩进\t制表")
    answer = manager.get(reverse("admin:conversations_conversation_change", args=[chat.pk]))
    assert '<div class="said">第一行\n\n  缩进\t制表</div>' in answer.content.decode()


def test_reasoning_is_folded_away_and_stands_apart(world: World, manager: Client) -> None:
    chat = make_conversation(world.alice)
    make_message(chat, "答案", role="assistant", reasoning="先想一想", finish_reason="stop")
    page = transcript(manager, chat)
    assert '<details class="reasoning"> <summary>思考过程</summary> <div class="said">先想一想</div>' in page


@pytest.mark.parametrize(
    ("status", "word"),
    [("stopped", "已停止"), ("failed", "失败"), ("interrupted", "已中断"), ("truncated", "已截断")],
)
def test_a_reply_that_did_not_complete_says_so(world: World, manager: Client, status: str, word: str) -> None:
    chat = make_conversation(world.alice)
    make_message(chat, "半句", role="assistant", status=status, error_code="provider_timeout")
    page = transcript(manager, chat)
    assert re.search(rf'<span class="chip chip-\w+">{word}</span>', page)
    assert "<code>provider_timeout</code>" in page


def test_every_attempt_at_a_reply_is_listed_with_its_times(world: World, manager: Client) -> None:
    chat = make_conversation(world.alice)
    _question, reply = make_exchange(chat)
    now = timezone.now()
    for attempt, status in ((1, "failed"), (2, "complete")):
        Generation.across_sites.create(
            site=world.acorn,
            message=reply,
            attempt=attempt,
            endpoint_name=f"接入点{attempt}",
            status=status,
            worker_id=1,
            queued_at=now,
            first_token_at=now + timezone.timedelta(milliseconds=420) if attempt == 2 else None,
            finished_at=now + timezone.timedelta(seconds=2.5),
            input_tokens=31,
            output_tokens=4,
        )
    page = transcript(manager, chat)
    assert "2 次尝试" in page
    assert page.index("接入点1") < page.index("接入点2")
    assert "首字耗时 420 ms" in page and "总耗时 2.5 s" in page and "≈ 31 / 4 词元" in page


def test_a_running_reply_shows_what_is_stored_of_it(world: World, manager: Client) -> None:
    chat = make_conversation(world.alice)
    _question, reply = make_running_reply(chat, make_worker())
    assert "尚无已保存的文字。" in transcript(manager, chat)
    fold_text(reply, 0, "从前有")
    fold_text(reply, 3, "座山")
    page = transcript(manager, chat)
    assert '<div class="said">从前有座山</div>' in page and "生成中" in page


def test_an_earlier_version_of_an_answer_is_marked(world: World, manager: Client) -> None:
    chat = make_conversation(world.alice)
    question, first = make_exchange(chat, "再说一遍", "旧答案")
    second = make_message(chat, "新答案", role="assistant", reply_to=question, version=2)
    page = transcript(manager, chat)
    assert f'class="turn turn-assistant turn-old" id="m-{first.pk}"' in page
    assert f'class="turn turn-assistant" id="m-{second.pk}"' in page
    assert "版本 1" in page and "版本 2" in page


def test_a_very_long_text_shows_its_beginning_and_the_rest_on_demand(world: World, manager: Client) -> None:
    chat = make_conversation(world.alice)
    make_message(chat, "长" * SHOWN_CHARS + "尾巴", role="assistant")
    page = transcript(manager, chat)
    assert '其余 2 个字符</summary><div class="said">尾巴</div>' in page


def test_a_long_conversation_opens_at_its_end_and_has_pages(world: World, manager: Client) -> None:
    chat = make_conversation(world.alice)
    messages = [make_message(chat, f"第{number}句") for number in range(2 * MESSAGES_PER_PAGE + 1)]
    last, first = transcript(manager, chat), transcript(manager, chat, "?page=1")
    assert f"第{2 * MESSAGES_PER_PAGE}句" in last and "第0句" not in last
    assert "第0句" in first and f"第{MESSAGES_PER_PAGE}句" not in first
    assert f'id="m-{messages[50].pk}"' in transcript(manager, chat, f"?message={messages[50].pk}")


@pytest.mark.parametrize(
    "query", ["?page=0", "?page=x", "?page=999", "?message=x", "?message=" + "9" * 30, "?page="]
)
def test_a_page_that_does_not_exist_is_the_nearest_that_does(world: World, manager: Client, query: str) -> None:
    chat = make_conversation(world.alice)
    make_message(chat, "只有一句")
    assert "只有一句" in transcript(manager, chat, query)


def test_an_empty_conversation_says_that_nothing_was_said(world: World, manager: Client) -> None:
    assert "还没有人说话。" in transcript(manager, make_conversation(world.alice))


def test_nobody_changes_what_was_said(world: World, manager: Client) -> None:
    chat = make_conversation(world.alice, title="原题")
    url = reverse("admin:conversations_conversation_change", args=[chat.pk])
    assert manager.post(url, {"title": "改题"}).status_code == 403
    chat.refresh_from_db()
    assert chat.title == "原题"


def test_a_deleted_conversation_is_hidden_from_the_manager(world: World, manager: Client) -> None:
    chat = make_conversation(world.alice, title="删掉的", deleted_at=timezone.now())
    assert "删掉的" not in manager.get("/admin/conversations/conversation/").content.decode()
    assert manager.get(f"/admin/conversations/conversation/{chat.pk}/change/").status_code == 302


def test_a_page_of_messages_costs_the_same_number_of_queries(world: World, manager: Client) -> None:
    chat = make_conversation(world.alice)
    counts = []
    for more in (1, 5):
        for _ in range(more):
            _question, reply = make_exchange(chat)
            Generation.across_sites.create(
                site=world.acorn, message=reply, worker_id=1, queued_at=timezone.now(), status="complete"
            )
        transcript(manager, chat)
        with CaptureQueriesContext(connection) as queries:
            transcript(manager, chat)
        counts.append(len(queries))
    assert counts[0] == counts[1]


def test_a_reply_shows_what_it_leans_on_as_text(world: World, manager: Client) -> None:
    chat = make_conversation(world.alice)
    _, reply = make_exchange(chat)
    reply.reference_card = {
        "type": "knowledge",
        "title": "<b>退款</b>",
        "summary": "",
        "sources": [{"title": "手册", "excerpt": "三个工作日", "score": 0.521, "documentId": 1}],
    }
    reply.save()
    page = transcript(manager, chat)
    assert "依据 &lt;b&gt;退款&lt;/b&gt;" in page
    assert "<strong>手册</strong> <code>0.52</code> 三个工作日" in page
