"""The endpoints as a worker sees them: an immutable snapshot, swapped whole when the revision moves.

Order: active rows by priority; then the endpoint of the environment (LLM_BASE_URL), which is the operator's
reserve when rows exist and the only one when they do not; then, only when there is nothing else and STAND_IN
allows it, the scripted stand-in. A row whose key cannot be decrypted is left out and logged, so that one bad
row does not stop the others; when nothing usable is left the snapshot is empty, and a reply fails as
misconfigured instead of pretending that nothing was ever connected.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal, cast

from django.conf import settings
from django.db import transaction

from providers.base import Clocks
from providers.clients.declarative.continuing import Continues, ability
from providers.clients.declarative.schema import ConfigRefused
from providers.clients.declarative.stored import check_stored
from providers.clients.openai_chat import CONTINUES, chat_url
from providers.credentials import Secret
from providers.errors import Misconfigured
from providers.http import HttpPolicy
from providers.models import Endpoint, RegistryRevision

logger = logging.getLogger(__name__)

ENVIRONMENT_PRIORITY = 10_000  # after every row: rows may have 0 to 1000
STAND_IN = "stand-in"
Dialect = Literal["openai", "dashscope_app", "declarative", "scripted"]


@dataclass(frozen=True, slots=True)
class EndpointConfig:
    """Everything a worker needs to call one endpoint. id is None when it is not a row.

    `credential` says whose key it is called with: "" is the endpoint's own.
    has_tools: the model may be offered tools.
    """

    id: int | None
    name: str
    dialect: Dialect
    model: str
    base_url: str = ""
    api_key: Secret | None = None
    priority: int = 0
    weight: int = 1
    params: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}), hash=False)
    config: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}), hash=False)
    clocks: Clocks = field(default_factory=Clocks)
    is_trusted_address: bool = False
    concurrency_max: int | None = None
    requests_per_minute: int | None = None
    input_micros_per_million: int | None = None
    output_micros_per_million: int | None = None
    is_shared: bool = True
    credential: str = ""
    continues: Continues = ""
    """How it goes on with an answer that another endpoint began; `""`: not known."""
    reads_last_text_only: bool = False
    """Whether it is sent nothing but the last text of the user."""
    key_target: str = ""
    """Where a key sent to it goes, of a row as it stood when this was read: `Endpoint.key_target`."""
    has_tools: bool = True

    def cost_micros(self, input_tokens: int, output_tokens: int) -> int | None:
        """Return what so many tokens cost, in millionths of the currency; None when no price is known."""
        if self.input_micros_per_million is None and self.output_micros_per_million is None:
            return None
        total = input_tokens * (self.input_micros_per_million or 0)
        total += output_tokens * (self.output_micros_per_million or 0)
        return (total + 500_000) // 1_000_000

    @property
    def is_stand_in(self) -> bool:
        """Whether this is what answers when no model is connected."""
        return self.id is None and self.name == STAND_IN

    @property
    def keeps_sessions(self) -> bool:
        """Whether the vendor keeps conversations itself: it is asked with its session and who the member is."""
        return self.dialect == "dashscope_app" and self.id is not None

    @property
    def key(self) -> str:
        """What this endpoint is called across snapshots: its row, or its name."""
        return f"row:{self.id}" if self.id is not None else self.name

    @property
    def key_and_credential(self) -> tuple[str, str]:
        """What this endpoint is called with this key: health of the key, and client, are its own."""
        return (self.key, self.credential)


@dataclass(frozen=True, slots=True)
class Grant:
    """Leave to use an endpoint, perhaps with another key than its own; without leave to use its own, then."""

    credential: str = ""
    api_key: Secret | None = None
    is_usable: bool = True
    """False: there is a key, and it cannot be read, or was not given for this host. No other one replaces it."""


Grants = Mapping[int, Mapping[int, Grant]]
"""Holder → endpoint id → grant. Holders are those who may use endpoints: numbers, as far as this room knows."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All endpoints that may be used at one revision, in the order of their priority."""

    revision: int
    endpoints: tuple[EndpointConfig, ...]
    grants: Grants = field(default_factory=lambda: MappingProxyType({}))
    _views: dict[int | None, Snapshot] = field(default_factory=dict, init=False, repr=False, compare=False)

    def of(self, holder: int) -> Snapshot:
        """Return what this holder may use, with the keys it is to use; made once for each holder with grants."""
        grants = self.grants.get(holder, {})
        place = holder if grants else None
        view = self._views.get(place)
        if view is None:
            usable = [e for e in self.endpoints if e.id is None or e.is_shared or e.id in grants]
            view = self
            if grants or len(usable) < len(self.endpoints):
                view = Snapshot(self.revision, _with_keys(usable, grants))
            self._views[place] = view
        return view

    def with_keys(self, grants: Mapping[int, Grant]) -> Snapshot:
        """Return the same endpoints, some of them with these other keys."""
        return Snapshot(self.revision, _with_keys(self.endpoints, grants)) if grants else self


