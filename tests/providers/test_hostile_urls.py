"""Hostile addresses: each is refused when it is saved and again when it is called, by every kind of client.

What was saved may have changed its meaning since (DNS, a restored revision, a row written by hand): so the guard
at the connection has to hold alone. Its own cases are in test_http.py.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import httpx
import pytest

from providers.admin import EndpointForm
from providers.base import ChatProvider
from providers.clients.dashscope_app import DashScopeAppProvider
from providers.clients.declarative.client import provider_from_config
from providers.clients.declarative.configs import load
from providers.clients.openai_chat import OpenAIChatProvider
from providers.credentials import Secret, new_key
from providers.errors import Misconfigured
from providers.http import HttpPolicy, new_client
from providers.registry import policy_from_settings
from tests.fakes.provider import FakeProvider
from tests.providers.conftest import Transport, collect

# fmt: off
ADDRESSES = (
    # loopback, and the ways to write it
    "127.0.0.1", "127.8.8.8", "127.0.0.1.", "localhost", "LOCALHOST", "localhost.", "2130706433", "0x7f000001",
    "0x7F.0.0.1", "0x7f.1", "0177.0.0.1", "017700000001", "127.1", "127.0.1", "[::1]", "[0:0:0:0:0:0:0:1]",
    # private, shared, unique local
    "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "0300.0250.1.1", "3232235777", "100.64.0.1",
    "[fc00::1]", "[fd12:3456:789a::1]", "[fec0::1]",
    # link-local and the clouds' metadata: AWS, its tasks, Alibaba, Azure, Oracle, over IPv6, Google's
    "169.254.1.1", "169.254.169.254", "2852039166", "0xa9fea9fe", "0xA9.0xFE.0xA9.0xFE", "169.254.43518",
    "169.254.170.2", "100.100.100.200", "168.63.129.16", "192.0.0.192", "[fd00:ec2::254]", "[fd20:ce::254]",
    "[fe80::1]", "[fe80::a9fe:a9fe]",
    # IPv4 inside IPv6: mapped, translated, compatible, NAT64 (both prefixes), 6to4, Teredo
    "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::ffff:169.254.169.254]", "[::ffff:0:127.0.0.1]", "[::127.0.0.1]",
    "[64:ff9b::7f00:1]", "[64:ff9b::169.254.169.254]", "[64:ff9b:1::a00:1]", "[2002:7f00:1::]",
    "[2002:a9fe:a9fe::1]", "[2001:0:4136:e378:8000:63bf:f5ff:fffe]",
    # nobody, everybody, reserved, for documentation
    "0.0.0.0", "0", "0x0", "0.1.2.3", "[::]", "224.0.0.1", "239.255.255.250", "[ff02::1]", "255.255.255.255",
    "240.0.0.1", "192.0.2.1", "198.18.0.1", "203.0.113.1", "[2001:db8::1]",
    # digits, dots and letters that become ordinary ones
    "１２７.０.０.１", "127。0。0。1", "127．0．0．1", "①②⑦.⓪.⓪.①", "ⓛⓞⓒⓐⓛⓗⓞⓢⓣ", "ｌｏｃａｌｈｏｓｔ",
    "0𝟙77.0.0.1", "①⑥⑨.②⑤④.①⑥⑨.②⑤④",
)
NAMES = {
    "metadata.google.internal": ["169.254.169.254"], "metadata": ["169.254.169.254"],
    "instance-data.ec2.internal": ["169.254.169.254"], "localtest.example": ["127.0.0.1"],
    "rebound.example": ["10.1.2.3"], "six.example": ["fd00:ec2::254"], "both.example": ["127.0.0.1", "::1"],
    "inside.example": ["192.168.0.1", "10.0.0.1"], "router.example": ["fe80::1"],
    "open.example": ["203.107.1.1"], "mixed.example": ["10.0.0.1", "203.107.1.1"], "bücher.example": ["127.0.0.1"],
}
WRITINGS = (
    "http://user:pass@127.0.0.1/v1", "http://api.example.com@127.0.0.1/v1", "http://127.0.0.1@open.example/v1",
    "http://open.example:80@127.0.0.1/v1", "http://127.0.0.1#@open.example/v1", "http://127.0.0.1?@open.example/v1",
    "http://open.example\\@127.0.0.1/v1", "http://127.0.0.1\\.open.example/v1", "http://open.example%40127.0.0.1/v1",
    "http://127.0.0.1%00.open.example/v1", "http://127.0.0.1%2f.open.example/v1", "http:///127.0.0.1/v1",
    "http://[::ffff:127.0.0.1", "http://[127.0.0.1]/v1", "http://[::1]x/v1", "http://127.0.0.1:0/v1",
    "http://open.example:99999/v1", "http://open.example:-1/v1", "//127.0.0.1/v1", "///127.0.0.1",
    "127.0.0.1:80/v1",
    "file:///etc/passwd", "gopher://127.0.0.1:6379/_INFO", "dict://127.0.0.1:11211/", "ftp://127.0.0.1/",
    "http+unix://%2Fvar%2Frun%2Fdocker.sock/v1", "jar:http://127.0.0.1!/", "http://open.exa\tmple/v1",
    "http://open.example/v1\r\nHost: 127.0.0.1",
)
# fmt: on
HARMLESS = {"open.example", "mixed.example"}
HOSTILE = [f"http://{host}/v1" for host in (*ADDRESSES, *(NAMES.keys() - HARMLESS))] + list(WRITINGS)
REFUSALS = {"address_refused", "bad_base_url", "bad_endpoint", "name_not_found", "missing_base_url"}

Names = dict[str, list[str]]
_system = socket.getaddrinfo


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Iterator[Names]:
    """A name server of our own: what it does not know is an address, or nobody's; nothing goes to the network."""
    known = {name.encode("idna").decode(): addresses for name, addresses in NAMES.items()}

    def look_up(host: Any, port: Any, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0) -> Any:
        name = (host if isinstance(host, str) else host.decode()).encode("idna").decode().lower().rstrip(".")
        found = known.get(name)
        if found is None:
            found, flags = [host], 0 if name == "localhost" else socket.AI_NUMERICHOST
        return [row for address in found for row in _system(address, port, family, type, proto, flags)]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    yield known


