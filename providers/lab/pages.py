"""The page itself: nothing is sent over the network, and nothing is kept."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import URLPattern, path
from django.utils.translation import gettext
from django.views.decorators.debug import sensitive_post_parameters
from unfold.admin import ModelAdmin

from providers.clients.declarative.lab import DryRun, ShownRequest
from providers.clients.declarative.reducer import Trace
from providers.clients.declarative.schema import ConfigRefused, parse_config
from providers.lab.forms import CurlForm, LabForm, StartForm, explain, pretty
from providers.lab.words import in_words
from providers.types import outcome_of, storable

TAKE = "_from_lab"
EVENTS_MAX = 200
_TEXT_MAX_CHARS = 20_000
_VALUE_MAX_CHARS = 2000


@dataclass(frozen=True, slots=True)
class ShownEvent:
    """One event of a recorded answer, as the page shows it."""

    number: int
    name: str
    raw: str
    mapped: list[tuple[str, str]]
    dropped: list[tuple[str, str]]
    says: str
    is_end: bool


class LabPages(ModelAdmin):
    """An admin of endpoints with the lab beside its list, and a way from there into the form of a new one."""

    def get_urls(self) -> list[URLPattern]:
        """Return the addresses, with the lab's."""
        page = sensitive_post_parameters()(self.admin_site.admin_view(self.lab))
        urls: list[URLPattern] = [path("lab/", page, name="providers_endpoint_lab"), *super().get_urls()]
        return urls

    def lab(self, request: HttpRequest) -> HttpResponse:
        """Return the page, with what was asked of it. Raises PermissionDenied for who may not see endpoints."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        posted = request.POST if request.method == "POST" else {}
        do = posted.get("do", "")
        start = StartForm(posted if do in ("load", "load_whole") else None, endpoints=self.get_queryset(request))
        curl = CurlForm(posted if do == "curl" else None)
        form = LabForm(initial={"question": "你好"})
        context: dict[str, Any] = {}
        if start.is_bound and start.is_valid():
            form = LabForm(initial={"question": "你好", **start.begin(is_whole=do == "load_whole")})
        elif curl.is_bound and curl.is_valid():
            config, model = curl.cleaned_data["config"], curl.cleaned_data["model"]
            form = LabForm(initial={"question": "你好", "config": pretty(config), "model": model})
            context["notes"] = [in_words(note) for note in curl.cleaned_data["notes"]]
            context["to_mend"] = list(_to_mend(config))
        elif do == "try":
            form = LabForm(posted, request.FILES)
            if form.is_valid() and (run := form.run()) is not None:
                context |= _shown(run, has_answer=form.has_answer)
        return self._lab_page(request, start, curl, form, context)

    def add_view(self, request: HttpRequest, form_url: str = "", extra_context: Any = None) -> HttpResponse:
        """Return the form of a new endpoint; from the lab, filled in with what was tried there."""
        if request.method != "POST" or TAKE not in request.POST:
            return super().add_view(request, form_url, extra_context)
        if not self.has_add_permission(request):
            raise PermissionDenied
        form = LabForm(request.POST, request.FILES)
        if not form.is_valid():
            start = StartForm(endpoints=self.get_queryset(request))
            return self._lab_page(request, start, CurlForm(), form, {})
        # The form is shown for the first time, so nothing is kept between the two pages.
        request.method = "GET"
        request.lab_prefilled = form.prefilled()  # type: ignore[attr-defined]  # for the form of this request
        return super().add_view(request, form_url, extra_context)

    def get_changeform_initial_data(self, request: HttpRequest) -> dict[str, Any]:
        """Return what a new endpoint's form begins with."""
        prefilled: dict[str, Any] | None = getattr(request, "lab_prefilled", None)
        return super().get_changeform_initial_data(request) if prefilled is None else prefilled

    def _lab_page(
        self, request: HttpRequest, start: StartForm, curl: CurlForm, form: LabForm, context: Mapping[str, Any]
    ) -> HttpResponse:
        return TemplateResponse(
            request,
            "admin/providers/endpoint/lab.html",
            {
                **self.admin_site.each_context(request),
                "title": gettext("Provider lab"),
                "opts": self.opts,
                "start_form": start,
                "curl_form": curl,
                "form": form,
                "take": TAKE,
                "is_wrong": any(each.errors for each in (start, curl, form)),
                "may_add": self.has_add_permission(request),
                **context,
            },
        )


def _to_mend(config: Any) -> Iterator[str]:
    try:
        parse_config(config)
    except ConfigRefused as refused:
        for where, text in refused.problems:
            yield f"{where}: {in_words(text)}" if where else in_words(text)


def _shown(run: DryRun, *, has_answer: bool) -> dict[str, Any]:
    """Return what the template shows of a dry run."""
    context: dict[str, Any] = {
        "requests": [
            (title, _request_text(request))
            for title, request in (
                (gettext("Request for a token"), run.auth_request),
                (gettext("Request"), run.request),
            )
            if request is not None
        ],
        "unused_params": run.unused_params,
        "has_answer": has_answer,
    }
    if not has_answer:
        return context
    context["events"] = [_event(number, trace) for number, trace in enumerate(run.traces[:EVENTS_MAX], 1)]
    context["events_left_out"] = run.traces_left_out + max(0, len(run.traces) - EVENTS_MAX)
    context["text"], context["reasoning"] = (
        _short(run.text, _TEXT_MAX_CHARS),
        _short(run.reasoning, _TEXT_MAX_CHARS),
    )
    if run.finished is not None:
        context["finished"] = run.finished
        context["is_truncated"] = outcome_of(run.finished.finish_reason) == "truncated"
    if run.error is not None:
        context["error_code"] = run.error.code
        context["error_advice"] = explain(run.error.code)
        context["error_words"] = _short(run.error.vendor_message or "", _VALUE_MAX_CHARS)
    return context


def _request_text(request: ShownRequest) -> str:
    lines = [f"{request.method} {request.url}", *(f"{name}: {value}" for name, value in request.headers.items())]
    if request.body is not None:
        body = request.body if isinstance(request.body, str) else pretty(request.body)
        lines += ["", body]
    return _short("\n".join(lines), _TEXT_MAX_CHARS)


def _event(number: int, trace: Trace) -> ShownEvent:
    return ShownEvent(
        number=number,
        name=_short(trace.event or "", 100),
        raw=_short(trace.raw, _VALUE_MAX_CHARS),
        mapped=[
            (name, _short(json.dumps(value, ensure_ascii=False), _VALUE_MAX_CHARS))
            for name, value in trace.mapped.items()
        ],
        dropped=[(name, in_words(why)) for name, why in trace.dropped],
        says=in_words(trace.says),
        is_end=trace.says.startswith("the end"),
    )


def _short(text: str, limit: int) -> str:
    """Return text that a page can hold, without a lone half of a character."""
    text = storable(text)
    return text if len(text) <= limit else f"{text[:limit]}…"
