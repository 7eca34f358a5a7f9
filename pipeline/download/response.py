"""What a server's answer is good for: a pure function from its head to a verdict.

The whole decision whether bytes are appended, the file starts over, or the mirror is given up
stands in `judge`; `pipeline.download.fetch` only carries it out.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import Enum
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from pipeline.download.resume import Bound

if TYPE_CHECKING:
    import httpx

SMALL = 1 << 20
TOLERANCE = 100
BUSY = {408, 425, 429}


@dataclass(frozen=True)
class Answer:
    """The head of a response: the body starts at byte `start` of a whole of `total` bytes."""

    status: int
    start: int | None = None
    total: int | None = None
    etag: str | None = None
    modified: str | None = None
    encoding: str = "identity"
    kind: str = ""
    retry_after: float | None = None

    @classmethod
    def of(cls, response: httpx.Response) -> Answer:
        """The head of an httpx response."""
        head = response.headers
        span = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", head.get("content-range", ""))
        start, total = (_number(span[1]), _number(span[2])) if span else (None, None)
        if response.status_code == 200:
            start, total = 0, _number(head.get("content-length"))
        return cls(
            status=response.status_code,
            start=start,
            total=total,
            etag=head.get("etag"),
            modified=head.get("last-modified"),
            encoding=head.get("content-encoding", "").strip().lower() or "identity",
            kind=head.get("content-type", "").partition(";")[0].strip().lower(),
            retry_after=_seconds(head.get("retry-after")),
        )


class Verdict(Enum):
    """What an answer is good for; the value says it to people."""

    START = "the content from its first byte"
    APPEND = "the content from where the partial file ends"
    DONE = "nothing is missing"
    DROP = "the content has changed, or the server does not keep to the range asked for"
    AGAIN = "try again later"
    ENCODED = "sent with a Content-Encoding though none was asked for"
    PORTAL = "a web page in place of the file: a captive portal or an error page"
    EMPTY = "the file is empty"
    OTHER = "another size than expected, so another file"
    REFUSED = "not available"


def judge(answer: Answer, have: int, bound: Bound | None, size: int | None) -> Verdict:
    """What to do with the answer to a request for the bytes from `have` on.

    Args:
        answer: The head of the response.
        have: Bytes that are there already; 0 where the whole was asked for.
        bound: The content they belong to; None where the whole was asked for.
        size: Expected bytes of the whole, None if unknown. Published sizes are off by a few bytes
            at times, so only a difference of more than 1 % is taken for another file.
    """
    if answer.status in BUSY or answer.status >= 500:
        return Verdict.AGAIN
    if answer.status == 416 and bound:
        return Verdict.DONE if answer.total == have and same(bound, answer) else Verdict.DROP
    if answer.status not in (200, 206):
        return Verdict.REFUSED
    if answer.encoding != "identity":
        return Verdict.ENCODED
    short = answer.total != size if size else (answer.total or 0) < SMALL
    if answer.kind == "text/html" and short:
        return Verdict.PORTAL
    if answer.total == 0:
        return Verdict.EMPTY
    if size and answer.total and abs(answer.total - size) > size // TOLERANCE:
        return Verdict.OTHER
    if answer.status == 200 or (bound is None and answer.start == 0):
        return Verdict.START
    if bound is None:
        return Verdict.REFUSED
    return Verdict.APPEND if answer.start == have and same(bound, answer) else Verdict.DROP


def same(bound: Bound, answer: Answer) -> bool:
    """Whether an answer speaks of this content, as far as both of them say what it is."""
    pairs: list[tuple[Any, Any]] = [(bound.size, answer.total), (bound.etag, answer.etag)]
    if not (bound.etag and answer.etag):
        pairs.append((bound.modified, answer.modified))
    return all(known == said for known, said in pairs if known is not None and said is not None)


def ask(have: int, bound: Bound | None) -> dict[str, str]:
    """The request headers for the bytes from `have` on, or for the whole where nothing is bound."""
    headers = {"Accept-Encoding": "identity"}
    if bound is None:
        return headers
    strong = bound.etag if bound.etag and not bound.etag.startswith("W/") else None
    condition = {"If-Range": strong or bound.modified or ""}
    return headers | {"Range": f"bytes={have}-"} | (condition if condition["If-Range"] else {})


def status_line(status: int) -> str:
    """A status as people read it: `status 404 Not Found`."""
    try:
        return f"status {status} {HTTPStatus(status).phrase}"
    except ValueError:
        return f"status {status}"


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isascii() and text.isdigit() else None


def _seconds(text: str | None) -> float | None:
    """A Retry-After header as seconds from now; None where there is none that can be read."""
    if text is None:
        return None
    if text.strip().isdigit():
        return float(text)
    try:
        then = parsedate_to_datetime(text)
    except ValueError:
        return None
    then = then if then.tzinfo else then.replace(tzinfo=UTC)
    return max(0.0, (then - datetime.now(UTC)).total_seconds())