def _with_keys(endpoints: Sequence[EndpointConfig], grants: Mapping[int, Grant]) -> tuple[EndpointConfig, ...]:
    found: list[EndpointConfig] = []
    for endpoint in endpoints:
        grant = grants.get(endpoint.id) if endpoint.id is not None else None
        if grant is None or (grant.is_usable and grant.api_key is None):
            found.append(endpoint)
        elif grant.is_usable:
            found.append(replace(endpoint, api_key=grant.api_key, credential=grant.credential))
    return tuple(found)


def clocks_from_settings() -> Clocks:
    """Return the clocks of the PROVIDER_* settings."""
    return Clocks(
        connect_seconds=settings.PROVIDER_CONNECT_SECONDS,
        first_payload_seconds=settings.PROVIDER_FIRST_SECONDS,
        idle_seconds=settings.PROVIDER_IDLE_SECONDS,
        total_seconds=settings.PROVIDER_TOTAL_SECONDS,
        line_max_bytes=settings.PROVIDER_LINE_MAX_BYTES,
    )


def policy_from_settings() -> HttpPolicy:
    """Return the HTTP policy of the PROVIDER_* settings."""
    return HttpPolicy(
        allowed_addresses=frozenset(address.lower() for address in settings.PROVIDER_ALLOWED_ADDRESSES),
        connect_seconds=settings.PROVIDER_CONNECT_SECONDS,
        transport="stock" if settings.PROVIDER_TRANSPORT == "stock" else "fast",
    )


def environment_endpoint() -> EndpointConfig | None:
    """Return the endpoint of LLM_BASE_URL, LLM_API_KEY and LLM_MODEL, None when it is not set or unusable.

    The operator wrote its address, so the address guard lets it through; rows made by staff get no such trust.
    """
    if not settings.LLM_BASE_URL:
        return None
    try:
        chat_url(settings.LLM_BASE_URL)
    except Misconfigured:
        logger.error("LLM_BASE_URL is not usable", extra={"check": "providers.E001"})
        return None
    return EndpointConfig(
        id=None,
        name="environment",
        dialect="openai",
        model=settings.LLM_MODEL,
        base_url=settings.LLM_BASE_URL,
        api_key=Secret(settings.LLM_API_KEY) if settings.LLM_API_KEY else None,
        priority=ENVIRONMENT_PRIORITY,
        clocks=clocks_from_settings(),
        is_trusted_address=True,
        has_tools=settings.LLM_TOOLS,
    )


def stand_in_endpoint() -> EndpointConfig:
    """Return the endpoint that says that no model is connected."""
    return EndpointConfig(id=None, name=STAND_IN, dialect="scripted", model=STAND_IN)


def config_of(row: Endpoint) -> EndpointConfig:
    """Return one row as a worker uses it. Raises Misconfigured when its key cannot be read."""
    defaults = clocks_from_settings()
    key = row.api_key()
    continues, reads_last_text_only = _continuing_of(row)
    return EndpointConfig(
        id=row.pk,
        name=row.name,
        dialect=cast(Dialect, row.dialect),
        model=row.model,
        base_url=row.base_url,
        api_key=key if key else None,
        priority=row.priority,
        weight=row.weight,
        params=MappingProxyType(dict(row.params or {})),
        config=_checked_config(row),
        clocks=Clocks(
            connect_seconds=row.connect_seconds or defaults.connect_seconds,
            first_payload_seconds=row.first_seconds or defaults.first_payload_seconds,
            idle_seconds=row.idle_seconds or defaults.idle_seconds,
            total_seconds=row.total_seconds or defaults.total_seconds,
            line_max_bytes=defaults.line_max_bytes,
        ),
        concurrency_max=row.concurrency_max,
        requests_per_minute=row.requests_per_minute,
        input_micros_per_million=row.input_micros_per_million,
        output_micros_per_million=row.output_micros_per_million,
        is_shared=row.is_shared,
        continues=continues,
        reads_last_text_only=reads_last_text_only,
        key_target=row.key_target,
        has_tools=_has_tools(row),
    )


