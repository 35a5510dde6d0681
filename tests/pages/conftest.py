"""A running site with the demo's people, as `bin/run` makes it: the pages talk to it as they would to any."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from chatsite import postgres

ROOT = Path(__file__).resolve().parent.parent.parent


@dataclass(frozen=True)
class DemoServer:
    """Where the site answers, and the password of all its people."""

    url: str
    password: str


@pytest.fixture(scope="module")
def demo_server() -> Iterator[DemoServer]:
    """Return a served site with a database of its own and the scripted stand-in for a model."""
    with tempfile.TemporaryDirectory(prefix="pg-", dir="/tmp") as directory:
        Path(directory).chmod(0o755)  # the database's own account must reach its data
        var_dir = Path(directory) / "var"
        var_dir.mkdir()
        password = "看门的人说芝麻开门"
        environment = os.environ | {
            "DATABASE_URL": "",
            "DEMO_PASSWORD": password,
            "DRAIN_SECONDS": "0",
            "HOST": "127.0.0.1",
            "LLM_BASE_URL": "",
            "PORT": "0",
            "THROTTLE": "off",
            "VAR_DIR": str(var_dir),
            "WORKERS": "1",
        }
        log = var_dir / "test.log"
        manage = [sys.executable, str(ROOT / "manage.py")]
        try:
            for command in (["migrate", "--verbosity", "0"], ["demo"]):
                done = subprocess.run(
                    [*manage, *command], env=environment, capture_output=True, text=True, timeout=120
                )
                assert done.returncode == 0, done.stderr
            with (
                log.open("ab") as errors,
                subprocess.Popen(
                    [*manage, "serve"], env=environment, stdout=subprocess.PIPE, stderr=errors, text=True
                ) as server,
            ):
                try:
                    assert server.stdout is not None
                    said = re.match(r"serving on (http://127\.0\.0\.1:\d+) ", server.stdout.readline())
                    assert said, log.read_text()
                    yield DemoServer(said[1], password)
                finally:
                    server.terminate()
        finally:
            postgres.stop(var_dir)
