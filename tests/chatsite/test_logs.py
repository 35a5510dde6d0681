"""A log line is one JSON object, and an exception's words are not in it."""

from __future__ import annotations

import json
import logging
import sys

from chatsite.logs import JsonFormatter


def test_a_line_is_json_with_its_fields() -> None:
    record = logging.makeLogRecord(
        {"name": "房间", "levelno": logging.INFO, "levelname": "INFO", "msg": "reply_ended", "reply": 7, "site": 1}
    )
    line = json.loads(JsonFormatter().format(record))
    assert (line["event"], line["reply"], line["site"], line["level"], line["logger"]) == (
        "reply_ended",
        7,
        1,
        "info",
        "房间",
    )


def test_a_traceback_tells_where_but_not_what_somebody_wrote() -> None:
    try:
        raise ValueError("绝密：用户写的话")
    except ValueError:
        record = logging.makeLogRecord({"msg": "failed", "exc_info": sys.exc_info()})
    text = JsonFormatter().format(record)
    line = json.loads(text)
    assert line["exception"] == "ValueError"
    assert "test_logs.py" in line["traceback"][0]
    assert "绝密" not in text
