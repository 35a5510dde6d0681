"""What staff may write on the page: each mistake is told at its field, by its path in the configuration.

A key has no place here: a curl command is never shown again, and a key in clear is taken out of what is.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from django import forms
from django.db.models import QuerySet
from django.utils.translation import get_language
from django.utils.translation import gettext_lazy as _
from unfold.widgets import (
    UnfoldAdminSelectWidget,
    UnfoldAdminTextareaWidget,
    UnfoldAdminTextInputWidget,
)

from providers.advice import advice
from providers.clients.declarative import configs
from providers.clients.declarative.curl import MODEL_WAS, CurlRefused, config_from_curl
from providers.clients.declarative.lab import DryRun, Transcript, dry_run, read_transcript
from providers.clients.declarative.pick import compile_path, pick
from providers.clients.declarative.schema import IN_CLEAR, Config, ConfigRefused, names_a_secret
from providers.clients.declarative.stored import check_stored, is_wrapped
from providers.errors import Misconfigured
from providers.lab.words import in_words
from providers.models import Endpoint
from providers.types import ChatMessage, storable

CONFIG_MAX_CHARS = 128 * 1024  # 64 KiB of configuration, indented
CURL_MAX_CHARS = 64 * 1024
TRANSCRIPT_MAX_BYTES = 512 * 1024
_OBJECT_MAX_CHARS = 16 * 1024
_ENDPOINTS_MAX = 200
_FIELD_OF_CODE = {"missing_base_url": "values", "bad_base_url": "values", "missing_url_value": "values",
                  "bad_params": "params"}  # fmt: skip


class Unseen(UnfoldAdminTextareaWidget):
    """A text area that never shows what was written into it."""

    def format_value(self, value: Any) -> str | None:
        """Return nothing."""
        return None


def _code(rows: int, **attrs: str) -> dict[str, str]:
    return {"rows": str(rows), "spellcheck": "false", "autocapitalize": "off", "class": "lab-code", **attrs}


class StartForm(forms.Form):
    """Which configuration to begin with: a ready one, or one that an endpoint has."""

    start = forms.ChoiceField(
        label=_("Begin with"),
        widget=UnfoldAdminSelectWidget(),
        help_text=_("By name it stays short and follows our later versions; the whole text is yours to change."),
    )

    def __init__(self, data: Any = None, *, endpoints: QuerySet[Endpoint]) -> None:
        super().__init__(data)
        self._endpoints = endpoints.filter(dialect=Endpoint.Dialect.DECLARATIVE)
        ready = [(f"ready:{name}", f"{name} · {configs.load(name)['description']}") for name in configs.names()]
        kept = [
            (f"endpoint:{pk}", name) for pk, name in self._endpoints.values_list("pk", "name")[:_ENDPOINTS_MAX]
        ]
        groups: list[Any] = [(_("Ready configurations"), ready)]
        if kept:
            groups.append((_("Endpoints"), kept))
        self.fields["start"].choices = groups  # type: ignore[attr-defined]  # a ChoiceField

    def begin(self, *, is_whole: bool) -> dict[str, Any]:
        """Return what the lab's form begins with; whole: the text of a ready configuration instead of its name."""
        kind, _colon, which = self.cleaned_data["start"].partition(":")
        if kind == "endpoint":
            row = self._endpoints.get(pk=int(which))
            values = {"base_url": row.base_url} if row.base_url else {}
            return {
                "config": pretty(row.config),
                "model": row.model,
                "params": pretty(row.params) if row.params else "",
                "values": pretty(values) if values else "",
            }
        config = configs.load(which)
        values = config.get("values", {})
        return {
            "config": pretty(config if is_whole else {"ready": which}),
            "values": pretty(values) if values and not is_whole else "",
        }


class CurlForm(forms.Form):
    """A curl command, as vendors' documents show them."""

    curl = forms.CharField(
        label=_("curl command"),
        max_length=CURL_MAX_CHARS,
        widget=Unseen(attrs=_code(4, autocomplete="off", placeholder="curl https://api.vendor.example/… -d …")),
        help_text=_("The key in it is taken out. The command is neither kept nor shown again."),
    )

    def clean(self) -> dict[str, Any]:
        """Put a first configuration and its notes beside the fields, instead of the command."""
        data: dict[str, Any] = super().clean() or {}
        command = data.pop("curl", "")
        if command:
            try:
                data["config"], data["notes"] = config_from_curl(command)
                data["model"] = next(
                    (note.removeprefix(MODEL_WAS) for note in data["notes"] if note.startswith(MODEL_WAS)), ""
                )
            except CurlRefused as refused:
                self.add_error("curl", in_words(str(refused)))
        return data


