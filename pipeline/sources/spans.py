"""Spans: parts of a file that can be read on their own, found and hashed while it streams by.

A span is a run of complete zstd frames, or a whole file of any other kind. Its xxh3-128 lets a
reader verify the span alone, at a tenth of the cost of a sha256.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import xxhash

from pipeline.sources.zstd_frames import FrameScanner

MIN_SPAN_BYTES = 1 << 24  # many small files have one span each
MIN_SPAN_DIVISOR = 256  # and at least 1/256 of the bytes before it: 2,500 spans in 15 GB


@dataclass(frozen=True)
class Span:
    """`size` bytes of a file from offset `start`, and their xxh3-128 (hex)."""

    start: int
    size: int
    xxh3: str


class Fingerprint:
    """The sha256 and the spans of a stream; used like a `hashlib` hash.

    Attributes:
        size: Bytes so far.
    """

    def __init__(self) -> None:
        self.size = 0
        self._sha256, self._xxh3 = hashlib.sha256(), xxhash.xxh3_128()
        self._scanner = FrameScanner()
        self._frames_seen = 0
        self._spans: list[Span] = []
        self._span_start = 0
        self._span_hash = xxhash.xxh3_128()
        self._tail = b""  # not hashed yet: the magic number of the next span may have begun

    def update(self, data: bytes) -> None:
        """Add the next bytes of the stream."""
        self._sha256.update(data)
        self._xxh3.update(data)
        self.size += len(data)
        if self._scanner.invalid_at is None:
            self._scanner.feed(data)
            self._update_spans(self._tail + data)

    def hexdigest(self) -> str:
        """sha256 (hex) of the stream so far."""
        return self._sha256.hexdigest()

    @property
    def spans(self) -> tuple[Span, ...]:
        """The spans of the stream so far; a single one unless it consists of zstd frames."""
        if not self._spans or not self._scanner.complete:
            return (Span(0, self.size, self._xxh3.hexdigest()),)
        last = self._span_hash.copy()
        last.update(self._tail)
        size = self.size - self._span_start
        return (*self._spans, Span(self._span_start, size, last.hexdigest()))

    def _update_spans(self, data: bytes) -> None:
        """Hash `data`, the end of the stream, into the current span and those that begin in it."""
        view, offset = memoryview(data), self.size - len(data)
        for start in self._scanner.starts[self._frames_seen :]:
            size = start - self._span_start
            if size >= max(MIN_SPAN_BYTES, start // MIN_SPAN_DIVISOR):
                self._span_hash.update(view[: start - offset])
                view, offset = view[start - offset :], start
                self._spans.append(Span(self._span_start, size, self._span_hash.hexdigest()))
                self._span_start, self._span_hash = start, xxhash.xxh3_128()
        self._frames_seen = len(self._scanner.starts)
        hashed = max(0, len(view) - 3)
        self._span_hash.update(view[:hashed])
        self._tail = bytes(view[hashed:])
