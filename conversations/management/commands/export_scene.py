"""`manage.py export_scene`: a voice scene as a scene file of the vendor's demo."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from conversations.db import tenant
from conversations.voice.scene_files import export_scene
from conversations.voice.scene_lookup import scene_of, site_of
from providers.errors import Misconfigured


class Command(BaseCommand):
    """Writes one scene; its keys only with --with-keys, and then into a file that its owner alone can read."""

    help = "Export a voice scene as {SceneConfig, AccountConfig, RTCConfig, VoiceChat}, without keys unless asked."

    def add_arguments(self, parser: CommandParser) -> None:
        """Take the site, the scene and where to."""
        parser.add_argument("site", help="slug of the site")
        parser.add_argument("key", help="id of the scene")
        parser.add_argument("--output", type=Path, help="a new file (default: standard output)")
        parser.add_argument("--with-keys", action="store_true", help="with the keys, in clear; needs --output")

    def handle(self, *args: Any, **options: Any) -> None:
        """Export."""
        output: Path | None = options["output"]
        if options["with_keys"] and output is None:
            raise CommandError("--with-keys needs --output: keys do not belong on a terminal.")
        try:
            site = site_of(options["site"])
            with tenant(site.pk):
                document = export_scene(scene_of(site, options["key"]), with_keys=options["with_keys"])
        except LookupError as error:
            raise CommandError(str(error)) from error
        except Misconfigured as error:
            raise CommandError(f"{options['key']}: {error.code}") from error
        text = json.dumps(document, ensure_ascii=False, indent=2) + "\n"
        if output is None:
            self.stdout.write(text, ending="")
            return
        try:
            handle = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except OSError as error:
            raise CommandError(f"{output}: {error.strerror}") from error
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
