"""What the site knows as JSON: its managers upload, watch, try and delete documents."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.core.files.uploadedfile import UploadedFile
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiExample, OpenApiParameter, extend_schema, extend_schema_serializer
from rest_framework import serializers, status
from rest_framework.parsers import MultiPartParser
from rest_framework.response import Response

from conversations.api.chat import read_body, read_query
from conversations.api.parsers import JsonParser
from conversations.api.permissions import ManagesSite
from conversations.api.scoped import ScopedRequest, ScopedViewSet
from conversations.api.serializers import (
    PAGE_MAX,
    CamelCaseSerializer,
    Moment,
    OneOf,
    QuerySerializer,
    QueryWhole,
    Text,
)
from conversations.context import cards, documents, embeddings, knowledge
from conversations.context.formats import BadFile
from conversations.errors import CODES, ChatError, Invalid, Language, language_of
from conversations.events import is_storable
from conversations.models import Document
from conversations.models.knowledge import DOCUMENT_TITLE_CHARS, LINK_CHARS
from conversations.tenancy.access import access_document

DOCUMENT_ID = OpenApiParameter("documentId", OpenApiTypes.INT64, OpenApiParameter.PATH, description="A document.")
ENDINGS = {"text": ".txt", "markdown": ".md", "html": ".html"}
DOCUMENT_EXAMPLE: dict[str, Any] = {
    "id": 7,
    "title": "退款说明",
    "url": "https://example.com/refund",
    "filename": "refund.md",
    "kind": "markdown",
    "sizeBytes": 1830,
    "status": "ready",
    "percent": 100,
    "passages": 6,
    "error": None,
    "createdAt": "2026-11-20T08:10:00.000+08:00",
    "updatedAt": "2026-11-20T08:10:00.120+08:00",
    "indexedAt": "2026-11-20T08:10:00.120+08:00",
}
FOUND_EXAMPLE: dict[str, Any] = {
    "passageId": 41,
    "documentId": 7,
    "title": "退款说明",
    "heading": "多久能收到退款",
    "text": "审核通过后，款项在三个工作日内原路退回。",
    "score": 0.52,
    "url": "https://example.com/refund",
}


class LinkField(Text):
    """An address that a browser may follow, or nothing."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(max_length=LINK_CHARS, required=False, allow_blank=True, **kwargs)

    def to_internal_value(self, data: Any) -> str:
        """Return the address."""
        url = super().to_internal_value(data)
        if url and cards.web_link(url) != url:
            raise serializers.ValidationError("must begin with https://, http:// or /")
        return url


class TextDocumentSerializer(CamelCaseSerializer):
    """A document given as text."""

    title = Text(max_length=DOCUMENT_TITLE_CHARS)
    text = Text(trim_whitespace=False)
    format = OneOf(choices=[(name, name) for name in ENDINGS], default="markdown")
    url = LinkField(default="")


class UploadSerializer(CamelCaseSerializer):
    """A document given as a file: text, Markdown, HTML, PDF or DOCX."""

    file = serializers.FileField(allow_empty_file=True)
    title = Text(max_length=DOCUMENT_TITLE_CHARS, required=False, allow_blank=True, default="")
    url = LinkField(default="")


class ReplacementSerializer(CamelCaseSerializer):
    """What may change of a document with another file; what is not given stays."""

    file = serializers.FileField(required=False, allow_empty_file=True)
    title = Text(max_length=DOCUMENT_TITLE_CHARS, required=False)
    url = LinkField()


class DocumentChangeSerializer(CamelCaseSerializer):
    """What may change of a document; what is not given stays."""

    title = Text(max_length=DOCUMENT_TITLE_CHARS, required=False)
    url = LinkField()
    text = Text(trim_whitespace=False, required=False, help_text="Replaces what the document says.")
    format = OneOf(choices=[(name, name) for name in ENDINGS], default="markdown")


class DocumentTroubleSerializer(CamelCaseSerializer):
    """Why the last file of a document could not be read."""

    code = serializers.CharField()
    detail = serializers.CharField()


