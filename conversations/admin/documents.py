"""What a site knows: upload, watch, try and delete documents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django import forms
from django.contrib import admin
from django.core.exceptions import ValidationError
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, QueryDict
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from django.utils.translation import get_language
from django.utils.translation import gettext_lazy as _
from unfold.decorators import display
from unfold.widgets import UnfoldAdminFileFieldWidget, UnfoldAdminTextInputWidget

from conversations.admin.base import ScopedAdmin, SiteFilter, chip, column, is_superuser, managed_site_ids
from conversations.context import documents, embeddings
from conversations.context.cards import web_link
from conversations.context.formats import KIND_OF_ENDING, BadFile
from conversations.context.knowledge import QUERY_MAX_CHARS, FoundPassage, search_passages
from conversations.db import tenant
from conversations.errors import CODES
from conversations.events import is_storable
from conversations.models import Document, User
from conversations.models.knowledge import DOCUMENT_TITLE_CHARS

STATUS_COLOURS: dict[str, str] = {
    Document.Status.QUEUED: "info",
    Document.Status.READING: "info",
    Document.Status.INDEXING: "info",
    Document.Status.READY: "success",
    Document.Status.FAILED: "danger",
}
WORKING = (Document.Status.QUEUED, Document.Status.READING, Document.Status.INDEXING)
SITES_TRIED = 20
SHOWN_PASSAGES = 20


def say(code: str) -> str:
    """Return the sentence of an error in the language of the admin."""
    return CODES[code].detail("en" if (get_language() or "").startswith("en") else "zh-hans")


class DocumentForm(forms.ModelForm):
    """A document with a field for its file, which is read while the form is checked."""

    title = forms.CharField(
        label=_("title"),
        required=False,
        max_length=DOCUMENT_TITLE_CHARS,
        widget=UnfoldAdminTextInputWidget(),
        help_text=_("Left empty: the name of the file."),
    )
    file = forms.FileField(
        label=_("file"),
        required=False,
        allow_empty_file=True,
        widget=UnfoldAdminFileFieldWidget(attrs={"accept": ",".join(KIND_OF_ENDING)}),
        help_text=_("Plain text, Markdown, HTML, PDF or DOCX. One that takes long is read in the background."),
    )

    class Meta:
        model = Document
        fields: Sequence[str] = ("site", "title", "url")

    looked_at: documents.LookedAt | None = None

    def clean_url(self) -> str:
        """Return an address that a browser may follow, or nothing."""
        url: str = self.cleaned_data["url"]
        if url and web_link(url) != url:
            raise ValidationError(_("It must begin with https://, http:// or /."))
        return url

    def clean_file(self) -> Any:
        """Read the file; what is wrong with it is said here."""
        upload = self.cleaned_data.get("file")
        if upload is None:
            if self.instance.pk is None:
                raise ValidationError(_("A new document needs a file."))
            return None
        if not is_storable(upload.name or ""):
            raise ValidationError(say("file_broken"))
        try:
            self.looked_at = documents.look_at(upload.name or "", upload.read())
        except BadFile as error:
            raise ValidationError(say(error.code)) from error
        return upload

    def clean_title(self) -> str:
        """Return the title; an existing document keeps its own when the field is empty."""
        title: str = self.cleaned_data["title"].strip()
        return title or (Document.across_sites.get(pk=self.instance.pk).title if self.instance.pk else "")


@admin.register(Document)
class DocumentAdmin(ScopedAdmin):
    """The documents of a site, with a question box that shows what would be found."""

    manager_may = frozenset({"view", "add", "change"})
    superuser_may = frozenset({"view", "add", "change"})
    form = DocumentForm
    list_display = ("title", "site", "kind", "state", "passage_count", "changed_at")
    changed_at = column("updated_at", _("changed"))
    list_filter = (SiteFilter, "kind", "status")
    list_select_related = ("site",)
    search_fields = ("title", "filename")
    ordering = ("-pk",)
    list_before_template = "admin/conversations/document/try.html"
    readonly_fields = ("state", "filename", "kind", "size_bytes", "uploaded_by", "indexed_at", "passages_shown")

    def get_fieldsets(self, request: HttpRequest, obj: Document | None = None) -> Any:
        """Return the fields; those of the work only when there is some."""
        if obj is None:
            return [(None, {"fields": ("site", "file", "title", "url")})]
        facts = ("state", "filename", "kind", "size_bytes", "uploaded_by", "indexed_at", "passages_shown")
        return [
            (None, {"fields": ("site", "title", "url", "file")}),
            (_("What was read"), {"fields": facts}),
        ]

    def get_readonly_fields(self, request: HttpRequest, obj: Document | None = None) -> Sequence[str]:
        """Return what is only shown; a document stays in its site."""
        return (*self.readonly_fields, "site") if obj is not None else ()

    def get_changeform_initial_data(self, request: HttpRequest) -> dict[str, Any]:
        """Return the site of whoever has only one."""
        sites = managed_site_ids(request)
        return super().get_changeform_initial_data(request) | ({"site": min(sites)} if len(sites) == 1 else {})

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Return whether this person may delete the document."""
        return self._may(request, "change", obj)

    def save_model(self, request: HttpRequest, obj: Document, form: Any, change: bool) -> None:
        """Store the document through the doors that index it."""
        data = form.cleaned_data
        user = request.user if isinstance(request.user, User) else None
        if not change:
            assert form.looked_at is not None
            site_id = data["site"].pk
            with tenant(site_id):
                made = documents.keep_document(
                    site_id,
                    form.looked_at,
                    title=data["title"],
                    url=data["url"],
                    user_id=user.pk if user else None,
                )
            obj.pk = made.pk
            obj.refresh_from_db()
            return
        with tenant(obj.site_id):
            stored = Document.objects.for_site(obj.site_id).get(pk=obj.pk)
            documents.change_document(stored, title=data["title"], url=data["url"])
            if form.looked_at is not None:
                documents.keep_replacement(stored, form.looked_at)
        obj.refresh_from_db()

    def delete_model(self, request: HttpRequest, obj: Document) -> None:
        """Delete the document with all that came of it."""
        with tenant(obj.site_id):
            documents.delete_document(obj)

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[Document]) -> None:
        """Delete several."""
        for document in queryset:
            self.delete_model(request, document)

    def get_deleted_objects(
        self, objs: QuerySet[Document] | Sequence[Document], request: HttpRequest
    ) -> tuple[list[Any], dict[str, int], set[str], list[Any]]:
        """Return the documents alone: their passages and files go with them, and are too many to name."""
        taken = [str(document) for document in objs]
        return taken, {str(self.opts.verbose_name_plural): len(taken)}, set(), []

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """Return the list under a box for a question, with what that question finds."""
        given: QueryDict = request.GET.copy()
        question = (given.pop("try", [""])[-1]).strip()[:QUERY_MAX_CHARS]
        request.GET = given  # type: ignore[assignment]  # a mutable copy, as Django lets us put it
        context = {
            "question": question,
            "found": self._find(request, question) if question and is_storable(question) else [],
            "is_working": self.get_queryset(request).filter(status__in=WORKING).exists(),
            **(extra_context or {}),
        }
        response: HttpResponse = super().changelist_view(request, context)
        return response

    def _find(self, request: HttpRequest, question: str) -> list[FoundPassage]:
        """Return what the question finds in the sites this person may see, best first."""
        sites = (
            self.get_queryset(request).order_by().values_list("site_id", flat=True).distinct()
            if is_superuser(request)
            else managed_site_ids(request)
        )
        found: list[FoundPassage] = []
        vector = embeddings.embed_query_now(question)
        for site_id in list(sites)[:SITES_TRIED]:
            with tenant(site_id):
                found += search_passages(site_id, question, vector=vector)
        return sorted(found, key=lambda passage: -passage.score)[:10]

    @display(description=_("state"), ordering="status")
    def state(self, document: Document) -> SafeString:
        """Return how far the work is, and what is wrong with the file."""
        text = str(document.get_status_display())
        if document.status in WORKING:
            text = f"{text} {document.percent} %"
        shown = chip(document.status, text, STATUS_COLOURS)
        if not document.error_code:
            return shown
        return format_html("{} {}", shown, say(document.error_code) if document.error_code in CODES else "")

    @display(description=_("passages"))
    def passages_shown(self, document: Document) -> SafeString:
        """Return the first passages."""
        rows = document.passages.order_by("position").values_list("heading", "text")[:SHOWN_PASSAGES]
        shown = format_html_join("", "<li><strong>{}</strong> {}</li>", ((h, t[:200]) for h, t in rows))
        return format_html('<p>{}</p><ol class="passages">{}</ol>', document.passage_count, shown)
