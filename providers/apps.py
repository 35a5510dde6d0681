"""The application that knows vendors."""

from django.apps import AppConfig


class ProvidersConfig(AppConfig):
    """Registers the models and the checks of this room."""

    name = "providers"
    verbose_name = "模型"

    def ready(self) -> None:
        """Register the system checks."""
        from providers import checks  # noqa: F401  (registers itself)
