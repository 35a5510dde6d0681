"""The chat page and the addresses around it."""

from __future__ import annotations

import re

import pytest
from django.contrib.staticfiles import finders
from django.test import Client


def test_the_page_needs_no_database_and_no_sign_in() -> None:
    answer = Client().get("/")
    assert answer.status_code == 200
    assert answer["Content-Type"] == "text/html; charset=utf-8"


def test_nothing_on_the_page_is_inline_or_from_elsewhere() -> None:
    answer = Client().get("/")
    policy = dict(part.strip().split(" ", 1) for part in answer["Content-Security-Policy"].split(";"))
    assert policy["default-src"] == "'self'"
    assert "unsafe" not in answer["Content-Security-Policy"]
    page = answer.content.decode()
    assert not re.search(r"<script(?![^>]*\bsrc=)", page)
    assert not re.search(r"<style|\sstyle=|\son\w+=", page)
    assert not re.search(r"(?:src|href)=[\"']?(?:https?:)?//", page)


def test_every_file_the_page_names_is_there() -> None:
    page = Client().get("/").content.decode()
    names = re.findall(r'(?:src|href)="/static/([^"]+)"', page)
    assert len(names) >= 3
    assert [name for name in names if finders.find(name) is None] == []


@pytest.mark.parametrize("header", ["X-Frame-Options", "X-Content-Type-Options", "Referrer-Policy"])
def test_the_page_is_guarded(header: str) -> None:
    assert Client().get("/").has_header(header)


def test_the_admin_asks_for_a_sign_in(db: None) -> None:
    answer = Client().get("/admin/")
    assert (answer.status_code, answer["Location"]) == (302, "/admin/login/?next=/admin/")
