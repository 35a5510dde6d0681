"""Voice: scenes of a site, the rooms opened in them, and the servers that may ask for them for a member."""

from __future__ import annotations

from typing import ClassVar

from django.core.validators import MaxValueValidator, MinValueValidator, RegexValidator
from django.db import models
from django.db.models import F, Q
from django.utils.translation import gettext_lazy as _

from conversations.models.conversations import Conversation
from conversations.models.scoping import ScopedManager, TenantModel
from conversations.models.sites import Membership, Site
from providers.fields import EncryptedField, Secret, secret_of

MINUTES_MAX = 1440
RTC_ID = r"[A-Za-z0-9_@.\-]{1,128}"
"""What the platform takes for a room, a user or a task (WIRE 2.1)."""


def _mask() -> models.CharField:
    return models.CharField(max_length=16, blank=True, default="", editable=False)


class VoiceScene(TenantModel):
    """One way to speak with the assistant: what the platform is told, and whose keys pay for it.

    `voice_chat` is the vendor's StartVoiceChat body and opaque to us: `voice/scenes.py` sets its few fields in a
    copy. Secrets are written through `providers.fields.keep_secret(scene, "app_key", …)` and never shown.
    """

    site = models.ForeignKey(
        Site, on_delete=models.CASCADE, related_name="+", db_index=False, verbose_name=_("site")
    )
    # The vendor's demo calls a scene by the name of its file, without `.json`.
    key = models.CharField(_("scene id"), max_length=100, validators=[RegexValidator(r"^[^\s/\\\x00-\x1f]+\Z")])
    name = models.CharField(_("name"), max_length=200)
    icon = models.TextField(_("icon"), blank=True, default="")
    # Further keys of the demo's SceneConfig: handed to the front end as they are.
    scene_config = models.JSONField(_("more for the front end"), default=dict, blank=True)
    voice_chat = models.JSONField(_("StartVoiceChat body"), default=dict, blank=True)
    access_key_id_encrypted = EncryptedField()
    access_key_id_mask = _mask()
    secret_key_encrypted = EncryptedField()
    secret_key_mask = _mask()
    rtc_app_id = models.CharField(_("RTC AppId"), max_length=64, blank=True, default="")
    app_key_encrypted = EncryptedField()
    app_key_mask = _mask()
    # What the platform shows our callback (Authorization: Bearer). The one before it stays good, for rooms that
    # were started with it.
    callback_key_encrypted = EncryptedField()
    callback_key_mask = _mask()
    previous_callback_key_encrypted = EncryptedField()
    previous_callback_key_mask = _mask()
    # Scheme, host and port of the RTC OpenAPI; its path is always "/".
    base_url = models.CharField(_("RTC OpenAPI"), max_length=300, default="https://rtc.volcengineapi.com")
    region = models.CharField(_("region"), max_length=64, default="cn-north-1")
    version = models.CharField(_("API version"), max_length=32, default="2024-12-01")
    # Empty: the setting VOICE_CALLBACK_BASE_URL.
    callback_base_url = models.CharField(
        _("public base URL of this server"), max_length=300, blank=True, default=""
    )
    # Empty: the site's setting `voice_max_minutes`.
    max_minutes = models.PositiveIntegerField(
        _("longest room, in minutes"),
        null=True,
        blank=True,
        validators=[MinValueValidator(1), MaxValueValidator(MINUTES_MAX)],
    )
    is_active = models.BooleanField(_("active"), default=True)
    created_at = models.DateTimeField(_("created"), auto_now_add=True)
    updated_at = models.DateTimeField(_("updated"), auto_now=True)

    objects: ClassVar[ScopedManager] = ScopedManager()

    class Meta(TenantModel.Meta):
        db_table = "conversations_voice_scene"
        verbose_name = _("voice scene")
        verbose_name_plural = _("voice scenes")
        constraints = [
            # Also read by every call that names a scene, and by the list of a site's scenes.
            models.UniqueConstraint(fields=["site", "key"], name="voice_scene_once_per_site"),
            models.UniqueConstraint(fields=["site", "id"], name="voice_scene_site_and_id"),  # for composite keys
            models.CheckConstraint(
                condition=Q(max_minutes__isnull=True) | Q(max_minutes__gte=1, max_minutes__lte=MINUTES_MAX),
                name="voice_scene_max_minutes",
            ),
        ]

    def __str__(self) -> str:
        return self.name or self.key

    def secret(self, name: str) -> Secret:
        """Return access_key_id, secret_key, app_key, callback_key or previous_callback_key; empty when not set.

        Raises: providers.errors.Misconfigured, when no key of SECRET_KEYS opens it.
        """
        return secret_of(self, name)


