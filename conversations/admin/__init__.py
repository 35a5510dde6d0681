"""What staff see: one module per noun; who sees what is decided in `base`."""

from conversations.admin import (
    callers,
    conversations,
    endpoints,
    generations,
    memberships,
    rooms,
    scenes,
    sites,
    users,
    workers,
)

__all__ = [
    "callers",
    "conversations",
    "endpoints",
    "generations",
    "memberships",
    "rooms",
    "scenes",
    "sites",
    "users",
    "workers",
]
