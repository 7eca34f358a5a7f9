"""Partition of a corpus into parts that are read independently: whole files, or spans of one.

A line belongs to the part in which it begins; one that begins exactly where two parts meet belongs
to the first. So a part can be read without the one before it: its reader skips everything up to the
first line end, and reads the last line to its end.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from pipeline.core.receipt import Receipt
from pipeline.sources.codecs import CompressedFile
from pipeline.sources.spans import Span


def spans_of(receipt: Receipt, name: str) -> list[Span]:
    """The spans of a raw file; none if its receipt does not list them."""
    return [Span(**span) for span in receipt.facts.get("spans", {}).get(name, [])]


@dataclass(frozen=True)
class FileSlice:
    """The spans `first` to `end` (exclusive) of a file; if `end` is 0, the whole file."""

    name: str
    first: int = 0
    end: int = 0

    def byte_range(self, spans: Sequence[Span], size: int) -> tuple[int, int]:
        """Offsets of the first byte and after the last one, given the file's spans and size."""
        if not self.end:
            return 0, size
        last = spans[self.end - 1]
        return spans[self.first].start, last.start + last.size


def partition(
    files: Sequence[tuple[str, int, Sequence[Span]]], part_bytes: int
) -> list[list[FileSlice]]:
    """Divide files into parts of at least `part_bytes` raw bytes, except the last; keeps the order.

    Args:
        files: Name, size and spans of each file; no spans if it must be read as a whole.
        part_bytes: Raw bytes.
    """
    parts: list[list[FileSlice]] = [[]]
    filled = 0
    for name, file_size, spans in files:
        for index, size in enumerate([span.size for span in spans] or [file_size]):
            if filled >= part_bytes:
                parts.append([])
                filled = 0
            part = parts[-1]
            if part and part[-1].name == name:
                part[-1] = FileSlice(name, part[-1].first, index + 1)
            else:
                part.append(FileSlice(name, index, index + 1) if spans else FileSlice(name))
            filled += size
    return parts


class SlicedFile(CompressedFile):
    """The lines that belong to a slice of a file: iterate once to get them in blocks.

    Every span that is read is verified.

    Args:
        path: The file.
        unit: The unit that the file belongs to, named in errors.
        spans: All spans of the file.
        file_slice: The slice.
        before_read: Called before each read; may raise.

    Raises:
        CorruptInput: While iterating, if a span is damaged.
    """

    def __init__(
        self,
        path: Path,
        unit: Path,
        spans: Sequence[Span],
        file_slice: FileSlice,
        before_read: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(path, unit, before_read)
        self._spans, self._file_slice = spans, file_slice

    @property
    def partial(self) -> bool:
        """Whether only a slice of the file is read."""
        return self._file_slice.first > 0 or self._file_slice.end < len(self._spans)

    @property
    def starts_file(self) -> bool:
        """Whether the slice begins at the beginning of the file."""
        return self._file_slice.first == 0

    def verify(self, receipt: Receipt) -> None:
        """Do nothing: each span was verified when it was read."""

    def __iter__(self) -> Generator[bytes]:
        first, end = self._file_slice.first, self._file_slice.end
        inside = first == 0
        for span in self._spans[first:end]:
            for block in self._read_span(span):
                if inside:
                    yield block
                elif cut := block.find(b"\n") + 1:
                    inside = True
                    if rest := block[cut:]:
                        yield rest
        if inside:
            yield from self._rest_of_line(self._spans[end:])

    def _rest_of_line(self, spans: Sequence[Span]) -> Iterator[bytes]:
        """The bytes of the spans up to the first line end."""
        for span in spans:
            cut = 0
            raw = self._open_span(span)
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

    def _read_span(self, span: Span) -> Iterator[bytes]:
        before, raw = self.bytes_read, self._open_span(span)
        for block in raw:
            self.bytes_read = before + raw.bytes_read
            yield block
        raw.verify_span(span)

    def _open_span(self, span: Span) -> CompressedFile:
        return CompressedFile(self.path, self.unit, self._before_read, span)
