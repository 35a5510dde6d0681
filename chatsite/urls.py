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
    path("i18n/", include("django.conf.urls.i18n")),
    path("", include("conversations.api.urls")),
]

handler400 = "conversations.api.errors.handler400"
handler403 = "conversations.api.errors.handler403"
handler404 = "conversations.api.errors.handler404"
handler500 = "conversations.api.errors.handler500"
