"""What staff see: one module per noun; who sees what is decided in `base`."""

from conversations.admin import (
    conversations,
    documents,
    endpoints,
    generations,
    memberships,
    pages,
    sites,
    users,
    workers,
)

__all__ = [
    "conversations",
    "documents",
    "endpoints",
    "generations",
    "memberships",
    "pages",
    "sites",
    "users",
    "workers",
]
