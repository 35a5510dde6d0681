"""What staff can do about a failed call to an endpoint: one sentence for each inner code, in two languages.

For the test of an endpoint, in the admin and in the API. Clients of the chat never see these.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

# Code, or the beginning of codes → Chinese, English. The longest beginning wins.
_ADVICE: Mapping[str, tuple[str, str]] = {
    "": ("调用失败。", "The call failed."),
    "misconfigured": ("接入点的配置有误。", "The endpoint's configuration is wrong."),
    "address_refused": (
        "地址是内网或保留地址；请运维把它加入 PROVIDER_ALLOWED_ADDRESSES。",
        "The address is private or reserved; ask the operator to add it to PROVIDER_ALLOWED_ADDRESSES.",
    ),
    "bad_base_url": ("基础 URL 无法使用，请检查。", "The base URL cannot be used. Check it."),
    "bad_endpoint": ("接入点的设置无法使用，请检查。", "The endpoint's settings cannot be used. Check them."),
    "bad_config": ("配置无法使用，请检查。", "The configuration cannot be used. Check it."),
    "unknown_section": ("配置里没有这个 API 段。", "The configuration has no such API section."),
    "unknown_value": ("配置没有声明这个值。", "The configuration does not declare this value."),
    "missing_base_url": (
        "配置需要 base_url，而它没有填写。",
        "The configuration needs base_url, and none is given.",
    ),
    "missing_url_value": (
        "地址中用到的值没有填写，例如模型名称。",
        "The address needs a value that is not given, such as the model's name.",
    ),
    "missing_credential": ("缺少密钥。", "The key is missing."),
    "bad_convertor": ("转换器不能处理这个值。", "The convertor cannot take this value."),
    "bad_header_value": (
        "这个值不能放进请求头。",
        "This value cannot stand in a header.",
    ),
    "bad_params": ("参数无法使用，请检查。", "The parameters cannot be used. Check them."),
    "bad_api_key": ("密钥含有不允许的字符，请重新填写。", "The key holds characters no key has. Enter it again."),
    "secret_unreadable": (
        "已存的密钥无法解密，请重新填写，或恢复 SECRET_KEYS。",
        "The stored key cannot be decrypted. Enter it again, or restore SECRET_KEYS.",
    ),
    "key_for_another_host": (
        "接入点的地址已变，站点自己的密钥需要重新填写。",
        "The endpoint has moved since the site's own key was entered. Enter it again.",
    ),
    "no_secret_keys": ("没有加密用的 SECRET_KEYS，请联系运维。", "SECRET_KEYS is empty. Ask the operator."),
    "bad_secret_key": ("SECRET_KEYS 有误，请联系运维。", "SECRET_KEYS is wrong. Ask the operator."),
    "refused": ("服务商拒绝了请求。", "The provider refused the request."),
    "bad_request": (
        "服务商不接受这个请求，请检查模型名称和参数。",
        "The provider did not accept the request. Check the model's name and the parameters.",
    ),
    "unauthorized": (
        "密钥缺失、错误或没有权限，请重新填写密钥。",
        "The key is missing, wrong or not allowed. Enter it again.",
    ),
    "unknown_model": (
        "没有这个模型或路径，请检查模型名称和基础 URL。",
        "There is no such model or path. Check the model's name and the base URL.",
    ),
    "rate_limited": (
        "请求过多，请稍后再试，或调低接入点的上限。",
        "Too many requests. Try later, or lower the endpoint's limits.",
    ),
    "quota_exceeded": ("账户余额或配额已用尽，请充值。", "The account has nothing left. Top it up."),
    "content_blocked": ("服务商拦截了测试内容。", "The provider blocked the content of the test."),
    "unreachable": ("无法连接到服务商。", "The provider cannot be reached."),
    "connect_failed": (
        "无法建立连接，请检查地址、端口、TLS 和网络。",
        "No connection. Check address, port, TLS and the network.",
    ),
    "name_not_found": ("主机名无法解析，请检查拼写。", "The host name is not known. Check its spelling."),
    "no_answer": (
        "连接在回答之前被断开，请检查协议（http 或 https）和端口。",
        "The connection ended before an answer. Check the protocol (http or https) and the port.",
    ),
    "unavailable": ("服务商暂时不可用，请稍后再试。", "The provider is unavailable right now. Try later."),
    "timed_out": (
        "等待超时，请检查网络，或放宽接入点的时限。",
        "It took too long. Check the network, or give the endpoint more time.",
    ),
    "timed_out_connect": (
        "连接超时，请检查地址、端口和防火墙。",
        "Connecting took too long. Check address, port and firewall.",
    ),
    "broken": ("回答无法理解。", "The answer cannot be understood."),
    "malformed_reply": (
        "回答不是聊天接口的格式，请检查基础 URL 和接口类型。",
        "The answer is not a chat completion. Check the base URL and the dialect.",
    ),
    "not_a_reply": (
        "回答既不是事件流也不是 JSON，请检查基础 URL。",
        "The answer is neither events nor JSON. Check the base URL.",
    ),
    "html_answer": (
        "返回的是网页，基础 URL 可能少了路径（例如 /v1）。",
        "A web page came back: the base URL may lack its path (such as /v1).",
    ),
    "redirect_refused": (
        "服务器要求跳转，请直接填写最终地址。",
        "A redirect came back: write the URL it leads to.",
    ),
    "unknown_encoding": ("回答的压缩方式不受支持。", "The answer is compressed in a way nobody asked for."),
    "bad_encoding": ("回答的压缩数据已损坏。", "The answer's compression is broken."),
    "endless_noise": ("回答中有大量无法解析的事件。", "The answer holds many events that cannot be read."),
    "stream_cut": ("回答中途断开，没有结束标记。", "The stream ended before the model had finished."),
    "connection_lost": ("连接中途断开。", "The connection was lost in the middle."),
    "reply_too_long": ("回答超过长度上限。", "The answer is over our limits."),
    "empty_reply": ("模型没有说任何内容。", "The model said nothing."),
}


def advice(code: str, language: Literal["zh-hans", "en"]) -> str:
    """Return the sentence for one of our inner codes; the general one for a code without its own."""
    best = max((known for known in _ADVICE if code.startswith(known)), key=len)
    return _ADVICE[best][language == "en"]
