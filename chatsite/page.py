"""The chat page at `/`: one static document that talks to the API with a token of its own."""

from __future__ import annotations

from typing import Any

from django.http import HttpRequest, HttpResponse
from django.views.generic import TemplateView

CONTENT_SECURITY_POLICY = (
    "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; object-src 'none'"
)
"""Nothing inline and nothing from elsewhere: what a model or a person wrote can never run here."""


class ChatPage(TemplateView):
    """Serves `templates/chat.html` with a strict Content-Security-Policy."""

    template_name = "chat.html"

    def get(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        """Return the page; a new release is seen at the next visit."""
        response = super().get(request, *args, **kwargs)
        response["Content-Security-Policy"] = CONTENT_SECURITY_POLICY
        response["Cache-Control"] = "no-cache"
        response["Referrer-Policy"] = "same-origin"
        return response
