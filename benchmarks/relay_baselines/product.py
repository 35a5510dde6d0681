"""The product under test: a database of its own, one member, a conversation for every stream."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import LiteralString

import psycopg

from .contestants import Contestant
from .processes import LOAD_CORE, Tree, free_port, move_tree
from .tools import ROOT, Target, Tools

FIRST_CHAT_ID = 10_000_001
CHATS_AT_ONCE = 10_000
BODY = '{"chatId":{{SEED}},"content":"hi {{SPEC}}"}'


class Database:
    """The product's embedded PostgreSQL in a directory of its own, kept off the server's core."""

    def __init__(self, tools: Tools, work: Path) -> None:
        self.made = self.taken = FIRST_CHAT_ID
        inherited = {name: value for name, value in os.environ.items() if name != "DATABASE_URL"}
        self.environment = {
            **inherited,
            "VAR_DIR": str(work / "var"),
            "LLM_BASE_URL": f"http://127.0.0.1:{tools.mock_port}/v1",
            "LLM_API_KEY": "none",
            "LLM_MODEL": "mock",
            "PROVIDER_ALLOWED_ADDRESSES": f"127.0.0.1:{tools.mock_port}",
            "ACCESS_TOKEN_SECONDS": "86400",
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
        self.access_token = ""
        self.take_chats(1)

    def manage(self, *arguments: str) -> str:
        """Return what a management command printed."""
        return self.python("manage.py", *arguments)

    def python(self, *arguments: str) -> str:
        """Return what Python printed, in the environment of the product."""
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
            self.access_token = self.python(*people, str(self.made), str(size)).strip()
            self.taken, self.made = self.made, self.made + size
        first = self.taken
        self.taken += count
        return first - 1

    def clients(self, application: str) -> int:
        """Return how many connections one server holds, by the name it gives itself."""
        return self.count("SELECT count(*) FROM pg_stat_activity WHERE application_name = %s", application)

    def count(self, statement: LiteralString, *values: str) -> int:
        """Return the number that a statement gives."""
        with psycopg.connect(self.url) as connection:
            row = connection.execute(statement, values).fetchone()
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
        self.application = f"relay-{id(self):x}"

    def command(self, port: int) -> list[str]:
        """Return the command that serves on the port."""
        return ["manage.py", "serve", "--workers", "1", "--host", "127.0.0.1", "--port", str(port)]

    def start(self, tools: Tools, work: Path) -> Target:
        """Start the server and return where it is asked; each run takes fresh conversations."""
        port = free_port()
        environment = {**self.database.environment, **self.settings, "PGAPPNAME": self.application}
        pid = self.launch([sys.executable, *self.command(port)], port, work, environment, ROOT)
        return Target(
            port,
            body=BODY,
            pid=pid,
            postgres=self.database.postgres,
            headers=lambda: [f"Authorization: Bearer {self.database.access_token}"],
            take_seeds=self.database.take_chats,
        )


class ProductUnderDaphne(Product):
    """`manage.py runserver`, which is daphne."""

    name = "product, daphne"
    note = "the full path under runserver"

    def command(self, port: int) -> list[str]:
        """Return the command that serves on the port."""
        return ["manage.py", "runserver", "--noreload", f"127.0.0.1:{port}"]


class ProductWithoutLog(Product):
    """The same under uvicorn with a log that forgets: see without_log.py."""

    name = "product, forgetful log"
    note = "as under uvicorn, delivered without waiting for a commit"

    def command(self, port: int) -> list[str]:
        """Return the command that serves on the port."""
        module = ["-m", "uvicorn", "benchmarks.relay_baselines.without_log:application", "--port", str(port)]
        options = ["--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "warning"]
        return [*module, *options]
