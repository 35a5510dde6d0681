"""From the bytes of a file to its blocks of text: what kind it is by its content, and how each kind is read.

Knows nothing of Django, and trusts no file: `reader` runs this in a process with bounds. The libraries are
imported where they are used, since each such process reads one file of one kind.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from typing import Final, Literal, get_args

from conversations.context.splitting import Block, blocks_of_text

Kind = Literal["text", "markdown", "html", "pdf", "docx"]
Progress = Callable[[int], None]
BadFileCode = Literal[
    "file_too_large",
    "unsupported_file",
    "file_type_mismatch",
    "file_encrypted",
    "file_broken",
    "file_bomb",
    "file_has_no_text",
    "file_too_long",
    "file_reading_timeout",
]
CODES: Final = frozenset(get_args(BadFileCode))

KIND_OF_ENDING: Final[dict[str, Kind]] = {
    ".txt": "text",
    ".text": "text",
    ".csv": "text",
    ".log": "text",
    ".md": "markdown",
    ".markdown": "markdown",
    ".html": "html",
    ".htm": "html",
    ".xhtml": "html",
    ".pdf": "pdf",
    ".docx": "docx",
}
UNZIPPED_MAX_BYTES = 64 * 1024 * 1024
UNZIPPED_MAX_RATIO = 200
ENTRIES_MAX = 5000
PAGES_MAX = 3000

_OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
_ENCRYPTED_PACKAGE = "EncryptedPackage".encode("utf-16-le")
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1a\x1c-\x1f]")
_BLOCK_NAMES = (
    "address article aside blockquote body caption dd details div dl dt fieldset figcaption figure footer form"
    " h1 h2 h3 h4 h5 h6 header hr li main ol p pre section summary table td th tr ul"
)
_BLOCK_TAGS = frozenset(_BLOCK_NAMES.split())
_SILENT_TAGS = ["head", "script", "style", "template", "noscript", "nav", "svg", "iframe", "button", "select"]


class BadFile(Exception):
    """A file that cannot be read, and why: a code of docs/errors.md."""

    def __init__(self, code: BadFileCode) -> None:
        self.code: BadFileCode = code
        super().__init__(code)


def kind_of(filename: str, content: bytes) -> Kind:
    """Return what the file is, by its content; its name may say which kind of text, and must not say otherwise.

    Cheap: it looks at the first bytes and at a zip's table of contents.
    Raises: BadFile unsupported_file, file_type_mismatch, file_encrypted, file_broken, file_bomb.
    """
    ending = PurePosixPath(filename.lower().replace("\\", "/")).suffix
    said = KIND_OF_ENDING.get(ending)
    found = _kind_by_content(content)
    if found is None:
        raise BadFile("file_type_mismatch" if said else "unsupported_file")
    if found == "text":
        if said in {"pdf", "docx"}:
            raise BadFile("file_type_mismatch")
        if said is None and ending:
            raise BadFile("unsupported_file")
        return said or ("html" if _looks_like_html(content) else "text")
    if said is not None and said != found:
        raise BadFile("file_type_mismatch")
    if said is None and ending:
        raise BadFile("unsupported_file")
    return found


def _kind_by_content(content: bytes) -> Kind | None:
    if content.lstrip().startswith(b"%PDF-"):
        return "pdf"
    if content.startswith(_OLE):
        if _ENCRYPTED_PACKAGE in content:
            raise BadFile("file_encrypted")  # what Word makes of a document with a password
        return None
    if content.startswith(b"PK\x03\x04"):
        return "docx" if "word/document.xml" in check_zip(content) else None
    try:
        decode(content)
    except BadFile:
        # Readers of PDF look for its mark in the first kilobyte; a text may speak of it.
        return "pdf" if b"%PDF-" in content[:1024] else None
    return "text"


def check_zip(content: bytes) -> set[str]:
    """Return the names in a zip, when unpacking it is bounded.

    The sizes are what its table says; reading an entry stops there, so a table that lies only breaks the file.
    Raises: BadFile file_broken, file_bomb, file_encrypted.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, UnicodeError) as error:
        raise BadFile("file_broken") from error
    size = sum(entry.file_size for entry in entries)
    packed = sum(entry.compress_size for entry in entries)
    if len(entries) > ENTRIES_MAX or size > UNZIPPED_MAX_BYTES:
        raise BadFile("file_bomb")
    if size > 1024 * 1024 and size > UNZIPPED_MAX_RATIO * max(1, packed):
        raise BadFile("file_bomb")
    if any(entry.flag_bits & 1 for entry in entries):
        raise BadFile("file_encrypted")
    return {entry.filename for entry in entries}


def decode(content: bytes) -> str:
    """Return the text of bytes in UTF-8, UTF-16 with its mark, or GB 18030.

    Raises: BadFile file_broken, when it is none, or holds what no text holds.
    """
    encodings = ("utf-16",) if content[:2] in (b"\xff\xfe", b"\xfe\xff") else ("utf-8-sig", "gb18030")
    for encoding in encodings:
        try:
            text = content.decode(encoding)
        except UnicodeDecodeError:
            continue
        if not _CONTROL.search(text):
            return text
    raise BadFile("file_broken")


