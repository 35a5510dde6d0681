"""The DashScope application client: its requests against the captured ones, every framing, lost sessions."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import httpx
import pytest

from providers import errors
from providers.base import ChatProvider
from providers.clients.dashscope_app import DashScopeAppProvider, app_url
from providers.clients.dashscope_reducer import AppReducer
from providers.credentials import Secret
from providers.http import HttpPolicy, new_client
from providers.types import ChatMessage, ChatRequest, Delta, Finished, Usage
from tests.fakes.provider import FakeProvider, expected_text
from tests.providers.conftest import Answer, Transport, collect

WIRE = Path(__file__).parents[2] / "wire"
CAPTURES = {
    capture["name"]: capture
    for capture in json.loads((WIRE / "dashscope" / "requests.json").read_text())["captures"]
}
VARIANTS = {
    variant["name"]: variant["response"]
    for variant in json.loads((WIRE / "dashscope" / "response_variants.json").read_text())["variants"]
}
CORPUS = [
    case
    for path in sorted((WIRE / "sse_corpus").glob("*.json"))
    if (case := json.loads(path.read_text()))["protocol"].startswith("dashscope_app")
]
SESSION = "6105c965c31b40958a43dc93c28c7a59"
ASK = (ChatMessage("user", "你是谁？"),)
TALK = (
    ChatMessage("system", "你是助手"),
    ChatMessage("user", "第一问"),
    ChatMessage("assistant", "第一答"),
    ChatMessage("user", "第二问"),
)


def exchange(
    answers: list[httpx.Response], request: ChatRequest | None = None, *, is_tapped: bool = False, **options: Any
) -> tuple[Answer, list[httpx.Request]]:
    """Return what the provider streams when the server answers so, one after the other, and what it was asked."""
    requests: list[httpx.Request] = []

    def handler(sent: httpx.Request) -> httpx.Response:
        requests.append(sent)
        return answers[len(requests) - 1]

    async def go() -> Answer:
        answer = Answer()

        def tap(text: str, reasoning: str) -> bool:
            answer.deltas.append(Delta(text, reasoning))
            return True

        async with httpx.AsyncClient(transport=httpx.MockTransport(handler)) as client:
            options.setdefault("base_url", "http://127.0.0.1:39085/api/v1")
            options.setdefault("model", "APP_ID_0123456789")
            provider = DashScopeAppProvider(api_key=Secret("sk-test"), client=lambda: client, **options)
            assert isinstance(provider, ChatProvider)
            async with aclosing(
                provider.stream(request or ChatRequest(ASK), tap=tap if is_tapped else None)
            ) as items:
                try:
                    async for item in items:
                        if isinstance(item, Finished):
                            answer.finished = item
                        else:
                            answer.deltas.append(item)
                except errors.ProviderError as error:
                    answer.error = error
        return answer

    return asyncio.run(go()), requests


def response(given: dict[str, Any]) -> httpx.Response:
    """Return a kept response."""
    return httpx.Response(
        given["status"], headers=given["headers"], stream=httpx.ByteStream(given["body"].encode())
    )


def frames(*values: dict[str, Any] | str) -> httpx.Response:
    """Return an event stream of these outputs; a string stands as it is."""
    text = "".join(
        value
        if isinstance(value, str)
        else "event:result\n:HTTP_STATUS/200\ndata:"
        + json.dumps({"output": value, "usage": {}, "request_id": "r1"}, ensure_ascii=False)
        + "\n\n"
        for value in values
    )
    return response({"status": 200, "headers": {"Content-Type": "text/event-stream"}, "body": text})


def whole(text: str = "好", session: str = SESSION) -> httpx.Response:
    """Return a complete streamed answer."""
    return frames({"text": text, "finish_reason": "stop", "session_id": session})


def refused(status: int, code: str, message: str) -> httpx.Response:
    """Return an HTTP error as this vendor writes it."""
    return httpx.Response(status, json={"code": code, "message": message, "request_id": "r-err"})


# --- what is asked ---


@pytest.mark.parametrize(
    ("name", "request_fields", "params"),
    [
        ("sync_prompt", {}, {"whole": True}),
        (
            "sync_session_biz_params",
            {
                "messages": (*TALK, ChatMessage("user", "你好")),
                "vendor_session": SESSION,
                "biz_params": {"User_ID": "7", "Role": "coach", "Nickname": "老王"},
            },
            {"whole": True, "workspace": "ws_abc"},
        ),
        (
            "stream_incremental",
            {"messages": (*TALK, *ASK), "vendor_session": SESSION, "biz_params": {"User_ID": "7"}},
            {"workspace": "ws_abc"},
        ),
        ("stream_default_cumulative", {}, {"incremental_output": None}),
        ("stream_incremental_false_is_sent_as_true", {}, {}),
        ("stream_messages", {"messages": (ChatMessage("system", "你是助手"), ChatMessage("user", "你好"))}, {}),
        (
            "stream_has_thoughts_rag",
            {"messages": (ChatMessage("user", "问"),), "params": {"temperature": 0.3}},
            {
                "temperature": 1,
                "top_p": 0.8,
                "seed": 7,
                "has_thoughts": True,
                "rag_options": {"pipeline_ids": ["p1"]},
                "memory_id": "m1",
            },
        ),
        (
            "workflow_flow_stream_mode",
            {"messages": (ChatMessage("user", "问"),)},
            {"flow_stream_mode": "agent_format"},
        ),
    ],
)  # fmt: skip
def test_a_request_is_the_captured_one(name: str, request_fields: dict[str, Any], params: dict[str, Any]) -> None:
    capture = CAPTURES[name]
    served = response(
        {
            "status": 200,
            "headers": {"Content-Type": capture["response_content_type"]},
            "body": capture["response_body"],
        }
    )
    answer, [sent] = exchange([served], ChatRequest(**{"messages": ASK, **request_fields}), params=params)
    assert f"{sent.method} {sent.url.raw_path.decode()} HTTP/1.1" == capture["request"]["request_line"]
    assert json.loads(sent.content) == capture["body_json"]
    wanted = {header.lower(): value for header, value in capture["request"]["headers"]}
    for header in ("accept", "authorization", "content-type", "x-dashscope-sse", "x-dashscope-workspace"):
        assert sent.headers.get(header) == wanted.get(header), header
    texts = [item["output"]["text"] or "" for item in capture["sdk_result"]]  # sometimes joined by the SDK
    assert answer.text == (texts[-1] if texts[-1].startswith(texts[0]) else "".join(texts))
    assert answer.finished is not None
    assert (answer.finished.finish_reason, answer.finished.vendor_session) == ("stop", SESSION)


def test_every_captured_request_is_tested() -> None:
    assert (len(CAPTURES), len(VARIANTS)) == (8, 19)


def test_a_session_and_the_history_are_never_both_sent() -> None:
    for session in (None, SESSION):
        _, [sent] = exchange([whole()], ChatRequest(TALK, vendor_session=session))
        asked = json.loads(sent.content)["input"]
        assert asked == (
            {"prompt": "第二问", "session_id": SESSION}
            if session
            else {"messages": [{"role": m.role, "content": m.content} for m in TALK]}
        )


def test_a_text_to_go_on_with_is_sent_without_the_session_that_has_not_seen_it() -> None:
    talk = (*TALK, ChatMessage("assistant", "第二答的前半"))
    _, [sent] = exchange([whole()], ChatRequest(talk, vendor_session=SESSION))
    asked = json.loads(sent.content)["input"]
    assert (set(asked), asked["messages"][-1]["content"]) == ({"messages"}, "第二答的前半")


def test_biz_params_of_the_endpoint_stand_under_those_of_the_request() -> None:
    params = {"biz_params": {"user_defined_params": {"p": {"city": "北京"}}, "Role": "none"}}
    _, [sent] = exchange([whole()], ChatRequest(ASK, biz_params={"Role": "member"}), params=params)
    assert json.loads(sent.content)["input"]["biz_params"] == {
        "user_defined_params": {"p": {"city": "北京"}},
        "Role": "member",
    }


def test_what_identifies_a_member_is_not_in_the_repr() -> None:
    request = ChatRequest(ASK, vendor_session=SESSION, biz_params={"Nickname": "老王"})
    assert "老王" not in repr(request) and SESSION not in repr(request)


@pytest.mark.parametrize(
    ("base_url", "url"),
    [
        ("", "https://dashscope.aliyuncs.com/api/v1/apps/a%2Fb/completion"),
        (
            "https://dashscope-intl.aliyuncs.com",
            "https://dashscope-intl.aliyuncs.com/api/v1/apps/a%2Fb/completion",
        ),
        ("https://x.example/api/v1/", "https://x.example/api/v1/apps/a%2Fb/completion"),
    ],
)
def test_the_application_is_in_the_path(base_url: str, url: str) -> None:
    assert app_url(base_url, "a/b") == url


@pytest.mark.parametrize(("base_url", "app"), [("https://u:p@x.example", "a"), ("ftp://x", "a"), ("", " ")])
def test_what_is_no_address_of_an_application_is_misconfigured(base_url: str, app: str) -> None:
    with pytest.raises(errors.Misconfigured):
        app_url(base_url, app)


def test_a_workspace_that_cannot_stand_in_a_header_is_misconfigured() -> None:
    answer, requests = exchange([], params={"workspace": "ws\r\nX-Evil: 1"})
    assert (type(answer.error), requests) == (errors.Misconfigured, [])


# --- what is answered ---


def reduce(case: dict[str, Any], pieces: list[bytes]) -> dict[str, Any]:
    """Return what the reducer makes of these reads, in the corpus's own words."""
    reducer = AppReducer(is_cumulative=case["protocol"].endswith("cumulative"))
    tokens: list[str] = []
    text = reasoning = ""
    for piece in [*pieces, None]:
        if piece is None:
            reducer.finish()
        else:
            reducer.feed(piece)
        tokens.extend(reducer.texts)
        delta = reducer.take() if piece is not None else reducer.take_last()
        if delta is not None:
            text, reasoning = text + delta.text, reasoning + delta.reasoning
    return {
        "tokens": tokens,
        "text": text,
        "reasoning": reasoning,
        "tool_calls": list(reducer.tool_calls),
        "finish_reason": reducer.finish_reason,
        "usage": reducer.usage,
        "error": reducer.error,
        "done": reducer.done,
        "malformed_events": reducer.malformed_events,
        "complete": reducer.is_complete,
        "session_id": reducer.session_id,
    }


