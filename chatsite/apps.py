"""The application that holds settings, logs and the commands that serve."""

from django.apps import AppConfig


class ChatsiteConfig(AppConfig):
    """Registers the checks of the settings."""

    name = "chatsite"

    def ready(self) -> None:
        """Register the system checks."""
        from chatsite import checks  # noqa: F401  (registers itself)
