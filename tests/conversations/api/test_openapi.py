from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from django.test import Client
from django.urls import get_resolver
from drf_spectacular.generators import SchemaGenerator
from drf_spectacular.validation import validate_schema

from conversations.api.openapi import ERRORS_BY_OPERATION
from conversations.errors import CODES

ROOT = Path(__file__).resolve().parents[3]


@cache
def document() -> dict[str, Any]:
    return dict(SchemaGenerator().get_schema(request=None, public=True))  # type: ignore[no-untyped-call]


def test_the_document_is_valid_openapi_3_1() -> None:
    assert document()["openapi"].startswith("3.1")
    validate_schema(document())


def test_the_stored_document_is_the_generated_one() -> None:
    stored = yaml.safe_load((ROOT / "docs" / "openapi.yaml").read_text(encoding="utf-8"))
    assert stored["paths"].keys() == document()["paths"].keys()
    assert stored["components"]["schemas"].keys() == document()["components"]["schemas"].keys()


def test_every_api_route_is_described_without_its_slash() -> None:
    routes = {
        "/" + str(pattern.pattern).replace("<str:", "{").replace(">", "}")
        for resolver in get_resolver().url_patterns
        for pattern in getattr(resolver, "url_patterns", [])
        if str(pattern.pattern).startswith(("api/auth", "api/xcx")) and not str(pattern.pattern).endswith("/")
    }
    named = {re.sub(r"_id\b", "Id", path) for path in routes}
    assert len(named) > 10
    assert named <= set(document()["paths"])
    assert not [path for path in document()["paths"] if path.endswith("/")]


def test_every_operation_has_examples_and_its_errors() -> None:
    for methods in document()["paths"].values():
        for operation in methods.values():
            name = operation["operationId"]
            errors = {str(CODES[code].status) for code in ERRORS_BY_OPERATION[name]}
            assert errors <= set(operation["responses"]), name
            success = next(answer for status, answer in operation["responses"].items() if status < "300")
            bodies = [*success.get("content", {}).values()]
            bodies += operation.get("requestBody", {}).get("content", {}).values()
            assert all(media.get("examples") for media in bodies), name


def test_the_streams_are_described() -> None:
    stream = document()["paths"]["/api/xcx/chat/stream"]["post"]
    assert "text/event-stream" in stream["responses"]["200"]["content"]
    assert {parameter["name"] for parameter in stream["parameters"]} >= {"Idempotency-Key", "Last-Event-ID"}


def test_the_page_of_the_document_loads_nothing_from_elsewhere(client: Client) -> None:
    page = client.get("/api/docs").content.decode()
    assert "swagger-ui" in page
    assert "cdn" not in page and "unpkg" not in page


def test_the_document_and_the_error_page_need_no_sign_in(client: Client) -> None:
    assert client.get("/api/schema").status_code == 200
    page = client.get("/api/docs/errors").content.decode()
    assert all(f'id="{code}"' in page for code in CODES)
