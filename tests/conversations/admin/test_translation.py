"""The Chinese of the admin: compiled, complete, and without broken placeholders."""

from __future__ import annotations

import ast
import gettext
import re
from pathlib import Path

from django.conf import settings
from django.utils import translation

HERE = Path(settings.BASE_DIR)
CATALOGUE = HERE / "conversations/locale/zh_Hans/LC_MESSAGES"


def source() -> dict[str, str]:
    """Return what django.po says, by English text."""
    entries: dict[str, str] = {}
    for block in (CATALOGUE / "django.po").read_text(encoding="utf-8").split("\n\n"):
        lines = dict(re.findall(r'^(msgid|msgstr|msgstr\[0\]) ("(?:[^"\\]|\\.)*")$', block, re.MULTILINE))
        if lines.get("msgid", '""') != '""':
            said = lines.get("msgstr") or lines["msgstr[0]"]
            entries[ast.literal_eval(lines["msgid"])] = ast.literal_eval(said)
    return entries


def test_the_compiled_catalogue_says_what_its_source_says() -> None:
    with (CATALOGUE / "django.mo").open("rb") as file:
        compiled = gettext.GNUTranslations(file)
    entries = source()
    assert len(entries) > 150

    def said(english: str) -> str:
        plain = compiled.gettext(english)
        return plain if plain != english else compiled.ngettext(english, english, 1)

    assert {english: said(english) for english in entries} == entries


def test_placeholders_survive_translation() -> None:
    pattern = r"%\(\w+\)[sd]|\{\w*\}"
    for english, chinese in source().items():
        assert sorted(re.findall(pattern, english)) == sorted(re.findall(pattern, chinese)), english


def test_every_word_of_the_admin_and_the_models_has_chinese() -> None:
    texts: set[str] = set()
    sources = (
        "conversations/admin/*.py",
        "conversations/models/*.py",
        "providers/admin.py",
        "providers/lab/*.py",
        "providers/models.py",
    )
    for path in (path for pattern in sources for path in HERE.glob(pattern)):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or getattr(node.func, "id", "") not in {"_", "gettext"}:
                continue
            if isinstance(node.args[0], ast.Constant):
                texts.add(str(node.args[0].value))
    for path in HERE.glob("templates/admin/**/*.html"):
        texts.update(re.findall(r'{% translate ["\']([^"\']+)["\'] %}', path.read_text(encoding="utf-8")))
    assert len(texts) > 150
    with translation.override("zh-hans"):
        assert [text for text in sorted(texts) if translation.gettext(text) == text] == []