class InternalCaller(TenantModel):
    """A server that signs its calls (WIRE 7) and may act for the members of its site.

    Two secrets are good at a time, so that they can be changed one side after the other.
    """

    site = models.ForeignKey(
        Site, on_delete=models.CASCADE, related_name="+", db_index=False, verbose_name=_("site")
    )
    # Unique among all sites: it arrives before anything says which site is meant.
    key_id = models.CharField(
        _("key id"), max_length=64, unique=True, validators=[RegexValidator(r"^[A-Za-z0-9._\-]{1,64}\Z")]
    )
    name = models.CharField(_("name"), max_length=200, blank=True, default="")
    secret_encrypted = EncryptedField()
    secret_mask = _mask()
    previous_secret_encrypted = EncryptedField()
    previous_secret_mask = _mask()
    # Whom it acts for when it names nobody. The database ties (site, membership) together: migration 0008.
    membership = models.ForeignKey(
        Membership,
        null=True,
        blank=True,
        on_delete=models.SET_NULL,
        related_name="+",
        db_constraint=False,
        db_index=False,
        verbose_name=_("acts as, when it names nobody"),
    )
    is_active = models.BooleanField(_("active"), default=True)
    created_at = models.DateTimeField(_("created"), auto_now_add=True)

    objects: ClassVar[ScopedManager] = ScopedManager()

    class Meta(TenantModel.Meta):
        db_table = "conversations_internal_caller"
        verbose_name = _("internal caller")
        verbose_name_plural = _("internal callers")
        constraints = [
            models.UniqueConstraint(fields=["site", "id"], name="internal_caller_site_and_id"),  # composite keys
        ]

    def __str__(self) -> str:
        return self.name or self.key_id


class InternalNonce(TenantModel):
    """A signature that was accepted once; forgotten when its timestamp could not be accepted any more."""

    site = models.ForeignKey(Site, on_delete=models.CASCADE, related_name="+", db_index=False)
    caller = models.ForeignKey(
        InternalCaller, on_delete=models.CASCADE, related_name="+", db_constraint=False, db_index=False
    )
    nonce = models.CharField(max_length=128)
    seen_at = models.DateTimeField()

    objects: ClassVar[ScopedManager] = ScopedManager()

    class Meta(TenantModel.Meta):
        db_table = "conversations_internal_nonce"
        constraints = [
            # Of two uses at the same time, one is stored.
            models.UniqueConstraint(fields=["site", "caller", "nonce"], name="internal_nonce_once"),
        ]
        indexes = [
            # Read by the sweeper, which forgets old ones.
            models.Index(fields=["seen_at"], name="internal_nonce_by_age"),
        ]

    def __str__(self) -> str:
        return f"nonce of #{self.caller_id}"