def _has_tools(row: Endpoint) -> bool:
    """Return whether the model may be offered tools: as the row says, if its dialect or configuration can.

    A word of staff cannot make an application or a configuration say what it has no place for.
    """
    if row.tools == "no" or row.dialect == Endpoint.Dialect.DASHSCOPE_APP:
        return False
    if row.dialect != Endpoint.Dialect.DECLARATIVE:
        return True
    stored = check_stored(row.config)
    return stored.config.sections[stored.mapi].says_tools


def _checked_config(row: Endpoint) -> Mapping[str, Any]:
    """Return the configuration of a declarative row; it was checked when it was saved, and is again here."""
    if row.dialect != Endpoint.Dialect.DECLARATIVE:
        return MappingProxyType({})
    try:
        check_stored(row.config)
    except ConfigRefused as error:
        raise Misconfigured(code="bad_config") from error
    return MappingProxyType(dict(row.config))


def _no_grants(rows: Sequence[Endpoint]) -> Grants:
    return MappingProxyType({})


_load_grants: Callable[[Sequence[Endpoint]], Grants] = _no_grants


def ask_for_grants(loader: Callable[[Sequence[Endpoint]], Grants]) -> None:
    """Let whoever knows the holders say, at each load, what they may use; without it all is for everybody.

    It is asked in the transaction that reads the endpoints, so that a worker swaps both at once.
    """
    global _load_grants
    _load_grants = loader


def _continuing_of(row: Endpoint) -> tuple[Continues, bool]:
    """Return how a row goes on with another's answer: as staff say, else by dialect, as far as its form allows."""
    said = cast(Continues, row.continues)
    if row.dialect == Endpoint.Dialect.DASHSCOPE_APP:
        return ("none" if said == "none" else "instruction"), False
    if row.dialect == Endpoint.Dialect.OPENAI:
        return said or ("prefix" if CONTINUES in (row.params or {}) else ""), False
    if row.dialect != Endpoint.Dialect.DECLARATIVE:
        return said, False
    try:
        stored = check_stored(row.config)
    except ConfigRefused as error:
        raise Misconfigured(code="bad_config") from error
    section = stored.config.sections[stored.mapi]
    request = section.request
    return ability(said or section.continuing.way, (*request.headers, *request.data, *request.params))


def load_snapshot() -> Snapshot:
    """Return the endpoints as the database and the environment have them now. Blocking."""
    with transaction.atomic():
        # The revision first: a change that commits in between is read now and again with its own revision.
        revision = RegistryRevision.objects.filter(pk=1).values_list("revision", flat=True).first() or 0
        rows = list(Endpoint.objects.filter(is_active=True).order_by("priority", "id"))
        grants = _load_grants(rows)
    endpoints: list[EndpointConfig] = []
    for row in rows:
        try:
            endpoints.append(config_of(row))
        except Misconfigured as error:
            logger.error("endpoint left out", extra={"endpoint_id": row.pk, "error_code": error.code})
    if (environment := environment_endpoint()) is not None:
        endpoints.append(environment)
    if settings.STAND_IN and not rows and not settings.LLM_BASE_URL:
        endpoints.append(stand_in_endpoint())
    return Snapshot(revision=revision, endpoints=tuple(endpoints), grants=grants)


_current: Snapshot | None = None
_loading = threading.Lock()


def current() -> Snapshot:
    """Return this process's snapshot, loading it the first time (then blocking)."""
    return _current if _current is not None else refresh()


def loaded() -> Snapshot | None:
    """Return this process's snapshot without touching the database, None before the first load."""
    return _current


def refresh() -> Snapshot:
    """Return a fresh snapshot, now this process's own. Blocking."""
    global _current
    with _loading:
        _current = load_snapshot()
        return _current


def refresh_if(revision: int) -> Snapshot:
    """Return the snapshot, loaded again only when the database is at another revision. Blocking when it is."""
    if _current is not None and _current.revision == revision:
        return _current
    return refresh()


def forget() -> None:
    """Forget this process's snapshot (after a fork, and between tests)."""
    global _current
    _current = None
