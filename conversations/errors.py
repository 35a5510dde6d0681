"""What people see when something is refused: one code, one status, one sentence in their language.

Providers' failures never come through here as they are: a reply that failed says `error_code`, and
`reply_error_text` turns it into words. Every code stands in docs/errors.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Language = Literal["zh-hans", "en"]


@dataclass(frozen=True, slots=True)
class ErrorText:
    """What one code means: HTTP status, the short title, and the sentences people read."""

    status: int
    title: str
    zh: str
    en: str

    def detail(self, language: Language) -> str:
        """Return the sentence in one language."""
        return self.en if language == "en" else self.zh


CODES: Mapping[str, ErrorText] = {
    # 400
    "malformed_json": ErrorText(400, "Bad request", "请求内容不是有效的 JSON。", "The body is not valid JSON."),
    "bad_event_id": ErrorText(
        400,
        "Bad request",
        "Last-Event-ID 无效，或超出了回复的长度。",
        "Last-Event-ID is malformed or ahead of the reply.",
    ),
    "bad_cursor": ErrorText(400, "Bad request", "分页游标无效。", "The cursor is not valid."),
    "bad_idempotency_key": ErrorText(
        400,
        "Bad request",
        "Idempotency-Key 须为 8 到 128 个可见 ASCII 字符。",
        "Idempotency-Key must be 8 to 128 visible ASCII characters.",
    ),
    "unknown_action": ErrorText(
        400,
        "Bad request",
        "不支持这个 Action：只能是 StartVoiceChat 或 StopVoiceChat。",
        "This Action is not supported: it must be StartVoiceChat or StopVoiceChat.",
    ),
    "scene_id_missing": ErrorText(400, "Bad request", "缺少 SceneID。", "SceneID is missing."),
    "member_missing": ErrorText(
        400,
        "Bad request",
        "缺少 MemberId，且该调用方没有默认成员。",
        "MemberId is missing, and this caller has no member of its own.",
    ),
    "bad_request": ErrorText(400, "Bad request", "请求无法理解。", "The request cannot be understood."),
    # 401
    "not_signed_in": ErrorText(401, "Not signed in", "请先登录。", "Please sign in."),
    "token_invalid": ErrorText(
        401,
        "Not signed in",
        "登录已失效，请重新登录。",
        "The sign-in is no longer valid. Please sign in again.",
    ),
    "token_expired": ErrorText(
        401, "Not signed in", "登录已过期，请刷新或重新登录。", "The access token has expired."
    ),
    "bad_credentials": ErrorText(
        401, "Not signed in", "用户名、密码或站点不正确。", "Username, password or site is wrong."
    ),
    "ticket_invalid": ErrorText(
        401, "Not signed in", "票据无效、已使用或已过期。", "The ticket is unknown, used or expired."
    ),
    # 403
    "not_approved": ErrorText(403, "Not allowed", "您的账号尚未通过审核。", "Your membership is not approved."),
    "not_your_chat": ErrorText(403, "Not allowed", "您不能在这个对话中发言。", "You cannot write in this chat."),
    "not_allowed": ErrorText(403, "Not allowed", "您没有权限执行此操作。", "You may not do this."),
    "member_keys_off": ErrorText(
        403, "Not allowed", "本站点不允许使用自己的密钥。", "This site does not let members use keys of their own."
    ),
    # 404, 405, 406, 409
    "not_found": ErrorText(404, "Not found", "没有找到。", "Not found."),
    "scene_not_found": ErrorText(404, "Not found", "没有这个语音场景。", "There is no such voice scene."),
    "room_not_found": ErrorText(
        404,
        "Not found",
        "没有这个语音房间，请先调用 getScenes。",
        "There is no such voice room. Call getScenes first.",
    ),
    "member_not_found": ErrorText(404, "Not found", "没有这个成员。", "There is no such member."),
    "method_not_allowed": ErrorText(
        405, "Method not allowed", "不支持这种请求方法。", "This method is not supported here."
    ),
    "not_acceptable": ErrorText(
        406, "Not acceptable", "无法按所要求的格式回答。", "The asked format is not available."
    ),
    "generating": ErrorText(409, "Conflict", "上一条回复仍在生成中。", "A reply is still under way in this chat."),
    "already_finished": ErrorText(409, "Conflict", "这条回复已经结束。", "This reply has already finished."),
    "endpoint_in_use": ErrorText(
        409,
        "Conflict",
        "接入点上还有回复在生成，不能删除。",
        "Replies are under way on this endpoint, so it cannot be deleted.",
    ),
    # 408, 413, 415, 422, 429, 431
    "request_timeout": ErrorText(
        408, "Request timeout", "请求内容传输过慢。", "The request did not arrive in time."
    ),
    "body_too_large": ErrorText(413, "Too large", "请求内容超过 1 MiB。", "The body is larger than 1 MiB."),
    "unsupported_media_type": ErrorText(
        415, "Unsupported media type", "请求内容须为 application/json。", "The body must be application/json."
    ),
    "invalid": ErrorText(422, "Invalid", "提交的内容有误。", "Some of what was sent is not valid."),
    "empty_content": ErrorText(422, "Invalid", "内容不能为空。", "The content is empty."),
    "content_too_long": ErrorText(
        422, "Invalid", "内容超过 32768 个字符。", "The content is longer than 32768 characters."
    ),
    "idempotency_mismatch": ErrorText(
        422,
        "Invalid",
        "这个 Idempotency-Key 已用于另一份内容。",
        "This Idempotency-Key was used with another body.",
    ),
    "not_a_reply": ErrorText(422, "Invalid", "这条消息不是 AI 的回复。", "This message is not a reply."),
    "file_too_large": ErrorText(413, "Too large", "文件过大。", "The file is too large."),
    "unsupported_file": ErrorText(
        415,
        "Unsupported file",
        "只支持纯文本、Markdown、HTML、PDF 和 DOCX 文件。",
        "Only plain text, Markdown, HTML, PDF and DOCX files can be read.",
    ),
    "file_type_mismatch": ErrorText(
        422,
        "Unreadable file",
        "文件内容与扩展名不符。",
        "The file is not what its name says.",
    ),
    "file_encrypted": ErrorText(
        422, "Unreadable file", "文件已加密，请去掉密码后再上传。", "The file is encrypted. Remove its password."
    ),
    "file_broken": ErrorText(422, "Unreadable file", "文件已损坏或不完整。", "The file is damaged or incomplete."),
    "file_bomb": ErrorText(
        422,
        "Unreadable file",
        "文件展开后过大，无法读取。",
        "The file grows too large when it is unpacked.",
    ),
    "file_has_no_text": ErrorText(
        422,
        "Unreadable file",
        "文件中没有文字（扫描件需先识别文字）。",
        "There is no text in the file (scans need text recognition first).",
    ),
    "file_too_long": ErrorText(
        422, "Unreadable file", "文件内容过长，请拆分后上传。", "The file holds too much text. Split it."
    ),
    "file_reading_timeout": ErrorText(
        422, "Unreadable file", "读取文件用时过长。", "Reading the file takes too long."
    ),
    "throttled": ErrorText(
        429, "Too many requests", "操作过于频繁，请稍后再试。", "Too many requests. Please try again later."
    ),
    "head_too_large": ErrorText(431, "Too large", "请求头过大。", "The request's head is larger than 64 KiB."),
    # 500, 502, 503: also the codes of a reply that failed
    "internal": ErrorText(
        500, "Internal error", "服务器出错了，请稍后再试。", "Something went wrong on the server."
    ),
    "provider_unavailable": ErrorText(
        502, "Reply failed", "AI 服务暂时不可用", "The AI service is unavailable right now"
    ),
    "provider_timeout": ErrorText(
        502, "Reply failed", "AI 服务响应超时，请稍后再试。", "The AI service took too long to answer."
    ),
    "provider_rate_limited": ErrorText(
        502, "Reply failed", "AI 服务繁忙，请稍后再试。", "The AI service is busy. Please try again later."
    ),
    "provider_rejected": ErrorText(
        502, "Reply failed", "AI 服务拒绝了这次请求。", "The AI service refused the request."
    ),
    "content_blocked": ErrorText(
        502, "Reply failed", "内容未通过 AI 服务的安全检查。", "The AI service blocked this content."
    ),
    "reply_too_long": ErrorText(
        502, "Reply failed", "回复过长，已停止生成。", "The reply grew too long and was ended."
    ),
    "no_model": ErrorText(502, "Reply failed", "尚未配置可用的模型。", "No model is available."),
    "scene_incomplete": ErrorText(
        500, "Not configured", "语音场景的配置不完整。", "The voice scene is not completely configured."
    ),
    "platform_unavailable": ErrorText(
        502, "Platform failed", "语音平台暂时不可用，请稍后再试。", "The voice platform is unavailable right now."
    ),
    "platform_timeout": ErrorText(
        504, "Platform failed", "语音平台响应超时，请稍后再试。", "The voice platform took too long to answer."
    ),
    "interrupted": ErrorText(
        502,
        "Reply interrupted",
        "回复中断，已保存已生成的内容。",
        "The reply was interrupted. What was generated is kept.",
    ),
    "unavailable": ErrorText(
        503, "Unavailable", "服务暂时不可用，请稍后再试。", "The service is unavailable right now."
    ),
}

RETRYABLE = frozenset(
    {
        "provider_unavailable",
        "provider_timeout",
        "provider_rate_limited",
        "interrupted",
        "internal",
        "unavailable",
    }
)


class ChatError(Exception):
    """Anything a client is told no with. The code decides the status; the kinds below are for callers."""

    code = "internal"

    def __init__(
        self,
        code: str | None = None,
        *,
        errors: Mapping[str, Any] | None = None,
        retry_after_seconds: int | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        self.code = code or self.code
        self.text = CODES[self.code]
        self.errors = errors
        self.retry_after_seconds = retry_after_seconds
        self.extra = extra or {}
        super().__init__(self.code)

    @property
    def status(self) -> int:
        """The HTTP status of this code."""
        return self.text.status


class BadRequest(ChatError):
    """400: it cannot be understood."""

    code = "bad_request"


class NotSignedIn(ChatError):
    """401: no token, or not a good one."""

    code = "not_signed_in"


class NotAllowed(ChatError):
    """403: known, but not allowed here."""

    code = "not_allowed"


class NotFound(ChatError):
    """404: missing, or another's; nobody can tell which."""

    code = "not_found"


