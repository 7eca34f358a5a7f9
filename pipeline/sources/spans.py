"""Where a zstd stream can be taken up in the middle: found and hashed while it goes by.

A span is some whole frames, or a whole file of anything else. Its hash lets those who read it alone
verify it, at a tenth of what a sha256 costs.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import xxhash

from pipeline.sources.zstd_frames import FrameScanner

LEAST = 1 << 24  # bytes of a span; of a million small files none has any
SHARE = 256  # nor less than that part of what lies before: 2,500 spans in 15 GB, not a million


@dataclass(frozen=True)
class Span:
    """Bytes of a file from `start` on, and their xxh3-128 (hex)."""

    start: int
    size: int
    xxh3: str


class Fingerprint:
    """sha256 of a stream, and its spans: give it to `update` as a hash is given.

    Attributes:
        size: Bytes so far.
    """

    def __init__(self) -> None:
        self.size = 0
        self._sha256, self._whole = hashlib.sha256(), xxhash.xxh3_128()
        self._walk = FrameScanner()
        self._seen = 0  # frames of the walk
        self._spans: list[Span] = []
        self._start = 0
        self._hash = xxhash.xxh3_128()
        self._tail = b""  # the magic number of a frame may have begun

    def update(self, data: bytes) -> None:
        """Go on over the next bytes."""
        self._sha256.update(data)
        self._whole.update(data)
        self.size += len(data)
        if self._walk.lost is None:
            self._walk.feed(data)
            self._cut(self._tail + data)

    def hexdigest(self) -> str:
        """sha256 of all so far."""
        return self._sha256.hexdigest()

    @property
    def spans(self) -> tuple[Span, ...]:
        """The spans of the whole stream: one, unless there are several frames and nothing else."""
        if not self._spans or not self._walk.whole:
            return (Span(0, self.size, self._whole.hexdigest()),)
        last = self._hash.copy()
        last.update(self._tail)
        return (*self._spans, Span(self._start, self.size - self._start, last.hexdigest()))

    def _cut(self, data: bytes) -> None:
        """Hash what is known to belong to the span at hand, or to those that begin in `data`."""
        view, place = memoryview(data), self.size - len(data)
        for start in self._walk.starts[self._seen :]:
            if start - self._start >= max(LEAST, start // SHARE):
                self._hash.update(view[: start - place])
                view, place = view[start - place :], start
                self._spans.append(Span(self._start, start - self._start, self._hash.hexdigest()))
                self._start, self._hash = start, xxhash.xxh3_128()
        self._seen = len(self._walk.starts)
        kept = max(0, len(view) - 3)
        self._hash.update(view[:kept])
        self._tail = bytes(view[kept:])