@pytest.mark.parametrize("case", CORPUS, ids=lambda case: case["name"])
def test_a_case_of_the_corpus_reads_the_same_however_its_bytes_arrive(case: dict[str, Any]) -> None:
    data = base64.b64decode(case["bytes_base64"])
    assert reduce(case, [data]) == case["expected"]
    edges = [0, *case["chunk_splits"], len(data)]
    assert reduce(case, [data[a:b] for a, b in itertools.pairwise(edges)]) == case["expected"]
    assert reduce(case, [data[i : i + 1] for i in range(len(data))]) == case["expected"]
    for offset in range(len(data)):
        assert reduce(case, [data[:offset], data[offset:]]) == case["expected"], offset


def test_the_corpus_is_all_there() -> None:
    assert [case["name"][:2] for case in CORPUS] == ["76", "77"]


# text, finish reason, and our error: what we make of each framing that the SDK was shown
DECIDED: dict[str, tuple[str, str | None, type[errors.ProviderError] | None, int | None]] = {
    "canonical": ("我是通义千问😀。", "stop", None, None),
    "data_with_space": ("a", "stop", None, None),
    "crlf": ("a", "stop", None, None),
    "no_status_comment_no_event": ("a", "stop", None, None),
    "event_error_no_space": ("", None, errors.ContentBlocked, 400),
    "event_error_with_space": ("", None, errors.ContentBlocked, 400),
    "error_mid_stream": ("a", None, errors.ContentBlocked, 400),
    "error_with_status_line": ("", None, errors.RateLimited, 429),
    "http_401_json": ("", None, errors.Unauthorized, 401),
    "http_401_json_sync": ("", None, errors.Unauthorized, 401),
    "http_400_sse": ("", None, errors.ContentBlocked, 400),
    "http_503_html": ("", None, errors.Unavailable, 503),
    "stream_asked_json_given": ("我是通义千问。", "stop", None, None),
    "event_done": ("a", "stop", None, None),
    "multi_line_data": ("a", "stop", None, None),
    "truncated": ("a", None, errors.StreamCut, None),
    "bad_json": ("", None, errors.MalformedReply, None),
    "text_absent": ("", "stop", None, None),
    "reject": ("抱歉", "stop", None, None),
}


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("is_tapped", [False, True], ids=["", "tapped"])
def test_every_framing_is_decided(name: str, is_tapped: bool) -> None:
    answer, _ = exchange([response(VARIANTS[name])], is_tapped=is_tapped)
    text, finish, kind, status = DECIDED[name]
    assert answer.text == text
    assert (answer.finished and answer.finished.finish_reason) == finish
    assert (type(answer.error) if answer.error else None) is kind
    if answer.error is not None and kind not in (errors.StreamCut, errors.MalformedReply):
        assert answer.error.http_status == status
        assert answer.error.retryable is (status in (429, 503))
        assert answer.error.provider_request_id == (None if name == "http_503_html" else VARIANT_REQUEST)


