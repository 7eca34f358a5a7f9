"""What a URL names before it is downloaded: the answer of a server, or a file on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.core.errors import InputError
from pipeline.download.file_names import url_to_path
from pipeline.download.response import (
    ResponseAction,
    ResponseHead,
    all_failed,
    classify_response,
    refusal,
    request_headers,
)
from pipeline.download.resume import RemoteContent
from pipeline.download.transport import (
    DEFAULT_RETRY_POLICY,
    HttpClient,
    RetryableError,
    RetryPolicy,
    map_errors,
)

RANGE_REFUSED_STATUSES = {400, 403, 405, 501}


@dataclass(frozen=True)
class RemoteFile:
    """What a server says about the file at a URL; `size` in bytes."""

    url: str
    status: int
    size: int | None = None
    etag: str | None = None
    modified: str | None = None


def probe(url: str, policy: RetryPolicy = DEFAULT_RETRY_POLICY) -> RemoteFile:
    """Ask what a URL has, with a request for its first byte.

    Raises:
        InputError: There is no answer, a refusal, or a web page.
    """
    if url.startswith("file:"):
        identity = identify_local_file(url)
        return RemoteFile(url, 200, identity.size, None, identity.modified)
    headers = {"Accept-Encoding": "identity", "Range": "bytes=0-0"}
    try:
        with HttpClient(policy) as client, map_errors(url):
            with client.stream("GET", url, headers) as response:
                head = ResponseHead.of(response)
            if head.status in RANGE_REFUSED_STATUSES:
                with client.stream("HEAD", url, request_headers(0, None)) as response:
                    head = ResponseHead.of(response)
    except RetryableError as error:
        raise InputError(f"{url}: {error}") from error
    action = classify_response(head, 0, None, None)
    if action is not ResponseAction.START:
        raise refusal(url, head, action)
    return RemoteFile(url, head.status, head.total, head.etag, head.modified)


def identify_local_file(url: str) -> RemoteContent:
    """The identity of the file at a file:// URL: its size and modification time.

    Raises:
        InputError: There is no such file, or it is empty.
    """
    path = url_to_path(url)
    if not path.is_file():
        raise InputError(f"{url}: there is no such file")
    stat = path.stat()
    if not stat.st_size:
        hint = "Remove it, or replace it by a valid copy"
        raise InputError(f"{url}: {ResponseAction.EMPTY.value}", hint)
    return RemoteContent(url, None, str(stat.st_mtime_ns), stat.st_size)


def probe_mirrors(urls: Sequence[str], policy: RetryPolicy = DEFAULT_RETRY_POLICY) -> RemoteFile:
    """Probe mirrors in order; returns the first that has the file.

    Raises:
        InputError: None has it; the message gives the reason for each URL.
    """
    errors: list[InputError] = []
    for url in urls:
        try:
            return probe(url, policy)
        except InputError as error:
            errors.append(error)
    raise all_failed(errors)
