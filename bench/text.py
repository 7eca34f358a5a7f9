"""Distinct real text that is available without a network.

The sources are docstrings and comments of the interpreter's Python files and packages, their
documentation (`.rst`, `.md`, `.txt`, `.html`), Debian's files under /usr/share/doc and
/usr/share/man, and the NIH sample in the shared folder if it exists. Each paragraph is used once,
so licences and other copies do not repeat.
"""

from __future__ import annotations

import gzip
import html
import os
import re
import site
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from pathlib import Path

import msgspec
import zstandard

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("GRISTMILL_SHARED", ROOT.parent / "shared"))
DEBIAN_FOLDERS = (Path("/usr/share/doc"), Path("/usr/share/man"))
PROSE_SUFFIXES = {".rst", ".md", ".txt", ".html"}
MAX_FILE_BYTES = 20_000_000
MIN_PARAGRAPH_CHARACTERS = 60  # shorter ones are headings, signatures and numbers
CODE = re.compile(r'"""(.*?)"""|\'\'\'(.*?)\'\'\'|((?:^[ \t]*#.*\n)+)', re.DOTALL | re.MULTILINE)
HASH = re.compile(r"^[ \t]*#[#:! ]*", re.MULTILINE)
TAG = re.compile(r"<(script|style).*?</\1>|<[^>]*>", re.DOTALL)
ROFF = re.compile(r"^[.'].*\n?|\\f.|\\[&|^]|\\\(..", re.MULTILINE)
BLANK = re.compile(r"\n\s*\n")
WORD = re.compile(r"(?<![^\s(\"'])[A-Za-z]{2,}(?=[\s.,;:!?)\"']|$)")
SPACES = re.compile(r"[ \t]+")


def collect(roots: Iterable[Path] | None = None, limit: int | None = None) -> str:
    """Collect distinct paragraphs, separated by blank lines, in a reproducible order.

    Args:
        roots: Folders to search instead of the default ones.
        limit: Stop after about this many characters.
    """
    seen: set[bytes] = set()
    paragraphs: list[str] = []
    size = 0
    for text in _texts(roots):
        for paragraph in BLANK.split(text):
            tidy = SPACES.sub(" ", paragraph).strip()
            digest = blake2b(tidy.encode("utf-8", "replace"), digest_size=8).digest()
            if len(tidy) < MIN_PARAGRAPH_CHARACTERS or digest in seen or not _is_prose(tidy):
                continue
            seen.add(digest)
            paragraphs.append(tidy)
            size += len(tidy) + 2
        if limit is not None and size >= limit:
            break
    return "\n\n".join(paragraphs).encode("utf-8", "replace").decode()


def _is_prose(paragraph: str) -> bool:
    """Whether a paragraph consists of words, unlike tables of numbers and quoted code."""
    return len(WORD.findall(paragraph)) * 10 > len(paragraph)


def _texts(roots: Iterable[Path] | None) -> Iterator[str]:
    if roots is None:
        yield from nih()
    # Sorted by the hash of the path: neighbouring documents have unrelated sources, as in the Pile.
    files = set(_files(_roots() if roots is None else roots))
    for path in sorted(files, key=lambda path: blake2b(bytes(path)).digest()):
        yield _read(path)


def nih() -> Iterator[str]:
    """Yield the abstracts of the NIH sample, if it exists."""
    sample = SHARED / "data" / "nih_sample.jsonl.zst"
    if sample.is_file():
        with sample.open("rb") as file:
            lines = zstandard.ZstdDecompressor().stream_reader(file).read()
        yield from (msgspec.json.decode(line)["text"] for line in lines.splitlines())


def _roots() -> list[Path]:
    python = {sysconfig.get_path("stdlib"), sysconfig.get_path("purelib")}
    base = Path(sys.base_prefix, *Path(sysconfig.get_path("stdlib")).parts[-2:], "site-packages")
    return [*map(Path, python), base, *map(Path, site.getsitepackages()), *DEBIAN_FOLDERS]


def _files(roots: Iterable[Path]) -> Iterator[Path]:
    for root in roots:
        for folder, _, names in os.walk(root):
            yield from (Path(folder, n).resolve() for n in names if _file_type(Path(folder, n)))


def _file_type(path: Path) -> str:
    """How to read a file; "" if it is not used."""
    plain = path.with_suffix("") if path.suffix == ".gz" else path
    if plain.suffix in (".py", ".pyi"):
        return "code"
    if plain.suffix in PROSE_SUFFIXES:
        return "html" if plain.suffix == ".html" else "prose"
    if path.parent.parent == DEBIAN_FOLDERS[1] and path.parent.name.startswith("man"):
        return "roff"
    return "prose" if DEBIAN_FOLDERS[0] in path.parents and path.suffix in ("", ".gz") else ""


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            return ""
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        text = data.decode()
    except (OSError, EOFError, ValueError):
        return ""
    file_type = _file_type(path)
    if file_type == "code":
        matches = (a or b or HASH.sub("", c) for a, b, c in CODE.findall(text))
        return "\n\n".join(matches)
    if file_type == "html":
        return html.unescape(TAG.sub(" ", text))
    return ROFF.sub("", text.replace("\\-", "-")) if file_type == "roff" else text
