"""Search by meaning, where it can be had: an embedding endpoint, and a server with the `vector` extension.

The table of vectors is made by `manage.py prepare_vectors`, not by a migration: it needs the extension, and its
width is the model's. Everything here asks first whether it is there; without it search goes by words alone.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from django.db import ProgrammingError, connection, transaction

from conversations import db
from conversations.db import tenant
from providers import embedding
from providers.errors import ProviderError

log = logging.getLogger(__name__)

TABLE = "conversations_passage_vector"
QUERY_SECONDS = 3.0
BATCH_SECONDS = 60.0
BATCH = 32
PASSAGE_MAX_CHARS = 2000


class NoVectors(Exception):
    """The server cannot keep vectors, in a sentence for whoever asked."""


def has_table() -> bool:
    """Return whether vectors can be kept here."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT to_regclass(%s) IS NOT NULL", [TABLE])
        row = cursor.fetchone()
    return bool(row and row[0])


def prepare(dimensions: int) -> None:
    """Make the extension and the table for vectors of this width; one of another width is replaced, and refilled.

    Raises: NoVectors.
    """
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SELECT EXISTS (SELECT FROM pg_available_extensions WHERE name = 'vector')")
        if not (cursor.fetchone() or (False,))[0]:
            raise NoVectors("This PostgreSQL server has no extension `vector` (pgvector).")
        try:
            with transaction.atomic():
                cursor.execute("CREATE EXTENSION IF NOT EXISTS vector")
        except ProgrammingError as error:  # insufficient_privilege
            raise NoVectors("Ask the server's superuser: CREATE EXTENSION vector, in this database.") from error
        cursor.execute(
            "SELECT format_type(atttypid, atttypmod) FROM pg_attribute"
            " WHERE attrelid = to_regclass(%s) AND attname = 'vector'",
            [TABLE],
        )
        row = cursor.fetchone()
        if row is not None and row[0] == f"vector({dimensions})":
            return
        cursor.execute(f"DROP TABLE IF EXISTS {TABLE}")
        cursor.execute(
            f"""
            CREATE TABLE {TABLE} (
                site_id bigint NOT NULL,
                passage_id bigint NOT NULL,
                model varchar(200) NOT NULL,
                vector vector({int(dimensions)}) NOT NULL,
                PRIMARY KEY (site_id, passage_id),
                CONSTRAINT {TABLE}_of_site FOREIGN KEY (site_id, passage_id)
                    REFERENCES conversations_passage (site_id, id) ON DELETE CASCADE)
            """
        )
        if dimensions <= 2000:
            # pgvector indexes no wider ones. The site is looked at after the index (iterative scans go on).
            cursor.execute(f"CREATE INDEX {TABLE}_nearest ON {TABLE} USING hnsw (vector vector_cosine_ops)")


async def embed_query(text: str) -> list[float] | None:
    """Return the vector of a question, None when there is no endpoint or it does not answer in time."""
    if not embedding.is_configured():
        return None
    try:
        return (await embedding.embed([text[:PASSAGE_MAX_CHARS]], seconds=QUERY_SECONDS))[0]
    except ProviderError as error:
        log.warning("embedding_failed", extra={"code": error.code})
        return None


def embed_query_now(text: str) -> list[float] | None:
    """Return the same to sync code."""
    if not embedding.is_configured():
        return None
    try:
        return embedding.embed_now([text[:PASSAGE_MAX_CHARS]], seconds=QUERY_SECONDS)[0]
    except ProviderError as error:
        log.warning("embedding_failed", extra={"code": error.code})
        return None


def rank_by_meaning(site_id: int, vector: Sequence[float], *, limit: int) -> list[tuple[int, float]]:
    """Return ids and cosine similarities of the passages nearest to a vector; none without the table."""
    if not has_table():
        return []
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(
            "SELECT atttypmod FROM pg_attribute WHERE attrelid = to_regclass(%s) AND attname = 'vector'", [TABLE]
        )
        row = cursor.fetchone()
        if row is None or row[0] != len(vector):
            return []  # the table was made for another model
        cursor.execute("SELECT set_config('hnsw.iterative_scan', 'strict_order', true)")
        cursor.execute(
            f"SELECT passage_id, 1 - (vector <=> %s::vector) FROM {TABLE}"  # noqa: S608  # a constant
            " WHERE site_id = %s AND model = %s ORDER BY vector <=> %s::vector LIMIT %s",
            [_text(vector), site_id, embedding.model_name(), _text(vector), limit],
        )
        return [(int(pk), float(likeness)) for pk, likeness in cursor.fetchall()]


async def fill_some() -> bool:
    """Give some passages that have no vector of the present model one; return whether there were any."""
    if not embedding.is_configured():
        return False
    waiting = await db.unit(_waiting)
    if not waiting:
        return False
    try:
        vectors = await embedding.embed([text for _site, _pk, text in waiting], seconds=BATCH_SECONDS)
    except ProviderError as error:
        log.warning("embedding_failed", extra={"code": error.code})
        return False
    await db.unit(_keep, [(site, pk, vector) for (site, pk, _), vector in zip(waiting, vectors, strict=True)])
    return True


def _waiting() -> list[tuple[int, int, str]]:
    """Return sites, ids and texts of some passages without a vector of this model. Workers look at random ones."""
    if not has_table():
        return []
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT p.site_id, p.id, left(concat_ws(E'\\n', d.title, nullif(p.heading, ''), p.text), %s)"  # noqa: S608  # constants
            " FROM conversations_passage p"
            " JOIN conversations_document d ON d.site_id = p.site_id AND d.id = p.document_id"
            f" LEFT JOIN {TABLE} v ON v.site_id = p.site_id AND v.passage_id = p.id AND v.model = %s"
            " WHERE v.passage_id IS NULL ORDER BY random() LIMIT %s",
            [PASSAGE_MAX_CHARS, embedding.model_name(), BATCH],
        )
        return [(int(site), int(pk), str(text)) for site, pk, text in cursor.fetchall()]


def _keep(rows: Sequence[tuple[int, int, Sequence[float]]]) -> None:
    for site_id, passage_id, vector in rows:
        with tenant(site_id), connection.cursor() as cursor:
            # A passage that was deleted meanwhile gets none.
            cursor.execute(
                f"INSERT INTO {TABLE} (site_id, passage_id, model, vector)"  # noqa: S608  # a constant
                " SELECT site_id, id, %s, %s::vector FROM conversations_passage"
                " WHERE site_id = %s AND id = %s FOR KEY SHARE"
                " ON CONFLICT (site_id, passage_id)"
                " DO UPDATE SET model = excluded.model, vector = excluded.vector",
                [embedding.model_name(), _text(vector), site_id, passage_id],
            )


def _text(vector: Sequence[float]) -> str:
    return "[" + ",".join(map(repr, vector)) + "]"
