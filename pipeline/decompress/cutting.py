"""Read a part of the corpus and cut it into chunks.

A part is one pass in constant memory. A chunk is compressed by several threads, and committed by
another thread while the next chunk is cut. A chunk that an interrupted pass has committed is read
again and compared, but not written again.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from pipeline.core.commit import Draft
from pipeline.core.errors import CorruptInput
from pipeline.core.receipt import Receipt
from pipeline.core.registry import Dataset
from pipeline.core.stage import Context
from pipeline.decompress.partition import FileSlice, SlicedFile, spans_of
from pipeline.sources.chunks import ChunkFacts, as_facts, chunk_facts
from pipeline.sources.codecs import CHUNK_NAME, CompressedFile
from pipeline.sources.formats import json_lines
from pipeline.sources.records import LineReader
from pipeline.sources.zstd_frames import FrameWriter


class PartReader:
    """Reads a part of the corpus as JSON lines; reports progress and stops where asked to.

    Args:
        unit: Unit of the raw files.
        receipt: Its receipt.
        slices: The part.
        dataset: Says how the files hold records.
        ctx: Context of the step.

    Attributes:
        line_reader: The lines of the part.
        file_starts: The files that begin in the part and are opened so far, each with the number of
            lines before it.
    """

    def __init__(
        self,
        unit: Path,
        receipt: Receipt,
        slices: Sequence[FileSlice],
        dataset: Dataset,
        ctx: Context,
    ) -> None:
        self._unit, self._receipt, self._slices, self._ctx = unit, receipt, slices, ctx
        self._files = [self._open(file_slice) for file_slice in slices]
        ranges = [
            file_slice.byte_range(
                spans_of(receipt, file_slice.name), receipt.outputs[file_slice.name].size
            )
            for file_slice in slices
        ]
        self._total_bytes = sum(end - start for start, end in ranges)
        self.file_starts: dict[str, int] = {}
        self.line_reader = LineReader(json_lines(self._opened_files(), dataset))

    def _open(self, file_slice: FileSlice) -> CompressedFile:
        path, spans = self._unit / file_slice.name, spans_of(self._receipt, file_slice.name)
        if file_slice.end:
            return SlicedFile(
                path, self._unit, spans, file_slice, self._report_progress_and_check_stop
            )
        return CompressedFile(
            path,
            self._unit,
            self._report_progress_and_check_stop,
            spans[0] if len(spans) == 1 else None,
        )

    def _report_progress_and_check_stop(self) -> None:
        self._ctx.stop.check()
        done = sum(file.bytes_read for file in self._files)
        self._ctx.progress(done, self._total_bytes, lines=self.line_reader.lines_read)

    def _opened_files(self) -> Iterator[CompressedFile]:
        """The files in order; each is verified when the next one is asked for."""
        for file_slice, file in zip(self._slices, self._files, strict=True):
            if not file_slice.first:  # all lines before the file have been read
                self.file_starts[file_slice.name] = self.line_reader.lines_read
            yield file
            file.verify(self._receipt)


class ChunkDraft:
    """A chunk whose text is complete, but whose file may still be being written.

    Args:
        draft: The unit.
        frames: Writes its file.
        facts: What its receipt will say, except the digests.
        open_resources: Commits the unit when it is closed without an error, else discards it.
    """

    def __init__(
        self, draft: Draft, frames: FrameWriter, facts: ChunkFacts, open_resources: ExitStack
    ) -> None:
        self._draft, self._frames = draft, frames
        self._facts, self._open_resources = facts, open_resources

    def commit(self) -> None:
        """Finish the file and commit the unit; discards it on an error. Any thread may call it."""
        with self._open_resources:
            self._facts["text"] = self._frames.finish()
            self._facts["xxh3"] = self._frames.xxh3
            self._draft.hashes[CHUNK_NAME] = self._frames.sha256
            self._draft.facts = as_facts(self._facts)


class ChunkCutter:
    """Cuts the lines of a part into chunks of at least `chunk_bytes`.

    Args:
        prefix: Names of the chunks begin with it.
        lines: The lines.
        chunk_bytes: Bytes of text.
        level: zstd level.
        ctx: Context of the step.

    Attributes:
        names: The chunks so far, in order.
    """

    def __init__(
        self, prefix: str, lines: LineReader, chunk_bytes: int, level: int, ctx: Context
    ) -> None:
        self.names: list[str] = []
        self._prefix, self._lines, self._ctx = prefix, lines, ctx
        self._chunk_bytes, self._level = chunk_bytes, level

    def cut(self) -> None:
        """Write and commit all chunks; one is committed while the next is cut.

        Raises:
            CorruptInput: A raw file is damaged, or a committed chunk holds another text.
        """
        commits: list[Future[None]] = []
        with ThreadPoolExecutor(1) as pool:
            while self._lines.has_more():
                name = f"{self._prefix}-{len(self.names):05d}"
                if receipt := self._ctx.has(name):
                    self._compare(receipt)
                else:
                    commits.append(pool.submit(self._start_chunk(name).commit))
                self.names.append(name)
                while len(commits) > 1:
                    commits.pop(0).result()
        for commit in commits:
            commit.result()

    def _start_chunk(self, name: str) -> ChunkDraft:
        """Compress the text of the next chunk; `ChunkDraft.commit` commits its unit later."""
        first_line, offset = self._lines.lines_read, self._lines.bytes_read
        started = time.monotonic()
        with ExitStack() as resources:
            draft = resources.enter_context(self._ctx.commit(name))
            frames = FrameWriter(draft.path / CHUNK_NAME, self._level, self._ctx.cpus)
            resources.enter_context(frames)
            self._add_text(frames)
            facts: ChunkFacts = {
                "lines": self._lines.lines_read - first_line,
                "bytes": self._lines.bytes_read - offset,
                "first_line": first_line,
                "offset": offset,
                # without the commit, during which the next chunk is cut: no second counts twice
                "seconds": round(time.monotonic() - started, 3),
                "text": "",
                "xxh3": "",
            }
            return ChunkDraft(draft, frames, facts, resources.pop_all())

    def _compare(self, receipt: Receipt) -> None:
        """Read the text of a committed chunk again and compare its digest."""
        with FrameWriter(None, threads=self._ctx.cpus) as frames:
            self._add_text(frames)
            text = frames.finish()
        if text != chunk_facts(receipt)["text"]:
            unit = self._ctx.folder / receipt.unit
            raise CorruptInput(f"{unit} was cut from another text", unit=unit)

    def _add_text(self, frames: FrameWriter) -> None:
        for piece in self._lines.next_lines(self._chunk_bytes):
            self._ctx.stop.check()
            frames.add(piece)