VARIANT_REQUEST = "4ef23c95-5a1c-9f3e-8f3d-1a2b3c4d5e6f"


@pytest.mark.parametrize("name", VARIANTS)
def test_every_framing_reads_the_same_byte_by_byte(name: str) -> None:
    def read(pieces: list[bytes]) -> tuple[Any, ...]:
        reducer = AppReducer()
        text = ""
        for piece in pieces:
            reducer.feed(piece)
            delta = reducer.take()
            text += delta.text if delta else ""
        reducer.finish()
        delta = reducer.take_last()
        return text + (delta.text if delta else ""), reducer.finish_reason, reducer.error, reducer.status

    data = VARIANTS[name]["body"].encode()
    assert read([data[i : i + 1] for i in range(len(data))]) == read([data])


@pytest.mark.parametrize(
    "frame",
    [
        "event:error\ndata:{}\n\n",
        "event:  error  \ndata:{\n\n",
        "event:error\n\n",
        ":HTTP_STATUS/500\n\n",
        ': HTTP_STATUS/400\ndata:{"output":{"text":"x","finish_reason":"stop"}}\n\n',
        'data:{"output":{"text":"x"}}\n:HTTP_STATUS/503\n\n',
        'data:{"code":"InternalError","message":"m"}\n\n',
        'data:{"output":null,"code":"InternalError"}\n\n',
        'data:{"error":{"message":"gateway"}}\n\n',
        "event:error\n:HTTP_STATUS/400\ndata:cut off",
    ],
)
def test_every_form_of_an_error_is_one(frame: str) -> None:
    answer, _ = exchange([frames({"text": "好", "finish_reason": "null"}, frame)])
    assert answer.text == "好"
    assert isinstance(answer.error, errors.BadRequest | errors.Unavailable)


