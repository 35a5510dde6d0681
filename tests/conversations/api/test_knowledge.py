"""Documents by API: managers alone, each site for itself, bad files refused in the caller's shape."""

from __future__ import annotations

from typing import Any

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from conversations.models import Document, Membership
from tests import files
from tests.world import World, bearer, make_member

pytestmark = pytest.mark.django_db

BASE = "/api/knowledge"
TEXT = "# 退款\n审核通过后，款项在三个工作日内原路退回。\n\n# 运费\n质量问题由商家承担运费。\n"
CANARY = "金丝雀乙九四七"


@pytest.fixture
def erin(world: World) -> Membership:
    return make_member(world.acorn, "erin", role="manager")


@pytest.fixture
def frank(world: World) -> Membership:
    return make_member(world.birch, "frank", role="manager")


def upload(client: Client, member: Membership, name: str, content: bytes, **more: str) -> Any:
    file = SimpleUploadedFile(name, content)
    return client.post(f"{BASE}/documents", {"file": file, **more}, headers=bearer(member))


def replace(client: Client, member: Membership, pk: int, body: dict[str, Any]) -> Any:
    return client.patch(f"{BASE}/documents/{pk}", body, content_type="application/json", headers=bearer(member))


def headings(client: Client, member: Membership, q: str) -> list[str]:
    answer = client.get(f"{BASE}/search", {"q": q}, headers=bearer(member))
    return [item["heading"] for item in answer.json()["items"]]


def test_an_uploaded_file_is_ready_and_found(client: Client, erin: Membership) -> None:
    answer = upload(client, erin, "帮助.md", TEXT.encode(), title="帮助中心", url="https://example.com/help")
    document = answer.json()
    assert (answer.status_code, document["status"], document["percent"]) == (201, "ready", 100)
    assert (document["title"], document["kind"], document["passages"]) == ("帮助中心", "markdown", 2)
    assert (document["filename"], document["sizeBytes"], document["error"]) == (
        "帮助.md",
        len(TEXT.encode()),
        None,
    )
    found = client.get(f"{BASE}/search", {"q": "退款几天到账"}, headers=bearer(erin)).json()["items"]
    assert [found[0][name] for name in ("heading", "title", "documentId", "url")] == [
        "退款",
        "帮助中心",
        document["id"],
        "https://example.com/help",
    ]
    listed = client.get(f"{BASE}/documents", headers=bearer(erin)).json()
    assert (listed["items"], listed["total"]) == ([document], 1)


def test_a_text_is_a_document_too_and_can_be_replaced_and_renamed(client: Client, erin: Membership) -> None:
    body = {"title": "说明", "text": TEXT, "format": "markdown"}
    answer = client.post(f"{BASE}/documents", body, content_type="application/json", headers=bearer(erin))
    pk = answer.json()["id"]
    assert headings(client, erin, "运费") == ["运费"]
    changed = replace(client, erin, pk, {"title": "新说明", "text": "# 发票\n开票请留言。"})
    assert (changed.status_code, changed.json()["title"], changed.json()["passages"]) == (200, "新说明", 1)
    assert (headings(client, erin, "运费"), headings(client, erin, "开票"), headings(client, erin, "新说明")) == (
        [],
        ["发票"],
        ["发票"],
    )


