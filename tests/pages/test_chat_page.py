"""The chat page in a real browser, against a real server: what a person sees is what the server keeps."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.pages.browser import Browser, Page, find_chromium

pytestmark = pytest.mark.servers

# Slow enough to reload and to stop in the middle: 150 tokens of the scripted provider, 40 in a second.
SLOW = "请慢慢说 [[n=150 rate=40 seed=3]]"
LAST_REPLY = "[...document.querySelectorAll('.message--assistant')].at(-1)"
IS_DONE = f"{LAST_REPLY} && {LAST_REPLY}.dataset.status !== 'streaming'"
HAS_TEXT = f"{LAST_REPLY}?.dataset.status === 'streaming' && {LAST_REPLY}.replyText.length > 20"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """Return a running Chromium; without one there is nothing to test."""
    program = find_chromium()
    if program is None:
        pytest.skip("Debian's chromium is not installed")
    with Browser(program) as browser:
        yield browser


def sign_in(page: Page, demo_server: Any, username: str = "alice") -> None:
    page.open(demo_server.url)
    page.wait_for("document.querySelector('#username')?.getClientRects().length > 0")
    page.type("#username", username)
    page.type("#password", demo_server.password)
    page.click("#sign-in-button")


def desk(chromium: Browser, demo_server: Any, **options: str) -> Page:
    """Return a page on a desk, with Alice signed in."""
    page = chromium.page(width=1440, height=900, **options)
    sign_in(page, demo_server)
    page.wait_for("!document.querySelector('#app').hidden")
    return page


def send(page: Page, text: str) -> None:
    page.type("#composer-text", text)
    page.press_enter()


def last_reply(page: Page) -> dict[str, Any]:
    """Return the last reply as the page holds it."""
    reply: dict[str, Any] = page.ask(
        f"(() => {{ const r = {LAST_REPLY}; return {{id: Number(r.dataset.messageId), status: r.dataset.status,"
        " content: r.replyText, shown: r.querySelector('.prose').innerText.trim()}; })()"
    )
    return reply


def stored_messages(page: Page) -> list[dict[str, Any]]:
    """Return the messages of the open conversation, as GET answers them to this person."""
    messages: list[dict[str, Any]] = page.ask(
        "(async () => { const {json} = await import(document.querySelector('script[type=module]').src"
        ".replace('chat.js', 'api.js'));"
        " const page = await json(`/api/xcx/chat/${location.hash.slice(2)}/messages?pageSize=100`);"
        " return page.items; })()"
    )
    return messages


def stored(page: Page, message_id: int) -> dict[str, Any]:
    return next(message for message in stored_messages(page) if message["id"] == message_id)


def test_a_question_is_answered_on_the_page_and_kept(chromium: Browser, demo_server: Any) -> None:
    page = desk(chromium, demo_server)

    send(page, "你好")
    page.wait_for(IS_DONE)

    reply = last_reply(page)
    assert reply["status"] == "complete"
    assert reply["content"] == stored(page, reply["id"])["content"]
    assert "你好" in reply["shown"]
    assert page.ask("document.querySelector('.message--user .bubble').textContent") == "你好"
    assert page.complaints() == []


def test_a_reload_in_mid_reply_shows_the_rest_and_loses_nothing(chromium: Browser, demo_server: Any) -> None:
    page = desk(chromium, demo_server)
    send(page, SLOW)
    page.wait_for(HAS_TEXT)
    before = last_reply(page)

    page.reload()
    page.wait_for(f"{LAST_REPLY}?.dataset.messageId === '{before['id']}'")
    page.wait_for(IS_DONE)

    after = last_reply(page)
    assert after["id"] == before["id"]
    assert after["status"] == "complete"
    assert after["content"].startswith(before["content"])
    assert after["content"] == stored(page, after["id"])["content"]
    assert [message["role"] for message in stored_messages(page)] == ["user", "assistant"]
    assert page.ask("document.querySelectorAll('.message').length") == 2


def test_stop_ends_the_reply_and_keeps_what_was_shown(chromium: Browser, demo_server: Any) -> None:
    page = desk(chromium, demo_server)
    send(page, SLOW.replace("150", "1500"))
    page.wait_for(HAS_TEXT)

    page.click("#stop")
    page.wait_for(IS_DONE)

    reply = last_reply(page)
    assert reply["status"] == "stopped"
    assert reply["content"] == stored(page, reply["id"])["content"]
    page.wait_for("document.querySelector('#stop').hidden && !document.querySelector('#send').hidden")


def test_enter_that_chooses_a_word_in_an_input_method_does_not_send(chromium: Browser, demo_server: Any) -> None:
    page = desk(chromium, demo_server)
    page.type("#composer-text", "ni hao")

    page.ask(
        "for (const hint of [{isComposing: true}, {keyCode: 229}]) document.querySelector('#composer-text')"
        ".dispatchEvent(new KeyboardEvent('keydown', {key: 'Enter', bubbles: true, cancelable: true, ...hint}))"
    )

    assert page.ask("document.querySelector('#composer-text').value") == "ni hao"
    assert page.ask("document.querySelectorAll('.message').length") == 0


def test_on_a_phone_nothing_is_wider_than_the_screen(chromium: Browser, demo_server: Any) -> None:
    page = chromium.page(width=390, height=844, language="en-GB", scheme="dark")
    sign_in(page, demo_server)
    page.wait_for("!document.querySelector('#app').hidden")
    send(page, f"{'宽' * 80} {'x' * 300} [[n=300 seed=5]]")
    page.wait_for(IS_DONE)

    def too_wide() -> list[str]:
        """Return what sticks out, save what scrolls inside its own box and the drawer that waits outside."""
        outside: list[str] = page.ask(
            "[document.documentElement, ...document.querySelectorAll('body *')].filter((e) =>"
            " e.getClientRects().length && getComputedStyle(e).visibility === 'visible' &&"
            " !e.closest('pre, .table-box, .visually-hidden') && e.getBoundingClientRect().right > 390.5)"
            ".map((e) => `${e.tagName}.${e.className}`)"
        )
        return outside

    assert too_wide() == []
    assert page.ask("document.documentElement.scrollWidth") == 390
    page.click("#open-drawer")
    page.wait_for("document.querySelector('#sidebar').getBoundingClientRect().left === 0")
    assert too_wide() == []
    assert page.ask("document.querySelector('#new-chat').innerText.trim()") == "New chat"


def test_a_member_who_waits_sees_that_they_wait(chromium: Browser, demo_server: Any) -> None:
    page = chromium.page(width=1440, height=900)

    sign_in(page, demo_server, "dave")
    page.wait_for("!document.querySelector('#waiting').hidden")

    assert page.ask("document.querySelector('#waiting-title').textContent") == "正在等待批准"
    assert page.ask("document.querySelector('#app').hidden") is True


def test_markdown_grown_bit_by_bit_is_markdown_shown_at_once(chromium: Browser, demo_server: Any) -> None:
    page = chromium.page(width=1440, height=900)
    page.open(demo_server.url)
    samples = [
        "# 标题\n\n文字 **粗** *斜* `a`\n第二行\n\n- 一\n  - 二\n\n  段\n- 三\n\n1. 甲\n2. 乙\n\n---\n完",
        "前\na | b\n--|:-:\n1 | 2\\|3\n\n> 引\n> - 点\n\n```py\nx = 1\n\n```\n后 https://example.com/a。",
        "```\n没有结束的代码\n``",
        "<img src=x onerror=alert(1)> [坏](javascript:alert(1)) ![图](https://example.com/x.png) **未完",
    ]

    rendered = page.ask(
        "(async () => { const {MarkdownView} = await import(document.querySelector('script[type=module]').src"
        f".replace('chat.js', 'markdown.js')); const samples = {json.dumps(samples)};"
        " return samples.map((text) => { const whole = document.createElement('div'); new MarkdownView(whole)"
        ".show(text, true); const grown = document.createElement('div'); const view = new MarkdownView(grown);"
        " for (let end = 1; end <= text.length; end += 1) view.show(text.slice(0, end)); view.show(text, true);"
        " return [whole.innerHTML, grown.innerHTML,"
        " whole.querySelectorAll('img, script, a[href^=javascript]').length]; }); })()"
    )

    for whole, grown, unsafe in rendered:
        assert grown == whole
        assert unsafe == 0
    assert [html.count("<table") for html, _, _ in rendered] == [0, 1, 0, 0]


def test_a_reply_shows_what_it_leans_on_and_still_does_after_a_reload(chromium: Browser, demo_server: Any) -> None:
    page = desk(chromium, demo_server)
    card = f"{LAST_REPLY}?.querySelector('.leaning')"
    send(page, "退款多久能收到？")
    page.wait_for(f"{IS_DONE} && Boolean({card})")
    assert page.ask(f"{card}.querySelector('.leaning-title').textContent") == "多久能收到退款"
    assert "三个工作日" in page.ask(f"{card}.querySelector('.leaning-sources').textContent")
    assert page.ask(f"{card}.querySelector('a').getAttribute('href')") == "/"
    page.reload()
    page.wait_for(f"Boolean({card})")
    assert page.ask(f"{card}.querySelector('.leaning-title').textContent") == "多久能收到退款"
