"""`manage.py import_scene`: scene files of the vendor's demo become voice scenes of a site."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from conversations.db import tenant
from conversations.voice.scene_check import check_scene
from conversations.voice.scene_files import SceneFileRefused, import_scene, read_scene_file
from conversations.voice.scene_lookup import site_of


class Command(BaseCommand):
    """Imports all files or none; a scene of the same id is changed, and keeps keys that a file leaves empty."""

    help = "Import scene files ({SceneConfig, AccountConfig, RTCConfig, VoiceChat}) as voice scenes of a site."

    def add_arguments(self, parser: CommandParser) -> None:
        """Take the site, the files and, for a single one, its scene id."""
        parser.add_argument("site", help="slug of the site")
        parser.add_argument("files", nargs="+", type=Path)
        parser.add_argument("--key", help="id of the scene (default: the file's name without .json)")

    def handle(self, *args: Any, **options: Any) -> None:
        """Import, and say what was left out and what is missing."""
        files: list[Path] = options["files"]
        if options["key"] and len(files) > 1:
            raise CommandError("--key is for a single file.")
        try:
            site = site_of(options["site"])
        except LookupError as error:
            raise CommandError(str(error)) from error
        with tenant(site.pk):
            for path in files:
                try:
                    document = read_scene_file(path.read_bytes())
                    done = import_scene(site, options["key"] or path.stem, document)
                except OSError as error:
                    raise CommandError(f"{path}: {error.strerror}. Nothing was imported.") from error
                except SceneFileRefused as error:
                    raise CommandError(f"{path}: {error}. Nothing was imported.") from error
                self.stdout.write(f"{'+' if done.is_new else '='} {done.scene.key}")
                for note in done.notes:
                    self.stdout.write(f"  · {note}")
                for problem in check_scene(done.scene):
                    self.stdout.write(f"  ! {problem.code}: {problem.zh} / {problem.en}")
