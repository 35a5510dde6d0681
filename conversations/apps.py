"""The application that knows people, sites, what was said, and how replies are made."""

from django.apps import AppConfig


class ConversationsConfig(AppConfig):
    """Registers the models and the checks of this room."""

    name = "conversations"
    verbose_name = "聊天"

    def ready(self) -> None:
        """Register the system checks; tell the registry, which knows endpoints and no sites, who may use them."""
        from conversations import checks  # noqa: F401  (registers itself)
        from conversations.tenancy.grants import load_grants  # models are there only now
        from providers.registry import ask_for_grants

        ask_for_grants(load_grants)
