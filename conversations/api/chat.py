"""Conversations and messages as JSON (API.md 2). The streams are in `stream.py`."""

from __future__ import annotations

from typing import Any

from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiExample, OpenApiParameter, extend_schema
from rest_framework import status
from rest_framework.response import Response

from conversations.api.scoped import ScopedRequest, ScopedViewSet
from conversations.api.serializers import (
    CONVERSATION_EXAMPLE,
    MESSAGE_EXAMPLE,
    QUESTION_EXAMPLE,
    ContextQuery,
    ConversationChangeSerializer,
    ConversationSerializer,
    FeedbackGivenSerializer,
    FeedbackSerializer,
    HistoryQuery,
    HistorySerializer,
    MessagesQuery,
    MessagesSerializer,
    NewConversationSerializer,
    SearchQuery,
    SearchSerializer,
    TicketRequestSerializer,
    TicketSerializer,
)
from conversations.history import actions, queries
from conversations.history.idempotency import claim_key, clean_key, hash_body
from conversations.history.search import search_messages
from conversations.models import Conversation, IdempotencyKey, Membership
from conversations.tenancy import access, resolve

CHAT_ID = OpenApiParameter("chatId", OpenApiTypes.INT64, OpenApiParameter.PATH, description="A conversation.")
MESSAGE_ID = OpenApiParameter("messageId", OpenApiTypes.INT64, OpenApiParameter.PATH, description="A message.")
IDEMPOTENCY_KEY = OpenApiParameter(
    "Idempotency-Key",
    OpenApiTypes.STR,
    OpenApiParameter.HEADER,
    description="8 to 128 visible ASCII characters, kept for 24 hours: the same key and body make nothing twice.",
)
MESSAGES_EXAMPLE = OpenApiExample(
    "messages",
    response_only=True,
    value={"chatId": 42, "items": [QUESTION_EXAMPLE, MESSAGE_EXAMPLE], "total": 2, "page": 1, "pageSize": 50},
)


def read_query(serializer: type[Any], request: ScopedRequest) -> dict[str, Any]:
    """Return the query string's values.

    Raises: ValidationError, which becomes 422 `invalid`.
    """
    query = serializer(data=request.query_params)
    query.is_valid(raise_exception=True)
    return dict(query.validated_data)


def read_body(serializer: type[Any], request: ScopedRequest) -> dict[str, Any]:
    """Return the values of the JSON body.

    Raises: ValidationError, which becomes 422 `invalid`.
    """
    body = serializer(data=request.data)
    body.is_valid(raise_exception=True)
    return dict(body.validated_data)


def conversation_document(conversation: Conversation) -> dict[str, Any]:
    """Return one conversation as JSON."""
    conversation.is_generating = queries.is_generating(conversation)  # type: ignore[attr-defined]  # read by the serializer
    return dict(ConversationSerializer(conversation).data)


def messages_document(conversation: Conversation, page: queries.Page) -> dict[str, Any]:
    """Return a page of messages as JSON."""
    return dict(
        MessagesSerializer(
            {
                "chat_id": conversation.pk,
                "items": page.items,
                "total": page.total,
                "page": page.page,
                "page_size": page.page_size,
            }
        ).data
    )


CONVERSATION_EXAMPLES = [
    OpenApiExample("conversation", response_only=True, status_codes=["200", "201"], value=CONVERSATION_EXAMPLE)
]


