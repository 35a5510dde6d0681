"""The product under test: a database of its own, one member, a conversation for every stream."""

import json
import os
import re
import secrets
import subprocess
import sys
import urllib.request
from pathlib import Path

import psycopg

from .contestants import Contestant
from .people import SITE, USER
from .processes import LOAD_CORE, Tree, free_port, move_tree
from .tools import ROOT, Target, Tools

FIRST_CHAT_ID = 10_000_001
CHATS_AT_ONCE = 10_000
BODY = '{"chatId":{{SEED}},"content":"hi {{SPEC}}"}'


class Database:
    """The product's embedded PostgreSQL in a directory of its own, kept off the server's core."""

    def __init__(self, tools: Tools, work: Path) -> None:
        self.password = secrets.token_urlsafe(12)
        self.made = self.taken = FIRST_CHAT_ID
        inherited = {name: value for name, value in os.environ.items() if name != "DATABASE_URL"}
        self.environment = {
            **inherited,
            "VAR_DIR": str(work / "var"),
            "LLM_BASE_URL": f"http://127.0.0.1:{tools.mock_port}/v1",
            "LLM_API_KEY": "none",
            "LLM_MODEL": "mock",
            "PROVIDER_ALLOWED_ADDRESSES": f"127.0.0.1:{tools.mock_port}",
            "THROTTLE": "off",
            "LOG_LEVEL": "warning",
            "PYTHONUNBUFFERED": "1",
        }
        started = self.manage("postgres", "start")
        found = re.search(r"pid (\d+)", started)
        if found is None:
            raise RuntimeError(f"the embedded PostgreSQL did not say its process id: {started}")
        self.postgres = Tree(int(found.group(1)))
        move_tree(self.postgres, LOAD_CORE)
        self.url = self.manage("postgres", "url").strip()
        self.manage("migrate", "--verbosity", "0")
        self.take_chats(1)

    def manage(self, *arguments: str) -> str:
        """Return what a management command printed."""
        return self._python("manage.py", *arguments)

    def _python(self, *arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments], cwd=ROOT, env=self.environment, capture_output=True, text=True
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(arguments[:3])} failed:\n{done.stderr[-3000:]}")
        return done.stdout

    def take_chats(self, count: int) -> int:
        """Return a number below `count` fresh chat ids: sse_load's first stream is the seed base plus one."""
        if self.taken + count > self.made:
            size = max(count, CHATS_AT_ONCE)
            people = ("-m", "benchmarks.relay_baselines.people")
            self._python(*people, self.password, str(self.made), str(size))
            self.taken, self.made = self.made, self.made + size
        first = self.taken
        self.taken += count
        return first - 1

    def clients(self) -> int:
        """Return how many client connections the server has, this one not counted."""
        with psycopg.connect(self.url) as connection:
            row = connection.execute(
                "SELECT count(*) FROM pg_stat_activity "
                "WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
            ).fetchone()
        return row[0] if row else 0

    def stop(self) -> None:
        """Stop the server; its data goes with the work directory."""
        self.manage("postgres", "stop")


class Product(Contestant):
    """`manage.py serve` with one worker."""

    name = "product, uvicorn"
    note = "the full path"
    settings: dict[str, str] = {}

    def __init__(self, database: Database) -> None:
        self.database = database

    def command(self, port: int) -> list[str]:
        """Return the command that serves on the port."""
        return ["manage.py", "serve", "--workers", "1", "--host", "127.0.0.1", "--port", str(port)]

    def start(self, tools: Tools, work: Path) -> Target:
        """Start the server and return where it is asked; each run signs in and takes fresh conversations."""
        port = free_port()
        environment = {**self.database.environment, **self.settings}
        pid = self.launch([sys.executable, *self.command(port)], port, work, environment, ROOT)
        return Target(
            port,
            body=BODY,
            pid=pid,
            postgres=self.database.postgres,
            headers=lambda: [f"Authorization: Bearer {self.token(port)}"],
            take_seeds=self.database.take_chats,
        )

    def token(self, port: int) -> str:
        """Return a fresh access token: a benchmark may outlive one."""
        body = json.dumps({"username": USER, "password": self.database.password, "site": SITE}).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/api/auth/token", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)["access"]


class ProductUnderDaphne(Product):
    """`manage.py runserver`, which is daphne."""

    name = "product, daphne"
    note = "the full path under runserver"

    def command(self, port: int) -> list[str]:
        """Return the command that serves on the port."""
        return ["manage.py", "runserver", "--noreload", f"127.0.0.1:{port}"]
