"""Reading files: each kind is read, and each that lies, hides or explodes is refused by its name."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from itertools import pairwise

import pytest

from conversations.context.formats import BadFile, kind_of
from conversations.context.reader import AT_ONCE_MAX, NotInTime, read_file
from tests import files


def read(filename: str, content: bytes, *, seconds: float = 60) -> list[tuple[str, str]]:
    reading = read_file(kind_of(filename, content), content, seconds=seconds)
    return [(piece.heading, piece.text) for piece in reading.pieces]


def trouble(filename: str, content: bytes) -> str:
    with pytest.raises(BadFile) as caught:
        read(filename, content)
    return caught.value.code


HTML = """<!doctype html><html><head><title>不读</title><style>p{}</style></head><body>
<nav>菜单</nav><h1>退款</h1><p>七天内<b>可以</b>退款。</p>散文<script>alert(1)</script>
<h2>运费</h2><table><tr><td>江浙沪</td><td>包邮</td></tr><tr><td>其他</td><td>十元</td></tr></table>
<ul><li>一</li><li>二<br>三</li></ul></body></html>"""


def test_markdown_is_cut_at_its_headings() -> None:
    text = "# 甲\n一段\n\n## 乙\n二段\n```\n# 不是标题\n```\n# 丙\n三段"
    assert read("a.md", text.encode()) == [
        ("甲", "一段"),
        ("甲 › 乙", "二段\n```\n# 不是标题\n```"),
        ("丙", "三段"),
    ]


def test_plain_text_is_cut_where_questions_begin() -> None:
    text = "问：怎么退货？\n答：联系客服。\n\n问：多久到账？\n答：三天。\n"
    assert [piece[1] for piece in read("常见.txt", text.encode("gb18030"))] == [
        "问：怎么退货？\n答：联系客服。",
        "问：多久到账？\n答：三天。",
    ]


def test_html_gives_its_words_without_menus_and_scripts() -> None:
    assert read("a.html", HTML.encode()) == [
        ("退款", "七天内可以退款。\n散文"),
        ("退款 › 运费", "江浙沪 包邮\n其他 十元\n一\n二\n三"),
    ]


def test_a_word_document_gives_headings_paragraphs_and_tables() -> None:
    content = files.docx_of("七天内可以退款。", heading="退款")
    assert read("a.docx", content) == [("退款", "七天内可以退款。\n运费 | 十元")]


def test_a_pdf_gives_its_lines_as_sentences() -> None:
    content = files.pdf_of("审核通过之后款项在三个工作", "日之内原路退回。", pages=2)
    assert read("a.pdf", content) == [("", "\n".join(["审核通过之后款项在三个工作日之内原路退回。"] * 2))]


def test_a_pdf_that_only_its_owner_has_locked_is_read() -> None:
    assert read("a.pdf", files.encrypted_pdf_of("人人可读", password="")) == [("", "人人可读")]


def test_long_paragraphs_are_cut_between_sentences_and_overlap() -> None:
    text = "".join(f"这是第{number}句话，它说了一些不太重要的事情。" for number in range(100))
    pieces = [text for _, text in read("a.txt", text.encode())]
    assert all(200 < len(piece) <= 480 for piece in pieces[:-1])
    assert all(piece.endswith("。") for piece in pieces)
    assert all(later[:20] in earlier for earlier, later in pairwise(pieces))


def test_a_text_without_any_stop_is_cut_all_the_same() -> None:
    pieces = [text for _, text in read("a.txt", ("字" * 5000).encode())]
    assert max(map(len, pieces)) <= 700


@pytest.mark.parametrize(
    ("filename", "content", "code"),
    [
        ("a.pdf", "只是文字".encode(), "file_type_mismatch"),
        ("a.docx", "只是文字".encode(), "file_type_mismatch"),
        ("a.txt", files.PNG, "file_type_mismatch"),
        ("a.md", files.pdf_of("好"), "file_type_mismatch"),
        ("a.pdf", files.docx_of("好"), "file_type_mismatch"),
        ("a.docx", files.zip_of({"readme.txt": b"x"}), "file_type_mismatch"),
        ("a.png", files.PNG, "unsupported_file"),
        ("a.exe", "文字".encode(), "unsupported_file"),
        ("a.zip", files.zip_of({"a.txt": b"x"}), "unsupported_file"),
        ("a.doc", files.locked_docx()[:400] + bytes(4000), "unsupported_file"),
        ("a.docx", files.locked_docx(), "file_encrypted"),
        ("a.pdf", files.encrypted_pdf_of("密", password="密码"), "file_encrypted"),
        ("a.docx", files.bomb_docx(), "file_bomb"),
        ("a.docx", files.docx_of("好")[:-300], "file_broken"),
        ("a.pdf", b"%PDF-1.7\n" + bytes(300), "file_broken"),
        ("a.docx", files.zip_of({"word/document.xml": b"<a/>"}), "file_broken"),
        ("a.pdf", files.pdf_of(" "), "file_has_no_text"),
        ("a.txt", " \n…！？".encode(), "file_has_no_text"),
        ("a.html", b"<html><body><script>x</script></body></html>", "file_has_no_text"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bad_file_is_refused_by_its_name(filename: str, content: bytes, code: str) -> None:
    assert trouble(filename, content) == code


def test_a_docx_with_a_spoilt_entry_is_broken_and_no_bomb() -> None:
    spoilt = bytearray(files.docx_of("好"))
    start = spoilt.find(b"word/document.xml") + len("word/document.xml")
    spoilt[start + 3 : start + 30] = b"\xff" * 27
    assert trouble("a.docx", bytes(spoilt)) == "file_broken"


def test_a_text_may_speak_of_pdf() -> None:
    assert read("a.md", "文件以 %PDF-1.7 开头。".encode()) == [("", "文件以 %PDF-1.7 开头。")]


def test_runs_of_blanks_cost_no_time() -> None:
    blanks = " " * 200_000
    text = f"# a{blanks}b\n\n问题{blanks}x\n\n退款"
    assert read("a.md", text.encode(), seconds=8)[-1][1].endswith("退款")


def test_a_pdf_that_explodes_costs_bounded_memory_and_time() -> None:
    began = time.monotonic()
    assert trouble("a.pdf", files.bomb_pdf()) in {"file_bomb", "file_reading_timeout", "file_too_long"}
    assert time.monotonic() - began < 60


def test_deep_html_and_entities_do_no_harm() -> None:
    deep = "<div>" * 5_000 + "底"
    assert read("a.html", deep.encode())[-1][1] == "底"
    laughs = b'<?xml version="1.0"?><!DOCTYPE l [<!ENTITY a "haha"><!ENTITY b "&a;&a;">]><l>&b;</l>'
    assert trouble("a.docx", files.zip_of({"word/document.xml": laughs})) == "file_broken"


def test_reading_ends_when_its_caller_waits_no_longer() -> None:
    with pytest.raises(NotInTime):
        read("a.pdf", files.pdf_of("很长", pages=2000), seconds=0.05)


def test_files_of_many_senders_are_read_by_turns() -> None:
    slow = files.pdf_of("很长", pages=2000)
    began = threading.Barrier(AT_ONCE_MAX + 1)

    def wait_for_it() -> None:
        began.wait(10)
        with suppress(NotInTime):
            read("a.pdf", slow, seconds=1.5)

    senders = [threading.Thread(target=wait_for_it) for _ in range(AT_ONCE_MAX)]
    for sender in senders:
        sender.start()
    began.wait(10)
    time.sleep(0.3)
    with pytest.raises(NotInTime):
        read("b.md", "退款".encode(), seconds=0.5)
    for sender in senders:
        sender.join(10)
    assert read("b.md", "退款".encode()) == [("", "退款")]
