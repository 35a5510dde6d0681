"""`manage.py rotate_keys`: encrypt every stored secret with the newest key."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from django.apps import apps
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import models, transaction

from providers.credentials import new_key, rotate
from providers.errors import Misconfigured
from providers.fields import EncryptedField
from providers.models import EndpointRevision, KeyedModel, bump_revision


class Command(BaseCommand):
    """Put a new key first in SECRET_KEYS (or secret.keys), restart, run this, then drop the old key."""

    help = "Encrypt every stored secret again with the first key of SECRET_KEYS. --new prints a fresh key."

    def add_arguments(self, parser: CommandParser) -> None:
        """Take --new."""
        parser.add_argument("--new", action="store_true", help="only print a fresh key for the list")

    def handle(self, *args: Any, **options: Any) -> None:
        """Rotate all or nothing."""
        if options["new"]:
            self.stdout.write(new_key())
            return
        with transaction.atomic():
            # Whoever has secrets, on whichever floor.
            keyed = [model for model in apps.get_models() if issubclass(model, KeyedModel)]
            rows = [
                row
                for model in keyed
                for row in model._base_manager.select_for_update(no_key=True)
                .exclude(api_key_encrypted="")
                .order_by("pk")
            ]
            unreadable = []
            for row in rows:
                try:
                    row.api_key_encrypted = rotate(row.api_key_encrypted)
                except Misconfigured:
                    unreadable.append(str(row))
            elsewhere = [*_rotated(unreadable)]
            if unreadable:
                raise CommandError(
                    "No key of the list opens the secret of: " + ", ".join(unreadable) + ". Nothing was changed."
                )
            # Not the queryset of `objects`, whose every write is a revision of its own: this is one change.
            for row in rows:
                plain: models.QuerySet[models.Model] = models.QuerySet(type(row))
                plain.filter(pk=row.pk).update(api_key_encrypted=row.api_key_encrypted)
            for other, columns in elsewhere:
                other.save(update_fields=columns)
            for kept in EndpointRevision.objects.select_for_update():
                for values in kept.endpoints:
                    # A key that nobody can read any more is no use to a revision that is brought back, either.
                    with suppress(Misconfigured):
                        values["api_key_encrypted"] = rotate(values["api_key_encrypted"])
                kept.save(update_fields=["endpoints"])
            if rows:
                bump_revision(are_endpoints_changed=False)
        count = len(rows) + sum(len(columns) for _, columns in elsewhere)
        self.stdout.write(f"{count} secrets are now under the first key.")


def _rotated(unreadable: list[str]) -> Iterator[tuple[models.Model, list[str]]]:
    """Yield every row of any application that keeps secrets in an EncryptedField, changed and not yet saved.

    The secrets that no key opens are named in `unreadable`.
    """
    for model in apps.get_models():
        names = [field.attname for field in model._meta.concrete_fields if isinstance(field, EncryptedField)]
        if not names:
            continue
        for row in model._base_manager.select_for_update().order_by("pk"):
            columns = [name for name in names if getattr(row, name)]
            for name in columns:
                try:
                    setattr(row, name, rotate(getattr(row, name)))
                except Misconfigured:
                    unreadable.append(f"{row} ({model._meta.verbose_name}: {name.removesuffix('_encrypted')})")
            if columns:
                yield row, columns
