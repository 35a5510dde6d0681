"""What goes over the wire: strict on the way in, camelCase and local time on the way out.

Only declared fields are renamed; nothing inside a JSON value is ever touched.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from django.utils import timezone
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiExample, extend_schema_field, extend_schema_serializer
from rest_framework import serializers

from conversations.history.actions import DEFAULT_CONTEXT_ID, DEFAULT_CONTEXT_TYPE
from conversations.models import Membership, Message
from conversations.models.conversations import TITLE_CHARS

ROW_ID_MAX = 2**63 - 1
PAGE_MAX = 1_000_000_000


def camel_case(name: str) -> str:
    """Return `created_at` as `createdAt`."""
    head, *rest = name.split("_")
    return head + "".join(part.capitalize() for part in rest)


def local_time(moment: datetime) -> str:
    """Return a moment as API.md writes times: ISO 8601, milliseconds, the offset of our time zone."""
    return timezone.localtime(moment).isoformat(timespec="milliseconds")


class CamelCaseSerializer(serializers.Serializer[Any]):
    """Names its declared fields in camelCase on the wire, and in snake_case in `validated_data`."""

    def get_fields(self) -> dict[str, serializers.Field[Any, Any, Any, Any]]:
        """Return the declared fields under their names on the wire."""
        fields = {}
        for name, field in super().get_fields().items():
            wire_name = camel_case(name)
            if wire_name != name and field.source is None:
                field.source = name
            fields[wire_name] = field
        return fields


# --- Strict values: a number is no text, "1" is no number -------------------------------------------


class Text(serializers.CharField):
    """A string; NUL and lone surrogates are refused, since they cannot be stored."""

    def to_internal_value(self, data: Any) -> str:
        """Return the text, trimmed unless told otherwise."""
        if not isinstance(data, str):
            self.fail("invalid")
        return super().to_internal_value(data)


class Whole(serializers.IntegerField):
    """A JSON number without a fraction; neither a string nor true."""

    def to_internal_value(self, data: Any) -> int:
        """Return the number."""
        if type(data) is not int:
            self.fail("invalid")
        return super().to_internal_value(data)


class Switch(serializers.BooleanField):
    """JSON's true or false and nothing that looks like it."""

    def to_internal_value(self, data: Any) -> bool:
        """Return the switch."""
        if not isinstance(data, bool):
            self.fail("invalid", input=data)
        return data


class OneOf(serializers.ChoiceField):
    """One of some strings."""

    def to_internal_value(self, data: Any) -> Any:
        """Return the choice."""
        if not isinstance(data, str):
            self.fail("invalid_choice", input=data)
        return super().to_internal_value(data)


class QueryWhole(serializers.IntegerField):
    """A whole number in a query string: ASCII digits, a sign perhaps."""

    def to_internal_value(self, data: Any) -> int:
        """Return the number."""
        text = str(data)
        if not text.isascii() or not text.removeprefix("-").isdigit() or len(text) > 1000:
            self.fail("invalid")
        return super().to_internal_value(text)


