"""Work in the background: claimed once, renewed, taken up again when whoever held it died."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connection

from conversations.context import documents, indexer
from conversations.context.documents import add_document, replace_document
from conversations.context.knowledge import search_passages
from conversations.db import tenant
from conversations.models import Document, DocumentFile, Site
from tests import files
from tests.world import World, make_world

ROOT = Path(__file__).resolve().parents[3]
LONG = files.pdf_of("很长的手册说退款要三天", pages=60)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Senders wait no time at all: everything goes into the background."""
    monkeypatch.setattr(documents, "AT_ONCE_SECONDS", 0.0)


def add(site: Site, content: bytes = LONG, filename: str = "手册.pdf") -> Document:
    with tenant(site.pk):
        return add_document(site.pk, filename=filename, content=content)


def count_found(site: Site, query: str) -> int:
    with tenant(site.pk):
        return len(search_passages(site.pk, query))


@pytest.mark.django_db
def test_a_long_file_waits_and_is_read_by_whoever_comes(world: World, patient: None) -> None:
    document = add(world.acorn)
    assert (document.status, document.percent, document.passage_count) == ("queued", 0, 0)
    assert indexer.is_there_work()
    assert [indexer.work_once(), indexer.work_once()] == [True, False]
    document.refresh_from_db()
    assert (document.status, document.percent, document.claim) == ("ready", 100, None)
    assert count_found(world.acorn, "退款要几天") > 0


@pytest.mark.django_db
def test_a_file_that_cannot_be_read_fails_and_is_let_go(world: World, patient: None) -> None:
    document = add(world.acorn, files.encrypted_pdf_of("密", password="密码"))
    indexer.work_once()
    document.refresh_from_db()
    assert (document.status, document.error_code) == ("failed", "file_encrypted")
    assert DocumentFile.across_sites.count() == 0
    assert not indexer.work_once()


@pytest.mark.django_db
def test_a_bad_replacement_leaves_what_was_found(
    world: World, patient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "AT_ONCE_SECONDS", 30.0)
    document = add(world.acorn, "退款要三天。".encode(), "手册.txt")
    monkeypatch.setattr(documents, "AT_ONCE_SECONDS", 0.0)
    with tenant(world.acorn.pk):
        bad = files.encrypted_pdf_of("密", password="密码")
        replace_document(document, filename="新.pdf", content=bad)
    assert (document.status, count_found(world.acorn, "退款")) == ("queued", 1)
    indexer.work_once()
    document.refresh_from_db()
    assert (document.status, document.error_code, document.kind) == ("ready", "file_encrypted", "text")
    assert count_found(world.acorn, "退款") == 1
    assert [file.filename for file in DocumentFile.across_sites.all()] == ["手册.txt"]


@pytest.mark.django_db
def test_a_claim_that_was_taken_over_changes_nothing(
    world: World, patient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = add(world.acorn)
    real = indexer.read_file

    def meanwhile(*args: Any, **kwargs: Any) -> Any:
        reading = real(*args, **kwargs)
        Document.across_sites.filter(pk=document.pk).update(claim="00000000-0000-0000-0000-000000000001")
        return reading

    monkeypatch.setattr(indexer, "read_file", meanwhile)
    assert indexer.work_once()
    document.refresh_from_db()
    assert (document.status, document.passage_count) == ("reading", 0)


@pytest.mark.django_db
def test_a_replacement_that_comes_while_the_first_file_is_read_is_taken_up_at_once(
    world: World, patient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = add(world.acorn)
    real, newer = indexer.read_file, files.pdf_of("新的手册说退款要五天", pages=2)

    def meanwhile(*args: Any, **kwargs: Any) -> Any:
        monkeypatch.setattr(indexer, "read_file", real)
        with tenant(world.acorn.pk):
            replace_document(document, filename="新.pdf", content=newer)
        return real(*args, **kwargs)

    monkeypatch.setattr(indexer, "read_file", meanwhile)
    assert [indexer.work_once(), indexer.work_once()] == [True, True]
    document.refresh_from_db()
    assert (document.status, document.filename, document.files.count()) == ("ready", "新.pdf", 1)
    assert (count_found(world.acorn, "五天") > 0, count_found(world.acorn, "三天")) == (True, 0)


@pytest.mark.django_db
def test_a_document_whose_readers_all_died_is_given_up(world: World, patient: None) -> None:
    document = add(world.acorn)
    Document.across_sites.filter(pk=document.pk).update(tries=indexer.TRIES_MAX)
    indexer.work_once()
    document.refresh_from_db()
    assert (document.status, document.error_code) == ("failed", "file_reading_timeout")


@pytest.mark.django_db
def test_a_worker_that_ends_puts_the_document_back(world: World, patient: None) -> None:
    document = add(world.acorn, files.pdf_of("很长", pages=2000))
    assert indexer.work_once(lambda: True)
    document.refresh_from_db()
    assert (document.status, document.claimed_at, document.tries) == ("queued", None, 0)


@pytest.mark.django_db
def test_the_command_does_what_waits_and_indexes_anew(world: World, patient: None) -> None:
    add(world.acorn)
    said = io.StringIO()
    call_command("index_knowledge", stdout=said)
    with connection.cursor() as cursor:
        cursor.execute("UPDATE conversations_passage SET search = ''")
    call_command("index_knowledge", "--all", "--site", "acorn", stdout=said)
    assert said.getvalue() == "1 document(s) worked on.\n1 document(s) worked on.\n"
    assert count_found(world.acorn, "退款") > 0


@pytest.mark.django_db(transaction=True)
def test_the_loop_of_a_worker_reads_what_comes(patient: None) -> None:
    document = add(make_world().acorn)
    over = threading.Event()

    async def watch() -> None:
        task = asyncio.create_task(indexer.keep_indexing(over.is_set))
        async with asyncio.timeout(30):
            while await asyncio.to_thread(_status, document.pk) != "ready":
                await asyncio.sleep(0.05)
        over.set()
        await task

    asyncio.run(watch())


def _status(pk: int) -> str:
    try:
        return str(Document.across_sites.values_list("status", flat=True).get(pk=pk))
    finally:
        connection.close()


@pytest.mark.django_db(transaction=True)
def test_kill_9_in_the_middle_costs_a_lease_and_nothing_else(
    patient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = add(make_world().acorn, files.pdf_of("很长的手册说退款要三天", pages=2500))
    database = {**os.environ, "DATABASE_URL": _url()}
    with subprocess.Popen(
        [sys.executable, "manage.py", "index_knowledge"], cwd=ROOT, env=database, stderr=subprocess.DEVNULL
    ) as worker:
        deadline = time.monotonic() + 30
        while _status(document.pk) != "reading":
            assert time.monotonic() < deadline
            time.sleep(0.02)
        worker.send_signal(signal.SIGKILL)
    document.refresh_from_db()
    assert (document.status, document.passage_count) == ("reading", 0)
    assert not indexer.work_once(), "its claim is fresh"
    monkeypatch.setattr(indexer, "CLAIM_SECONDS", 0)
    assert indexer.work_once()
    document.refresh_from_db()
    assert (document.status, document.tries) == ("ready", 0)


def _url() -> str:
    """Return the address of the database of this test."""
    given = connection.settings_dict
    host, port = given["HOST"], given["PORT"]
    if str(host).startswith("/"):
        return f"postgresql://{given['USER']}:{given['PASSWORD']}@/{given['NAME']}?host={host}&port={port}"
    return f"postgresql://{given['USER']}:{given['PASSWORD']}@{host}:{port}/{given['NAME']}"
