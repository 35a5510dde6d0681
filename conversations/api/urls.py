"""The addresses of the JSON API, as API.md writes them; each also answers with a slash at its end.

The streams share the prefix, but are ASGI applications ahead of Django (`routing.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.urls import URLPattern, path
from drf_spectacular.views import SpectacularAPIView, SpectacularSwaggerView

from conversations.api import health, openapi
from conversations.api.auth import LogoutView, MeViewSet, RefreshView, TokenView
from conversations.api.chat import ConversationViewSet, HistoryViewSet, MessageViewSet
from conversations.api.grants import GrantViewSet
from conversations.api.keys import KeyViewSet
from conversations.api.knowledge import DocumentsViewSet, DocumentViewSet
from conversations.api.models import ModelViewSet, RevisionViewSet

AUTH = "api/auth"
CHAT = "api/xcx/chat"
KEYS = "api/xcx/keys"
MODELS = "api/v1/admin/models"
KNOWLEDGE = "api/knowledge"


def both(route: str, view: Callable[..., Any], *, name: str) -> list[URLPattern]:
    """Return the route and its twin with a slash: no redirect, which would lose a POST."""
    return [path(route, view, name=name), path(f"{route}/", view)]


urlpatterns = [
    *both("livez", health.livez, name="livez"),
    *both("readyz", health.readyz, name="readyz"),
    *both("metrics", health.metrics, name="metrics"),
    *both("api/schema", SpectacularAPIView.as_view(), name="schema"),
    *both("api/docs", SpectacularSwaggerView.as_view(url_name="schema"), name="docs"),
    *both("api/docs/errors", openapi.error_page, name="error-codes"),
    *both(f"{AUTH}/token", TokenView.as_view(), name="token"),
    *both(f"{AUTH}/token/refresh", RefreshView.as_view(), name="token-refresh"),
    *both(f"{AUTH}/logout", LogoutView.as_view(), name="logout"),
    *both(f"{AUTH}/me", MeViewSet.as_view({"get": "me"}), name="me"),
    *both(f"{CHAT}/history", HistoryViewSet.as_view({"get": "history"}), name="history"),
    *both(f"{CHAT}/search", HistoryViewSet.as_view({"get": "search"}), name="search"),
    *both(f"{CHAT}/conversations", HistoryViewSet.as_view({"post": "create"}), name="conversations"),
    *both(f"{CHAT}/messages", MessageViewSet.as_view({"get": "of_context"}), name="context-messages"),
    *both(
        f"{CHAT}/messages/<str:message_id>/feedback", MessageViewSet.as_view({"put": "feedback"}), name="feedback"
    ),
    *both(f"{CHAT}/stream/ticket", MessageViewSet.as_view({"post": "ticket"}), name="ticket"),
    *both(f"{CHAT}/<str:chat_id>/messages", MessageViewSet.as_view({"get": "of_chat"}), name="chat-messages"),
    *both(
        f"{CHAT}/<str:chat_id>",
        ConversationViewSet.as_view({"get": "read", "patch": "change", "delete": "delete"}),
        name="conversation",
    ),
    *both(KEYS, KeyViewSet.as_view({"get": "list"}), name="keys"),
    *both(f"{KEYS}/<str:endpoint_id>", KeyViewSet.as_view({"put": "keep", "delete": "remove"}), name="key"),
    *both(f"{KNOWLEDGE}/documents", DocumentsViewSet.as_view({"get": "list", "post": "create"}), name="documents"),
    *both(
        f"{KNOWLEDGE}/documents/<str:document_id>",
        DocumentViewSet.as_view({"get": "read", "patch": "change", "delete": "delete"}),
        name="document",
    ),
    *both(f"{KNOWLEDGE}/search", DocumentsViewSet.as_view({"get": "search"}), name="knowledge-search"),
    *both(MODELS, ModelViewSet.as_view({"get": "list", "post": "create"}), name="models"),
    *both(f"{MODELS}/revision", RevisionViewSet.as_view({"get": "read"}), name="models-revision"),
    *both(
        f"{MODELS}/revision/restore", RevisionViewSet.as_view({"post": "restore"}), name="models-revision-restore"
    ),
    *both(
        f"{MODELS}/<str:model_id>",
        ModelViewSet.as_view({"get": "read", "patch": "change", "delete": "delete"}),
        name="model",
    ),
    *both(f"{MODELS}/<str:model_id>/activate", ModelViewSet.as_view({"post": "activate"}), name="model-activate"),
    *both(
        f"{MODELS}/<str:model_id>/deactivate",
        ModelViewSet.as_view({"post": "deactivate"}),
        name="model-deactivate",
    ),
    *both(f"{MODELS}/<str:model_id>/sites", GrantViewSet.as_view({"get": "list"}), name="model-sites"),
    *both(
        f"{MODELS}/<str:model_id>/sites/<str:slug>",
        GrantViewSet.as_view({"get": "read", "put": "keep", "delete": "remove"}),
        name="model-site",
    ),
    *both(f"{MODELS}/<str:model_id>/test", ModelViewSet.as_view({"post": "test"}), name="model-test"),
]
