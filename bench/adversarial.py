"""Texts that tokenizers disagree on: every code point, runs, controls, special tokens as text."""

from __future__ import annotations

import base64
import random
import unicodedata
from collections.abc import Iterator

BLOCK = 64
LONG = 100_000
CONTRACTIONS = (
    "I'm", "he's", "we'd", "they'll", "you've", "isn't", "I'M", "HE'S", "'s", "'t", "'re", "'ve",
    "'m", "'ll", "'d", "''", "'", " s",
)  # fmt: skip
RUNS = (
    " ", ".", "7", "\n", "\t", "-", "a", "漢", "é", "😀", "👩\u200d👩\u200d👧",
    " a", "\r\n", "_", "'s",
)  # fmt: skip
PIECES = ("a", "b", "  ", "<|endoftext|>", "<|endoftext", "|>", "\n", "'", "019")


def texts() -> Iterator[str]:
    """All of them; the same each time."""
    chance = random.Random(0)
    yield from _code_points()
    yield from _runs()
    yield from _mixtures(chance)
    for _ in range(10):
        yield _long(chance)


def _code_points() -> Iterator[str]:
    """Every assigned code point with a letter, a space, a digit and itself beside it."""
    for start in range(0, 0x110000, BLOCK):
        found = [
            chr(code)
            for code in range(start, start + BLOCK)
            if unicodedata.category(chr(code)) not in ("Cn", "Cs", "Co")
        ]
        if found:
            yield "".join(f"a{c}b {c} {c}{c}1{c}" for c in found)


def _runs() -> Iterator[str]:
    for unit in RUNS:
        for length in (1, 2, 3, 7, 15, 16, 17, 31, 64, 255, 1000, LONG):
            yield unit * (length // len(unit) or 1)
            yield f"x{unit * min(length, 999)}y"


def _mixtures(chance: random.Random) -> Iterator[str]:
    for _ in range(400):
        yield "".join(chance.choice(CONTRACTIONS) + chance.choice(" \n,.’") for _ in range(20))
        yield "".join(map(chr, chance.choices(range(128), k=200)))
        yield "".join(chr(code) for code in chance.choices(range(0x20, 0xD800), k=100))
        yield base64.b64encode(chance.randbytes(300)).decode()
        yield "".join(chance.choices(PIECES, k=12))
    yield from ("", " ", "\n", "\0", "<|endoftext|>", " <|endoftext|> ", "a<|endoftext|>b" * 9)


def _long(chance: random.Random) -> str:
    """About a megabyte without a space in most of it."""
    kind = chance.randrange(3)
    if kind == 0:
        return base64.b64encode(chance.randbytes(750_000)).decode()
    alphabet = "acgt" if kind == 1 else "漢字仮名交じり文。 "
    return "".join(chance.choices(alphabet, k=1_000_000 // len(alphabet[0].encode())))
