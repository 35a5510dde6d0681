"""A configuration as an endpoint keeps it: whole, or the name of a ready one with values of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from providers.clients.declarative import configs
from providers.clients.declarative.schema import Config, ConfigRefused, parse_config


def check_stored(stored: object) -> tuple[Config, Mapping[str, Any]]:
    """Return the configuration and the endpoint's own values for it.

    Shapes:  a configuration; or {"ready": "azure", "values": {"deployment": "gpt"}}.
    Raises: ConfigRefused, with the path of each mistake.
    """
    if not isinstance(stored, Mapping) or "ready" not in stored:
        return parse_config(stored), {}
    problems = [(name, "unknown key") for name in sorted(set(stored) - {"ready", "values"})]
    values = stored.get("values", {})
    if not isinstance(values, Mapping):
        problems.append(("values", "must be an object"))
    try:
        config = parse_config(configs.load(str(stored["ready"])))
    except KeyError:
        raise ConfigRefused([("ready", f"there are: {', '.join(configs.names())}")]) from None
    if isinstance(values, Mapping):
        known = config.values
        problems += [
            (f"values.{name}", f"this configuration has: {', '.join(sorted(known)) or 'none'}")
            for name in sorted(set(values) - set(known))
        ]
    if problems:
        raise ConfigRefused(problems)
    return config, dict(values)


def addresses_of(stored: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield where a stored configuration calls, as far as staff wrote it: the path in it, scheme://host[:port].

    What a ready configuration brings with it is ours. A value that is no URL is refused when it is called.
    """
    config, values = check_stored(stored)
    is_ready = "ready" in stored
    templates = [("auth", config.auth.request)] if config.auth is not None else []
    templates += [(name, section.request) for name, section in config.sections.items()]
    own = values if is_ready else config.values
    for path, template in templates:
        if template.url.base is None:
            if not is_ready:
                yield f"{path}.url", template.url.origin
        elif isinstance(address := own.get(template.url.base.name), str) and address:
            yield f"values.{template.url.base.name}", address