def test_an_error_in_a_whole_answer_is_one() -> None:
    answer, _ = exchange([httpx.Response(200, json={"code": "InvalidApiKey", "message": "m", "request_id": "r9"})])
    assert isinstance(answer.error, errors.Unauthorized)
    assert (answer.error.provider_request_id, answer.error.vendor_code) == ("r9", "InvalidApiKey")


def test_an_error_after_the_finish_reason_is_an_error() -> None:
    answer, _ = exchange([frames({"text": "好", "finish_reason": "stop"}, "event:error\ndata:{}\n\n")])
    assert (answer.text, type(answer.error)) == ("好", errors.Unavailable)


def test_a_frame_that_says_nothing_is_counted_and_passed_over() -> None:
    answer, _ = exchange(
        [frames('data:{"request_id":"r"}\n\n', "data:7\n\n", {"text": "好", "finish_reason": "stop"})]
    )
    assert answer.finished is not None
    assert (answer.text, answer.finished.malformed_events) == ("好", 2)


def test_cumulative_frames_are_taken_for_what_they_add() -> None:
    texts = ["", "我", "我是", None, "我是", "我是谁"]
    given = [{"text": text, "finish_reason": "null"} for text in texts]
    answer, _ = exchange([frames(*given, {"text": "我是谁", "finish_reason": "stop"})],
                         params={"incremental_output": False})  # fmt: skip
    assert answer.text == "我是谁"


