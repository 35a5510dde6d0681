"""What the admin of voice shares: keys that only go in, and rows that stay in the site they were made for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, ClassVar

from django import forms
from django.db.models import Model
from django.forms import ModelForm
from django.http import HttpRequest
from django.utils.translation import gettext_lazy as _
from unfold.widgets import UnfoldAdminPasswordWidget

from conversations.admin.base import ScopedAdmin
from conversations.db import tenant


class WriteOnlyKeysForm(forms.ModelForm):
    """A form whose key fields only take; below each stands the mask of what is stored."""

    keys: ClassVar[tuple[str, ...]] = ()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for name in self.keys:
            if name in self.fields:
                mask = getattr(self.instance, f"{name}_mask")
                self.fields[name].help_text = (
                    _("Stored: %(mask)s. Leave empty to keep it.") % {"mask": mask}
                    if mask
                    else _("None is stored.")
                )

    def clean(self) -> dict[str, Any]:
        """Return the cleaned data; a key that could not be one is refused, and never repeated."""
        data: dict[str, Any] = super().clean() or self.cleaned_data
        for name in self.keys:
            if data.get(name) and not re.fullmatch(r"[\x21-\x7e]+", data[name]):
                text = _("A key has no spaces, line ends or special characters. Copy it again.")
                self.add_error(name, text)
        return data


def key_field(label: Any) -> forms.CharField:
    """Return a field that takes a key and never shows one."""
    return forms.CharField(
        label=label,
        required=False,
        strip=True,
        max_length=4096,
        widget=UnfoldAdminPasswordWidget(attrs={"autocomplete": "new-password"}, render_value=False),
    )


class SiteBoundAdmin(ScopedAdmin):
    """Base of rows that a person makes for a site and that stay in it."""

    def get_readonly_fields(self, request: HttpRequest, obj: Model | None = None) -> Sequence[str]:
        """Return what cannot be changed: a row's site is chosen once."""
        fields = tuple(super().get_readonly_fields(request, obj))
        return (*fields, "site") if obj is not None else fields

    def save_model(self, request: HttpRequest, obj: Any, form: ModelForm[Any], change: bool) -> None:
        """Store the row in its site."""
        with tenant(obj.site_id):
            super().save_model(request, obj, form, change)