@extend_schema_field(OpenApiTypes.DATETIME)
class Moment(serializers.Field[Any, Any, Any, Any]):
    """A time, on the way out."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(read_only=True, **kwargs)

    def to_representation(self, value: datetime) -> str:
        """Return it as `local_time` does."""
        return local_time(value)


# --- Sign-in ----------------------------------------------------------------------------------------


@extend_schema_serializer(
    examples=[
        OpenApiExample("demo", value={"username": "alice", "password": "…", "site": "demo"}, request_only=True)
    ]
)
class CredentialsSerializer(CamelCaseSerializer):
    """What a sign-in needs."""

    username = Text(max_length=150)
    # Not trimmed, and any text: what cannot be stored is simply wrong.
    password = Text(max_length=1000, trim_whitespace=False, style={"input_type": "password"})
    site = Text(max_length=64, help_text="The site's slug.")


@extend_schema_serializer(
    examples=[OpenApiExample("token", value={"refresh": "eyJhbGciOiJI…"}, request_only=True)]
)
class RefreshSerializer(CamelCaseSerializer):
    """A refresh token."""

    refresh = Text(max_length=4096)


class UserSerializer(CamelCaseSerializer):
    """A person."""

    id = serializers.IntegerField()
    username = serializers.CharField()


class SiteSerializer(CamelCaseSerializer):
    """A site, as its members see it."""

    slug = serializers.CharField()
    name = serializers.CharField()
    locale = serializers.CharField()


class MembershipSerializer(CamelCaseSerializer):
    """A person in a site."""

    id = serializers.IntegerField()
    user = UserSerializer()
    site = SiteSerializer()
    role = serializers.ChoiceField(choices=Membership.Role.choices)
    nickname = serializers.CharField()
    status = serializers.ChoiceField(choices=Membership.Status.choices)


@extend_schema_serializer(
    examples=[
        OpenApiExample(
            "signed in",
            response_only=True,
            value={
                "access": "eyJhbGciOiJI…",
                "refresh": "eyJhbGciOiJI…",
                "expiresIn": 900,
                "membership": {
                    "id": 1,
                    "user": {"id": 1, "username": "alice"},
                    "site": {"slug": "demo", "name": "演示", "locale": "zh-hans"},
                    "role": "member",
                    "nickname": "爱丽丝",
                    "status": "approved",
                },
            },
        )
    ]
)
class TokenPairSerializer(CamelCaseSerializer):
    """Two tokens and whom they stand for."""

    access = serializers.CharField()
    refresh = serializers.CharField()
    expires_in = serializers.IntegerField(source="expires_in_seconds", help_text="Seconds the access token lives.")
    membership = MembershipSerializer()


# --- Conversations ----------------------------------------------------------------------------------

CONVERSATION_EXAMPLE = {
    "chatId": 42,
    "title": "今天天气如何？",
    "contextType": "general",
    "contextId": "0",
    "lastMessage": "今天天气如何？",
    "lastMessageAt": "2026-11-20T08:14:05.120+08:00",
    "messageCount": 2,
    "generating": False,
    "pinned": False,
    "archived": False,
    "createdAt": "2026-11-20T08:14:03.007+08:00",
}
MESSAGE_EXAMPLE = {
    "id": 812,
    "role": "assistant",
    "content": "晴，二十度。",
    "status": "complete",
    "createdAt": "2026-11-20T08:14:05.120+08:00",
    "referenceCard": None,
    "finishReason": "stop",
    "usage": {"inputTokens": 31, "outputTokens": 6},
    "replyTo": 811,
    "version": 1,
}
QUESTION_EXAMPLE = {
    "id": 811,
    "role": "user",
    "content": "今天天气如何？",
    "status": "complete",
    "createdAt": "2026-11-20T08:14:05.100+08:00",
    "referenceCard": None,
}


@extend_schema_serializer(
    examples=[OpenApiExample("conversation", value=CONVERSATION_EXAMPLE, response_only=True)]
)
class ConversationSerializer(CamelCaseSerializer):
    """A conversation; `is_generating` is set by whoever read it."""

    chat_id = serializers.IntegerField(source="pk")
    title = serializers.CharField()
    context_type = serializers.CharField()
    context_id = serializers.CharField()
    last_message = serializers.CharField()
    last_message_at = Moment()
    message_count = serializers.IntegerField()
    generating = serializers.BooleanField(source="is_generating", help_text="A reply is under way.")
    pinned = serializers.BooleanField(source="is_pinned")
    archived = serializers.BooleanField(source="is_archived")
    created_at = Moment()


class NewConversationSerializer(CamelCaseSerializer):
    """What a new conversation may be given."""

    context_type = Text(max_length=64, default=DEFAULT_CONTEXT_TYPE)
    context_id = Text(max_length=200, default=DEFAULT_CONTEXT_ID)
    title = Text(max_length=TITLE_CHARS, allow_blank=True, default="")


class ConversationChangeSerializer(CamelCaseSerializer):
    """What may be changed in a conversation; what is left out stays."""

    title = Text(max_length=TITLE_CHARS, allow_blank=True, required=False)
    pinned = Switch(source="is_pinned", required=False)
    archived = Switch(source="is_archived", required=False)


class HistorySerializer(CamelCaseSerializer):
    """A page of conversations."""

    items = ConversationSerializer(many=True)
    total = serializers.IntegerField()
    page = serializers.IntegerField()
    page_size = serializers.IntegerField()
    next_cursor = serializers.CharField(allow_null=True)


# --- Messages ---------------------------------------------------------------------------------------


class FeedbackSerializer(CamelCaseSerializer):
    """What the member thinks of a reply; `null` takes it back."""

    rating = OneOf(choices=["up", "down"], allow_null=True)
    reason = Text(max_length=500, allow_blank=True, default="")


@extend_schema_serializer(
    examples=[
        OpenApiExample("reply", value=MESSAGE_EXAMPLE, response_only=True),
        OpenApiExample("question", value=QUESTION_EXAMPLE, response_only=True),
    ]
)
class MessageSerializer(CamelCaseSerializer):
    """A message. What is optional in API.md is left out while there is nothing to say."""

    OPTIONAL = ("reasoning", "finishReason", "usage", "feedback", "replyTo", "version", "errorCode")

    id = serializers.IntegerField()
    role = serializers.ChoiceField(choices=Message.Role.choices)
    content = serializers.CharField()
    status = serializers.ChoiceField(choices=Message.Status.choices)
    created_at = Moment()
    reference_card = serializers.JSONField(allow_null=True)
    reasoning = serializers.CharField(required=False)
    finish_reason = serializers.CharField(required=False)
    usage = serializers.JSONField(required=False)
    feedback = serializers.SerializerMethodField(required=False)
    reply_to = serializers.IntegerField(source="reply_to_id", required=False)
    version = serializers.SerializerMethodField(required=False, help_text="Of several replies to one question.")
    error_code = serializers.CharField(required=False, help_text="Why a reply failed; see docs/errors.md.")

    @extend_schema_field(FeedbackSerializer)
    def get_feedback(self, message: Message) -> dict[str, str] | None:
        """Return what the member said about a reply, if anything."""
        return {"rating": message.feedback, "reason": message.feedback_reason} if message.feedback else None

    def get_version(self, message: Message) -> int | None:
        """Return the number of a reply among those to the same question."""
        return message.version if message.role == Message.Role.ASSISTANT else None

    def to_representation(self, instance: Message) -> dict[str, Any]:
        """Return the message without what it has not."""
        document = super().to_representation(instance)
        for name in self.OPTIONAL:
            if document.get(name) in (None, ""):
                document.pop(name, None)
        return document


def message_representation(message: Message) -> dict[str, Any]:
    """Return a message as JSON, for callers outside of DRF."""
    return dict(MessageSerializer(message).data)


class MessagesSerializer(CamelCaseSerializer):
    """A page of messages, oldest first; `page` is null when it was asked for by before, after or around."""

    chat_id = serializers.IntegerField()
    items = MessageSerializer(many=True)
    total = serializers.IntegerField()
    page = serializers.IntegerField(allow_null=True)
    page_size = serializers.IntegerField()


class FeedbackGivenSerializer(CamelCaseSerializer):
    """The feedback as it now stands."""

    message_id = serializers.IntegerField()
    rating = serializers.ChoiceField(choices=["up", "down"], allow_null=True)
    reason = serializers.CharField()


class FoundSerializer(CamelCaseSerializer):
    """A message that matches."""

    message_id = serializers.IntegerField()
    chat_id = serializers.IntegerField()
    title = serializers.CharField()
    role = serializers.CharField()
    excerpt = serializers.CharField()
    highlights = serializers.ListField(
        child=serializers.ListField(child=serializers.IntegerField(), min_length=2, max_length=2),
        help_text="[start, end) of each match in the excerpt, in Unicode code points.",
    )
    created_at = Moment()


@extend_schema_serializer(
    examples=[
        OpenApiExample(
            "found",
            response_only=True,
            value={
                "items": [
                    {
                        "messageId": 812,
                        "chatId": 42,
                        "title": "今天天气如何？",
                        "role": "assistant",
                        "excerpt": "晴，二十度。",
                        "highlights": [[2, 4]],
                        "createdAt": "2026-11-20T08:14:05.120+08:00",
                    }
                ],
                "total": 1,
                "page": 1,
                "pageSize": 20,
            },
        )
    ]
)
class SearchSerializer(CamelCaseSerializer):
    """A page of matches, newest first."""

    items = FoundSerializer(many=True)
    total = serializers.IntegerField()
    page = serializers.IntegerField()
    page_size = serializers.IntegerField()


class TicketRequestSerializer(CamelCaseSerializer):
    """What a ticket is for: one reply, or any."""

    message_id = Whole(required=False, allow_null=True, default=None)


@extend_schema_serializer(
    examples=[OpenApiExample("ticket", value={"ticket": "1.kq2…", "expiresIn": 60}, response_only=True)]
)
class TicketSerializer(CamelCaseSerializer):
    """A single-use ticket."""

    ticket = serializers.CharField()
    expires_in = serializers.IntegerField()


# --- Query strings ----------------------------------------------------------------------------------


class QuerySerializer(CamelCaseSerializer):
    """The base of query strings: blank means absent, and `page_size` means `pageSize`."""

    def __init__(self, *args: Any, data: Any = None, **kwargs: Any) -> None:
        if data is not None:
            data = {name: value for name, value in data.items() if value != ""}
            if "page_size" in data:
                data.setdefault("pageSize", data["page_size"])
            kwargs["data"] = data
        super().__init__(*args, **kwargs)


class HistoryQuery(QuerySerializer):
    """What the history may be asked for."""

    page = QueryWhole(min_value=1, max_value=PAGE_MAX, default=1)
    page_size = QueryWhole(min_value=1, max_value=100, default=20)
    cursor = serializers.CharField(
        required=False, trim_whitespace=False, help_text="`nextCursor` of the page before."
    )
    q = serializers.CharField(max_length=200, required=False, default="", help_text="In title or content.")
    context_type = serializers.CharField(max_length=64, required=False)
    archived = serializers.BooleanField(default=False, source="is_archived")


class MessagesQuery(QuerySerializer):
    """Which messages of a chat."""

    page = QueryWhole(min_value=1, max_value=PAGE_MAX, default=1)
    page_size = QueryWhole(min_value=1, max_value=100, default=50)
    before = QueryWhole(min_value=1, required=False, help_text="A message id; not together with after or around.")
    after = QueryWhole(min_value=0, required=False)
    around = QueryWhole(min_value=1, required=False)
    limit = QueryWhole(min_value=1, max_value=100, default=50, help_text="With before, after and around.")

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        """Return the query, when it asks for one thing only."""
        if len({"before", "after", "around"} & attrs.keys()) > 1:
            raise serializers.ValidationError("before, after and around exclude one another.")
        return attrs


class ContextQuery(QuerySerializer):
    """Which context's messages."""

    context_type = serializers.CharField(max_length=64, default=DEFAULT_CONTEXT_TYPE)
    context_id = serializers.CharField(max_length=200, default=DEFAULT_CONTEXT_ID)
    page = QueryWhole(min_value=1, max_value=PAGE_MAX, default=1)
    page_size = QueryWhole(min_value=1, max_value=100, default=50)


class SearchQuery(QuerySerializer):
    """What to search for."""

    q = serializers.CharField(max_length=200)
    page = QueryWhole(min_value=1, max_value=PAGE_MAX, default=1)
    page_size = QueryWhole(min_value=1, max_value=100, default=20)