def test_cumulative_frames_that_take_back_what_was_said_are_no_reply() -> None:
    given = [{"text": text, "finish_reason": "null"} for text in ("你好", "抱歉")]
    answer, _ = exchange([frames(*given)], params={"incremental_output": False})
    assert (answer.text, str(answer.error)) == ("你好", "text_rewritten")


def test_messages_of_a_workflow_are_its_text() -> None:
    def node(text: str, name: str) -> dict[str, Any]:
        return {"workflow_message": {"node_id": name, "message": {"role": "assistant", "content": text}}}

    parts = [node("查到", "n1"), node("了。", "n1"), node("再见", "n2")]
    answer, _ = exchange([frames(*parts, {"finish_reason": "stop"})])
    assert answer.text == "查到了。再见"
    repeated = [node("查到", "n1"), node("查到了。", "n1"), node("再见", "n2")]
    answer, _ = exchange([frames(*repeated, {"finish_reason": "stop"})], params={"incremental_output": None})
    assert answer.text == "查到了。再见"


def test_thoughts_are_reasoning_and_documents_a_card() -> None:
    document = {
        "index_id": "1", "title": "手册\0", "doc_id": "file_1", "doc_name": "手册.pdf", "doc_url": "javascript:x",
        "text": "x" * 3000, "images": ["https://x.example/1.png", 7], "page_number": [1, "2"],
    }  # fmt: skip
    answer, _ = exchange(
        [
            frames(
                {
                    "text": None,
                    "thoughts": [{"action_type": "agentRag", "action_name": "知识检索", "thought": None}],
                },
                {
                    "text": None,
                    "thoughts": [{"action_type": "agentRag", "action_name": "知识检索"}, {"thought": "想"}],
                },
                {
                    "text": None,
                    "thoughts": [{}, {"action_type": "reasoning", "action_name": "思考", "thought": "好"}],
                },
                {"text": "答", "doc_references": [document]},
                {"text": "。", "finish_reason": "stop", "doc_references": [document]},
            )
        ]
    )
    assert (answer.text, answer.reasoning) == ("答。", "〔知识检索〕\n想好")
    assert answer.finished is not None
    assert answer.finished.reference_card == {
        "documents": [
            {
                "index": "1", "title": "手册\ufffd", "id": "file_1", "name": "手册.pdf", "url": "",
                "text": "x" * 2000, "pages": [1], "images": ["https://x.example/1.png"],
            }
        ]
    }  # fmt: skip


def test_the_tokens_of_all_models_are_counted() -> None:
    usage = {"models": [{"input_tokens": 54, "output_tokens": 8}, {"input_tokens": 6, "output_tokens": 2}, 7]}
    body = {"output": {"text": "好", "finish_reason": "stop"}, "usage": usage}
    answer, _ = exchange([frames("data:" + json.dumps(body) + "\n\n")])
    assert answer.finished is not None
    assert answer.finished.usage == Usage(60, 10)


@pytest.mark.parametrize("noise", ["", "<html>login</html>", "plain words", "{oops", "[1]"])
def test_what_is_not_a_reply_is_called_so(noise: str) -> None:
    answer, _ = exchange([frames(noise)])
    assert isinstance(answer.error, errors.MalformedReply)


# --- lost sessions ---

LOST: list[Callable[[], httpx.Response]] = [
    lambda: refused(400, "InvalidParameter", "The session_id is invalid or expired."),
    lambda: refused(404, "SessionNotFound", "gone"),
    lambda: frames(
        'event:error\n:HTTP_STATUS/400\ndata:{"code":"InvalidParameter","message":"会话不存在"}\n\n',
    ),
]


@pytest.mark.parametrize("lost", LOST)
@pytest.mark.parametrize("is_tapped", [False, True], ids=["", "tapped"])
def test_a_lost_session_is_replaced_by_one_seeded_with_the_last_turns(
    lost: Callable[[], httpx.Response], is_tapped: bool
) -> None:
    answer, requests = exchange(
        [lost(), whole("新的", "s-new")], ChatRequest(TALK, vendor_session="s-old"), is_tapped=is_tapped
    )
    first, second = (json.loads(request.content)["input"] for request in requests)
    assert first == {"prompt": "第二问", "session_id": "s-old"}
    assert second == {"messages": [{"role": m.role, "content": m.content} for m in TALK]}
    assert answer.text == "新的"
    assert answer.finished is not None and answer.finished.vendor_session == "s-new"


