"""A corpus in parts that can be worked on independently: whole files, and spans of large ones.

A line belongs to the part in which it begins; one that begins where a part ends belongs to it, too.
So nobody has to know what comes before a part: its first line, or the rest of one, is left out, and
at its end a line is read to its end.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from pipeline.core.receipt import Receipt
from pipeline.sources.codecs import RawFile
from pipeline.sources.spans import Span


@dataclass(frozen=True)
class Slice:
    """Of a file, its spans from `first` to before `after`; all of it where it has but one."""

    name: str
    first: int = 0
    after: int = 0

    def bounds(self, spans: Sequence[Span], size: int) -> tuple[int, int]:
        """Its first byte, and the one after its last, in a file of that size and those spans."""
        if not self.after:
            return 0, size
        last = spans[self.after - 1]
        return spans[self.first].start, last.start + last.size


def divide(files: Sequence[tuple[str, int, Sequence[Span]]], size: int) -> list[list[Slice]]:
    """Parts of at least `size` raw bytes, but for the last one; files and spans stay in order.

    Args:
        files: Name, bytes, and spans of each, if it may be read in spans.
        size: Raw bytes.
    """
    parts: list[list[Slice]] = [[]]
    held = 0
    for name, whole, spans in files:
        for index, bytes_ in enumerate([span.size for span in spans] or [whole]):
            if held >= size:
                parts.append([])
                held = 0
            part = parts[-1]
            if part and part[-1].name == name:
                part[-1] = Slice(name, part[-1].first, index + 1)
            else:
                part.append(Slice(name, index, index + 1) if spans else Slice(name))
            held += bytes_
    return parts


class Sliced(RawFile):
    """The lines of a file that begin in a slice of it, in blocks: iterate over it, once.

    Every span that is read is verified.

    Args:
        path: The file.
        unit: The unit it belongs to, named in errors.
        spans: Those of the whole file.
        piece: Which of them.
        before_read: Called before each read; it may raise.

    Raises:
        CorruptInput: While iterating, where one of the spans is damaged.
    """

    def __init__(
        self,
        path: Path,
        unit: Path,
        spans: Sequence[Span],
        piece: Slice,
        before_read: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(path, unit, before_read)
        self._spans, self._piece = spans, piece

    def verify(self, receipt: Receipt) -> None:
        """Nothing is left to do: each span was compared when it was read."""

    def __iter__(self) -> Generator[bytes]:
        first, after = self._piece.first, self._piece.after
        inside = first == 0
        for span in self._spans[first:after]:
            for block in self._text(span):
                if inside:
                    yield block
                elif cut := block.find(b"\n") + 1:
                    inside = True
                    if rest := block[cut:]:
                        yield rest
        if inside:
            yield from self._rest_of_line(self._spans[after:])

    def _rest_of_line(self, spans: Sequence[Span]) -> Iterator[bytes]:
        for span in spans:
            cut = 0
            raw = self._raw(span)
            with closing(iter(raw)) as blocks:
                for block in blocks:
                    cut = block.find(b"\n") + 1
                    yield block[:cut] if cut else block
                    if cut:
                        break
            raw.hash_remaining()
            raw.verify_span(span)
            if cut:
                return

    def _text(self, span: Span) -> Iterator[bytes]:
        before, raw = self.bytes_read, self._raw(span)
        for block in raw:
            self.bytes_read = before + raw.bytes_read
            yield block
        raw.verify_span(span)

    def _raw(self, span: Span) -> RawFile:
        return RawFile(self.path, self.unit, self._before_read, span)
