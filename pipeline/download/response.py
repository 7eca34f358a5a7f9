"""What to do with a server's response: a pure function of its head.

`classify_response` alone decides whether bytes are appended, the file starts over, or the mirror is
given up; `pipeline.download.fetch` carries it out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import Enum
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import CorruptInput, InputError
from pipeline.download.resume import RemoteContent
from pipeline.download.transport import LOGIN_HINT

if TYPE_CHECKING:
    import httpx

MAX_WEB_PAGE_BYTES = 1 << 20
SIZE_TOLERANCE_DIVISOR = 100
RETRY_STATUSES = {408, 425, 429}  # and those from 500


@dataclass(frozen=True)
class ResponseHead:
    """The head of a response; its body starts at byte `start` of `total` bytes."""

    status: int
    start: int | None = None
    total: int | None = None
    etag: str | None = None
    modified: str | None = None
    encoding: str = "identity"
    content_type: str = ""
    retry_after: float | None = None

    @classmethod
    def of(cls, response: httpx.Response) -> ResponseHead:
        """The head of an httpx response."""
        head = response.headers
        span = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", head.get("content-range", ""))
        start, total = (_parse_int(span[1]), _parse_int(span[2])) if span else (None, None)
        if response.status_code == 200:
            start, total = 0, _parse_int(head.get("content-length"))
        return cls(
            status=response.status_code,
            start=start,
            total=total,
            etag=head.get("etag"),
            modified=head.get("last-modified"),
            encoding=head.get("content-encoding", "").strip().lower() or "identity",
            content_type=head.get("content-type", "").partition(";")[0].strip().lower(),
            retry_after=_parse_retry_after(head.get("retry-after")),
        )


class ResponseAction(Enum):
    """What to do with a response; the value explains it to users."""

    START = "the content from its first byte"
    APPEND = "the content from the end of the partial file"
    DONE = "nothing is missing"
    START_OVER = "the content has changed, or the server ignored the requested range"
    RETRY = "try again later"
    ENCODED = "sent with a Content-Encoding that was not requested"
    WEB_PAGE = "a web page instead of the file: a captive portal or an error page"
    EMPTY = "the file is empty"
    WRONG_SIZE = "not the expected size, so it is another file"
    REFUSED = "not available"


def classify_response(
    head: ResponseHead, offset: int, identity: RemoteContent | None, size: int | None
) -> ResponseAction:
    """What to do with the response to a request for the bytes from `offset`.

    Args:
        head: The head of the response.
        offset: Bytes already there; 0 if the whole was requested.
        identity: The content of these bytes; None if the whole was requested.
        size: Expected bytes of the whole; None if unknown. Published sizes are sometimes off by a
            few bytes, so only a difference of more than 1 % means another file.
    """
    if head.status in RETRY_STATUSES or head.status >= 500:
        return ResponseAction.RETRY
    if head.status == 416 and identity:
        complete = head.total == offset and same_content(identity, head)
        return ResponseAction.DONE if complete else ResponseAction.START_OVER
    if head.status not in (200, 206):
        return ResponseAction.REFUSED
    if head.encoding != "identity":
        return ResponseAction.ENCODED
    suspect = head.total != size if size else (head.total or 0) < MAX_WEB_PAGE_BYTES
    if head.content_type == "text/html" and suspect:
        return ResponseAction.WEB_PAGE
    if head.total == 0:
        return ResponseAction.EMPTY
    if size and head.total and abs(head.total - size) > size // SIZE_TOLERANCE_DIVISOR:
        return ResponseAction.WRONG_SIZE
    if head.status == 200 or (identity is None and head.start == 0):
        return ResponseAction.START
    if identity is None:
        return ResponseAction.REFUSED
    continues = head.start == offset and same_content(identity, head)
    return ResponseAction.APPEND if continues else ResponseAction.START_OVER


def same_content(identity: RemoteContent, head: ResponseHead) -> bool:
    """Whether a response has this content; facts that one of them lacks are not compared."""
    pairs: list[tuple[Any, Any]] = [(identity.size, head.total), (identity.etag, head.etag)]
    if not (identity.etag and head.etag):
        pairs.append((identity.modified, head.modified))
    return all(one == other for one, other in pairs if one is not None and other is not None)


def request_headers(offset: int, identity: RemoteContent | None) -> dict[str, str]:
    """Headers to request the bytes from `offset`, or the whole if `identity` is None."""
    headers = {"Accept-Encoding": "identity"}
    if identity is None:
        return headers
    headers["Range"] = f"bytes={offset}-"
    strong = identity.etag if identity.etag and not identity.etag.startswith("W/") else None
    if condition := strong or identity.modified:
        headers["If-Range"] = condition
    return headers


def status_line(status: int) -> str:
    """A status with its phrase, such as `status 404 Not Found`."""
    try:
        return f"status {status} {HTTPStatus(status).phrase}"
    except ValueError:
        return f"status {status}"


def refusal(url: str, head: ResponseHead, action: ResponseAction) -> InputError:
    """The error for a response that a retry does not fix."""
    if action is ResponseAction.WRONG_SIZE:
        return CorruptInput(f"{url}: {head.total} bytes, {action.value}")
    hint = f" ({LOGIN_HINT})" if head.status == HTTPStatus.UNAUTHORIZED else ""
    return InputError(f"{url}: {status_line(head.status)}, {action.value}{hint}")


def all_failed(errors: Sequence[InputError]) -> InputError:
    """One error for all mirrors; `CorruptInput` if one of them is."""
    if len(errors) == 1:
        return errors[0]
    error_type = CorruptInput if any(isinstance(e, CorruptInput) for e in errors) else InputError
    return error_type(f"none of {len(errors)} mirrors works: " + "; ".join(e.what for e in errors))


def _parse_int(text: str | None) -> int | None:
    return int(text) if text and text.isascii() and text.isdigit() else None


def _parse_retry_after(text: str | None) -> float | None:
    """A Retry-After header as seconds from now; None if it is missing or malformed."""
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