@pytest.mark.parametrize(
    ("name", "content", "status", "code"),
    [
        ("a.pdf", "文字".encode(), 422, "file_type_mismatch"),
        ("a.docx", files.locked_docx(), 422, "file_encrypted"),
        ("a.pdf", files.encrypted_pdf_of("密", password="密码"), 422, "file_encrypted"),
        ("a.docx", files.bomb_docx(), 422, "file_bomb"),
        ("a.txt", b" \n", 422, "file_has_no_text"),
        ("a.txt", b"", 422, "file_has_no_text"),
        ("a.png", files.PNG, 415, "unsupported_file"),
        ("a.docx", files.docx_of("好")[:-300], 422, "file_broken"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bad_file_is_refused_and_leaves_nothing(
    client: Client, erin: Membership, name: str, content: bytes, status: int, code: str
) -> None:
    answer = upload(client, erin, name, content)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert Document.across_sites.count() == 0


def test_a_bad_replacement_changes_nothing(client: Client, erin: Membership) -> None:
    pk = upload(client, erin, "帮助.md", TEXT.encode()).json()["id"]
    before = client.get(f"{BASE}/documents/{pk}", headers=bearer(erin)).json()
    answer = replace(client, erin, pk, {"title": "改名", "text": " "})
    assert (answer.status_code, answer.json()["code"]) == (422, "file_has_no_text")
    assert client.get(f"{BASE}/documents/{pk}", headers=bearer(erin)).json() == before
    assert headings(client, erin, "运费") == ["运费"]


def test_a_file_over_the_limit_is_refused(client: Client, erin: Membership, settings: Any) -> None:
    settings.KNOWLEDGE_FILE_MAX_BYTES = 1024
    answer = upload(client, erin, "a.txt", ("长" * 400).encode())
    assert (answer.status_code, answer.json()["code"]) == (413, "file_too_large")


@pytest.mark.parametrize("body", [{}, {"title": "a"}, {"title": "a", "text": 5}, {"title": "a", "text": "b\0"}])
def test_what_is_no_document_is_invalid(client: Client, erin: Membership, body: dict[str, Any]) -> None:
    answer = client.post(f"{BASE}/documents", body, content_type="application/json", headers=bearer(erin))
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid")


@pytest.mark.parametrize("url", ["javascript:alert(1)", "//evil.example", "ftp://x", "a b"])
def test_a_link_that_no_browser_should_follow_is_invalid(client: Client, erin: Membership, url: str) -> None:
    assert upload(client, erin, "a.txt", "好".encode(), url=url).status_code == 422


def knocks(client: Client, member: Membership | None, pk: int) -> list[tuple[int, Any]]:
    """Return what each call says to somebody: status and body."""
    headers = {"X-Request-Id": "knock-knock", **({} if member is None else bearer(member))}
    body = {"title": "抢走", "text": "抢走"}
    answers = [
        client.get(f"{BASE}/documents/{pk}", headers=headers),
        client.patch(f"{BASE}/documents/{pk}", body, content_type="application/json", headers=headers),
        client.delete(f"{BASE}/documents/{pk}", headers=headers),
        client.get(f"{BASE}/documents", headers=headers),
        client.post(f"{BASE}/documents", body, content_type="application/json", headers=headers),
        client.get(f"{BASE}/search", {"q": "运费"}, headers=headers),
    ]
    return [(answer.status_code, answer.content) for answer in answers]


def test_strangers_and_members_pass_nowhere(client: Client, world: World, erin: Membership) -> None:
    pk = upload(client, erin, "帮助.md", TEXT.encode()).json()["id"]
    analyst = make_member(world.acorn, "anna", role="analyst")
    waiting = make_member(world.acorn, "will", role="manager", status="pending")
    assert {status for status, _ in knocks(client, None, pk)} == {401}
    for member in (world.alice, analyst, waiting):
        assert {status for status, _ in knocks(client, member, pk)} == {403}
    assert Document.across_sites.get().title == "帮助"


def test_another_sites_manager_meets_a_missing_row(client: Client, erin: Membership, frank: Membership) -> None:
    pk = upload(client, erin, "帮助.md", TEXT.encode()).json()["id"]
    victim, nobody = knocks(client, frank, pk), knocks(client, frank, 999_999_999)
    assert [status for status, _ in victim] == [404, 404, 404, 200, 201, 200]
    assert victim[:3] == nobody[:3]
    assert "运费" not in victim[3][1].decode() + victim[5][1].decode()
    assert Document.across_sites.get(pk=pk).title == "帮助"


def test_a_superuser_of_the_site_manages_it_too(client: Client, world: World) -> None:
    world.alice.user.is_superuser = True
    world.alice.user.save()
    assert upload(client, world.alice, "a.txt", "好".encode()).status_code == 201


def traces() -> list[str]:
    """Names of all columns of all tables in which the canary, or its terms, still stand."""
    found = []
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT table_name, column_name FROM information_schema.columns"
            " WHERE table_schema = 'public' AND table_name LIKE 'conversations%%'"
        )
        for table, column in cursor.fetchall():
            cursor.execute(
                f'SELECT count(*) FROM "{table}" WHERE "{column}"::text LIKE ANY (%s)',
                [[f"%{CANARY}%", f"%{CANARY[:2]}%", f"%{CANARY.encode().hex()}%"]],  # a bytea reads as hex
            )
            if cursor.fetchone()[0]:
                found.append(f"{table}.{column}")
    return sorted(found)


def test_deleting_a_document_leaves_no_trace_of_it(client: Client, erin: Membership) -> None:
    content = f"# {CANARY}\n{CANARY}在此。".encode()
    pk = upload(client, erin, f"{CANARY}.md", content, title=CANARY).json()["id"]
    assert {name.rpartition(".")[2] for name in traces()} == {
        *("title", "filename", "content", "text", "heading", "search")
    }
    assert headings(client, erin, CANARY) == [CANARY]
    assert client.delete(f"{BASE}/documents/{pk}", headers=bearer(erin)).status_code == 204
    assert (traces(), headings(client, erin, CANARY)) == ([], [])
    assert client.get(f"{BASE}/documents/{pk}", headers=bearer(erin)).status_code == 404


def test_a_list_costs_the_same_for_one_row_and_three(client: Client, erin: Membership) -> None:
    headers = bearer(erin)
    costs = []
    for name in ("a.txt", "b.txt", "c.txt"):
        upload(client, erin, name, "好".encode())
        with CaptureQueriesContext(connection) as queries:
            client.get(f"{BASE}/documents", headers=headers)
        costs.append(len(queries))
    assert costs[0] == costs[2]
