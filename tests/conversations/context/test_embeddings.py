"""Search by meaning: an endpoint that embeds, a server with pgvector, and everything without them."""

from __future__ import annotations

import asyncio
import io
import json
import threading
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import psycopg
import pytest
from django.core.management import CommandError, call_command
from django.db import connection

from chatsite.postgres import SUPERUSER
from conversations.context import embeddings
from conversations.context.documents import add_document, delete_document
from conversations.context.knowledge import find_passages, merged, search_passages
from conversations.db import tenant
from conversations.models import Document, Site
from providers import embedding
from providers.errors import ProviderError
from providers.http import close_shared_clients
from tests.world import make_world

pytestmark = pytest.mark.django_db(transaction=True)

TOPICS = (("退款", "退回", "拿回"), ("运费", "邮费", "包邮"), ("发票", "报销凭证"))
TEXT = "# 退款\n三个工作日内原路退回。\n\n# 运费\n由商家承担。\n\n# 发票\n当天开具。"


class Model(BaseHTTPRequestHandler):
    """Embeds by topic: a number for each, and one for everything else."""

    said: dict[str, Any] | None = None
    status = 200
    asked: list[dict[str, Any]] = []

    def do_POST(self) -> None:
        """Answer one call."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append({"path": self.path, "key": self.headers.get("Authorization"), **body})
        rows = [
            {"index": n, "embedding": [*(float(any(w in text for w in words)) for words in TOPICS), 0.1]}
            for n, text in enumerate(body["input"])
        ]
        said = json.dumps(self.said if self.said is not None else {"data": rows[::-1]}).encode()
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        with suppress(BrokenPipeError):
            self.wfile.write(said)

    def log_message(self, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture
def model(settings: Any) -> Iterator[type[Model]]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Model)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    Model.said, Model.status, Model.asked = None, 200, []
    settings.EMBEDDING_BASE_URL = f"http://127.0.0.1:{server.server_address[1]}"
    settings.EMBEDDING_MODEL, settings.EMBEDDING_API_KEY = "topics", "sk-canary-embedding"
    yield Model
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def vectors(model: type[Model], db: None) -> Iterator[None]:
    """The extension, made by the server's superuser as an operator would; gone afterwards."""
    given = connection.settings_dict
    try:
        root = psycopg.connect(host=given["HOST"], user=SUPERUSER, dbname=given["NAME"], autocommit=True)
    except psycopg.OperationalError:
        pytest.skip("the superuser of this server is not ours")
    with root:
        if root.execute("SELECT FROM pg_available_extensions WHERE name = 'vector'").fetchone() is None:
            pytest.skip("this server has no pgvector")
        root.execute("CREATE EXTENSION IF NOT EXISTS vector")
        call_command("prepare_vectors", stdout=io.StringIO())
        yield
        connection.close()
        root.execute(f"DROP TABLE IF EXISTS {embeddings.TABLE}")
        root.execute("DROP EXTENSION vector")


def know(site: Site) -> Document:
    with tenant(site.pk):
        return add_document(site.pk, filename="手册.md", content=TEXT.encode())


def found(site: Site, question: str) -> list[str]:
    async def ask() -> list[str]:
        try:
            while await embeddings.fill_some():
                pass
            return [passage.heading for passage in await find_passages(site.pk, question, limit=2)]
        finally:
            await close_shared_clients()

    return asyncio.run(ask())


def kept() -> int:
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT count(*) FROM {embeddings.TABLE}")
        return int(cursor.fetchone()[0])


def test_a_question_without_a_common_word_is_found_by_meaning(vectors: None, model: type[Model]) -> None:
    world = make_world()
    document = know(world.acorn)
    know(world.birch)
    assert found(world.acorn, "邮费谁出")[0] == "运费"
    assert found(world.acorn, "报销凭证")[0] == "发票"
    with tenant(world.acorn.pk):
        vector = embeddings.embed_query_now("邮费谁出")
        assert search_passages(world.acorn.pk, "邮费谁出", vector=vector)[0].heading == "运费"
    assert kept() == 6
    assert {call["path"] for call in model.asked} == {"/v1/embeddings"}
    assert {call["key"] for call in model.asked} == {"Bearer sk-canary-embedding"}
    with tenant(world.acorn.pk):
        delete_document(document)
    assert (kept(), found(world.acorn, "邮费谁出")) == (3, [])


def test_another_model_is_asked_for_all_anew(vectors: None, model: type[Model], settings: Any) -> None:
    world = make_world()
    know(world.acorn)
    found(world.acorn, "运费")
    settings.EMBEDDING_MODEL = "other"
    assert found(world.acorn, "邮费谁出")[0] == "运费"
    assert sum(len(call["input"]) for call in model.asked if call["model"] == "other") == 4


def test_without_the_table_or_with_an_endpoint_that_fails_words_are_enough(model: type[Model]) -> None:
    world = make_world()
    know(world.acorn)
    assert found(world.acorn, "运费")[0] == "运费"
    Model.status, Model.said = 500, {"error": {"message": "x"}}
    assert found(world.acorn, "运费")[0] == "运费"


def test_a_server_without_the_right_says_what_to_ask_for(model: type[Model]) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT rolsuper FROM pg_roles WHERE rolname = current_user")
        if cursor.fetchone()[0]:
            pytest.skip("this role may create extensions")
    with pytest.raises(CommandError, match=r"superuser|no extension"):
        call_command("prepare_vectors", "--dimensions", "4")


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"data": []},
        {"data": [{"index": 0, "embedding": []}]},
        {"data": [{"index": 0, "embedding": ["x"]}]},
        {"data": [{"index": 5, "embedding": [1.0]}]},
        {"data": [{"index": 0, "embedding": [1.0]}, {"index": 1, "embedding": [1.0]}]},
    ],
)
def test_an_answer_that_is_none_is_refused(model: type[Model], said: dict[str, Any]) -> None:
    Model.said = said

    async def ask() -> None:
        try:
            with pytest.raises(ProviderError):
                await embedding.embed(["好"], seconds=5)
        finally:
            await close_shared_clients()

    asyncio.run(ask())


def test_two_orders_are_merged_by_reciprocal_rank() -> None:
    order = merged([(1, 0.5), (2, 0.4), (3, 0.3)], [(3, 0.9), (4, 0.8), (1, 0.6)])
    assert [pk for pk, _ in order] == [1, 3, 2, 4]
    assert dict(order) == pytest.approx({1: 0.5, 3: 0.8, 2: 0.4, 4: 0.6})
