"""`manage.py postgres start|stop|status`: the embedded server by hand."""

from argparse import ArgumentParser
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from chatsite import postgres


class Command(BaseCommand):
    """Starts (to stay), stops or shows the embedded PostgreSQL."""

    help = "Start (to stay), stop or show the embedded PostgreSQL server."
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Take the action."""
        parser.add_argument("action", choices=["start", "stop", "status", "url", "bin"])
        parser.add_argument("--if-unused", action="store_true", help="stop: only when no process uses it")

    def handle(self, *args: Any, action: str, if_unused: bool, **options: Any) -> None:
        """Do it, and say in one line what is."""
        if not settings.EMBEDDED_POSTGRES:
            raise CommandError("DATABASE_URL is set: the embedded server is not used.")
        try:
            self.stdout.write(self._answer(action, if_unused=if_unused))
        except postgres.PostgresFailed as error:
            raise CommandError(str(error)) from error

    def _answer(self, action: str, *, if_unused: bool) -> str:
        if action == "url":
            return postgres.dsn(settings.VAR_DIR)
        if action == "bin":
            return str(postgres.installed_programs())
        if action == "stop" and postgres.stop(settings.VAR_DIR, only_when_unused=if_unused):
            return "stopped"
        if action == "start":
            postgres.keep(settings.VAR_DIR)
        found = postgres.status(settings.VAR_DIR)
        return (
            f"{found.state}{', in use' if found.in_use else ''}; pid {found.pid or '-'}; "
            f"data {found.data_dir}; socket in {found.socket_dir}; log {found.log}"
        )
