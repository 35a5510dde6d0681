"""Traceback pages: where it broke and what kind of values were there, never the values."""

from __future__ import annotations

import sys
from typing import Any

from django.test import RequestFactory
from django.views.debug import ExceptionReporter, get_default_exception_reporter_filter

from chatsite.debug import QuietReporterFilter


def break_down(secret: str, count: int, is_open: bool) -> None:
    raise LookupError


def page_of(*values: Any) -> str:
    """Return the page of a failure in the middle of a form, in debug mode."""
    request = RequestFactory().post(
        "/admin/", {"name": "主力" * 2, "api_key": "密钥" * 2, "password1": "密码" * 2}
    )
    try:
        break_down(*values)
    except LookupError:
        return ExceptionReporter(request, *sys.exc_info()).get_traceback_html()
    raise AssertionError


def test_it_is_the_filter_in_use() -> None:
    assert isinstance(get_default_exception_reporter_filter(), QuietReporterFilter)


def test_variables_are_shown_by_their_type_and_fields_that_hold_secrets_not_at_all(settings: Any) -> None:
    settings.DEBUG = True
    page = page_of("秘密" * 2, 111 * 5, True)
    assert "break_down" in page and "builtins.str" in page and "555" in page and "主力主力" in page
    # Twice, because the page quotes this file's lines.
    assert [word for word in ("秘密", "密钥", "密码") if word * 2 in page] == []