def test_a_new_session_is_asked_for_once() -> None:
    answer, requests = exchange([LOST[0](), LOST[0]()], ChatRequest(TALK, vendor_session="s-old"))
    assert (type(answer.error), len(requests)) == (errors.BadRequest, 2)


@pytest.mark.parametrize("is_tapped", [False, True], ids=["", "tapped"])
def test_nothing_is_asked_again_after_the_first_token(is_tapped: bool) -> None:
    cut = frames({"text": "半"}, 'event:error\ndata:{"code":"InvalidParameter","message":"session expired"}\n\n')
    answer, requests = exchange([cut], ChatRequest(TALK, vendor_session="s-old"), is_tapped=is_tapped)
    assert (answer.text, type(answer.error), len(requests)) == ("半", errors.BadRequest, 1)


@pytest.mark.parametrize(
    "answer",
    [
        refused(400, "InvalidParameter", "prompt is too long"),
        refused(401, "InvalidApiKey", "no session for this key"),
        refused(429, "Throttling", "too many sessions"),
        refused(500, "InternalError", "session store is down"),
        refused(400, "DataInspectionFailed", "session"),
    ],
)
def test_another_refusal_keeps_the_session(answer: httpx.Response) -> None:
    failed, requests = exchange([answer], ChatRequest(TALK, vendor_session="s-old"))
    assert (failed.error is not None, len(requests)) == (True, 1)


def test_without_a_session_none_can_be_lost() -> None:
    failed, requests = exchange([LOST[0]()], ChatRequest(TALK))
    assert (type(failed.error), len(requests)) == (errors.BadRequest, 1)


def test_the_words_for_a_lost_session_are_the_endpoints() -> None:
    gone = refused(400, "CtxGone.9", "?")
    _, requests = exchange(
        [gone, whole()], ChatRequest(TALK, vendor_session="s"), params={"session_lost": ["ctxgone"]}
    )
    assert len(requests) == 2
    assert "session_lost" not in json.loads(requests[1].content)["parameters"]


def test_a_new_name_for_the_session_is_reported() -> None:
    answer, _ = exchange([whole(session="s-2")], ChatRequest(TALK, vendor_session="s-1"))
    assert answer.finished is not None and answer.finished.vendor_session == "s-2"


# --- over real sockets ---


@pytest.mark.parametrize("is_tapped", [False, True], ids=["", "tapped"])
@pytest.mark.parametrize("incremental", [True, False], ids=["incremental", "cumulative"])
def test_a_long_reply_comes_whole_over_both_transports(
    fake: FakeProvider, transport: Transport, is_tapped: bool, incremental: bool
) -> None:
    async def go() -> Answer:
        policy = HttpPolicy(allowed_addresses=frozenset({fake.address}), transport=transport)
        async with new_client(policy) as client:
            provider = DashScopeAppProvider(
                base_url=f"http://{fake.address}",
                model="app-1",
                params={"incremental_output": incremental},
                client=lambda: client,
            )
            return await collect(provider, "[[n=300 documents=1]]", is_tapped=is_tapped, vendor_session="lost")

    answer = asyncio.run(go())
    assert answer.error is None
    assert answer.finished is not None and answer.finished.vendor_session is not None
    assert (answer.text, answer.finished.usage) == (expected_text(n=300), Usage(10, 300))
    assert answer.finished.reference_card is not None
    assert fake.stats()["bodies"][-2]["input"]["session_id"] == "lost"


def test_closing_the_stream_closes_the_connection(fake: FakeProvider) -> None:
    async def go() -> None:
        async with new_client(HttpPolicy(allowed_addresses=frozenset({fake.address}))) as client:
            provider = DashScopeAppProvider(
                base_url=f"http://{fake.address}", model="app-1", client=lambda: client
            )
            asked = ChatRequest((ChatMessage("user", "[[n=1000 rate=50 tag=closing]]"),))
            async with aclosing(provider.stream(asked)) as items:
                await anext(items)
            await asyncio.sleep(0.3)

    asyncio.run(go())
    assert "n=1000 rate=50 tag=closing" in [one["directive"] for one in fake.stats()["closed_by_client"]]
