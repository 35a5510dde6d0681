"""A configuration as an endpoint keeps it: whole, or the name of a ready one, with the endpoint's own choices."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from providers.clients.declarative import configs
from providers.clients.declarative.schema import (
    IN_CLEAR,
    Config,
    ConfigRefused,
    Mode,
    names_a_secret,
    parse_config,
)

DEFAULT_SECTION = "chat"
_CHOICES = ("values", "mapi", "mode")


@dataclass(frozen=True, slots=True)
class Stored:
    """What an endpoint keeps, checked: a configuration, and how this endpoint uses it."""

    config: Config
    values: Mapping[str, Any] = field(default_factory=dict, hash=False)
    mapi: str = DEFAULT_SECTION
    mode: Mode | None = None
    """None: as the section says."""

    def options(self) -> dict[str, Any]:
        """Return the choices as provider_from_config takes them."""
        return {"values": self.values, "mapi": self.mapi, "mode": self.mode}


def check_stored(stored: object, *, mapi: str | None = None) -> Stored:
    """Return the configuration with the endpoint's own choices; mapi goes over the stored one.

    Shapes:  a configuration; {"config": {…}}; {"ready": "azure"}. Beside ready and config may stand values, mapi
             (the API section, else chat) and mode ("stream" or "whole", else what the section says).
    Raises: ConfigRefused, with the path of each mistake.
    """
    if not isinstance(stored, Mapping) or not is_wrapped(stored):
        return _checked(parse_config(stored), {}, mapi or DEFAULT_SECTION, None, [])
    of = "ready" if "ready" in stored else "config"
    problems = [(name, "is an unknown key") for name in sorted(set(stored) - {of, *_CHOICES})]
    values = stored.get("values", {})
    if not isinstance(values, Mapping):
        problems.append(("values", "is not an object"))
        values = {}
    chosen, mode = stored.get("mapi", DEFAULT_SECTION), stored.get("mode")
    if not isinstance(chosen, str):
        problems.append(("mapi", "is not a text"))
        chosen = DEFAULT_SECTION
    if mode not in (None, "stream", "whole"):
        problems.append(("mode", "is neither stream nor whole"))
        mode = None
    if of == "ready":
        try:
            raw = configs.load(str(stored["ready"]))
        except KeyError:
            problems.append(("ready", f"is not one of {', '.join(configs.names())}"))
            raise ConfigRefused(problems) from None
        config = parse_config(raw)
    else:
        try:
            config = parse_config(stored["config"])
        except ConfigRefused as refused:
            problems += [(f"config.{path}" if path else "config", text) for path, text in refused.problems]
            raise ConfigRefused(problems) from None
    return _checked(config, values, mapi or chosen, mode, problems)


def is_wrapped(stored: Mapping[Any, Any]) -> bool:
    """Return whether this names or holds a configuration rather than being one, which has a name itself."""
    return "ready" in stored or ("config" in stored and "name" not in stored)


def _checked(
    config: Config, values: Mapping[str, Any], mapi: str, mode: Mode | None, problems: list[tuple[str, str]]
) -> Stored:
    problems += [
        (f"values.{name}", f"is not one of {', '.join(sorted(config.values)) or 'none'}")
        for name in sorted(set(values) - set(config.values))
    ]
    problems += [
        (f"values.{name}", IN_CLEAR)
        for name, value in sorted(values.items())
        if names_a_secret(name) and value not in (None, "")
    ]
    if mapi not in config.sections:
        problems.append(("mapi", f'"{mapi}" is not one of the API sections {", ".join(config.sections)}'))
    if problems:
        raise ConfigRefused(problems)
    return Stored(config, dict(values), mapi, mode)


def addresses_of(stored: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield where a stored configuration calls, as far as staff wrote it: the path in it, scheme://host[:port].

    What a ready configuration brings with it is ours. A value that is no URL is refused when it is called.
    """
    checked = check_stored(stored)
    config, values = checked.config, checked.values
    is_ready = "ready" in stored
    inside = "config." if not is_ready and is_wrapped(stored) else ""
    urls = [("auth", config.auth.request.url)] if config.auth is not None else []
    urls += [(name, section.request.url) for name, section in config.sections.items()]
    urls += [
        (f"{name}.continues", section.continuing.url)
        for name, section in config.sections.items()
        if section.continuing.url is not None
    ]
    for path, url in urls:
        if url.base is None:
            if not is_ready:
                yield f"{inside}{path}.url", url.origin
        elif isinstance(address := values.get(url.base.name), str) and address:
            yield f"values.{url.base.name}", address
        elif not is_ready and isinstance(address := config.values.get(url.base.name), str) and address:
            yield f"{inside}values.{url.base.name}", address