@pytest.fixture
def reached(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses that somebody tried to connect to; nobody answers."""
    found: list[str] = []

    async def connect(loop: Any, factory: Any, host: str | None = None, *args: Any, **kwargs: Any) -> Any:
        found.append(host or "")
        raise OSError("nowhere")

    monkeypatch.setattr(asyncio.BaseEventLoop, "create_connection", connect)
    return found


@pytest.fixture(autouse=True)
def nothing_allowed(settings: Any) -> None:
    """No private address is allowed."""
    settings.SECRET_KEYS = [new_key()]
    settings.PROVIDER_ALLOWED_ADDRESSES = []


def filled(**fields: Any) -> EndpointForm:
    """Return the form that the admin and the API save endpoints with."""
    values = {"name": "主力", "dialect": "openai", "model": "m", "priority": 10, "weight": 1, "params": "{}"}
    return EndpointForm({**values, "config": "{}", "api_key": "sk-canary-0123456789", **fields})


CLIENTS: dict[str, Callable[..., ChatProvider]] = {
    "openai": OpenAIChatProvider,
    "dashscope_app": DashScopeAppProvider,
    "declarative": partial(provider_from_config, load("openai")),
}


async def code_of_call(dialect: str, url: str, client: httpx.AsyncClient, *, question: str = "你好") -> str | None:
    """Return the code with which a call of this URL failed, None when it did not."""
    try:
        provider = CLIENTS[dialect](
            base_url=url, model="m", api_key=Secret("sk-canary-0123456789"), client=lambda: client
        )
        answer = await collect(provider, question)
    except Misconfigured as error:
        return error.code
    return answer.error.code if answer.error else None


def written(place: str, url: str) -> dict[str, Any]:
    """Return a whole configuration with this URL in its request or in its auth step."""
    config = json.loads(json.dumps(load("ernie")))
    (config["auth"] if place == "auth" else config["chat"])["url"] = url
    return dict(config)


def test_there_are_many_of_them() -> None:
    assert len(HOSTILE) == len(set(HOSTILE)) > 100


@pytest.mark.django_db
@pytest.mark.parametrize("dialect", ["openai", "dashscope_app", "declarative"])
def test_none_of_them_can_be_saved(dialect: str, names: Names) -> None:
    config = '{"ready": "openai"}' if dialect == "declarative" else "{}"
    saved = []
    for url in HOSTILE:
        form = filled(dialect=dialect, base_url=url, config=config)
        if form.is_valid() or list(form.errors) != ["base_url"]:
            saved.append((url, form.errors))
    assert saved == []


def test_none_of_them_is_connected_to(transport: Transport, names: Names, reached: list[str]) -> None:
    async def go() -> list[tuple[str, str | None]]:
        wrong = []
        async with new_client(HttpPolicy(transport=transport)) as client:
            for url in HOSTILE:
                for dialect in CLIENTS:
                    code = await code_of_call(dialect, url, client)
                    if code not in REFUSALS or reached:
                        wrong.append((url, code))
        return wrong

    assert asyncio.run(go()) == []
    assert reached == []


@pytest.mark.django_db
@pytest.mark.parametrize(
    "config",
    [
        {"ready": "openai", "values": {"base_url": "http://169.254.169.254"}},
        {"ready": "openai", "values": {"base_url": "http://user:pass@open.example"}},
        {"ready": "openai", "values": {"base_url": "http://rebound.example/v1"}},
        {**load("openai"), "values": {"base_url": "http://[::ffff:10.0.0.1]"}},
        written("chat", "http://127.0.0.1:6379/v1"),
        written("chat", "http://metadata.google.internal/v1/${model}"),
        written("auth", "http://2130706433/token"),
    ],
    ids=lambda config: str(config)[:60],
)
def test_none_can_be_saved_within_a_configuration(config: Any, names: Names) -> None:
    form = filled(dialect="declarative", config=json.dumps(config))
    assert not form.is_valid() and list(form.errors) == ["config"]


@pytest.mark.django_db
def test_a_configuration_that_calls_the_open_internet_is_saved(names: Names) -> None:
    for config in (
        {"ready": "openai", "values": {"base_url": "http://open.example"}},
        {"ready": "openai", "values": {"base_url": "http://not-known-today.example"}},
        written("auth", "https://open.example/token"),
    ):
        form = filled(dialect="declarative", config=json.dumps(config))
        assert form.is_valid(), form.errors


@pytest.mark.django_db
def test_a_name_that_turned_inwards_since_it_was_saved_is_refused(
    transport: Transport, names: Names, reached: list[str]
) -> None:
    async def go() -> str | None:
        async with new_client(HttpPolicy(transport=transport)) as client:
            return await code_of_call("openai", "http://open.example/v1", client)

    assert filled(base_url="http://open.example/v1").is_valid()
    assert (asyncio.run(go()), reached) == ("connect_failed", ["203.107.1.1"])
    names["open.example"] = ["169.254.169.254"]
    assert (asyncio.run(go()), reached) == ("address_refused", ["203.107.1.1"])
    assert not filled(base_url="http://open.example/v1").is_valid()


def test_of_mixed_answers_only_the_public_address_is_connected_to(
    transport: Transport, names: Names, reached: list[str]
) -> None:
    async def go() -> str | None:
        async with new_client(HttpPolicy(transport=transport)) as client:
            return await code_of_call("openai", "http://mixed.example/v1", client)

    assert (asyncio.run(go()), reached) == ("connect_failed", ["203.107.1.1"])


@pytest.mark.django_db
def test_a_model_on_the_premises_is_allowed_by_address_or_by_name_and_nothing_beside_it(
    transport: Transport, names: Names, reached: list[str], settings: Any
) -> None:
    settings.PROVIDER_ALLOWED_ADDRESSES = ["192.168.0.1:8000", "Router.example:11434", "[fd00:ec2::254]:80"]
    allowed = ["http://192.168.0.1:8000/v1", "http://inside.example:8000", "http://router.example:11434/api"]
    allowed += ["http://[fd00:ec2::254]/v1", "http://six.example/v1"]
    refused = ["http://192.168.0.1/v1", "http://192.168.0.2:8000/v1", "http://10.0.0.1:8000/v1"]
    refused += ["http://router.example/v1", "http://[fe80::1]:11434/v1", "https://[fd00:ec2::254]/v1"]
    assert [filled(base_url=url).is_valid() for url in [*allowed, *refused]] == [True] * 5 + [False] * 6

    async def go() -> list[str | None]:
        policy = HttpPolicy(allowed_addresses=policy_from_settings().allowed_addresses, transport=transport)
        async with new_client(policy) as client:
            return [await code_of_call("openai", url, client) for url in [*allowed, *refused]]

    assert asyncio.run(go()) == ["connect_failed"] * 5 + ["address_refused"] * 6
    # Of a name with several private addresses the one that was allowed.
    assert [address.partition("%")[0] for address in reached] == [
        *("192.168.0.1", "192.168.0.1", "fe80::1", "fd00:ec2::254", "fd00:ec2::254"),
    ]


def test_a_redirect_is_not_followed(transport: Transport, fake: FakeProvider) -> None:
    async def go() -> str | None:
        policy = HttpPolicy(allowed_addresses=frozenset({fake.address}), transport=transport)
        async with new_client(policy) as client:
            return await code_of_call("openai", fake.base_url, client, question="[[fault=redirect]]")

    fake.reset()
    assert asyncio.run(go()) == "redirect_refused"
    assert fake.stats()["requests"] == 1
