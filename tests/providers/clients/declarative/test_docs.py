"""docs/declarative.md says what is true."""

from __future__ import annotations

import json
import re
from pathlib import Path

from providers.clients.declarative.configs import names
from providers.clients.declarative.convertors import CONVERTORS
from providers.clients.declarative.failures import KINDS
from providers.clients.declarative.schema import AUTH_KEYS, RESPONSE_NAMES, SECTION_KEYS, TOP_KEYS, parse_config

TEXT = (Path(__file__).parents[4] / "docs" / "declarative.md").read_text(encoding="utf-8")


def test_the_whole_form_is_a_good_configuration() -> None:
    [example] = re.findall(r"```json\n(.*?)```", TEXT, re.DOTALL)
    config = parse_config(json.loads(example))
    assert config.auth is not None
    assert list(config.sections) == ["chat"]


def test_every_key_name_convertor_and_configuration_is_documented() -> None:
    words = set(re.findall(r"[a-z0-9_]+", TEXT))
    for known in (TOP_KEYS, SECTION_KEYS, AUTH_KEYS, RESPONSE_NAMES, CONVERTORS, KINDS, names()):
        assert {name for name in known if name not in words} == set()