class HistoryViewSet(ScopedViewSet):
    """The conversations of the member who asks."""

    @extend_schema(
        operation_id="history",
        tags=["chat"],
        summary="CHAT-1: my conversations, pinned first, then newest activity",
        parameters=[HistoryQuery],
        responses={200: HistorySerializer},
        examples=[
            OpenApiExample(
                "history",
                response_only=True,
                value={"items": [CONVERSATION_EXAMPLE], "total": 1, "page": 1, "pageSize": 20, "nextCursor": None},
            )
        ],
    )
    def history(self, request: ScopedRequest) -> Response:
        """Return a page of conversations."""
        page = queries.history_page(request.membership, **read_query(HistoryQuery, request))
        return Response(HistorySerializer(page).data)

    @extend_schema(
        operation_id="search",
        tags=["chat"],
        summary="Search in my messages",
        parameters=[SearchQuery],
        responses={200: SearchSerializer},
    )
    def search(self, request: ScopedRequest) -> Response:
        """Return a page of messages that match."""
        page = search_messages(request.membership, **read_query(SearchQuery, request))
        return Response(SearchSerializer(page).data)

    @extend_schema(
        operation_id="createConversation",
        tags=["chat"],
        summary="Begin a conversation",
        description=(
            "201 with a new conversation. A context that has one conversation for ever (by the site's rules, "
            "`task`) answers 200 with that one, when it exists."
        ),
        parameters=[IDEMPOTENCY_KEY],
        request=NewConversationSerializer,
        responses={201: ConversationSerializer, 200: ConversationSerializer},
        examples=[
            OpenApiExample(
                "task", request_only=True, value={"contextType": "task", "contextId": "7", "title": "周报"}
            ),
            *CONVERSATION_EXAMPLES,
        ],
    )
    def create(self, request: ScopedRequest) -> Response:
        """Return a conversation that the member asked for."""
        given = read_body(NewConversationSerializer, request)
        key = clean_key(request.headers.get("Idempotency-Key"))
        if key is not None:
            earlier = claim_key(
                request.membership.site_id, request.membership.pk, key, hash_body("conversations", request.data)
            )
            if earlier is not None:
                made = access.access_conversation(request.membership, earlier.conversation_id or 0)
                return Response(conversation_document(made), status=status.HTTP_201_CREATED)
        conversation, is_new = actions.begin_conversation(request.membership, **given)
        if key is not None:
            _remember(request.membership, key, conversation)
        return Response(
            conversation_document(conversation),
            status=status.HTTP_201_CREATED if is_new else status.HTTP_200_OK,
        )


def _remember(membership: Membership, key: str, conversation: Conversation) -> None:
    IdempotencyKey.objects.visible_to(membership).filter(key=key).update(conversation_id=conversation.pk)


class ConversationViewSet(ScopedViewSet):
    """One conversation."""

    @extend_schema(
        operation_id="readConversation",
        tags=["chat"],
        summary="One conversation",
        parameters=[CHAT_ID],
        responses={200: ConversationSerializer},
    )
    def read(self, request: ScopedRequest, chat_id: str) -> Response:
        """Return the conversation."""
        return Response(conversation_document(access.access_conversation(request.membership, chat_id)))

    @extend_schema(
        operation_id="changeConversation",
        tags=["chat"],
        summary="Rename, pin, archive",
        parameters=[CHAT_ID],
        request=ConversationChangeSerializer,
        responses={200: ConversationSerializer},
        examples=[
            OpenApiExample("pin", request_only=True, value={"title": "周报", "pinned": True}),
            *CONVERSATION_EXAMPLES,
        ],
    )
    def change(self, request: ScopedRequest, chat_id: str) -> Response:
        """Return the conversation as it now is."""
        conversation = access.access_conversation(request.membership, chat_id)
        given = read_body(ConversationChangeSerializer, request)
        if "title" in given:
            actions.rename_conversation(conversation, title=given["title"])
        if "is_pinned" in given:
            actions.pin_conversation(conversation, is_pinned=given["is_pinned"])
        if "is_archived" in given:
            actions.archive_conversation(conversation, is_archived=given["is_archived"])
        return Response(conversation_document(conversation))

    @extend_schema(
        operation_id="deleteConversation",
        tags=["chat"],
        summary="Hide at once; erased with retention",
        parameters=[CHAT_ID],
        responses={204: None},
    )
    def delete(self, request: ScopedRequest, chat_id: str) -> Response:
        """Return nothing, when the conversation is hidden."""
        actions.delete_conversation(access.access_conversation(request.membership, chat_id))
        return Response(status=status.HTTP_204_NO_CONTENT)


