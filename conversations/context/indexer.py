"""Work on documents that take longer than their sender waits: claimed, renewed, and taken up again.

Any live worker does it, and `manage.py index_knowledge`. A claim is an UPDATE that counts rows; whoever holds it
says so every few seconds, and a claim that nobody has renewed is anybody's: `kill -9` costs a document half a
minute. A claim that was taken over fences the first holder, whose last UPDATE then finds no row.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Callable
from typing import cast

from django.db import DatabaseError, connection, transaction
from django.db.models.functions import Now

from conversations import db
from conversations.context import embeddings
from conversations.context.documents import finish_document, give_up_document
from conversations.context.formats import BadFile, Kind
from conversations.context.reader import NotInTime, Reading, read_file
from conversations.db import tenant
from conversations.models import Document

log = logging.getLogger(__name__)

CLAIM_SECONDS = 30
RENEW_SECONDS = 3.0
READ_SECONDS = 600.0
TRIES_MAX = 3
LOOK_SECONDS = 2.0

_CLAIM = """
UPDATE conversations_document
   SET claim = %s, claimed_at = clock_timestamp(), status = 'reading', tries = tries + 1
 WHERE id = (SELECT id FROM conversations_document
              WHERE status IN ('queued', 'reading', 'indexing')
                AND (claimed_at IS NULL OR claimed_at < clock_timestamp() - %s * interval '1 second')
              ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED)
RETURNING id, site_id, tries
"""


class ClaimLost(Exception):
    """Somebody else works on the document now, or it was deleted or replaced."""


def work_once(is_over: Callable[[], bool] = lambda: False) -> bool:
    """Work on one waiting document; return whether there was one. Sync; takes minutes for a long file.

    When it is over for this process the document is let go, for another one to take up at once.
    """
    claim = uuid.uuid4()
    with connection.cursor() as cursor:
        cursor.execute(_CLAIM, [claim, CLAIM_SECONDS])
        row = cursor.fetchone()
    if row is None:
        return False
    document_id, site_id, tries = row
    began = time.monotonic()
    trace = {"document": document_id, "site": site_id}
    try:
        if tries > TRIES_MAX:
            # Whoever read it died each time: it is not read for ever.
            _end(site_id, document_id, claim, code="file_reading_timeout")
        else:
            _work(site_id, document_id, claim, is_over)
    except ClaimLost:
        log.info("document_let_go", extra=trace)
        return True
    log.info("document_worked_on", extra={**trace, "seconds": round(time.monotonic() - began, 3)})
    return True


def _work(site_id: int, document_id: int, claim: uuid.UUID, is_over: Callable[[], bool]) -> None:
    with tenant(site_id):
        document = Document.objects.for_site(site_id).filter(pk=document_id, claim=claim).first()
        file = document.files.order_by("-pk").first() if document is not None else None
        content = bytes(file.content) if file is not None else b""
    if file is None:
        raise ClaimLost
    renewed = 0.0

    def progress(percent: int) -> None:
        nonlocal renewed
        if is_over():
            _let_go(site_id, document_id, claim)
            raise ClaimLost
        if time.monotonic() - renewed >= RENEW_SECONDS:
            renewed = time.monotonic()
            # Reading is most of the work: it is told as 0 to 90 percent.
            _renew(site_id, document_id, claim, None if percent < 0 else percent * 9 // 10)

    try:
        reading = read_file(cast(Kind, file.kind), content, seconds=READ_SECONDS, progress=progress)
    except NotInTime:
        _end(site_id, document_id, claim, code="file_reading_timeout")
    except BadFile as error:
        _end(site_id, document_id, claim, code=error.code)
    else:
        _renew(site_id, document_id, claim, 90, status=Document.Status.INDEXING)
        _end(site_id, document_id, claim, reading=reading)


def _renew(site_id: int, document_id: int, claim: uuid.UUID, percent: int | None, **values: object) -> None:
    """Say that the work goes on, and how far it is. Raises: ClaimLost."""
    if percent is not None:
        values["percent"] = percent
    with tenant(site_id):
        rows = Document.objects.for_site(site_id).filter(pk=document_id, claim=claim)
        if not rows.update(claimed_at=Now(), **values):
            raise ClaimLost


def _let_go(site_id: int, document_id: int, claim: uuid.UUID) -> None:
    """Put the document back, for another worker to take up at once."""
    with tenant(site_id):
        rows = Document.objects.for_site(site_id).filter(pk=document_id, claim=claim)
        rows.update(status=Document.Status.QUEUED, percent=0, claim=None, claimed_at=None, tries=0)


def _end(
    site_id: int, document_id: int, claim: uuid.UUID, *, reading: Reading | None = None, code: str = ""
) -> None:
    """Store what came of it, all at once, if the claim still holds. Raises: ClaimLost."""
    with tenant(site_id), transaction.atomic():
        rows = Document.objects.for_site(site_id).filter(pk=document_id, claim=claim)
        document = rows.select_for_update(of=("self",)).first()
        if document is None:
            raise ClaimLost
        if reading is not None:
            finish_document(document, reading.pieces)
        else:
            log.warning("document_unreadable", extra={"document": document_id, "site": site_id, "code": code})
            give_up_document(document, code)


async def keep_indexing(is_over: Callable[[], bool]) -> None:
    """Work on documents as they come, one at a time, until it is over. A thread's work, not the loop's."""
    while not is_over():
        has_worked = False
        try:
            if await db.unit(is_there_work):
                has_worked = await asyncio.to_thread(_work_and_close, is_over)
            has_worked = await embeddings.fill_some() or has_worked
        except DatabaseError as error:
            log.warning("indexing_failed", extra={"error": type(error).__name__})
        await asyncio.sleep(0.05 if has_worked else LOOK_SECONDS)


def is_there_work() -> bool:
    """Return whether a document waits that nobody works on."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT EXISTS (SELECT FROM conversations_document WHERE status IN ('queued', 'reading', 'indexing')"
            " AND (claimed_at IS NULL OR claimed_at < clock_timestamp() - %s * interval '1 second'))",
            [CLAIM_SECONDS],
        )
        row = cursor.fetchone()
    return bool(row and row[0])


def _work_and_close(is_over: Callable[[], bool]) -> bool:
    try:
        return work_once(is_over)
    finally:
        connection.close()
