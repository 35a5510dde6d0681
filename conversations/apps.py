"""The application that knows people, sites, what was said, and how replies are made."""

from django.apps import AppConfig


class ConversationsConfig(AppConfig):
    """Registers the models and the checks of this room."""

    name = "conversations"
    verbose_name = "聊天"
