"""zstd frames of all kinds, and data sets as readers see them, for tests."""

from __future__ import annotations

import random
from typing import Any

import zstandard

from pipeline.core.registry import Dataset

LEVELS = (-3, 1, 3, 19)


def dataset(form: str = "auto", **settings: Any) -> Dataset:
    """A data set that is read in that form."""
    return Dataset(id="x", urls=["file:///x"], form=form, **settings)


def frames(chance: random.Random) -> list[bytes]:
    """A few random frames of all kinds, some of them skippable."""
    made = []
    for _ in range(chance.randint(1, 5)):
        texts = (b"", b"a", chance.randbytes(200_000), b"x" * 2_000_000, b"hello world " * 30_000)
        text = chance.choice(texts)[: chance.randint(0, 2_000_000)]
        if chance.random() < 0.2:
            made.append(b"\x5a\x2a\x4d\x18" + len(text).to_bytes(4, "little") + text)
            continue
        compressor = zstandard.ZstdCompressor(
            level=chance.choice(LEVELS),
            write_checksum=chance.random() < 0.5,
            write_content_size=chance.random() < 0.5,
        )
        stream = compressor.compressobj()
        streamed = stream.compress(text) + stream.flush()
        made.append(streamed if chance.random() < 0.5 else compressor.compress(text))
    return made
