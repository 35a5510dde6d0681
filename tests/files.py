"""Files that documents are made of, and files that are not what they say."""

from __future__ import annotations

import io
import zipfile
import zlib

import docx


def docx_of(*paragraphs: str, heading: str = "") -> bytes:
    """Return a Word document."""
    document = docx.Document()
    if heading:
        document.add_heading(heading, level=1)
    for paragraph in paragraphs:
        document.add_paragraph(paragraph)
    table = document.add_table(rows=1, cols=2)
    table.rows[0].cells[0].text, table.rows[0].cells[1].text = "运费", "十元"
    said = io.BytesIO()
    document.save(said)
    return said.getvalue()


def pdf_of(*lines: str, pages: int = 1) -> bytes:
    """Return a PDF whose pages say these lines, in a font without shapes: the text is all that is read."""
    characters = sorted({character for line in lines for character in line})
    codes = {character: number for number, character in enumerate(characters, 1)}
    shown = " ".join(f"<{''.join(f'{codes[c]:04x}' for c in line)}> Tj 0 -20 Td" for line in lines)
    content = zlib.compress(f"BT /F1 12 Tf 50 780 Td {shown} ET".encode())
    pairs = "\n".join(f"<{code:04x}> <{c.encode('utf-16-be').hex()}>" for c, code in codes.items())
    cmap = (
        "/CIDInit /ProcSet findresource begin 12 dict begin begincmap /CMapName /X def\n"
        "1 begincodespacerange <0000> <ffff> endcodespacerange\n"
        f"{len(codes)} beginbfchar\n{pairs}\nendbfchar endcmap end end"
    ).encode()
    kids = " ".join(f"{7 + number} 0 R" for number in range(pages))
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {pages} >>".encode(),
        b"<< /Type /Font /Subtype /Type0 /BaseFont /X /Encoding /Identity-H"
        b" /DescendantFonts [4 0 R] /ToUnicode 5 0 R >>",
        b"<< /Type /Font /Subtype /CIDFontType2 /BaseFont /X"
        b" /CIDSystemInfo << /Registry (Adobe) /Ordering (Identity) /Supplement 0 >> /DW 1000 >>",
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(cmap), cmap),
        b"<< /Length %d /Filter /FlateDecode >>\nstream\n%s\nendstream" % (len(content), content),
        *[
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Contents 6 0 R"
            b" /Resources << /Font << /F1 3 0 R >> >> >>"
        ]
        * pages,
    ]
    said, places = b"%PDF-1.7\n", []
    for number, body in enumerate(objects, 1):
        places.append(len(said))
        said += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    size = len(objects) + 1
    trailer = b"trailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (size, len(said))
    return said + b"xref\n0 %d\n0000000000 65535 f \n" % size + table + trailer


def encrypted_pdf_of(line: str, *, password: str) -> bytes:
    """Return a PDF that needs a password; with an empty one, that needs none to be read."""
    from pypdf import PdfReader, PdfWriter

    writer = PdfWriter(clone_from=PdfReader(io.BytesIO(pdf_of(line))))
    writer.encrypt(password, owner_password="主人", algorithm="AES-256")
    said = io.BytesIO()
    writer.write(said)
    return said.getvalue()


def zip_of(entries: dict[str, bytes]) -> bytes:
    """Return a zip."""
    said = io.BytesIO()
    with zipfile.ZipFile(said, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return said.getvalue()


def bomb_docx() -> bytes:
    """Return a Word document of some 100 KB that unpacks to 100 MB."""
    return zip_of({"[Content_Types].xml": b"<Types/>", "word/document.xml": b"<a/>" * 25_000_000})


def bomb_pdf() -> bytes:
    """Return a PDF whose page is 100 KB and unpacks to 300 MB."""
    packer = zlib.compressobj(9)
    block = b"(a) Tj " * 150_000
    packed = b"".join(packer.compress(block) for _ in range(300)) + packer.flush()
    body = pdf_of("好")
    start = body.index(b"6 0 obj")
    end = body.index(b"endobj", start)
    stream = b"6 0 obj\n<< /Length %d /Filter /FlateDecode >>\nstream\n%s\nendstream\n" % (len(packed), packed)
    return body[:start] + stream + body[end:]  # the table of places is wrong then; readers rebuild it


def locked_docx() -> bytes:
    """Return what Word makes of a document with a password: an OLE file with an encrypted package."""
    return b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(504) + "EncryptedPackage".encode("utf-16-le") + bytes(2048)


PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 4
