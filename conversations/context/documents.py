"""The documents of a site: adding, replacing, renaming and deleting them; what is indexed is swapped whole.

A small file is read while its sender waits, so that a bad one is refused and leaves nothing. One that takes
longer is stored as `queued` and read in the background (`indexer`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice

from django.conf import settings
from django.db import connection, transaction
from django.db.models.functions import Now

from conversations.context.cards import without_document
from conversations.context.formats import BadFile, Kind, kind_of
from conversations.context.reader import NotInTime, Reading, read_file
from conversations.context.splitting import Piece
from conversations.context.terms import as_tsvector
from conversations.models import Document, DocumentFile, Message
from conversations.models.knowledge import DOCUMENT_TITLE_CHARS

AT_ONCE_SECONDS = 5.0
"""How long the sender of a file waits for it to be read."""
BATCH = 200


@dataclass(frozen=True, slots=True)
class LookedAt:
    """A file, what kind it is, and what is in it; None when reading it takes longer."""

    filename: str
    kind: Kind
    content: bytes = field(repr=False)
    reading: Reading | None = field(repr=False)


def add_document(
    site_id: int, *, filename: str, content: bytes, title: str = "", url: str = "", user_id: int | None = None
) -> Document:
    """Return a new document: ready, or queued when reading it takes longer.

    Sync, within `tenant(site)`. Raises: BadFile; then nothing was stored.
    """
    return keep_document(site_id, look_at(filename, content), title=title, url=url, user_id=user_id)


def keep_document(
    site_id: int, file: LookedAt, *, title: str = "", url: str = "", user_id: int | None = None
) -> Document:
    """Return a new document of a file that was looked at."""
    with transaction.atomic():
        document = Document.across_sites.create(
            site_id=site_id,
            title=(title.strip() or _title_of(file))[:DOCUMENT_TITLE_CHARS],
            url=url,
            filename=file.filename,
            kind=file.kind,
            size_bytes=len(file.content),
            uploaded_by_id=user_id,
        )
        _keep_file(document, file)
        if file.reading is not None:
            finish_document(document, file.reading.pieces)
    return document


def replace_document(document: Document, *, filename: str, content: bytes) -> Document:
    """Return the document with a new file: ready, or queued, with the earlier passages found until then.

    Raises: BadFile; then the document is what it was.
    """
    return keep_replacement(document, look_at(filename, content))


def keep_replacement(document: Document, file: LookedAt) -> Document:
    """Return the document with the file that was looked at."""
    with transaction.atomic():
        _lock(document)
        _keep_file(document, file)
        if file.reading is not None:
            finish_document(document, file.reading.pieces)
        else:
            # Nobody's claim, also for whoever asks when it was last renewed: it is taken up at once.
            waiting = Document.Status.QUEUED
            _change(document, status=waiting, percent=0, error_code="", claim=None, claimed_at=None, tries=0)
    return document


def change_document(document: Document, *, title: str | None = None, url: str | None = None) -> Document:
    """Return the document under a new title or link. Its title is part of what passages are found by."""
    with transaction.atomic():
        _lock(document)
        if url is not None and url != document.url:
            _change(document, url=url)
        if title is not None and title != document.title:
            _change(document, title=title)
            reindex_document(document)
    return document


def reindex_document(document: Document) -> None:
    """Index the passages of a document once more: its title has changed, or the way terms are made."""
    with transaction.atomic():
        _lock(document)
        rows = document.passages.order_by("position").values_list("heading", "text")
        if kept := [Piece(*row) for row in rows]:
            _swap_passages(document, kept)


def delete_document(document: Document) -> None:
    """Remove a document with all that came of it: passages, index entries, files, embeddings.

    Its words leave the cards of earlier replies, too; what replies said stays: it is theirs.
    """
    with transaction.atomic():
        for table in ("conversations_passage", "conversations_document_file"):
            with connection.cursor() as cursor:
                cursor.execute(
                    f"DELETE FROM {table} WHERE site_id = %s AND document_id = %s",  # noqa: S608  # constants
                    [document.site_id, document.pk],
                )
        Document.objects.for_site(document.site_id).filter(pk=document.pk).delete()
        named = {"sources": [{"documentId": document.pk}]}
        replies = Message.objects.for_site(document.site_id).filter(reference_card__contains=named)
        for reply in replies.select_for_update(of=("self",)).only("reference_card"):
            card = without_document(reply.reference_card or {}, document.pk)
            Message.objects.for_site(document.site_id).filter(pk=reply.pk).update(reference_card=card)


def finish_document(
    document: Document, pieces: Sequence[Piece], progress: Callable[[int], None] | None = None
) -> None:
    """Make these the passages of the document, and its newest file its file. Within a transaction."""
    newest = document.files.order_by("-pk").first()
    if newest is not None:
        document.files.exclude(pk=newest.pk).delete()
    _swap_passages(document, pieces, progress)
    _change(
        document,
        status=Document.Status.READY,
        percent=100,
        error_code="",
        claim=None,
        claimed_at=None,
        tries=0,
        indexed_at=Now(),
        **({} if newest is None else _facts_of(newest)),
    )
    document.refresh_from_db()


def give_up_document(document: Document, code: str) -> None:
    """Let go of a file that cannot be read: what was found before stays, with the reason beside it."""
    has_earlier = document.passage_count > 0
    newest = document.files.order_by("-pk").first()
    if newest is not None:
        newest.delete()
    _change(
        document,
        status=Document.Status.READY if has_earlier else Document.Status.FAILED,
        percent=100 if has_earlier else 0,
        error_code=code,
        claim=None,
        claimed_at=None,
    )


def look_at(filename: str, content: bytes) -> LookedAt:
    """Return a file with its kind, and with what is in it when that is known soon. Raises: BadFile."""
    if len(content) > settings.KNOWLEDGE_FILE_MAX_BYTES:
        raise BadFile("file_too_large")
    if not content.strip():
        raise BadFile("file_has_no_text")
    kind = kind_of(filename, content)
    try:
        reading = read_file(kind, content, seconds=AT_ONCE_SECONDS)
    except NotInTime:
        reading = None
    return LookedAt(filename[-200:], kind, content, reading)


def _title_of(file: LookedAt) -> str:
    """Return a name for a document that was given none: its file's, or its first words."""
    name = file.filename.replace("\\", "/").rpartition("/")[2]
    stem = name.rpartition(".")[0] or name
    if stem.strip():
        return stem.strip()
    first = file.reading.pieces[0] if file.reading else None
    return " ".join((first.heading or first.text).split())[:40] if first else "–"