class Conflict(ChatError):
    """409: not while things are as they are."""

    code = "generating"


class Invalid(ChatError):
    """422: understood, and wrong."""

    code = "invalid"


class Limited(ChatError):
    """429: too often."""

    code = "throttled"


class GenerationFailed(ChatError):
    """502: the reply ended in `failed` or `interrupted`; what was generated is stored."""

    code = "provider_unavailable"


class Unavailable(ChatError):
    """503: the server is draining, or its database is away."""

    code = "unavailable"


def language_of(accept_language: str | None) -> Language:
    """Return the first language of an Accept-Language header that we speak; Chinese otherwise."""
    ranked: list[tuple[float, int, Language]] = []
    for position, part in enumerate((accept_language or "").split(",")[:20]):
        tag, _, parameters = part.strip().lower().partition(";")
        weight = 1.0
        if parameters.strip().startswith("q="):
            try:
                weight = float(parameters.strip()[2:])
            except ValueError:
                weight = 0.0
        primary = tag.split("-")[0]
        if primary in {"zh", "en"} and weight > 0:
            ranked.append((-weight, position, "en" if primary == "en" else "zh-hans"))
    return min(ranked)[2] if ranked else "zh-hans"


def problem_document(error: ChatError, *, language: Language, request_id: str) -> dict[str, Any]:
    """Return the RFC 9457 document of an error, as API.md words it."""
    document: dict[str, Any] = {
        "type": f"/api/docs/errors#{error.code}",
        "title": error.text.title,
        "status": error.status,
        "detail": error.text.detail(language),
        "code": error.code,
    }
    if error.errors:
        document["errors"] = error.errors
    if error.retry_after_seconds is not None:
        document["retryAfter"] = error.retry_after_seconds
    document["requestId"] = request_id
    return {**error.extra, **document}
