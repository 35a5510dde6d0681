"""`manage.py index_knowledge`: do the work on documents that wait, here and now."""

from __future__ import annotations

import asyncio
from typing import Any

from django.core.management.base import BaseCommand, CommandParser
from django.db.models import Q

from conversations.context import embeddings
from conversations.context.documents import reindex_document
from conversations.context.indexer import work_once
from conversations.db import tenant
from conversations.models import Document


class Command(BaseCommand):
    """What the workers do by themselves; for servers without workers, and after an update."""

    help = "Read and index the documents that wait; --all indexes those that are ready once more."

    def add_arguments(self, parser: CommandParser) -> None:
        """Take --all and --site."""
        parser.add_argument("--all", action="store_true", help="index what is ready, too (after an update)")
        parser.add_argument("--site", default="", help="only this site, by its slug (with --all)")

    def handle(self, *args: Any, **options: Any) -> None:
        """Work until nothing waits."""
        worked = 0
        while work_once():
            worked += 1
        if options["all"]:
            which = Q(site__slug=options["site"]) if options["site"] else Q()
            for document in Document.across_sites.filter(which, status=Document.Status.READY).order_by("pk"):
                with tenant(document.site_id):
                    reindex_document(document)
                worked += 1
        while asyncio.run(embeddings.fill_some()):
            pass
        self.stdout.write(f"{worked} document(s) worked on.")
