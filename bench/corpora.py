"""Corpora shaped like the Pile's, of any size, from the text that this machine has.

One JSON object a line, `{"text": …, "meta": {"id": …}}`, every other line with its non-ASCII
characters escaped; the form that is published is one zstd frame of level 3. `nih` has documents of
2.1 KiB on average, `law` of 15 KiB with a long tail. Both are the same text, cut differently. What
is larger than the text goes round again, cut at other places: no document comes twice.
"""

from __future__ import annotations

import gzip
import json
import math
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

import xxhash
import zstandard

from bench import text

VERSION = 2
LENGTHS = {"nih": (2_177, 1_972), "law": (15_360, 10_300)}  # mean and median, bytes
SMALLEST = 100
TINY = 80  # documents of the run that shows the cost of starting up
LEVEL = 3


@dataclass(frozen=True)
class Corpus:
    """A corpus on disk. `size`: bytes of plain jsonl. `distinct`: bytes of text there is in all."""

    name: str
    folder: str
    documents: int
    size: int
    text: int
    distinct: int

    @property
    def plain(self) -> Path:
        """As it was made; what some peers need, and what the other forms are made from."""
        return Path(self.folder) / f"{self.name}.jsonl"

    @property
    def packed(self) -> Path:
        """As it is published: one zstd frame."""
        return self.form("zst")

    def form(self, suffix: str) -> Path:
        """The corpus as `jsonl`, `zst` or `gz`, made now unless it is there."""
        path = self.plain if suffix == "jsonl" else self.plain.with_suffix(f".jsonl.{suffix}")
        if not path.exists():
            with _whole(path) as part, self.plain.open("rb") as plain, _packing(suffix, part) as to:
                shutil.copyfileobj(plain, to, 1 << 20)
        return path

    @property
    def gigabytes(self) -> float:
        """Size in 1e9 bytes of jsonl."""
        return self.size / 1e9


def make(kind: str, megabytes: float, folder: Path, source: Callable[[], str]) -> Corpus:
    """A corpus of at least so many MB of jsonl, unless it is there.

    Args:
        kind: One of `LENGTHS`.
        megabytes: 1e6 bytes of plain jsonl; 0 for one of `TINY` documents.
        folder: Where it goes.
        source: Gives the text; called where something is to be made.
    """
    name = f"{kind}-{megabytes:g}mb" if megabytes else f"{kind}-tiny"
    return write(name, folder, lambda: documents(kind, source()), megabytes * 1e6, source)


def write(
    name: str,
    folder: Path,
    texts: Callable[[], Iterator[str]],
    size: float,
    source: Callable[[], str] = str,
) -> Corpus:
    """Write texts as a corpus until it has the size (0: `TINY` documents), unless it is there."""
    info = folder / f"{name}.v{VERSION}.json"
    if info.exists():
        return Corpus(**{**json.loads(info.read_text()), "folder": str(folder)})
    folder.mkdir(parents=True, exist_ok=True)
    for suffix in (".zst", ".gz"):
        (folder / f"{name}.jsonl{suffix}").unlink(missing_ok=True)
    count = written = characters = 0
    with _whole(folder / f"{name}.jsonl") as part, part.open("wb") as file:
        for count, content in enumerate(texts(), 1):
            written += file.write(line(count - 1, content))
            characters += len(content.encode())
            if written >= size and count >= (0 if size else TINY):
                break
    made = Corpus(name, str(folder), count, written, characters, len(source().encode()))
    info.write_text(json.dumps(asdict(made)))
    return made


def line(number: int, content: str) -> bytes:
    """A document as a line of jsonl; those of odd numbers in raw UTF-8, the others escaped."""
    record = {"text": content, "meta": {"id": f"{number}"}}
    return json.dumps(record, ensure_ascii=number % 2 == 0).encode() + b"\n"


def documents(kind: str, source: str) -> Iterator[str]:
    """Documents without end, none of them twice: lengths are log-normal, cuts fall on spaces."""
    mean, median = LENGTHS[kind]
    sigma = math.sqrt(2 * math.log(mean / median))
    chance = random.Random(f"{VERSION} {kind}")
    at = 0
    given: set[bytes] = set()
    while True:
        length = max(SMALLEST, round(chance.lognormvariate(math.log(median), sigma)))
        end = source.find(" ", at + length)
        if end < 0:
            # the next round begins elsewhere, so that its cuts are others
            at = chance.randrange(min(len(source), mean))
            if len(source) < 2 * mean:
                raise ValueError(f"{len(source)} characters are too few for {kind}")
            continue
        found = source[at:end].strip()
        digest = xxhash.xxh3_128_digest(found.encode())
        if digest not in given:  # by chance a later round may cut as an earlier one did
            given.add(digest)
            yield found
        at = end + 1


def cached(folder: Path) -> str:
    """All the text there is; gathered once (a minute of CPU) and kept."""
    path = folder / f"text.v{VERSION}.txt"
    if not path.exists():
        with _whole(path) as part:
            part.write_text(text.harvest(), encoding="utf-8", newline="")
    return path.read_bytes().decode()


@contextmanager
def _packing(suffix: str, path: Path) -> Iterator[IO[bytes]]:
    if suffix == "gz":
        with gzip.GzipFile(path, "wb", compresslevel=6, mtime=0) as to:
            yield to
        return
    packer = zstandard.ZstdCompressor(level=LEVEL)
    with path.open("wb") as file, packer.stream_writer(file) as to:
        yield to


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A file that is there when it is whole, and not before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    yield part
    part.rename(path)