class MessageViewSet(ScopedViewSet):
    """Messages."""

    @extend_schema(
        operation_id="messagesOfChat",
        tags=["chat"],
        summary="CHAT-2a: messages of a conversation, oldest first",
        parameters=[CHAT_ID, MessagesQuery],
        responses={200: MessagesSerializer},
        examples=[MESSAGES_EXAMPLE],
    )
    def of_chat(self, request: ScopedRequest, chat_id: str) -> Response:
        """Return a page of messages, or those before, after or around one."""
        conversation = access.access_conversation(request.membership, chat_id)
        query = read_query(MessagesQuery, request)
        if "before" in query:
            page = queries.messages_before(conversation, query["before"], limit=query["limit"])
        elif "after" in query:
            page = queries.messages_after(conversation, query["after"], limit=query["limit"])
        elif "around" in query:
            page = queries.messages_around(conversation, query["around"], limit=query["limit"])
        else:
            page = queries.message_page(conversation, page=query["page"], page_size=query["page_size"])
        return Response(messages_document(conversation, page))

    @extend_schema(
        operation_id="messagesOfContext",
        tags=["chat"],
        summary="CHAT-2b: messages of a context, whose conversation is found or created",
        parameters=[ContextQuery],
        responses={200: MessagesSerializer},
        examples=[MESSAGES_EXAMPLE],
    )
    def of_context(self, request: ScopedRequest) -> Response:
        """Return a page of messages of the context's conversation."""
        query = read_query(ContextQuery, request)
        conversation, _ = actions.find_or_create_for_context(
            request.membership, context_type=query["context_type"], context_id=query["context_id"]
        )
        page = queries.message_page(conversation, page=query["page"], page_size=query["page_size"])
        return Response(messages_document(conversation, page))

    @extend_schema(
        operation_id="setFeedback",
        tags=["chat"],
        summary="Rate a reply, or take the rating back",
        parameters=[MESSAGE_ID],
        request=FeedbackSerializer,
        responses={200: FeedbackGivenSerializer},
        examples=[
            OpenApiExample("too long", request_only=True, value={"rating": "down", "reason": "太长"}),
            OpenApiExample(
                "stored", response_only=True, value={"messageId": 812, "rating": "down", "reason": "太长"}
            ),
        ],
    )
    def feedback(self, request: ScopedRequest, message_id: str) -> Response:
        """Return the feedback as it now stands."""
        message = access.access_message(request.membership, message_id)
        actions.set_feedback(message, **read_body(FeedbackSerializer, request))
        document = {
            "message_id": message.pk,
            "rating": message.feedback or None,
            "reason": message.feedback_reason,
        }
        return Response(FeedbackGivenSerializer(document).data)

    @extend_schema(
        operation_id="issueTicket",
        tags=["stream"],
        summary="A single-use ticket for clients that cannot send headers",
        description="Use it within 60 s as `?ticket=` on `GET stream` or `GET messages/{messageId}/stream`.",
        request=TicketRequestSerializer,
        responses={200: TicketSerializer},
        examples=[
            OpenApiExample("of one reply", request_only=True, value={"messageId": 812}),
            OpenApiExample("ticket", response_only=True, value={"ticket": "1.kq2…", "expiresIn": 60}),
        ],
    )
    def ticket(self, request: ScopedRequest) -> Response:
        """Return a new ticket."""
        message_id = read_body(TicketRequestSerializer, request)["message_id"]
        if message_id is not None:
            access.access_reply(request.membership, message_id)
        text = resolve.issue_ticket(request.membership, request.claims.login_id, message_id)
        document = {"ticket": text, "expires_in": resolve.TICKET_SECONDS}
        return Response(TicketSerializer(document).data, headers={"Cache-Control": "no-store"})
