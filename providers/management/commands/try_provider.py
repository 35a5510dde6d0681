"""`manage.py try_provider`: a dry run of a provider's configuration, without a network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from providers.clients.declarative import configs
from providers.clients.declarative.curl import CurlRefused, config_from_curl
from providers.clients.declarative.lab import DryRun, ShownRequest, dry_run, read_transcript
from providers.clients.declarative.schema import ConfigRefused, parse_config
from providers.errors import Misconfigured
from providers.types import ChatMessage


class Command(BaseCommand):
    """Shows what a configuration sends, and what it makes of a recorded response."""

    help = "Try a declarative configuration offline: the request it sends, and how it reads a recorded response."
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: CommandParser) -> None:
        """Take the configuration, a transcript, and what a request holds."""
        ready = ", ".join(configs.names())
        parser.add_argument("config", nargs="?", help=f"a JSON file, or one of {ready}")
        parser.add_argument("--transcript", help="a recorded body, or head and body as curl -i writes them")
        parser.add_argument("--from-curl", metavar="COMMAND", help="print a first configuration for this command")
        parser.add_argument("--section", help="the API section to use (default: the configuration's own, or chat)")
        parser.add_argument("--mode", choices=["stream", "whole"], help="instead of what the section says")
        parser.add_argument("--model", default="a-model")
        parser.add_argument("--base-url", default="")
        parser.add_argument("--message", default="你好", help="what the user says")
        parser.add_argument("--value", action="append", default=[], metavar="NAME=VALUE", help="of the endpoint")
        parser.add_argument("--param", action="append", default=[], metavar="NAME=VALUE", help="of the request")

    def handle(self, *args: Any, **options: Any) -> None:
        """Print; fail when the configuration or the response is no good."""
        if options["from_curl"]:
            self._from_curl(options["from_curl"])
            return
        if not options["config"]:
            raise CommandError("Name a configuration, or give --from-curl.")
        config = self._load(options["config"])
        transcript = None
        if options["transcript"]:
            try:
                transcript = read_transcript(Path(options["transcript"]).read_bytes())
            except OSError as error:
                raise CommandError(f"{options['transcript']}: {error.strerror}") from error
        try:
            run = dry_run(
                config,
                transcript,
                mapi=options["section"],
                mode=options["mode"],
                model=options["model"],
                base_url=options["base_url"],
                values=_pairs(options["value"]),
                params=_pairs(options["param"]),
                messages=(ChatMessage("system", "你是助手。"), ChatMessage("user", options["message"])),
            )
        except ConfigRefused as refused:
            said = (f"{path}: {text}" if path else text for path, text in refused.problems)
            raise CommandError("\n".join(said)) from None
        except Misconfigured as error:
            raise CommandError(f"{error}") from error
        self._print(run, has_transcript=transcript is not None)
        if run.error is not None:
            raise CommandError(f"the reply would fail: {run.error}")

    def _load(self, name: str) -> Any:
        if name in configs.names():
            return configs.load(name)
        try:
            return json.loads(Path(name).read_text(encoding="utf-8"))
        except OSError as error:
            raise CommandError(f"{name}: {error.strerror}") from error
        except (ValueError, RecursionError) as error:
            raise CommandError(f"{name}: is not JSON: {error}") from error

    def _from_curl(self, command: str) -> None:
        try:
            config, notes = config_from_curl(command)
        except CurlRefused as refused:
            raise CommandError(f"{refused}") from None
        self.stdout.write(json.dumps(config, ensure_ascii=False, indent=2))
        for note in notes:
            self.stderr.write(note)
        try:
            parse_config(config)
        except ConfigRefused as refused:
            raise CommandError("to be mended by hand: " + str(refused)) from None

    def _print(self, run: DryRun, *, has_transcript: bool) -> None:
        if run.auth_request is not None:
            self._print_request("auth request", run.auth_request)
        self._print_request("request", run.request)
        for name in run.unused_params:
            self.stdout.write(f"  not sent: the parameter {name} is in no template")
        if not has_transcript:
            return
        for number, trace in enumerate(run.traces, 1):
            event = f" event={trace.event}" if trace.event else ""
            self.stdout.write(f"== event {number}{event} {trace.says}".rstrip())
            if trace.raw:
                self.stdout.write(f"  {trace.raw}")
            for name, value in trace.mapped.items():
                self.stdout.write(f"  {name} = {json.dumps(value, ensure_ascii=False)}")
            for name, why in trace.dropped:
                self.stdout.write(f"  {name} dropped: {why}")
        if run.traces_left_out:
            self.stdout.write(f"== and {run.traces_left_out} more events")
        self.stdout.write("== reply")
        self.stdout.write(f"  text = {json.dumps(run.text, ensure_ascii=False)}")
        if run.reasoning:
            self.stdout.write(f"  reasoning = {json.dumps(run.reasoning, ensure_ascii=False)}")
        if run.finished is not None:
            usage = run.finished.usage
            self.stdout.write(f"  finish reason = {run.finished.finish_reason}")
            self.stdout.write(
                f"  tokens = {usage.input_tokens} in, {usage.output_tokens} out"
                if usage
                else "  tokens = not told"
            )
            for call in run.finished.tool_calls:
                self.stdout.write(f"  tool call = {call.name} {call.arguments}")
            if run.finished.malformed_events:
                self.stdout.write(f"  malformed events = {run.finished.malformed_events}")
        elif run.error is not None:
            self.stdout.write(f"  error = {run.error} {run.error.vendor_message or ''}".rstrip())

    def _print_request(self, title: str, request: ShownRequest) -> None:
        self.stdout.write(f"== {title}")
        self.stdout.write(f"  {request.method} {request.url}")
        for name, value in request.headers.items():
            self.stdout.write(f"  {name}: {value}")
        if request.body is not None:
            body = json.dumps(request.body, ensure_ascii=False, indent=2)
            self.stdout.write("\n".join(f"  {line}" for line in body.splitlines()))


def _pairs(given: list[str]) -> dict[str, Any]:
    """Return NAME=VALUE words, the value read as JSON when it is JSON."""
    pairs: dict[str, Any] = {}
    for word in given:
        name, mark, value = word.partition("=")
        if not mark or not name:
            raise CommandError(f"{word!r} is not NAME=VALUE")
        try:
            pairs[name] = json.loads(value)
        except ValueError:
            pairs[name] = value
    return pairs
