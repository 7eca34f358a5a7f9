"""Texts on which tokenizers tend to differ: all code points, runs, controls, special tokens."""

from __future__ import annotations

import base64
import random
import unicodedata
from collections.abc import Iterator

CODE_POINTS_PER_TEXT = 64
LONGEST_RUN_CHARACTERS = 100_000
CONTRACTIONS = (
    "I'm", "he's", "we'd", "they'll", "you've", "isn't", "I'M", "HE'S", "'s", "'t", "'re", "'ve",
    "'m", "'ll", "'d", "''", "'", " s",
)  # fmt: skip
RUN_UNITS = (
    " ", ".", "7", "\n", "\t", "-", "a", "漢", "é", "😀", "👩\u200d👩\u200d👧",
    " a", "\r\n", "_", "'s",
)  # fmt: skip
FRAGMENTS = ("a", "b", "  ", "<|endoftext|>", "<|endoftext", "|>", "\n", "'", "019")


def texts() -> Iterator[str]:
    """Yield all texts; they are the same each time."""
    rng = random.Random(0)
    yield from _code_points()
    yield from _runs()
    yield from _mixtures(rng)
    for _ in range(10):
        yield _megabyte(rng)


def _code_points() -> Iterator[str]:
    """Every assigned code point next to a letter, a space, a digit and itself."""
    for start in range(0, 0x110000, CODE_POINTS_PER_TEXT):
        assigned = [
            chr(code)
            for code in range(start, start + CODE_POINTS_PER_TEXT)
            if unicodedata.category(chr(code)) not in ("Cn", "Cs", "Co")
        ]
        if assigned:
            yield "".join(f"a{c}b {c} {c}{c}1{c}" for c in assigned)


def _runs() -> Iterator[str]:
    for unit in RUN_UNITS:
        for length in (1, 2, 3, 7, 15, 16, 17, 31, 64, 255, 1000, LONGEST_RUN_CHARACTERS):
            yield unit * (length // len(unit) or 1)
            yield f"x{unit * min(length, 999)}y"


def _mixtures(rng: random.Random) -> Iterator[str]:
    for _ in range(400):
        yield "".join(rng.choice(CONTRACTIONS) + rng.choice(" \n,.’") for _ in range(20))
        yield "".join(map(chr, rng.choices(range(128), k=200)))
        yield "".join(chr(code) for code in rng.choices(range(0x20, 0xD800), k=100))
        yield base64.b64encode(rng.randbytes(300)).decode()
        yield "".join(rng.choices(FRAGMENTS, k=12))
    yield from ("", " ", "\n", "\0", "<|endoftext|>", " <|endoftext|> ", "a<|endoftext|>b" * 9)


def _megabyte(rng: random.Random) -> str:
    """About a megabyte of text, mostly without spaces."""
    variant = rng.randrange(3)
    if variant == 0:
        return base64.b64encode(rng.randbytes(750_000)).decode()
    alphabet = "acgt" if variant == 1 else "漢字仮名交じり文。 "
    return "".join(rng.choices(alphabet, k=1_000_000 // len(alphabet[0].encode())))