class LabForm(forms.Form):
    """A configuration, what a request to it holds, and a recorded answer."""

    config = forms.CharField(
        label=_("configuration"),
        max_length=CONFIG_MAX_CHARS,
        strip=False,
        widget=UnfoldAdminTextareaWidget(attrs=_code(10)),
        help_text=_("A configuration, or a ready one by name, as an endpoint keeps it."),
    )
    mapi = forms.CharField(
        label=_("API section"),
        max_length=64,
        required=False,
        widget=UnfoldAdminTextInputWidget(attrs={"placeholder": "chat"}),
    )
    mode = forms.ChoiceField(
        label=_("Mode"),
        required=False,
        choices=[("", _("as the section says")), ("stream", _("streamed")), ("whole", _("in one piece"))],
        widget=UnfoldAdminSelectWidget(),
    )
    model = forms.CharField(label=_("model"), max_length=200, required=False, widget=UnfoldAdminTextInputWidget())
    values = forms.CharField(
        label=_("Values"),
        max_length=_OBJECT_MAX_CHARS,
        required=False,
        widget=UnfoldAdminTextareaWidget(attrs=_code(4, placeholder='{"base_url": "https://…"}')),
        help_text=_("JSON: the endpoint's own, for what the configuration declares. No keys."),
    )
    params = forms.CharField(
        label=_("parameters"),
        max_length=_OBJECT_MAX_CHARS,
        required=False,
        widget=UnfoldAdminTextareaWidget(attrs=_code(4, placeholder='{"temperature": 0.7}')),
        help_text=_("JSON: what a request carries."),
    )
    question = forms.CharField(
        label=_("Question"), max_length=2000, required=False, widget=UnfoldAdminTextInputWidget()
    )
    transcript = forms.CharField(
        label=_("Recorded answer"),
        max_length=TRANSCRIPT_MAX_BYTES,
        required=False,
        strip=False,
        widget=UnfoldAdminTextareaWidget(attrs=_code(8)),
        help_text=_("The body alone, or with its head, as curl -i -N prints it; at most 512 KiB."),
    )
    transcript_file = forms.FileField(label=_("or as a file"), required=False, allow_empty_file=True)

    def clean_config(self) -> dict[str, Any]:
        """Return the configuration as JSON; what it says is looked at with the values."""
        return self._object("config")

    def clean_values(self) -> dict[str, Any]:
        """Return the values, without those that are null."""
        return {name: value for name, value in self._object("values").items() if value is not None}

    def clean_params(self) -> dict[str, Any]:
        """Return the parameters."""
        return self._object("params")

    def clean_transcript_file(self) -> Any:
        """Return the file, when it is not too long."""
        file = self.cleaned_data["transcript_file"]
        if file is not None and file.size > TRANSCRIPT_MAX_BYTES:
            raise forms.ValidationError(_("The recorded answer is longer than 512 KiB."))
        return file

    def clean(self) -> dict[str, Any]:
        """Put together what an endpoint would keep, and check it; each mistake goes to its field."""
        data: dict[str, Any] = super().clean() or self.cleaned_data
        if "config" not in data:
            return data
        raw, typed = data["config"], {name: data.get(name) for name in ("values", "mapi", "mode")}
        kept = dict(raw) if is_wrapped(raw) else {"config": raw}
        own = kept.get("values", {})
        if typed["values"] and isinstance(own, Mapping):
            kept["values"] = {**own, **typed["values"]}
        kept |= {name: typed[name] for name in ("mapi", "mode") if typed[name]}
        try:
            stored = check_stored(kept)
        except ConfigRefused as refused:
            self._refuse(refused.problems, raw, typed)
            return data
        defaults = stored.config.values
        values = {name: value for name, value in stored.values.items() if value != defaults.get(name)}
        kept.pop("values", None)
        if values:
            kept["values"] = values
        data["stored"] = stored
        data["kept"] = kept if set(kept) != {"config"} else kept["config"]
        return data

    def run(self) -> DryRun | None:
        """Return the dry run, or None with a mistake at its field."""
        data = self.cleaned_data
        question = data["question"] or "你好"
        try:
            return dry_run(
                data["stored"],
                self._transcript(),
                model=data["model"] or "a-model",
                params=data["params"],
                messages=(ChatMessage("system", "你是助手。"), ChatMessage("user", question)),
            )
        except Misconfigured as error:
            field = _FIELD_OF_CODE.get(error.code, "config")
            if error.code == "missing_url_value" and error.vendor_code == "model":
                field = "model"
            about = f" ({error.vendor_code})" if error.vendor_code else ""
            self.add_error(field, f"{explain(error.code)}{about}")
            return None

    @property
    def has_answer(self) -> bool:
        """Whether there is a recorded answer to read."""
        return bool(self.cleaned_data.get("transcript_file") or self.cleaned_data.get("transcript"))

    def prefilled(self) -> dict[str, Any]:
        """Return what the form of a new endpoint begins with."""
        data = self.cleaned_data
        config: Config = data["stored"].config
        return {
            "name": config.name[:100],
            "dialect": Endpoint.Dialect.DECLARATIVE,
            "config": data["kept"],
            "model": data["model"],
            "params": data["params"],
        }

    def _transcript(self) -> Transcript | None:
        file, text = self.cleaned_data.get("transcript_file"), self.cleaned_data.get("transcript")
        if file is not None:
            return read_transcript(file.read())
        # A browser writes every line end as two characters, which no vendor's JSON has within it.
        return read_transcript(text.replace("\r\n", "\n").encode("utf-8", "replace")) if text else None

    def _object(self, name: str) -> dict[str, Any]:
        text = self.cleaned_data[name]
        if not text.strip():
            return {}
        try:
            value = json.loads(text)
        except json.JSONDecodeError as error:
            raise forms.ValidationError(
                _("Not JSON: line %(line)s, character %(column)s."),
                params={"line": error.lineno, "column": error.colno},
            ) from None
        except (ValueError, RecursionError):
            raise forms.ValidationError(_("Not JSON.")) from None
        if not isinstance(value, dict):
            raise forms.ValidationError(_("Write a JSON object."))
        said = pretty(value)
        if storable(said) != said or "\\u0000" in said:
            raise forms.ValidationError(_("There are characters in it that cannot be stored."))
        return value

    def _refuse(
        self, problems: Iterable[tuple[str, str]], raw: Mapping[str, Any], typed: Mapping[str, Any]
    ) -> None:
        """Show each mistake at its field, by its path."""
        shown: Any = self.data.copy()  # type: ignore[attr-defined]  # a QueryDict
        clean: dict[str, Any] = {"config": raw, "values": typed.get("values")}
        for path, text in problems:
            field = path.partition(".")[0]
            if not typed.get(field):
                field = "config"
                if not is_wrapped(raw):
                    path = path.removeprefix("config").removeprefix(".")
            said = in_words(text)
            self.add_error(field, f"{path}: {said}" if path else said)
            # An unknown place for a key is one, too; and of several keys none comes back with the next.
            if text == IN_CLEAR or names_a_secret(path.rpartition(".")[2]):
                where = path.removeprefix("values.") if field == "values" else path
                with suppress(ValueError):  # it is under a name that no path can say
                    if (key := pick(clean[field], compile_path(where))) not in (None, ""):
                        clean[field] = _without(clean[field], key)
                        shown[field] = pretty(clean[field])
        self.data = shown


def explain(code: str) -> str:
    """Return what staff can do about one of our inner codes, in their language."""
    return advice(code, "en" if (get_language() or "").startswith("en") else "zh-hans")


def _without(value: Any, key: Any) -> Any:
    """Return a JSON value with a text taken out wherever it stands."""
    if isinstance(value, dict):
        return {name: _without(item, key) for name, item in value.items()}
    if isinstance(value, list):
        return [_without(item, key) for item in value]
    return "•••" if value == key else value


def pretty(value: Any) -> str:
    """Return JSON for people to read."""
    return json.dumps(value, ensure_ascii=False, indent=2)
