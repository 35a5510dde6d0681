"""What a traceback page shows: with DEBUG, too, no local variables' values and no form fields that hold secrets.

Django hides neither while DEBUG is on, and the variables of a call to a provider hold its key.
"""

from __future__ import annotations

import re
from collections.abc import ItemsView
from types import FrameType
from typing import Any

from django.http import HttpRequest
from django.views.debug import SafeExceptionReporterFilter

_SECRET_NAME = re.compile(r"key|token|secret|pass|signature|auth|cookie|csrf|session", re.IGNORECASE)


class QuietReporterFilter(SafeExceptionReporterFilter):
    """Shows the names and types of variables; plain numbers, switches and None as they are."""

    def is_active(self, request: HttpRequest | None) -> bool:
        """Return yes: also while DEBUG is on."""
        return True

    def get_traceback_frame_variables(
        self, request: HttpRequest | None, tb_frame: FrameType
    ) -> ItemsView[str, Any]:
        """Return each variable of a frame with its value, when that can be no secret, or its type."""
        return {name: _shown(value) for name, value in tb_frame.f_locals.items()}.items()

    def get_post_parameters(self, request: HttpRequest | None) -> dict[str, Any]:
        """Return the fields of a form, those that may hold a secret masked."""
        if request is None:
            return {}
        marked = getattr(request, "sensitive_post_parameters", ())  # by the view; "__ALL__" is Django's word
        posted = request.POST.dict()
        return {
            name: self.cleansed_substitute
            if marked == "__ALL__" or name in marked or _SECRET_NAME.search(name)
            else posted[name]
            for name in posted
        }


def _shown(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value
    return f"<{type(value).__module__}.{type(value).__qualname__}>"
