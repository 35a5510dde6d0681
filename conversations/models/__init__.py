"""The rows: sites and people, conversations and messages, and how replies are made."""

from conversations.models.conversations import Conversation, Message, VendorSession
from conversations.models.generations import Generation, IdempotencyKey, ReplyChunk, Worker, WorkerLog
from conversations.models.grants import EndpointGrant, MemberKey
from conversations.models.knowledge import Document, DocumentFile, PageSource, Passage
from conversations.models.scoping import ScopedManager, TenantModel, UnscopedQuery
from conversations.models.sites import (
    Login,
    Membership,
    RateWindow,
    Site,
    StreamTicket,
    User,
    site_setting,
)
from conversations.models.tools import SiteTool
from conversations.models.voice import InternalCaller, InternalNonce, VoiceScene, VoiceSession
from conversations.models.voice_turns import VoiceTurn

__all__ = [
    "Conversation",
    "Document",
    "DocumentFile",
    "EndpointGrant",
    "Generation",
    "IdempotencyKey",
    "InternalCaller",
    "InternalNonce",
    "Login",
    "MemberKey",
    "Membership",
    "Message",
    "PageSource",
    "Passage",
    "RateWindow",
    "ReplyChunk",
    "ScopedManager",
    "Site",
    "SiteTool",
    "StreamTicket",
    "TenantModel",
    "UnscopedQuery",
    "User",
    "VendorSession",
    "VoiceScene",
    "VoiceSession",
    "VoiceTurn",
    "Worker",
    "WorkerLog",
    "site_setting",
]
