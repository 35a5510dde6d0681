"""The superuser of the demo at the REST API of the model registry, and two fake providers as its endpoints."""

import asyncio
import shutil
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

from benchmarks.lib.http import Address
from benchmarks.lib.product import PASSWORD, Product
from benchmarks.lib.provider import FakeProvider

MODELS = "/api/v1/admin/models"


class Staff:
    """`admin`, signed in by session; every call names the worker it goes to."""

    def __init__(self) -> None:
        self._client = httpx.AsyncClient(
            timeout=20, trust_env=False, limits=httpx.Limits(max_keepalive_connections=0)
        )

    async def sign_in(self, worker: Address) -> None:
        """Open a session through the admin's own form."""
        url = f"http://{worker[0]}:{worker[1]}/admin/login/"
        await self._client.get(url)
        form = {"username": "admin", "password": PASSWORD, "next": "/admin/"}
        form["csrfmiddlewaretoken"] = self._client.cookies["csrftoken"]
        answer = await self._client.post(url, data=form)
        if answer.status_code != 302 or "sessionid" not in self._client.cookies:
            raise RuntimeError(f"admin could not sign in: {answer.status_code}")

    async def call(self, worker: Address, method: str, path: str, payload: object | None = None) -> Any:
        """Return the JSON of an answer.

        Raises: RuntimeError for any status that is not 2xx.
        """
        answer = await self._client.request(
            method,
            f"http://{worker[0]}:{worker[1]}{MODELS}{path}",
            json=payload,
            headers={"X-CSRFToken": self._client.cookies.get("csrftoken", "")},
        )
        if not answer.is_success:
            raise RuntimeError(f"{method} {path}: {answer.status_code} {answer.text[:300]}")
        return answer.json() if answer.content else None

    async def acknowledged(self, worker: Address, *, workers: int, seconds: float = 10.0) -> tuple[float, int]:
        """Return the seconds until all workers are at the registry's revision, and that revision.

        Raises: RuntimeError when they are not in time.
        """
        began = time.monotonic()
        while True:
            now = await self.call(worker, "GET", "/revision")
            behind = [each for each in now["workers"] if each["revision"] < now["revision"]]
            if len(now["workers"]) >= workers and not behind:
                return time.monotonic() - began, int(now["revision"])
            if time.monotonic() - began > seconds:
                raise RuntimeError(f"after {seconds:.0f} s not all workers follow: {now}")
            await asyncio.sleep(0.02)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()


class Pair:
    """A product whose registry holds A, asked first, and B, the reserve: two fake providers."""

    def __init__(self, *, workers: int, keep: bool, **settings: str) -> None:
        self.workers = workers
        logs = Path(tempfile.mkdtemp(prefix="chat-bench-providers-"))
        self.a = FakeProvider(logs / "a.log", name="A")
        self.b = FakeProvider(logs / "b.log", name="B")
        self.product = Product(
            keep=keep,
            LLM_BASE_URL="",
            LLM_API_KEY="",
            PROVIDER_ALLOWED_ADDRESSES=f"127.0.0.1:{self.a.port},127.0.0.1:{self.b.port}",
            **settings,
        )
        self.staff = Staff()
        self.members = [self.product.member(name) for name in ("alice", "bob", "carol")]
        self.ids: dict[str, int] = {}

    @property
    def addresses(self) -> list[Address]:
        """Where the workers listen."""
        return self.product.addresses

    async def start(self, **more: object) -> None:
        """Start everything, and register both; `more` are fields of the endpoints."""
        await self.a.start()
        await self.b.start()
        await self.product.start(self.workers)
        await self.staff.sign_in(self.addresses[0])
        for priority, provider in ((1, self.a), (2, self.b)):
            given = {
                "name": provider.name,
                "dialect": "openai",
                "model": "fake-1",
                "apiKey": "sk-bench-0123456789",
            }
            given |= {"baseUrl": f"{provider.base_url}/v1", "priority": priority, **more}  # type: ignore[dict-item]  # plain JSON
            made = await self.staff.call(self.addresses[0], "POST", "", given)
            self.ids[provider.name] = made["id"]
        await self.staff.acknowledged(self.addresses[0], workers=self.workers)

    async def heal(self) -> None:
        """Let every worker forget how ill A was: off, and on again."""
        for action in ("deactivate", "activate"):
            await self.staff.call(self.addresses[0], "POST", f"/{self.ids['A']}/{action}")
            await self.staff.acknowledged(self.addresses[0], workers=self.workers)

    async def set_failover(self, way: str) -> None:
        """Choose what the sites do when a provider fails in mid-reply."""
        await self.product.database.rows(
            "update conversations_site set settings ="
            " settings || jsonb_build_object('midstream_failover', %s::text) returning id",
            way,
        )

    async def __aenter__(self) -> "Pair":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.staff.close()
        self.a.stop()
        self.b.stop()
        shutil.rmtree(self.a.log.parent, ignore_errors=True)
        await self.product.__aexit__(kind, error, trace)
