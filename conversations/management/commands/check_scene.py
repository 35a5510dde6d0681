"""`manage.py check_scene`: what is missing in the voice scenes of a site."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from conversations.db import tenant
from conversations.models import VoiceScene
from conversations.voice.scene_check import check_scene
from conversations.voice.scene_lookup import scene_of, site_of


class Command(BaseCommand):
    """Prints a line for each problem, and fails when one of them is an error."""

    help = "Say what is missing in the voice scenes of a site, or in one of them."

    def add_arguments(self, parser: CommandParser) -> None:
        """Take the site and the scene."""
        parser.add_argument("site", help="slug of the site")
        parser.add_argument("key", nargs="?", help="id of one scene (default: all)")

    def handle(self, *args: Any, **options: Any) -> None:
        """Check."""
        try:
            site = site_of(options["site"])
            with tenant(site.pk):
                rows = VoiceScene.objects.for_site(site).select_related("site").order_by("key")
                scenes = [scene_of(site, options["key"])] if options["key"] else list(rows)
                found = [(scene, check_scene(scene)) for scene in scenes]
        except LookupError as error:
            raise CommandError(str(error)) from error
        errors = 0
        for scene, problems in found:
            self.stdout.write(f"{scene.key}: {'ok' if not problems else ''}".rstrip(" "))
            for problem in problems:
                errors += problem.level == "error"
                self.stdout.write(f"  {problem.level} {problem.code}: {problem.zh} / {problem.en}")
        if errors:
            raise CommandError(f"{errors} errors")