class VoiceSession(TenantModel):
    """One caller's room in one scene: room, user and token were made for it, and nobody else ever gets them.

    The life of the row is that of the platform's task. A stopped one may be started again, as a new task:
    created → starting → started → stopping → stopped (→ starting …); a start that the platform refused is
    `failed` and may be tried again. Whoever is talking to the platform about it holds it until `busy_until`
    (`voice/sessions.py`). The conversation is made by the first start, unless getScenes was told to go on in one.
    """

    class Status(models.TextChoices):
        """Where the platform's task is, as far as we know."""

        CREATED = "created", _("not started yet")
        STARTING = "starting", _("starting")
        STARTED = "started", _("under way")
        STOPPING = "stopping", _("stopping")
        STOPPED = "stopped", _("over")
        FAILED = "failed", _("failed")

    class StoppedBy(models.TextChoices):
        """Who asked for the end."""

        CALLER = "caller", _("its caller")
        LIMIT = "limit", _("the time limit")
        STAFF = "staff", _("staff")

    site = models.ForeignKey(
        Site, on_delete=models.CASCADE, related_name="+", db_index=False, verbose_name=_("site")
    )
    # The database ties these to the site: migration 0008.
    scene = models.ForeignKey(
        VoiceScene,
        on_delete=models.CASCADE,
        related_name="sessions",
        db_constraint=False,
        db_index=False,
        verbose_name=_("voice scene"),
    )
    membership = models.ForeignKey(
        Membership,
        on_delete=models.CASCADE,
        related_name="voice_sessions",
        db_constraint=False,
        db_index=False,
        verbose_name=_("member"),
    )
    conversation = models.ForeignKey(
        Conversation,
        null=True,
        blank=True,
        on_delete=models.SET_NULL,
        related_name="voice_sessions",
        db_constraint=False,
        db_index=False,
        verbose_name=_("conversation"),
    )
    # None: the member came with a token of their own.
    caller = models.ForeignKey(
        InternalCaller,
        null=True,
        blank=True,
        on_delete=models.SET_NULL,
        related_name="+",
        db_constraint=False,
        db_index=False,
        verbose_name=_("internal caller"),
    )
    # Begins with the site's id and a dash, since the callback must know the site before it can see a row.
    room_id = models.CharField(_("room"), max_length=128)
    user_id = models.CharField(_("user in the room"), max_length=128)
    bot_id = models.CharField(_("bot in the room"), max_length=128)
    # Of the latest start; "" before the first.
    task_id = models.CharField(_("task"), max_length=128, blank=True, default="")
    status = models.CharField(_("status"), max_length=16, choices=Status.choices, default=Status.CREATED)
    stopped_by = models.CharField(
        _("stopped by"), max_length=16, choices=StoppedBy.choices, blank=True, default=""
    )
    last_error = models.CharField(_("last error"), max_length=200, blank=True, default="")
    created_at = models.DateTimeField(_("created"))
    token_expires_at = models.DateTimeField(_("token ends"))
    started_at = models.DateTimeField(_("started"), null=True, blank=True)
    stopped_at = models.DateTimeField(_("stopped"), null=True, blank=True)
    # When the sweeper stops the room, or tries again to; set while a task may be running.
    stop_due_at = models.DateTimeField(_("to be stopped"), null=True, blank=True)
    stop_attempts = models.IntegerField(_("failed stops"), default=0)
    busy_until = models.DateTimeField(null=True, blank=True)
    # Counts the claims: what a claim says about the row holds only while it is the latest.
    claim = models.IntegerField(default=0)

    objects: ClassVar[ScopedManager] = ScopedManager(member_path="membership_id")

    class Meta(TenantModel.Meta):
        db_table = "conversations_voice_session"
        verbose_name = _("voice session")
        verbose_name_plural = _("voice sessions")
        constraints = [
            # Also read by the callback and by calls that name a room.
            models.UniqueConstraint(fields=["site", "room_id"], name="voice_session_room"),
            models.UniqueConstraint(fields=["site", "id"], name="voice_session_site_and_id"),  # composite keys
            models.CheckConstraint(
                condition=Q(status__in=["created", "starting", "started", "stopping", "stopped", "failed"]),
                name="voice_session_status_is_known",
            ),
            models.CheckConstraint(
                condition=Q(stopped_by__in=["", "caller", "limit", "staff"]), name="voice_session_stopped_by"
            ),
            models.CheckConstraint(condition=~Q(user_id=F("bot_id")), name="voice_session_bot_is_not_the_user"),
            models.CheckConstraint(
                condition=~Q(status__in=["starting", "started", "stopping"])
                | (Q(stop_due_at__isnull=False) & ~Q(task_id="")),
                name="voice_session_running_has_an_end",
            ),
        ]
        indexes = [
            # Read by calls that name no room: the caller's latest session of a scene.
            models.Index(fields=["site", "membership", "scene", "-id"], name="voice_session_latest"),
            # Read by the sweeper: rooms that nobody stopped.
            models.Index(
                fields=["stop_due_at"],
                condition=Q(status__in=["starting", "started", "stopping"]),
                name="voice_session_due",
            ),
            # Read by the sweeper, which forgets rooms that were never started.
            models.Index(fields=["created_at"], condition=Q(status="created"), name="voice_session_unused"),
            # Read by the erasure of conversations, whose key looks here.
            models.Index(
                fields=["site", "conversation"],
                condition=Q(conversation__isnull=False),
                name="voice_session_of_chat",
            ),
        ]

    def __str__(self) -> str:
        return self.room_id


def site_id_of_room(room_id: str) -> int | None:
    """Return the site that a room id of ours names, None for any other text."""
    number, dash, rest = room_id.partition("-")
    if not (dash and rest) or not (number.isascii() and number.isdigit()) or len(number) > 18:
        return None
    return int(number)