def _looks_like_html(content: bytes) -> bool:
    return re.match(rb"(?:\xef\xbb\xbf)?\s*(?:<!doctype html|<html)", content[:512], re.IGNORECASE) is not None


def read_blocks(kind: Kind, content: bytes, progress: Progress) -> Iterator[Block]:
    """Yield the blocks of a file; tells how far it is, in percent.

    Raises: BadFile.
    """
    if kind == "pdf":
        return _read_pdf(content, progress)
    if kind == "docx":
        return _read_docx(content, progress)
    if kind == "html":
        return _read_html(decode(content))
    return blocks_of_text(decode(content), is_markdown=kind == "markdown")


def _read_html(text: str) -> Iterator[Block]:
    from selectolax.lexbor import LexborHTMLParser

    tree = LexborHTMLParser(text)
    if tree.body is None:
        return
    tree.strip_tags(_SILENT_TAGS, recursive=True)
    place, level, words = 0, 0, []
    for node in tree.body.traverse(include_text=True):
        if node.tag == "br":
            words.append("\n")
        if node.tag != "-text":
            continue
        container, cell = node.parent, False
        for _ in range(200):
            if container is None or container.tag in _BLOCK_TAGS - {"td", "th"}:
                break
            cell = cell or container.tag in {"td", "th"}
            container = container.parent
        if container is not None and container.mem_id != place:
            if said := _joined(words):
                yield Block(said, level=level)
            place, words = container.mem_id, []
            heading = re.fullmatch("h([1-6])", container.tag or "")
            level = int(heading[1]) if heading else 0
        said = node.text(deep=False) or ""
        words.append(f"{said} " if cell else said)
    if said := _joined(words):
        yield Block(said, level=level)


def _joined(words: list[str]) -> str:
    lines = (" ".join(line.split()) for line in "".join(words).split("\n"))
    return "\n".join(line for line in lines if line)


def _read_docx(content: bytes, progress: Progress) -> Iterator[Block]:
    import docx
    from docx.table import Table
    from lxml.etree import LxmlError

    check_zip(content)
    try:
        document = docx.Document(io.BytesIO(content))
        parts = list(document.iter_inner_content())
        for number, part in enumerate(parts):
            if number % 50 == 0:
                progress(100 * number // len(parts))
            if isinstance(part, Table):
                for row in part.rows:
                    # Merged cells come once for each column they cover.
                    cells = dict.fromkeys(" ".join(cell.text.split()) for cell in row.cells)
                    if said := " | ".join(cell for cell in cells if cell):
                        yield Block(said)
            elif said := part.text.strip():
                style = (part.style.name if part.style is not None else "") or ""
                heading = re.fullmatch(r"(?:heading|标题)\s*([1-6])", style, re.IGNORECASE)
                yield Block(said, level=int(heading[1]) if heading else 1 if style == "Title" else 0)
    except (LxmlError, zipfile.BadZipFile, KeyError, ValueError, AttributeError, OSError) as error:
        # python-docx says in all these ways that a part is missing, cut, or not what it should be.
        raise BadFile("file_broken") from error


def _read_pdf(content: bytes, progress: Progress) -> Iterator[Block]:
    from pypdf import PdfReader
    from pypdf.errors import LimitReachedError, PyPdfError

    try:
        reader = PdfReader(io.BytesIO(content))
        if reader.is_encrypted and not reader.decrypt(""):
            raise BadFile("file_encrypted")
        pages = len(reader.pages)
        if pages > PAGES_MAX:
            raise BadFile("file_too_long")
        for number, page in enumerate(reader.pages):
            progress(100 * number // pages)
            yield from map(Block, _paragraphs(page.extract_text()))
    except LimitReachedError as error:
        raise BadFile("file_bomb") from error
    except (PyPdfError, ValueError, KeyError, TypeError, AttributeError, IndexError, OSError) as error:
        # pypdf meets broken structures with whatever they make Python raise.
        raise BadFile("file_broken") from error


def _paragraphs(text: str) -> Iterator[str]:
    """Yield the paragraphs of a page: a line that is nearly full goes on in the next one."""
    lines = [line.strip() for line in text.splitlines()]
    full = 0.8 * max(map(len, lines), default=0)
    paragraph = ""
    for line in lines:
        if not line:
            if paragraph:
                yield paragraph
            paragraph = ""
            continue
        is_word_on_both_sides = paragraph[-1:].isascii() and line[:1].isascii()
        paragraph += (" " if paragraph and is_word_on_both_sides else "") + line
        if len(line) < full or line[-1] in "。！？.!?":
            yield paragraph
            paragraph = ""
    if paragraph:
        yield paragraph
