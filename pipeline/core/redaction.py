"""Remove secrets from messages, receipts and logs.

A URL may hold a signature or a token in its query, and a name and password before its host. They
are needed to fetch it, and not to read about it.
"""

from __future__ import annotations

import re
from typing import Any

# The second form of a login is invalid, but people type it: a password with a slash or a space.
# Elsewhere a colon is followed by a port. Punctuation at the end of a sentence is no query.
URL = re.compile(
    r"""(?P<scheme>[a-z][a-z0-9+.-]*://)
    (?P<login>[^\s/?#]*@|[^\s/?#:]*:(?!\s|\d+(?:[^\w.]|$))[^'"<>\n]*@)?
    (?P<place>[^\s?#'"<>]*)
    (?P<query>[?#][^\s'"<>]*[^\s'"<>.,:;)\]}])?""",
    re.IGNORECASE | re.VERBOSE,
)
TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{20,}")


def redact(text: str) -> str:
    """The text without the logins and queries of its URLs, and without tokens of the hub."""
    return TOKEN.sub("hf_…", URL.sub(_cut, text))


def redact_all(value: Any) -> Any:
    """Plain data with every string in it redacted."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, dict):
        return {redact_all(name): redact_all(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [redact_all(inner) for inner in value]
    return value


def has_login(url: str) -> bool:
    """Whether a URL has a name or a password before its host."""
    match = URL.match(url)
    return bool(match and match["login"])


def _cut(url: re.Match[str]) -> str:
    login, query = "…@" if url["login"] else "", "?…" if url["query"] else ""
    return f"{url['scheme']}{login}{url['place']}{query}"
