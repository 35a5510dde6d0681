"""What the lab says about a configuration, in the reader's language.

The rooms below say it in English with names in it; here such a sentence finds its pattern, and that its words.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache

from django.utils.translation import gettext
from django.utils.translation import gettext_noop as _

_NAME = re.compile(r"(?<!\$)\{(\w+)\}")

PATTERNS: tuple[str, ...] = (
    # traces of a recorded answer
    _("the end: done_when"),
    _("the end: [DONE]"),
    _("an error: the reply ends here"),
    _("nothing in it is mapped"),
    _("dropped: not a JSON object"),
    _("dropped: chunk_match does not match"),
    _("it was said before in pieces"),
    _("filter: {condition}"),
    # a curl command
    _("the command is longer than 64 KiB"),
    _("the command's quotes do not match"),
    _("it does not begin with curl"),
    _("it uploads files (multipart), which cannot be expressed"),
    _("the body is in a file: paste it into the command"),
    _("the command has no https:// or http:// address"),
    _("the body is not JSON"),
    _("the body is not a JSON object"),
    _("the address held credentials: they were left out"),
    _("the answer is read like that of the ready configuration {name}: try it with a transcript"),
    _("the model is in the path"),
    _("user and password became Basic ${api_key}: the key is then user:password"),
    _("{name} was left out"),
    _("{name} was taken for the key"),
    _("what looks like a key became ${api_key}"),
    _("the model was {name}"),
    # a configuration
    _("is an unknown key"),
    _("is missing"),
    _("is not a text"),
    _("is not an object"),
    _("is not a list"),
    _("is not a list of {things}"),
    _("is not an object {things}"),
    _("is not one of {names}"),
    _("is neither true nor false"),
    _("is neither stream nor whole"),
    _("is neither a way nor an object {things}"),
    _("is not an object without {names}"),
    _("message, params and url belong to the way prefix alone"),
    _("is missing or has a value in it"),
    _("is not a name"),
    _("the name is taken"),
    _('the name "{name}" is taken'),
    _('"{name}" is there twice'),
    _('"{name}" is not one of the API sections {names}'),
    _("holds a key in clear: write ${api_key}, and give the key where it is encrypted"),
    _('names an unknown value "{name}"'),
    _('names "{name}", which only a section with "need_auth": true has'),
    _('names "{name}", which this very step provides (cyclic auth)'),
    _('names "{name}", which differs between requests: the auth step is shared by all of them'),
    _('begins with "{name}", which is not declared in values: a host never comes from a request or a secret'),
    _("the auth step cannot need itself (cyclic auth)"),
    _("there is no auth step"),
    _("there is no API section, for example chat"),
    _("is an unknown key (an API section is an object with a url)"),
    _("the configuration is not JSON"),
    _("the configuration is not an object"),
    _("the configuration is longer than 64 KiB or nested more than 20 deep"),
    _("is not a path such as choices[0].delta.content"),
    _("has no content"),
    _("has no condition"),
    _("is not GET, POST or PUT"),
    _("a GET has no body: use params"),
    _("has characters that no header can hold"),
    _("must begin with https:// or http://, or with ${a value of the endpoint}"),
    _("could run away: a repeat inside a repeat"),
    _("could run away: alternatives inside a repeat"),
    _("could run away: more than {count} repeats"),
    _("could run away: too many alternatives"),
    _("could run away: too many repeats; begin it with ^ and keep one (.*)"),
    _("could run away: {thing} is not allowed"),
    _("is empty or longer than {count} characters"),
    _("is not a regular expression: {thing}"),
    _("false needs a done_when: else nothing says that a reply is whole"),
    _("has a ${ without its }"),
    _('has a bad path "{path}" in ${…}'),
    _("has a blank, a control character or a backslash"),
    _("has a fragment"),
    _("has a query or a fragment"),
    _("has a value in it: the kind of body is fixed"),
    _("has a value in its host: a host is never put together from values"),
    _("has credentials in it"),
    _("is a WebSocket, which cannot be expressed: use the service's HTTP form"),
    _("is a parameter of the request: declare it in params"),
    _("is neither an object of defaults nor a list of names"),
    _("is not a URL"),
    _("is not a header's name"),
    _("is not a name for an API section"),
    _("is not a number of seconds from 0 to 86400"),
    _("is not a path or a list of up to ten"),
    _("is not an https:// or http:// URL"),
    _("is reserved: a request must not be able to replace it"),
    _("must go on with / or ? after {value}: a host is never put together from values"),
    _("only JSON and form bodies can be expressed"),
    _("{name} is not for a configuration to set"),
    _('names "{name}", which comes from the request: a signature is made of our own values'),
    _('names "{name}": a secret has no parts'),
    _("{thing} cannot be expressed"),
)


def in_words(text: str) -> str:
    """Return a sentence in the reader's language; one without a pattern stays as it is."""
    for pattern, expression in _compiled():
        if (found := expression.fullmatch(text)) is not None:
            return _filled(gettext(pattern), found.groupdict())
    return text


def _filled(pattern: str, words: Mapping[str, str]) -> str:
    return _NAME.sub(lambda name: words.get(name[1], name[0]), pattern)


@cache
def _compiled() -> list[tuple[str, re.Pattern[str]]]:
    return [(pattern, re.compile("".join(_expression(pattern)), re.DOTALL)) for pattern in PATTERNS]


def _expression(pattern: str) -> Iterator[str]:
    for position, piece in enumerate(_NAME.split(pattern)):
        yield f"(?P<{piece}>.+)" if position % 2 else re.escape(piece)
