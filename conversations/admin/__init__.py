"""What staff see: one module per noun; who sees what is decided in `base`."""

from conversations.admin import (
    callers,
    conversations,
    documents,
    endpoints,
    generations,
    memberships,
    pages,
    rooms,
    scenes,
    sites,
    tools,
    users,
    workers,
)

__all__ = [
    "callers",
    "conversations",
    "documents",
    "endpoints",
    "generations",
    "memberships",
    "pages",
    "rooms",
    "scenes",
    "sites",
    "tools",
    "users",
    "workers",
]
