"""Endpoints while replies run on them: who uses which, how far the workers are, and how one is removed.

Each worker says with its heartbeat, every second, which revision it uses and how many replies it runs on each
endpoint. A reply that began within that second may be missed: then the endpoint goes, and the reply keeps what
it has, as every running reply does; its row of the ledger keeps the endpoint's name.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

from django.conf import settings
from django.db.models import ExpressionWrapper, F
from django.db.models import fields as columns
from django.db.models.functions import Now

from conversations.models import Worker
from providers.models import Endpoint, RegistryRevision


@dataclass(frozen=True, slots=True)
class Standing:
    """How far the registry is, and each live worker with it."""

    revision: int
    workers: tuple[Worker, ...]

    @property
    def followed_by(self) -> int:
        """How many of the workers are at the registry's revision."""
        return sum(worker.registry_revision == self.revision for worker in self.workers)


def live_workers() -> list[Worker]:
    """Return the workers that were seen within their lease, by the database's clock, oldest first."""
    unseen = ExpressionWrapper(Now() - F("seen_at"), output_field=columns.DurationField())
    lease = timedelta(seconds=settings.LEASE_SECONDS)
    return list(
        Worker.objects.filter(is_dead=False).annotate(unseen=unseen).filter(unseen__lt=lease).order_by("pk")
    )


def standing() -> Standing:
    """Return the revision of the registry and the workers that follow it."""
    workers = tuple(live_workers())
    revision = RegistryRevision.objects.filter(pk=1).values_list("revision", flat=True).first() or 0
    return Standing(revision, workers)


def live_replies_on(endpoint_id: int) -> int:
    """Return how many replies run on an endpoint, as the workers said last."""
    return sum(int(worker.live_endpoints.get(str(endpoint_id), 0)) for worker in live_workers())


Removal = Literal["deleted", "in use", "draining"]


def remove_endpoint(endpoint: Endpoint, *, drain: bool = False) -> Removal:
    """Delete an endpoint on which no reply runs; return what was done.

    One in use stays as it is, or, to be drained, gets no new replies and is deleted when the last one is over.
    """
    if not live_replies_on(endpoint.pk):
        endpoint.delete()
        return "deleted"
    if not drain:
        return "in use"
    endpoint.is_active, endpoint.is_draining = False, True
    endpoint.save(update_fields=["is_active", "is_draining", "updated_at"])
    return "draining"


def remove_drained() -> int:
    """Delete the draining endpoints on which no reply runs any more; return how many.

    Not before every worker knows that they are to get no new ones.
    """
    draining = list(Endpoint.objects.filter(is_draining=True))
    if not draining:
        return 0
    now = standing()
    if now.followed_by < len(now.workers):
        return 0
    return sum(remove_endpoint(endpoint) == "deleted" for endpoint in draining)
