"""Documents and page sources in the admin: uploaded, watched, tried, deleted; each site for itself."""

from __future__ import annotations

import io
from typing import Any

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.core.management import call_command
from django.test import Client
from django.urls import reverse

from conversations.models import Document, DocumentFile, PageSource, Passage
from providers.credentials import new_key
from providers.fields import secret_of
from tests import files
from tests.conversations.admin.people import client_of, make_manager
from tests.world import World

pytestmark = pytest.mark.django_db

LIST = "/admin/conversations/document/"
TEXT = "# 退款\n三个工作日内原路退回。\n\n# 运费\n由商家承担。\n".encode()


@pytest.fixture
def manager(world: World) -> Client:
    return client_of(make_manager(world.acorn, "erin").user)


def upload(client: Client, world: World, name: str, content: bytes, **more: str) -> Any:
    data = {"site": world.acorn.pk, "title": "", "url": "", "file": SimpleUploadedFile(name, content), **more}
    return client.post(f"{LIST}add/", data)


def errors_of(answer: Any) -> dict[str, list[str]]:
    return {name: list(errors) for name, errors in answer.context["adminform"].form.errors.items()}


def test_an_uploaded_file_is_listed_ready_and_found_by_a_tried_question(manager: Client, world: World) -> None:
    assert upload(manager, world, "帮助.md", TEXT).status_code == 302
    document = Document.across_sites.get()
    assert (document.title, document.status, document.site) == ("帮助", "ready", world.acorn)
    assert document.uploaded_by is not None and document.uploaded_by.username == "erin"
    page = manager.get(LIST, {"try": "钱几天退回来"}).content.decode()
    assert "三个工作日内原路退回" in page and 'value="钱几天退回来"' in page
    shown = manager.get(f"{LIST}{document.pk}/change/").content.decode()
    assert "由商家承担" in shown and "就绪" in shown


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.pdf", b"text", "文件内容与扩展名不符。"),
        ("a.docx", files.locked_docx(), "文件已加密，请去掉密码后再上传。"),
        ("a.txt", b" ", "文件中没有文字（扫描件需先识别文字）。"),
        ("a.txt", b"", "文件中没有文字（扫描件需先识别文字）。"),
    ],
)
def test_a_bad_file_is_told_at_its_field(
    manager: Client, world: World, name: str, content: bytes, words: str
) -> None:
    assert errors_of(upload(manager, world, name, content)) == {"file": [words]}
    assert Document.across_sites.count() == 0


def test_a_document_is_renamed_replaced_and_deleted_without_a_trace(manager: Client, world: World) -> None:
    upload(manager, world, "帮助.md", TEXT)
    pk = Document.across_sites.get().pk
    change = f"{LIST}{pk}/change/"
    assert manager.post(change, {"title": "新名", "url": "/help", "file": ""}).status_code == 302
    new = SimpleUploadedFile("新.txt", "发票当天开具。".encode())
    assert manager.post(change, {"title": "新名", "url": "/help", "file": new}).status_code == 302
    document = Document.across_sites.get()
    assert (document.title, document.url, document.kind, document.passage_count) == ("新名", "/help", "text", 1)
    assert manager.post(f"{LIST}{pk}/delete/", {"post": "yes"}).status_code == 302
    left = [model.across_sites.count() for model in (Document, DocumentFile, Passage)]
    assert left == [0, 0, 0]


def test_a_link_that_no_browser_should_follow_is_refused(manager: Client, world: World) -> None:
    assert list(errors_of(upload(manager, world, "a.txt", b"x", url="javascript:alert(1)"))) == ["url"]


def test_a_document_that_is_being_read_shows_how_far_it_is(manager: Client, world: World) -> None:
    Document.across_sites.create(site=world.acorn, title="长篇", kind="pdf", status="reading", percent=40)
    page = manager.get(LIST).content.decode()
    assert "正在读取 40 %" in page and "location.reload()" in page


def test_a_manager_can_put_nothing_into_another_site(manager: Client, world: World) -> None:
    answer = upload(manager, world, "a.txt", b"x", site=str(world.birch.pk))
    assert list(errors_of(answer)) == ["site"]
    assert Document.across_sites.count() == 0


def save_page(client: Client, pk: int | None = None, **changes: Any) -> Any:
    data = {"name": "订单", "page": "order/*", "kind": "text", "template": "", "request": "{}", **changes}
    where = reverse(
        "admin:conversations_pagesource_add" if pk is None else "admin:conversations_pagesource_change",
        args=[] if pk is None else [pk],
    )
    return client.post(where, data | {"is_active": "on"})


def test_a_page_source_is_stored_with_its_secret_encrypted(manager: Client, world: World) -> None:
    request = '{"url": "https://shop.example.com/orders/${pageContext.id}", "headers": {"X-Key": "${secret}"}}'
    secret = "秘".join([""]) + "sk-canary-0123456789"
    answer = save_page(manager, site=world.acorn.pk, kind="http", request=request, secret=secret)
    assert answer.status_code == 302, errors_of(answer)
    source = PageSource.across_sites.get()
    assert secret_of(source, "secret").reveal() == secret
    page = manager.get(reverse("admin:conversations_pagesource_change", args=[source.pk])).content.decode()
    assert secret not in page and "sk-…6789" in page
    moved = request.replace("shop.example", "evil.example")
    assert list(errors_of(save_page(manager, source.pk, site=world.acorn.pk, kind="http", request=moved))) == [
        "secret"
    ]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"template": ""}, "template"),
        ({"template": "${secret}"}, "template"),
        ({"template": "${os.environ}"}, "template"),
        ({"template": "${pageContext["}, "template"),
        ({"kind": "http"}, "request"),
        ({"kind": "http", "request": '{"url": "https://${pageContext.host}/x"}'}, "request"),
        ({"kind": "http", "request": '{"url": "ftp://a.example/x"}'}, "request"),
        ({"kind": "http", "request": '{"url": "https://a.example/x", "headers": {"Host": "b"}}'}, "request"),
        ({"kind": "http", "request": '{"url": "https://a.example/x", "method": "TRACE"}'}, "request"),
        ({"kind": "http", "request": '{"url": "https://a.example/x", "eval": "1"}'}, "request"),
        ({"template": "好", "request": '{"card": {"summary": "x"}}'}, "request"),
        ({"template": "好", "request": "[1]"}, "request"),
    ],
)
def test_a_page_source_that_cannot_work_is_told_at_its_field(
    manager: Client, world: World, changes: dict[str, str], field: str
) -> None:
    assert list(errors_of(save_page(manager, site=world.acorn.pk, **changes))) == [field]
    assert PageSource.across_sites.count() == 0


def test_the_secret_of_a_page_source_moves_to_a_new_key(manager: Client, world: World, settings: Any) -> None:
    request = '{"url": "https://shop.example.com/x"}'
    save_page(manager, site=world.acorn.pk, kind="http", request=request, secret="sk-canary-0123456789")
    settings.SECRET_KEYS = [new_key(), *settings.SECRET_KEYS]
    call_command("rotate_keys", stdout=io.StringIO())
    settings.SECRET_KEYS = settings.SECRET_KEYS[:1]
    assert secret_of(PageSource.across_sites.get(), "secret").reveal() == "sk-canary-0123456789"
