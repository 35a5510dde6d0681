"""What a site knows: documents, their files, and the passages they are searched by; and what its pages say."""

from __future__ import annotations

from typing import ClassVar

from django.contrib.postgres.indexes import GinIndex
from django.contrib.postgres.search import SearchVectorField
from django.db import models
from django.db.models import Q
from django.utils.translation import gettext_lazy as _

from conversations.models.scoping import ScopedManager, TenantModel
from conversations.models.sites import Site, User
from providers.fields import EncryptedField

DOCUMENT_TITLE_CHARS = 200
LINK_CHARS = 500


class Document(TenantModel):
    """Something the site knows. What it was read from is in `DocumentFile`, what is found in `Passage`."""

    class Kind(models.TextChoices):
        """What the file is, by its content."""

        TEXT = "text", _("plain text")
        MARKDOWN = "markdown", "Markdown"
        HTML = "html", "HTML"
        PDF = "pdf", "PDF"
        DOCX = "docx", "DOCX"

    class Status(models.TextChoices):
        """How far the work is. Passages of an earlier version stay searchable until new ones replace them."""

        QUEUED = "queued", _("waiting")
        READING = "reading", _("being read")
        INDEXING = "indexing", _("being indexed")
        READY = "ready", _("ready")
        FAILED = "failed", _("failed")

    site = models.ForeignKey(
        Site, on_delete=models.CASCADE, related_name="+", verbose_name=_("site"), db_index=False
    )
    title = models.CharField(_("title"), max_length=DOCUMENT_TITLE_CHARS)
    url = models.CharField(
        _("link"), max_length=LINK_CHARS, blank=True, help_text=_("Where members can read it; shown on the card.")
    )
    filename = models.CharField(_("file"), max_length=200, blank=True)
    kind = models.CharField(_("kind"), max_length=16, choices=Kind.choices)
    size_bytes = models.BigIntegerField(_("size in bytes"), default=0)
    status = models.CharField(_("status"), max_length=16, choices=Status.choices, default=Status.QUEUED)
    percent = models.SmallIntegerField(_("progress in percent"), default=0)
    # Why the last file could not be read; with passages there are those of the one before.
    error_code = models.CharField(_("error"), max_length=64, blank=True)
    passage_count = models.IntegerField(_("passages"), default=0)
    term_count = models.BigIntegerField(default=0)
    # Who works on it, and when they last said so: a claim that is old is anybody's.
    claim = models.UUIDField(null=True, blank=True)
    claimed_at = models.DateTimeField(null=True, blank=True)
    tries = models.SmallIntegerField(default=0)
    uploaded_by = models.ForeignKey(
        User, null=True, blank=True, on_delete=models.SET_NULL, related_name="+", verbose_name=_("uploaded by")
    )
    created_at = models.DateTimeField(_("created"), auto_now_add=True)
    updated_at = models.DateTimeField(_("changed"), auto_now=True)
    indexed_at = models.DateTimeField(_("indexed"), null=True, blank=True)

    objects: ClassVar[ScopedManager] = ScopedManager()

    class Meta(TenantModel.Meta):
        db_table = "conversations_document"
        verbose_name = _("document")
        verbose_name_plural = _("documents")
        constraints = [
            # For composite keys, and read by the list of a site's documents.
            models.UniqueConstraint(fields=["site", "id"], name="document_site_and_id"),
            models.CheckConstraint(
                condition=Q(kind__in=["text", "markdown", "html", "pdf", "docx"]), name="document_kind_is_known"
            ),
            models.CheckConstraint(
                condition=Q(status__in=["queued", "reading", "indexing", "ready", "failed"]),
                name="document_status_is_known",
            ),
            models.CheckConstraint(condition=Q(percent__range=(0, 100)), name="document_percent_is_one"),
        ]
        indexes = [
            # Read by every worker that looks for work; almost always empty.
            models.Index(
                fields=["id"], condition=Q(status__in=["queued", "reading", "indexing"]), name="document_waiting"
            ),
        ]

    def __str__(self) -> str:
        return self.title


