"""Corpora of any size in the format of the Pile, made from text found on this machine.

Each line is a JSON object, `{"text": …, "meta": {"id": …}}`; every other line has its non-ASCII
characters escaped. The compressed file is one zstd frame of level 3. `nih` has documents of 2.1 KiB
on average, `law` of 15 KiB with a long tail; both are the same text, cut differently. A corpus that
is larger than the text uses the text several times, cut at other places: no document repeats.
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
MIN_DOCUMENT_CHARACTERS = 100
TINY_DOCUMENTS = 80  # of the corpus that measures the start-up cost
ZSTD_LEVEL = 3


@dataclass(frozen=True)
class Corpus:
    """A corpus on disk.

    `size`: bytes of plain jsonl. `text`: bytes of the texts. `distinct`: bytes of the source text.
    """

    name: str
    folder: str
    documents: int
    size: int
    text: int
    distinct: int

    @property
    def plain(self) -> Path:
        """The uncompressed file; the compressed files are made from it."""
        return Path(self.folder) / f"{self.name}.jsonl"

    @property
    def packed(self) -> Path:
        """The corpus as one zstd frame, as the Pile is published."""
        return self.in_format("zst")

    def in_format(self, suffix: str) -> Path:
        """The corpus as `jsonl`, `zst` or `gz`; made now unless it exists."""
        path = self.plain if suffix == "jsonl" else self.plain.with_suffix(f".jsonl.{suffix}")
        if not path.exists():
            with (
                _write_then_rename(path) as part,
                self.plain.open("rb") as plain,
                _compressed(suffix, part) as out,
            ):
                shutil.copyfileobj(plain, out, 1 << 20)
        return path

    @property
    def gigabytes(self) -> float:
        """Size in 1e9 bytes of jsonl."""
        return self.size / 1e9


def make(kind: str, megabytes: float, folder: Path, source: Callable[[], str]) -> Corpus:
    """Make a corpus of at least `megabytes`, unless it exists.

    Args:
        kind: One of `LENGTHS`.
        megabytes: 1e6 bytes of plain jsonl; 0 for a corpus of `TINY_DOCUMENTS` documents.
        folder: Where the corpus is written.
        source: Returns the source text; called only if the corpus has to be made.
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
    """Write texts to a corpus of at least `size` bytes (0: `TINY_DOCUMENTS`), unless it exists."""
    info = folder / f"{name}.v{VERSION}.json"
    if info.exists():
        return Corpus(**{**json.loads(info.read_text()), "folder": str(folder)})
    folder.mkdir(parents=True, exist_ok=True)
    for suffix in (".zst", ".gz"):
        (folder / f"{name}.jsonl{suffix}").unlink(missing_ok=True)
    count = written = text_bytes = 0
    with _write_then_rename(folder / f"{name}.jsonl") as part, part.open("wb") as file:
        for count, content in enumerate(texts(), 1):
            written += file.write(line(count - 1, content))
            text_bytes += len(content.encode())
            if written >= size and count >= (0 if size else TINY_DOCUMENTS):
                break
    corpus = Corpus(name, str(folder), count, written, text_bytes, len(source().encode()))
    info.write_text(json.dumps(asdict(corpus)))
    return corpus


def line(number: int, content: str) -> bytes:
    """A document as a line of jsonl: odd numbers in raw UTF-8, even numbers escaped."""
    record = {"text": content, "meta": {"id": f"{number}"}}
    return json.dumps(record, ensure_ascii=number % 2 == 0).encode() + b"\n"


def documents(kind: str, source: str) -> Iterator[str]:
    """Yield distinct documents without end: lengths are log-normal, cuts fall on spaces."""
    mean, median = LENGTHS[kind]
    sigma = math.sqrt(2 * math.log(mean / median))
    rng = random.Random(f"{VERSION} {kind}")
    start = 0
    seen: set[bytes] = set()
    while True:
        length = max(MIN_DOCUMENT_CHARACTERS, round(rng.lognormvariate(math.log(median), sigma)))
        end = source.find(" ", start + length)
        if end < 0:
            # The next pass starts elsewhere, so that its cuts differ.
            start = rng.randrange(min(len(source), mean))
            if len(source) < 2 * mean:
                raise ValueError(f"{len(source)} characters are too few for {kind}")
            continue
        document = source[start:end].strip()
        digest = xxhash.xxh3_128_digest(document.encode())
        if digest not in seen:  # a later pass may repeat a cut by chance
            seen.add(digest)
            yield document
        start = end + 1


def cached(folder: Path) -> str:
    """All source text; collected once (a minute of CPU) and cached."""
    path = folder / f"text.v{VERSION}.txt"
    if not path.exists():
        with _write_then_rename(path) as part:
            part.write_text(text.collect(), encoding="utf-8", newline="")
    return path.read_bytes().decode()


@contextmanager
def _compressed(suffix: str, path: Path) -> Iterator[IO[bytes]]:
    if suffix == "gz":
        with gzip.GzipFile(path, "wb", compresslevel=6, mtime=0) as out:
            yield out
        return
    compressor = zstandard.ZstdCompressor(level=ZSTD_LEVEL)
    with path.open("wb") as file, compressor.stream_writer(file) as out:
        yield out


@contextmanager
def _write_then_rename(path: Path) -> Iterator[Path]:
    """Write to a `.part` file that gets its final name when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    yield part
    part.rename(path)
