#!/usr/bin/env python3
"""Django's command line for this project."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# What never asks the database; everything else finds the embedded server up.
WITHOUT_DATABASE = {
    "check",
    "collectstatic",
    "compilemessages",
    "diffsettings",
    "help",
    "makemessages",
    "postgres",
}
WITHOUT_DATABASE |= {"spectacular", "startapp", "startproject", "version", "--help", "-h", "--version"}


def main() -> None:
    """Run one management command, with the embedded PostgreSQL up when it is needed."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "chatsite.settings")
    from django.core.management import execute_from_command_line

    with embedded_postgres(sys.argv[1:]):
        execute_from_command_line(sys.argv)


@contextmanager
def embedded_postgres(arguments: list[str]) -> Iterator[None]:
    """Hold the embedded server during a command that needs it; the last to leave stops it."""
    from django.conf import settings

    from chatsite import postgres

    needs_database = arguments and (arguments[0] not in WITHOUT_DATABASE or "--database" in arguments)
    if not needs_database or not settings.EMBEDDED_POSTGRES:
        yield
        return
    # Whoever is told to end still leaves in order: the default of SIGTERM would skip the `finally` below.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        held = postgres.hold(settings.VAR_DIR)
    except postgres.PostgresFailed as error:
        sys.exit(str(error))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # already on the way out
        held.release(stop_when_last=True)


if __name__ == "__main__":
    main()