class DocumentFile(TenantModel):
    """The bytes of a document, as they came; a second row is a replacement that has not been read yet."""

    site = models.ForeignKey(Site, on_delete=models.CASCADE, related_name="+", db_index=False)
    document = models.ForeignKey(
        Document, on_delete=models.CASCADE, related_name="files", db_constraint=False, db_index=False
    )
    filename = models.CharField(max_length=200, blank=True)
    kind = models.CharField(max_length=16, choices=Document.Kind.choices)
    content = models.BinaryField()
    digest = models.CharField(max_length=64)
    created_at = models.DateTimeField(auto_now_add=True)

    objects: ClassVar[ScopedManager] = ScopedManager()

    class Meta(TenantModel.Meta):
        db_table = "conversations_document_file"
        indexes = [
            # Read by whoever reads a document, the newest file first.
            models.Index(fields=["site", "document", "-id"], name="document_file_by_document"),
        ]

    def __str__(self) -> str:
        return self.filename or f"#{self.document_id}"


class Passage(TenantModel):
    """A stretch of a document that answers can lean on."""

    site = models.ForeignKey(Site, on_delete=models.CASCADE, related_name="+", db_index=False)
    document = models.ForeignKey(
        Document, on_delete=models.CASCADE, related_name="passages", db_constraint=False, db_index=False
    )
    position = models.IntegerField()
    heading = models.CharField(max_length=700, blank=True)
    text = models.TextField()
    # Lexemes of conversations/context/terms.py, each with the site's id before it.
    search = SearchVectorField()
    term_count = models.IntegerField()

    objects: ClassVar[ScopedManager] = ScopedManager()

    class Meta(TenantModel.Meta):
        db_table = "conversations_passage"
        verbose_name = _("passage")
        verbose_name_plural = _("passages")
        constraints = [
            models.UniqueConstraint(fields=["site", "id"], name="passage_site_and_id"),  # for composite keys
            # Also read by whoever replaces the passages of a document.
            models.UniqueConstraint(fields=["site", "document", "position"], name="passage_once_per_place"),
        ]
        indexes = [
            # Read by every search; the site is part of each lexeme.
            GinIndex(fields=["search"], name="passage_search", fastupdate=False),
        ]

    def __str__(self) -> str:
        return f"#{self.document_id}/{self.position}"


class PageSource(TenantModel):
    """What a page of the site tells the model: a text, or what the site's own backend answers."""

    class Kind(models.TextChoices):
        """Where the words come from."""

        TEXT = "text", _("a text")
        HTTP = "http", _("the site's backend")

    site = models.ForeignKey(
        Site, on_delete=models.CASCADE, related_name="+", verbose_name=_("site"), db_index=False
    )
    name = models.CharField(_("name"), max_length=100)
    page = models.CharField(
        _("page"),
        max_length=200,
        help_text=_("The sourcePage that clients send; * stands for anything: order/*"),
    )
    kind = models.CharField(_("kind"), max_length=8, choices=Kind.choices, default=Kind.TEXT)
    template = models.TextField(
        _("text"),
        blank=True,
        max_length=8000,
        help_text=_("What the model is told. ${pageContext.order.id} stands for a value the client sent."),
    )
    # {"method", "url", "headers", "query", "body", "text", "card"}: docs/knowledge.md
    request = models.JSONField(_("request"), default=dict, blank=True, help_text="docs/knowledge.md")
    secret_encrypted = EncryptedField()
    secret_mask = models.CharField(_("secret"), max_length=20, blank=True, default="", editable=False)
    is_active = models.BooleanField(_("active"), default=True)
    updated_at = models.DateTimeField(_("changed"), auto_now=True)

    objects: ClassVar[ScopedManager] = ScopedManager()

    class Meta(TenantModel.Meta):
        db_table = "conversations_page_source"
        verbose_name = _("page source")
        verbose_name_plural = _("page sources")
        constraints = [
            # Also read by every reply to a question from a page.
            models.UniqueConstraint(fields=["site", "name"], name="page_source_name_once"),
            models.CheckConstraint(condition=Q(kind__in=["text", "http"]), name="page_source_kind_is_known"),
        ]

    def __str__(self) -> str:
        return self.name