@extend_schema_serializer(examples=[OpenApiExample("document", value=DOCUMENT_EXAMPLE, response_only=True)])
class DocumentSerializer(CamelCaseSerializer):
    """A document, and how far the work on it is."""

    id = serializers.IntegerField()
    title = serializers.CharField()
    url = serializers.CharField()
    filename = serializers.CharField()
    kind = serializers.ChoiceField(choices=Document.Kind.choices)
    size_bytes = serializers.IntegerField()
    status = serializers.ChoiceField(choices=Document.Status.choices)
    percent = serializers.IntegerField()
    passages = serializers.IntegerField(source="passage_count")
    error = DocumentTroubleSerializer(allow_null=True)
    created_at = Moment()
    updated_at = Moment()
    indexed_at = Moment(allow_null=True)


class DocumentsSerializer(CamelCaseSerializer):
    """A page of documents, newest first."""

    items = DocumentSerializer(many=True)
    total = serializers.IntegerField()
    page = serializers.IntegerField()
    page_size = serializers.IntegerField()


class PassageSerializer(CamelCaseSerializer):
    """A passage that fits a question."""

    passage_id = serializers.IntegerField()
    document_id = serializers.IntegerField()
    title = serializers.CharField()
    heading = serializers.CharField()
    text = serializers.CharField()
    score = serializers.FloatField()
    url = serializers.CharField()


class PassagesSerializer(CamelCaseSerializer):
    """What would be found for a question, best first."""

    items = PassageSerializer(many=True)


class DocumentsQuery(QuerySerializer):
    """Which page of the documents."""

    page = QueryWhole(min_value=1, max_value=PAGE_MAX, default=1)
    page_size = QueryWhole(min_value=1, max_value=100, default=20)


class PassageQuery(QuerySerializer):
    """A question to try."""

    q = serializers.CharField(max_length=knowledge.QUERY_MAX_CHARS)
    limit = QueryWhole(min_value=1, max_value=knowledge.LIMIT_MAX, default=5)


def document_document(document: Document, language: Language) -> dict[str, Any]:
    """Return one document as JSON."""
    code = document.error_code
    error = {"code": code, "detail": CODES[code].detail(language)} if code in CODES else None
    document.error = error  # type: ignore[attr-defined]  # read by the serializer
    return dict(DocumentSerializer(document).data)


def _of(request: ScopedRequest, document: Document) -> dict[str, Any]:
    return document_document(document, language_of(request.headers.get("Accept-Language")))


def _file_of(upload: UploadedFile) -> tuple[str, bytes]:
    """Return name and bytes of an upload. Raises: Invalid, for a name that cannot be stored."""
    name = upload.name or ""
    if not is_storable(name):
        raise Invalid("invalid", errors={"file": ["its name cannot be stored"]})
    return name, upload.read()


@contextmanager
def refusals() -> Iterator[None]:
    """Say what is wrong with a file in the caller's shape."""
    try:
        yield
    except BadFile as error:
        raise ChatError(error.code) from error


