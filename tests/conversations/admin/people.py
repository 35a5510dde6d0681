"""Staff of the two sites, and something said in each that the other must never read."""

from __future__ import annotations

from dataclasses import dataclass

from django.test import Client
from django.utils import timezone

from conversations.context.documents import add_document
from conversations.models import (
    Conversation,
    Document,
    Generation,
    InternalCaller,
    Membership,
    Message,
    PageSource,
    Site,
    SiteTool,
    User,
    VoiceScene,
    VoiceSession,
)
from providers.models import Endpoint
from tests.world import (
    World,
    make_conversation,
    make_internal_caller,
    make_member,
    make_message,
    make_voice_scene,
    make_voice_session,
    make_worker,
)

SECRET = "橡果机密"
"""Stands in every text of Acorn's rows."""


@dataclass(frozen=True)
class Staff:
    """Who works where, and what was said in Acorn."""

    world: World
    acorn_manager: Membership
    birch_manager: Membership
    root: User
    chat: Conversation
    reply: Message
    attempt: Generation
    endpoint: Endpoint
    scene: VoiceScene
    room: VoiceSession
    caller: InternalCaller
    document: Document
    page: PageSource
    tool: SiteTool


def make_manager(site: Site, username: str) -> Membership:
    """Return the membership of a Django staff user who manages the site."""
    membership = make_member(site, username, role="manager", nickname=f"{username}经理")
    membership.user.is_staff = True
    membership.user.save(update_fields=["is_staff"])
    return membership


def make_staff(world: World) -> Staff:
    """Return managers of both sites, a superuser, and one conversation of Alice full of secrets."""
    Site.objects.filter(pk=world.acorn.pk).update(name=f"{SECRET}站", settings={"system_prompt": f"{SECRET}提示"})
    Membership.across_sites.filter(pk=world.alice.pk).update(nickname=f"{SECRET}爱丽丝")
    User.objects.filter(pk=world.alice.user_id).update(first_name=f"{SECRET}名", last_name=f"{SECRET}姓")
    world.alice.refresh_from_db()
    chat = make_conversation(world.alice, title=f"{SECRET}标题", context_type="task", context_id=f"{SECRET}情境")
    question = make_message(chat, f"{SECRET}问题")
    reply = make_message(
        chat, f"{SECRET}回答", role="assistant", reply_to=question, reasoning=f"{SECRET}思考", finish_reason="stop"
    )
    attempt = Generation.across_sites.create(
        site=world.acorn,
        message=reply,
        endpoint_name=f"{SECRET}接入点",
        model=f"{SECRET}模型",
        worker_id=make_worker(host=f"{SECRET}主机").pk,
        status="complete",
        vendor_request_id=f"{SECRET}请求",
        queued_at=timezone.now(),
    )
    scene = make_voice_scene(world.acorn, key=f"{SECRET}场景", name=f"{SECRET}语音")
    root = User.objects.create(username="root", is_staff=True, is_superuser=True)
    return Staff(
        world=world,
        acorn_manager=make_manager(world.acorn, "erin"),
        birch_manager=make_manager(world.birch, "frank"),
        root=root,
        chat=chat,
        reply=reply,
        attempt=attempt,
        scene=scene,
        room=make_voice_session(scene, world.alice, conversation=chat, room_id=f"{world.acorn.pk}-{SECRET}"),
        caller=make_internal_caller(world.acorn, "acorn-java", name=f"{SECRET}调用方", membership=world.alice),
        endpoint=Endpoint.objects.create(name=f"{SECRET}接入点", base_url="https://api.example.com", model="m"),
        document=add_document(
            world.acorn.pk,
            filename=f"{SECRET}.md",
            content=f"# {SECRET}\n{SECRET}段落".encode(),
            title=f"{SECRET}文档",
        ),
        page=PageSource.across_sites.create(
            site=world.acorn, name=f"{SECRET}页面", page=f"{SECRET}*", template=f"{SECRET}内容"
        ),
        tool=SiteTool.across_sites.create(
            site=world.acorn, name="tool", description=f"{SECRET}工具", url="https://api.example.com/"
        ),
    )


def client_of(user: User) -> Client:
    """Return a browser that this person signed in with."""
    client = Client()
    client.force_login(user)
    return client
