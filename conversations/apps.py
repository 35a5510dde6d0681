"""The application that knows people, sites, what was said, and how replies are made."""

from django.apps import AppConfig


class ConversationsConfig(AppConfig):
    """Registers the models and the checks of this room."""

    name = "conversations"
    verbose_name = "聊天"

    def ready(self) -> None:
        """Tell the registry, which knows endpoints and no sites, who may use them."""
        from conversations.tenancy.grants import load_grants  # models are there only now
        from providers.registry import ask_for_grants

        ask_for_grants(load_grants)
