"""Search in what a site knows: the passages that answer a question, best first.

By words: pairs of Chinese characters and words of other scripts, weighed by how rare they are on this site. By
meaning too, where `embeddings` can; the two orders are merged by reciprocal rank.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from django.db import connection

from conversations import db
from conversations.context import embeddings
from conversations.context.terms import QueryTerm, query_terms
from conversations.db import tenant

LIMIT_MAX = 50
QUERY_MAX_CHARS = 2000
NOISE = 0.1
"""What scores less than this share of the best has a character in common, and no more."""
CANDIDATES_MAX = 2000
"""Passages that are weighed for one query: those with its rarest terms."""
MERGED = 50
"""So many of each order are merged by reciprocal rank."""
RANK_OFFSET = 60  # as in the paper on reciprocal rank fusion
HEADING_WEIGHT = 1.0
TEXT_WEIGHT = 0.7
ONCE = 0.6079
"""What ts_rank gives of its weight to a term that stands once: all of the query in a heading is a score of 1."""
ENOUGH = 4.0
"""A query that says less than this, as its terms weigh, cannot be answered for sure."""
LENGTH_WEIGHT = 0.35
"""How much a passage longer than the others has to say for the same score (b of BM25)."""


@dataclass(frozen=True, slots=True)
class FoundPassage:
    """A passage that was found. The score, 0 to 1, is about how much of the question stands in it."""

    passage_id: int
    document_id: int
    title: str
    heading: str
    text: str
    score: float
    url: str = ""


def search_passages(
    site_id: int, query: str, *, limit: int = 5, vector: Sequence[float] | None = None
) -> list[FoundPassage]:
    """Return the passages of this site that fit the query best, best first; none for a query without words.

    With the query's vector by meaning, too. Sync: run it within `tenant(site)`. A few statements, whatever the
    size of the site.
    """
    limit = max(1, min(limit, LIMIT_MAX))
    if vector is None:
        return load_passages(site_id, rank_by_words(site_id, query, limit=limit))
    by_words = rank_by_words(site_id, query, limit=MERGED)
    by_meaning = embeddings.rank_by_meaning(site_id, vector, limit=MERGED)
    return load_passages(site_id, merged(by_words, by_meaning)[:limit])


def rank_by_words(site_id: int, query: str, *, limit: int) -> list[tuple[int, float]]:
    """Return ids and scores of the passages with the words of the query, best first."""
    terms = query_terms(query[:QUERY_MAX_CHARS])
    if not terms:
        return []
    queries = [term.as_tsquery(site_id) for term in terms]
    with connection.cursor() as cursor:
        # The sums are kept on the few rows of documents; counting passages would read them all.
        cursor.execute(
            "SELECT coalesce(sum(passage_count), 0), coalesce(sum(term_count), 0)"
            " FROM conversations_document WHERE site_id = %s",
            [site_id],
        )
        passages, words = map(int, cursor.fetchone() or (0, 0))
        if not passages:
            return []
        cursor.execute(
            # That a term is in more than so many is as much as anybody needs to know of it.
            "SELECT (SELECT count(*) FROM (SELECT FROM conversations_passage p"
            "                               WHERE p.site_id = %s AND p.search @@ term.query LIMIT %s) AS found)"
            " FROM unnest(%s::text[]::tsquery[]) WITH ORDINALITY AS term (query, place) ORDER BY term.place",
            [site_id, CANDIDATES_MAX, queries],
        )
        found_in = [int(row[0]) for row in cursor.fetchall()]
        weights = [weight_of(term, count, passages) for term, count in zip(terms, found_in, strict=True)]
        chosen = _rarest(queries, found_in)
        if not chosen:
            return []
        cursor.execute(
            # Joined to nothing, a vector is unpacked once instead of once for each term.
            "WITH p AS MATERIALIZED ("
            " SELECT id, term_count, search || ''::tsvector AS search FROM conversations_passage"
            "  WHERE site_id = %s AND search @@ %s::tsquery LIMIT %s)"
            " SELECT p.id,"
            " sum(term.weight * ts_rank(%s::float4[], p.search, term.query))"
            " / (1 - %s + %s * p.term_count / %s) AS score"
            " FROM p, unnest(%s::text[]::tsquery[], %s::float8[]) AS term (query, weight)"
            " GROUP BY p.id, p.term_count ORDER BY score DESC, p.id LIMIT %s",
            [
                site_id,
                " | ".join(chosen),
                CANDIDATES_MAX,
                [TEXT_WEIGHT, TEXT_WEIGHT, TEXT_WEIGHT, HEADING_WEIGHT],
                LENGTH_WEIGHT,
                LENGTH_WEIGHT,
                max(1.0, words / passages),
                queries,
                weights,
                limit,
            ],
        )
        asked = sum(weight for weight, term in zip(weights, terms, strict=True) if not term.is_other_word)
        most = ONCE * max(asked, ENOUGH)
        found = [(int(pk), float(score)) for pk, score in cursor.fetchall()]
        return [(pk, min(1.0, score / most)) for pk, score in found if score >= NOISE * found[0][1]]


def weight_of(term: QueryTerm, found_in: int, passages: int) -> float:
    """Return how much a term says: little when many passages have it (idf of BM25)."""
    return term.weight * math.log(1 + (passages - min(found_in, passages) + 0.5) / (found_in + 0.5))


def _rarest(queries: Sequence[str], found_in: Sequence[int]) -> list[str]:
    """Return the terms by which candidates are found: the rarest ones first, until they are many."""
    chosen: list[str] = []
    candidates = 0
    for count, query in sorted(zip(found_in, queries, strict=True)):
        if not count:
            continue
        if chosen and candidates + count > CANDIDATES_MAX:
            break
        chosen.append(query)
        candidates += count
    return chosen


def load_passages(site_id: int, ranked: Sequence[tuple[int, float]]) -> list[FoundPassage]:
    """Return the passages with these ids and scores, in this order."""
    if not ranked:
        return []
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT p.id, p.document_id, d.title, p.heading, p.text, d.url"
            " FROM conversations_passage p"
            " JOIN conversations_document d ON d.site_id = p.site_id AND d.id = p.document_id"
            " WHERE p.site_id = %s AND p.id = ANY(%s)",
            [site_id, [pk for pk, _score in ranked]],
        )
        rows = {row[0]: row for row in cursor.fetchall()}
    return [
        FoundPassage(pk, row[1], row[2], row[3], row[4], round(score, 4), row[5])
        for pk, score in ranked
        if (row := rows.get(pk)) is not None
    ]


async def find_passages(site_id: int, query: str, *, limit: int = 5) -> list[FoundPassage]:
    """Return the same from async code, by meaning too where that can be had."""
    vector = await embeddings.embed_query(query) if query.strip() else None
    return await db.unit(_find_in_tenant, site_id, query, limit, vector)


def _find_in_tenant(site_id: int, query: str, limit: int, vector: Sequence[float] | None) -> list[FoundPassage]:
    with tenant(site_id):
        return search_passages(site_id, query, limit=limit, vector=vector)


def merged(
    by_words: Sequence[tuple[int, float]], by_meaning: Sequence[tuple[int, float]]
) -> list[tuple[int, float]]:
    """Return ids and scores of both orders as one, by reciprocal rank; a score says the better of the two.

    A cosine of 0.5 is what models give to nearly any two texts of one subject: it counts from there.
    """
    ranks: dict[int, float] = {}
    scores: dict[int, float] = {}
    for order in (by_words, [(pk, max(0.0, 2 * likeness - 1)) for pk, likeness in by_meaning]):
        for rank, (pk, score) in enumerate(order, 1):
            ranks[pk] = ranks.get(pk, 0.0) + 1 / (RANK_OFFSET + rank)
            scores[pk] = max(scores.get(pk, 0.0), score)
    return [(pk, scores[pk]) for pk in sorted(ranks, key=lambda pk: (-ranks[pk], pk))]
