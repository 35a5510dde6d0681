"""What staff see: one module per noun; who sees what is decided in `base`."""

from conversations.admin import conversations, endpoints, generations, memberships, sites, users, workers

__all__ = ["conversations", "endpoints", "generations", "memberships", "sites", "users", "workers"]
