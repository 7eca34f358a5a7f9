"""Distinct real text, as much as can be had without a network: what lies about on any machine.

Docstrings and comments of every Python file of the interpreter and its packages, the documents that
come with them (`.rst`, `.md`, `.txt`, `.html`), what Debian puts under /usr/share/doc and
/usr/share/man, and the NIH sample in the shared folder if there is one. A paragraph is taken once,
so licences and copied documents do not count twice.
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
DEBIAN = (Path("/usr/share/doc"), Path("/usr/share/man"))
PROSE = {".rst", ".md", ".txt", ".html"}
LARGEST = 20_000_000
SHORTEST = 60  # bytes of a paragraph; below are headings, signatures and numbers
CODE = re.compile(r'"""(.*?)"""|\'\'\'(.*?)\'\'\'|((?:^[ \t]*#.*\n)+)', re.DOTALL | re.MULTILINE)
HASH = re.compile(r"^[ \t]*#[#:! ]*", re.MULTILINE)
TAG = re.compile(r"<(script|style).*?</\1>|<[^>]*>", re.DOTALL)
ROFF = re.compile(r"^[.'].*\n?|\\f.|\\[&|^]|\\\(..", re.MULTILINE)
BLANK = re.compile(r"\n\s*\n")
WORD = re.compile(r"(?<![^\s(\"'])[A-Za-z]{2,}(?=[\s.,;:!?)\"']|$)")
SPACES = re.compile(r"[ \t]+")


def harvest(roots: Iterable[Path] | None = None, limit: int | None = None) -> str:
    """Paragraphs with a blank line between them, each but once; always in the same order.

    Args:
        roots: Folders to look into, in place of all that are known.
        limit: Characters after which it is enough.
    """
    seen: set[bytes] = set()
    kept: list[str] = []
    size = 0
    for text in _texts(roots):
        for paragraph in BLANK.split(text):
            tidy = SPACES.sub(" ", paragraph).strip()
            digest = blake2b(tidy.encode("utf-8", "replace"), digest_size=8).digest()
            if len(tidy) < SHORTEST or digest in seen or not _prose(tidy):
                continue
            seen.add(digest)
            kept.append(tidy)
            size += len(tidy) + 2
        if limit is not None and size >= limit:
            break
    return "\n\n".join(kept).encode("utf-8", "replace").decode()


def _prose(paragraph: str) -> bool:
    """Whether it is made of words; tables of numbers and code between quotes are not."""
    return len(WORD.findall(paragraph)) * 10 > len(paragraph)


def _texts(roots: Iterable[Path] | None) -> Iterator[str]:
    if roots is None:
        yield from nih()
    # by the hash of its path: neighbours in the corpus come from all over, as in the Pile
    files = set(_files(_roots() if roots is None else roots))
    for path in sorted(files, key=lambda path: blake2b(bytes(path)).digest()):
        yield _read(path)


def nih() -> Iterator[str]:
    """The abstracts of the NIH sample, if it is there."""
    sample = SHARED / "data" / "nih_sample.jsonl.zst"
    if sample.is_file():
        with sample.open("rb") as file:
            lines = zstandard.ZstdDecompressor().stream_reader(file).read()
        yield from (msgspec.json.decode(line)["text"] for line in lines.splitlines())


def _roots() -> list[Path]:
    python = {sysconfig.get_path("stdlib"), sysconfig.get_path("purelib")}
    base = Path(sys.base_prefix, *Path(sysconfig.get_path("stdlib")).parts[-2:], "site-packages")
    return [*map(Path, python), base, *map(Path, site.getsitepackages()), *DEBIAN]


def _files(roots: Iterable[Path]) -> Iterator[Path]:
    for root in roots:
        for folder, _, names in os.walk(root):
            yield from (Path(folder, n).resolve() for n in names if _kind(Path(folder, n)))


def _kind(path: Path) -> str:
    """How to read a file; "" where it holds no text worth taking."""
    plain = path.with_suffix("") if path.suffix == ".gz" else path
    if plain.suffix in (".py", ".pyi"):
        return "code"
    if plain.suffix in PROSE:
        return "html" if plain.suffix == ".html" else "prose"
    if path.parent.parent == DEBIAN[1] and path.parent.name.startswith("man"):
        return "roff"
    return "prose" if DEBIAN[0] in path.parents and path.suffix in ("", ".gz") else ""


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > LARGEST:
            return ""
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        text = data.decode()
    except (OSError, EOFError, ValueError):
        return ""
    kind = _kind(path)
    if kind == "code":
        found = (a or b or HASH.sub("", c) for a, b, c in CODE.findall(text))
        return "\n\n".join(found)
    if kind == "html":
        return html.unescape(TAG.sub(" ", text))
    return ROFF.sub("", text.replace("\\-", "-")) if kind == "roff" else text