class DocumentsViewSet(ScopedViewSet):
    """The documents of the site."""

    permission_classes = (ManagesSite,)
    parser_classes = (JsonParser, MultiPartParser)

    @extend_schema(
        operation_id="listDocuments",
        tags=["knowledge"],
        summary="What the site knows, newest first",
        parameters=[DocumentsQuery],
        responses={200: DocumentsSerializer},
        examples=[
            OpenApiExample(
                "documents",
                response_only=True,
                value={"items": [DOCUMENT_EXAMPLE], "total": 1, "page": 1, "pageSize": 20},
            )
        ],
    )
    def list(self, request: ScopedRequest) -> Response:
        """Return a page of documents."""
        query = read_query(DocumentsQuery, request)
        rows = Document.objects.visible_to(request.membership).order_by("-pk")
        start = (query["page"] - 1) * query["page_size"]
        return Response(
            {
                "items": [_of(request, row) for row in rows[start : start + query["page_size"]]],
                "total": rows.count(),
                "page": query["page"],
                "pageSize": query["page_size"],
            }
        )

    @extend_schema(
        operation_id="addDocument",
        tags=["knowledge"],
        summary="Add a document: a file, or a text as JSON",
        description=(
            "A small file is read at once (`ready`), and refused when it cannot be. One that takes longer is "
            "`queued`, then `reading` and `indexing` with a `percent`; ask for it again."
        ),
        request={"application/json": TextDocumentSerializer, "multipart/form-data": UploadSerializer},
        responses={201: DocumentSerializer},
        examples=[
            OpenApiExample(
                "text",
                request_only=True,
                value={"title": "退款说明", "text": "# 多久能收到退款\n三个工作日内。", "format": "markdown"},
            ),
            OpenApiExample(
                "file",
                request_only=True,
                media_type="multipart/form-data",
                value={"file": "refund.md", "title": "退款说明", "url": "https://example.com/refund"},
            ),
            OpenApiExample("document", response_only=True, status_codes=["201"], value=DOCUMENT_EXAMPLE),
        ],
    )
    def create(self, request: ScopedRequest) -> Response:
        """Return the new document."""
        if "multipart" in (request.content_type or ""):
            given = read_body(UploadSerializer, request)
            filename, content = _file_of(given["file"])
        else:
            given = read_body(TextDocumentSerializer, request)
            filename, content = f"{given['title']}{ENDINGS[given['format']]}", given["text"].encode()
        with refusals():
            document = documents.add_document(
                request.membership.site_id,
                filename=filename,
                content=content,
                title=given["title"],
                url=given["url"],
                user_id=request.membership.user_id,
            )
        return Response(_of(request, document), status=status.HTTP_201_CREATED)

    @extend_schema(
        operation_id="searchKnowledge",
        tags=["knowledge"],
        summary="Which passages a question would find",
        parameters=[PassageQuery],
        responses={200: PassagesSerializer},
        examples=[OpenApiExample("found", response_only=True, value={"items": [FOUND_EXAMPLE]})],
    )
    def search(self, request: ScopedRequest) -> Response:
        """Return the passages, best first."""
        query = read_query(PassageQuery, request)
        found = knowledge.search_passages(
            request.membership.site_id,
            query["q"],
            limit=query["limit"],
            vector=embeddings.embed_query_now(query["q"]),
        )
        return Response(PassagesSerializer({"items": found}).data)


class DocumentViewSet(ScopedViewSet):
    """One document."""

    permission_classes = (ManagesSite,)
    parser_classes = (JsonParser, MultiPartParser)

    @extend_schema(
        operation_id="readDocument",
        tags=["knowledge"],
        summary="One document, and how far the work on it is",
        parameters=[DOCUMENT_ID],
        responses={200: DocumentSerializer},
    )
    def read(self, request: ScopedRequest, document_id: str) -> Response:
        """Return the document."""
        return Response(_of(request, access_document(request.membership, document_id)))

    @extend_schema(
        operation_id="changeDocument",
        tags=["knowledge"],
        summary="Rename a document, or replace what it says",
        description=(
            "Until a replacement is indexed, what stood there before is found; one that cannot be read "
            "changes nothing."
        ),
        parameters=[DOCUMENT_ID],
        request={"application/json": DocumentChangeSerializer, "multipart/form-data": ReplacementSerializer},
        responses={200: DocumentSerializer},
        examples=[
            OpenApiExample("rename", request_only=True, value={"title": "退款与退货"}),
            OpenApiExample(
                "replace", request_only=True, media_type="multipart/form-data", value={"file": "refund-2.md"}
            ),
            OpenApiExample("document", response_only=True, value=DOCUMENT_EXAMPLE),
        ],
    )
    def change(self, request: ScopedRequest, document_id: str) -> Response:
        """Return the document as it now is."""
        document = access_document(request.membership, document_id)
        is_upload = "multipart" in (request.content_type or "")
        given = read_body(ReplacementSerializer if is_upload else DocumentChangeSerializer, request)
        with refusals():
            documents.change_document(document, title=given.get("title"), url=given.get("url"))
            if given.get("file") is not None:
                filename, content = _file_of(given["file"])
                documents.replace_document(document, filename=filename, content=content)
            elif given.get("text") is not None:
                filename = f"{document.title}{ENDINGS[given['format']]}"
                documents.replace_document(document, filename=filename, content=given["text"].encode())
        document.refresh_from_db()
        return Response(_of(request, document))

    @extend_schema(
        operation_id="deleteDocument",
        tags=["knowledge"],
        summary="Delete a document with all that came of it",
        parameters=[DOCUMENT_ID],
        responses={204: None},
    )
    def delete(self, request: ScopedRequest, document_id: str) -> Response:
        """Return nothing, when no trace of it is left."""
        documents.delete_document(access_document(request.membership, document_id))
        return Response(status=status.HTTP_204_NO_CONTENT)
