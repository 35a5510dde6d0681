"""The application that holds settings, logs and the commands that serve."""

from django.apps import AppConfig
from django.contrib.admin.apps import AdminConfig


class ChatsiteConfig(AppConfig):
    """Registers the checks of the settings."""

    name = "chatsite"
    default = True

    def ready(self) -> None:
        """Register the system checks."""
        from chatsite import checks  # noqa: F401  (registers itself)


class ChatAdminConfig(AdminConfig):
    """Django's admin with our site in place of its own."""

    default = False
    default_site = "chatsite.adminsite.ChatAdminSite"
