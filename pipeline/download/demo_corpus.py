"""The demo corpus: the docstrings of installed packages, one document per module.

It is real text from a narrow domain, available on every machine without a network or a licence.
Packages are parsed, not imported. The same installed versions give the same bytes. Parsing takes
most of the time, so files with less than a tenth of their bytes between triple quotes are skipped:
that saves a third of the time and loses a thirteenth of the text.
"""

from __future__ import annotations

import ast
import gc
import hashlib
import importlib.util
import os
import sysconfig
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from pipeline.core.errors import UserError
from pipeline.core.stop import Stop
from pipeline.download.fetch import FetchedFile
from pipeline.download.resume import ProgressCallback

MIN_DOCUMENT_BYTES = 200
MIN_DOCSTRING_DIVISOR = 10  # at least a tenth of a file is docstrings
ZSTD_LEVEL = 3
STDLIB = "stdlib"
NOT_STDLIB = {"site-packages", "dist-packages", "test", "tests", "idlelib", "idle_test"}
Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def write_demo_corpus(
    packages: list[str],
    partial_path: Path,
    stop: Stop,
    progress: ProgressCallback,
    limit_bytes: int | None = None,
) -> FetchedFile:
    """Write the docstrings of packages as Pile-style `.jsonl.zst`, sorted by module.

    Args:
        packages: Top-level names; `stdlib` is the standard library.
        partial_path: The file to write; an existing one is replaced.
        stop: Checked between modules.
        progress: Called with (bytes of text so far, limit).
        limit_bytes: Maximum bytes of text (UTF-8); modules are chosen by the hash of their name.

    Raises:
        UserError: A package is not installed, or there are no docstrings.
        Interrupted: A stop was requested.
    """
    import zstandard

    modules = sorted(
        ((name, package, path) for package in packages for name, path in _modules(package)),
        key=lambda module: hashlib.sha256(module[0].encode()).digest(),
    )
    size, documents = 0, {}
    with _gc_disabled():
        for name, package, path in modules:
            stop.check()
            text = module_text(name, path.read_bytes())
            length = len(text.encode())
            if length < MIN_DOCUMENT_BYTES:
                continue
            if limit_bytes is not None and size + length > limit_bytes:
                break
            size += length
            documents[name] = {"text": text, "meta": {"module": name, "package": package}}
            progress(size, limit_bytes)
    if not documents:
        limit = "" if limit_bytes is None else f" within {limit_bytes} bytes"
        raise UserError(f"there are no docstrings in {', '.join(packages)}{limit}")
    lines = b"".join(msgspec.json.encode(documents[name]) + b"\n" for name in sorted(documents))
    data = zstandard.ZstdCompressor(level=ZSTD_LEVEL).compress(lines)
    with partial_path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    url = "docstrings://" + ",".join(packages)
    return FetchedFile(partial_path, url, len(data), hashlib.sha256(data).hexdigest())


def module_text(module: str, source: bytes) -> str:
    """The docstrings of a module, each below its name, in the order of the source.

    Returns:
        The text; "" if there is too little, or the source does not parse.
    """
    quoted = source.split(b'"""')[1::2]
    if sum(map(len, quoted)) * MIN_DOCSTRING_DIVISOR < len(source):
        return ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ""
    docstrings = ((name, ast.get_docstring(node)) for name, node in _definitions(module, tree))
    text = "\n\n".join(f"{name}\n{doc}" for name, doc in docstrings if doc)
    return text.encode("utf-8", "replace").decode("utf-8")


def _definitions(
    name: str, node: ast.Module | Definition
) -> Iterator[tuple[str, ast.Module | Definition]]:
    yield name, node
    if isinstance(node, ast.Module | ast.ClassDef):
        prefix = f"{name}." if isinstance(node, ast.ClassDef) else ""
        for child in node.body:
            if isinstance(child, Definition):
                yield from _definitions(prefix + child.name, child)


def _modules(package: str) -> Iterator[tuple[str, Path]]:
    """The modules of a package (name and path), found without importing it."""
    prefix: tuple[str, ...] = (package,)
    skip: set[str] = set()
    if package == STDLIB:
        roots, prefix, skip = [Path(sysconfig.get_path("stdlib"))], (), NOT_STDLIB
    else:
        spec = importlib.util.find_spec(package) if package.isidentifier() else None
        if spec is None:
            raise UserError(
                f"the package {package!r} is not installed",
                f"Install it with: pip install {package}",
            )
        if not spec.submodule_search_locations:
            yield package, Path(spec.origin or "")
            return
        roots = [Path(p) for p in spec.submodule_search_locations]
    for root in roots:
        for path in root.rglob("*.py"):
            parts = path.relative_to(root).with_suffix("").parts
            if skip.isdisjoint(parts[:-1]) and all(map(str.isidentifier, parts)):
                yield ".".join(prefix + (parts[:-1] if parts[-1] == "__init__" else parts)), path


@contextmanager
def _gc_disabled() -> Iterator[None]:
    """Disable garbage collection: syntax trees have no cycles, and it takes a third of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
