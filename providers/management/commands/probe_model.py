"""`manage.py probe_model`: one small streamed call to an endpoint, and how it went."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from providers.errors import Misconfigured
from providers.models import Endpoint
from providers.pool import probe
from providers.registry import EndpointConfig, config_of, load_snapshot


class Command(BaseCommand):
    """Calls one endpoint: the named row, or the first that a reply would use now."""

    help = "Make a real small streamed call to an endpoint and print latency, first token and a sample."

    def add_arguments(self, parser: CommandParser) -> None:
        """Take the endpoint, the question and the limit."""
        parser.add_argument("name", nargs="?", help="name of an endpoint (default: the first in use now)")
        parser.add_argument("--question", default="请只回答两个字：你好")
        parser.add_argument("--seconds", type=float, default=30.0)

    def handle(self, *args: Any, **options: Any) -> None:
        """Call, print one JSON object, and fail when the endpoint did."""
        endpoint = self._endpoint(options["name"])
        result = asyncio.run(probe(endpoint, question=options["question"], seconds=options["seconds"]))
        report = {
            "endpoint": endpoint.name,
            "model": endpoint.model,
            "ok": result.is_ok,
            "latencyMs": result.latency_ms,
            "firstTokenMs": result.first_token_ms,
            "sample": result.sample,
            "finishReason": result.finish_reason,
            "error": result.error_code,
            "vendorMessage": result.vendor_message,
        }
        self.stdout.write(json.dumps({k: v for k, v in report.items() if v is not None}, ensure_ascii=False))
        if not result.is_ok:
            raise CommandError(f"{endpoint.name}: {result.error_code}")

    def _endpoint(self, name: str | None) -> EndpointConfig:
        """Return the endpoint to call."""
        snapshot = load_snapshot()
        if name is None:
            if not snapshot.endpoints:
                raise CommandError("No endpoint is usable: see the log and `manage.py check`.")
            return snapshot.endpoints[0]
        for endpoint in snapshot.endpoints:
            if endpoint.name == name:
                return endpoint
        row = Endpoint.objects.filter(name=name).first()
        if row is None:
            known = ", ".join(endpoint.name for endpoint in snapshot.endpoints)
            raise CommandError(f"There is no endpoint {name!r}. In use now: {known}.")
        try:
            return config_of(row)
        except Misconfigured as error:
            raise CommandError(f"{name}: {error.code}") from error
