"""Download files from plain URLs: resumable, verified, with mirrors.

A download is a partial file that grows (`pipeline.download.resume`). Only
`pipeline.download.response.classify_response` decides whether bytes are appended. After a request,
the file is complete, longer, or unchanged; only the last counts as a failure, and after enough
failures in a row the next mirror is tried.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.core.errors import CorruptInput, InputError
from pipeline.core.redaction import redact
from pipeline.core.stop import Stop
from pipeline.download.file_names import url_to_path
from pipeline.download.probe import identify_local_file
from pipeline.download.response import (
    ResponseAction,
    ResponseHead,
    all_failed,
    classify_response,
    refusal,
    request_headers,
    status_line,
)
from pipeline.download.resume import (
    COPY_BYTES,
    PartFile,
    ProgressCallback,
    RemoteContent,
    require_free_space,
)
from pipeline.download.transport import (
    DEFAULT_RETRY_POLICY,
    HttpClient,
    RetryableError,
    RetryPolicy,
    enforce_min_rate,
    map_errors,
    retry_delay,
)
from pipeline.sources.spans import Span


@dataclass(frozen=True)
class FetchedFile:
    """A complete file: its path, URL, `size` in bytes, sha256 (hex) and spans."""

    path: Path
    url: str
    size: int
    sha256: str
    etag: str | None = None
    modified: str | None = None
    spans: Sequence[Span] = ()


def fetch(
    urls: Sequence[str],
    partial_path: Path,
    *,
    sha256: str | None,
    size: int | None,
    stop: Stop,
    progress: ProgressCallback,
    headers: Mapping[str, str] | None = None,
    policy: RetryPolicy = DEFAULT_RETRY_POLICY,
) -> FetchedFile:
    """Download a file from the first mirror that works, resuming `partial_path`.

    If `partial_path` is complete, nothing is requested.

    Args:
        urls: Mirrors of the same file, in order: http(s):// or file://.
        partial_path: The file to write. It and its sidecar, see `PartFile`, may exist from an
            interrupted call.
        sha256: Expected hash (hex); None to accept any content.
        size: Expected bytes. With `sha256` only a hint, else the file must have this size.
        stop: Checked between blocks; progress is on disk before `Interrupted` is raised.
        progress: Called with (bytes so far, bytes of the whole or None).
        headers: Sent to the hosts of `urls`; Authorization is not sent to other hosts.
        policy: Timeouts and retries.

    Raises:
        InputError: No mirror works; the message gives the reason for each URL.
        CorruptInput: The same, and a mirror delivered a file with another hash or size.
        UserError: There is not enough free space.
        Interrupted: A stop was requested.
    """
    partial_path.parent.mkdir(parents=True, exist_ok=True)
    file = PartFile(partial_path, policy.sync_bytes)
    started_from = file.identity.url if file.identity else None
    if started_from in {redact(url) for url in urls}:
        file.resume(stop)
    else:
        file.discard()
    transfer = _Transfer(file, sha256, size, stop, progress, dict(headers or {}), policy)
    errors: list[InputError] = []
    for url in sorted(urls, key=lambda u: redact(u) != started_from):
        try:
            return transfer.run(url)
        except InputError as error:
            errors.append(error)
    raise all_failed(errors)


@dataclass(frozen=True)
class _Transfer:
    """One call of `fetch`: the same content from one mirror after another."""

    file: PartFile
    sha256: str | None
    size: int | None
    stop: Stop
    progress: ProgressCallback
    headers: dict[str, str]
    policy: RetryPolicy

    def run(self, url: str) -> FetchedFile:
        file, resumed = self.file, self.file.size_of(url) > 0
        identity = self._copy(url) if url.startswith("file:") else self._download(url)
        digest, mismatch = file.fingerprint.hexdigest(), ""
        if self.sha256 and digest != self.sha256:
            mismatch = f"the sha256 is {digest}, expected {self.sha256}"
        elif not self.sha256 and self.size not in (None, file.size):
            mismatch = f"{file.size} bytes, expected {self.size}"
        if not mismatch:
            file.finish()
            source = identity.etag, identity.modified, file.fingerprint.spans
            return FetchedFile(file.path, url, file.size, digest, *source)
        file.discard()
        if resumed:  # the old bytes may be wrong: try once more from the start
            return self.run(url)
        raise CorruptInput(f"{url}: {mismatch}")

    def _copy(self, url: str) -> RemoteContent:
        identity, file = identify_local_file(url), self.file
        source = url_to_path(url).resolve()
        existing = file.identity if file.size_of(url) else None
        if existing and replace(existing, synced=0, sha256="") != identity:
            file.discard()
        if not file.size_of(url):
            try:
                file.link(source, self.stop, self.progress)
                return identity
            except OSError:  # another file system, or a file that we may not link
                require_free_space(file.path.parent, identity.size)
                file.start(identity)
        with source.open("rb") as data:
            data.seek(file.size)
            file.append(iter(lambda: data.read(COPY_BYTES), b""), self.stop, self.progress)
        return identity

    def _download(self, url: str) -> RemoteContent:
        import tenacity

        retrying = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(self.policy.attempts),
            wait=retry_delay(self.policy),
            retry=tenacity.retry_if_exception_type(RetryableError),
            sleep=self._sleep,
            reraise=True,
        )
        try:
            with HttpClient(self.policy) as client:
                while not retrying(self._attempt, client, url):
                    self._sleep(self.policy.base_delay)
        except RetryableError as error:
            why = f"{url}: {error}, {self.policy.attempts} times in a row"
            hint = "The partial file is kept: run the same command again, or set FILE=/a/local/copy"
            raise InputError(why, hint) from error
        assert self.file.identity is not None
        return self.file.identity

    def _attempt(self, client: HttpClient, url: str) -> bool:
        """Send one request; returns whether the file is complete.

        Raises:
            RetryableError: The file did not grow, or grew too slowly.
        """
        started, before = time.monotonic(), self.file.size_of(url)
        try:
            with map_errors(url):
                self._request(client, url)
            total = self.file.identity.size if self.file.identity else None
            if total not in (None, self.file.size):
                raise RetryableError(f"the response ended after {self.file.size} of {total} bytes")
        except RetryableError:
            seconds = self.policy.base_delay + time.monotonic() - started
            grown = self.file.size_of(url) - before
            if grown > self.policy.min_bytes_per_second * seconds:
                return False
            raise
        return True

    def _request(self, client: HttpClient, url: str) -> None:
        """Request what is missing and append it to the file."""
        file = self.file
        identity = file.identity if file.size_of(url) else None
        if identity and file.complete:
            return
        if identity and not self._would_notice_change(identity):
            identity = None
        offset = file.size if identity else 0
        headers = self.headers | request_headers(offset, identity)
        with client.stream("GET", url, headers) as response:
            head = ResponseHead.of(response)
            action = classify_response(head, offset, identity, self.size)
            match action:
                case ResponseAction.DONE:
                    return
                case ResponseAction.RETRY:
                    raise RetryableError(status_line(head.status), head.retry_after)
                case ResponseAction.START_OVER:
                    file.discard()
                    raise RetryableError(action.value)
                case ResponseAction.START:
                    require_free_space(file.path.parent, head.total or self.size)
                    file.start(RemoteContent(url, head.etag, head.modified, head.total))
                case ResponseAction.APPEND:
                    require_free_space(file.path.parent, head.total and head.total - offset)
                    file.identity = identity and replace(identity, size=identity.size or head.total)
                case _:
                    raise refusal(url, head, action)
            blocks = enforce_min_rate(response.iter_raw(), self.policy)
            file.append(blocks, self.stop, self.progress)

    def _would_notice_change(self, identity: RemoteContent) -> bool:
        """Whether a change of the content under its URL would be detected."""
        return bool(identity.etag or identity.modified or self.sha256)

    def _sleep(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.stop.check()
            time.sleep(min(left, 0.2))
