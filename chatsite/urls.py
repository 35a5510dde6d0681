"""The addresses of the product: the chat page, the admin, and the JSON API.

The streams are not here: they are ASGI applications routed ahead of Django (`chatsite/asgi.py`).
"""

from __future__ import annotations

from django.contrib import admin
from django.urls import include, path

from chatsite.page import ChatPage

urlpatterns = [
    path("", ChatPage.as_view(), name="chat"),
    path("admin/", admin.site.urls),
    path("", include("conversations.api.urls")),
]