def _keep_file(document: Document, file: LookedAt) -> None:
    DocumentFile.across_sites.create(
        site_id=document.site_id,
        document=document,
        filename=file.filename,
        kind=file.kind,
        content=file.content,
        digest=hashlib.sha256(file.content).hexdigest(),
    )


def _facts_of(file: DocumentFile) -> dict[str, object]:
    return {"filename": file.filename, "kind": file.kind, "size_bytes": len(file.content)}


def _lock(document: Document) -> None:
    """Let changes of one document take turns."""
    rows = Document.objects.for_site(document.site_id).filter(pk=document.pk)
    rows.select_for_update().values_list("pk").first()


def _change(document: Document, **values: object) -> None:
    Document.objects.for_site(document.site_id).filter(pk=document.pk).update(**values, updated_at=Now())
    for name, value in values.items():
        if not isinstance(value, Now):
            setattr(document, name, value)


def _swap_passages(
    document: Document, pieces: Sequence[Piece], progress: Callable[[int], None] | None = None
) -> None:
    """Replace the passages of a document, and the sums that searches use."""
    document.passages.all().delete()
    total = 0
    for start in range(0, len(pieces), BATCH):
        total += _insert(document, start, pieces[start : start + BATCH])
        if progress is not None:
            progress(100 * start // len(pieces))
    _change(document, passage_count=len(pieces), term_count=total)


def _insert(document: Document, start: int, pieces: Iterable[Piece]) -> int:
    """Store passages from this place on, in one statement; return how many terms they hold."""
    places, headings, texts, vectors, counts = [], [], [], [], []
    for place, piece in enumerate(islice(pieces, BATCH), start):
        vector, count = as_tsvector(document.site_id, heading=f"{document.title} {piece.heading}", text=piece.text)
        places.append(place)
        headings.append(piece.heading)
        texts.append(piece.text)
        vectors.append(vector)
        counts.append(count)
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO conversations_passage (site_id, document_id, position, heading, text, search, term_count)"
            " SELECT %s, %s, row.place, row.heading, row.text, row.search, row.terms"
            " FROM unnest(%s::int[], %s::text[], %s::text[], %s::text[]::tsvector[], %s::int[])"
            " AS row (place, heading, text, search, terms)",
            [document.site_id, document.pk, places, headings, texts, vectors, counts],
        )
    return sum(counts)
