"""Text to token ids: exactly those of the model's own tokenizer, with nothing added.

`tokenizers` defines what is right, and `fastokens` is some seventy times faster. The fast one is
trusted as far as it is checked: on hard texts when it is loaded, then on about one document in a
thousand, the same ones in every run. Where it does not load, or differs, `tokenizers` does it.

Text that spells a special token, such as `<|endoftext|>`, becomes that token, as it does in
`tokenizer(text, add_special_tokens=False)`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from itertools import chain
from pathlib import Path
from typing import Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from pipeline.core.errors import CorruptInput

Flat = tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64]]
"""Ids of several texts end to end, and where each begins: (texts + 1), from 0 on."""

PROBES = (
    "Don't they'll we've I'm she'd it's ISN'T ’twas o’clock",
    "1 12 123 1234567890 3.14159 1,000,000 v2.0.1 0x1F 10^-6 ½ ²",
    "a  b   c    d\t\te \n\n\n f\r\n\r\n   \n" + " " * 300 + "x" + "\u00a0" * 5 + "\u3000 y\u2028z",
    "." * 200 + " ... --- === *** !!! ???" + "-" * 80,
    "naïve Ångström café cafe\u0301 ﬁnance Ĳssel ß ẞ İstanbul",
    "Привет, мир! Καλημέρα κόσμε. שלום עולם مرحبا بالعالم नमस्ते दुनिया สวัสดีชาวโลก",
    "你好，世界。こんにちは世界。안녕하세요 세계 " + "漢" * 50,
    "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 🇩🇪 ☃️ \U0001f9ec\U0001d4d0 \ufffd \u200b\u200d\ufeff",
    "\0\x01\x1b[0m\x7f\x85 tab\tvt\vff\f",
    "def f(x):\n    return {'a': [1, 2], \"b\": x**2}  # äöü\n",
    "https://example.org/a_b?c=d&e=%20#f me@example.org C:\\Users\\x",
    "CamelCaseWordsAND_SNAKE_case ALLCAPS iPhone5S H2O β-catenin IL-6 p<0.05",
    "",
    " ",
    "\n",
)


class Encoder(Protocol):
    """A tokenizer without post-processing, truncation and padding. `name`: package and version."""

    name: str

    def encode(self, texts: list[str]) -> Flat:
        """Token ids of texts; no special token is added."""
        ...


class Mismatch(Exception):
    """The fast encoder gave other ids than the model's own tokenizer."""


class Reference:
    """The model's own tokenizer, by the library that it was made with.

    Args:
        folder: A model folder with a `tokenizer.json`.

    Raises:
        CorruptInput: It cannot be loaded.
    """

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer

        path = folder / "tokenizer.json"
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises plain Exception
            raise CorruptInput(f"{path} cannot be loaded: {error}", unit=folder) from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.name = f"tokenizers {version('tokenizers')}"
        # not the number of tokens: ids may have gaps
        self.vocabulary = 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values())
        added = self._tokenizer.get_added_tokens_decoder().values()
        self.added = [str(token.content) for token in added]

    def encode(self, texts: list[str]) -> Flat:
        """Token ids of texts; no special token is added."""
        found = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        offsets = np.zeros(len(texts) + 1, dtype=np.int64)
        np.cumsum([len(encoding) for encoding in found], out=offsets[1:])
        ids = chain.from_iterable(encoding.ids for encoding in found)
        return np.fromiter(ids, dtype=np.uint32, count=int(offsets[-1])), offsets

    def decode(self, ids: list[int]) -> str:
        """The text of token ids, special tokens shown."""
        text: str = self._tokenizer.decode(ids, skip_special_tokens=False)
        return text


class Fast:
    """The same ids by `fastokens`.

    Args:
        folder: A model folder with a `tokenizer.json`.
        reference: What it is checked against.

    Raises:
        Mismatch: It is not made for such a tokenizer, or gives other ids for `PROBES`.
    """

    def __init__(self, folder: Path, reference: Reference) -> None:
        try:
            self.name = f"fastokens {version('fastokens')}"
        except PackageNotFoundError as error:
            raise Mismatch("the package fastokens is not installed") from error
        self._reference = reference
        with _or_mismatch(f"{self.name} does not load it"):
            import fastokens

            self._tokenizer = fastokens.Tokenizer.from_json_str(_bare(folder / "tokenizer.json"))
        self.check([*PROBES, *(f"a{token} b{token}" for token in reference.added)])

    def encode(self, texts: list[str]) -> Flat:
        """Token ids of texts; no special token is added.

        Raises:
            Mismatch: It cannot do one of them.
        """
        with _or_mismatch(f"{self.name} cannot encode a text"):
            ids, offsets = self._tokenizer.encode_batch_flat(texts)
        return np.frombuffer(ids, np.uint32), np.frombuffer(offsets, np.int64)

    def check(self, texts: list[str], found: Flat | None = None) -> None:
        """Compare the ids of texts, or those that were `found` for them, with the reference's.

        Raises:
            Mismatch: They differ.
        """
        ids, offsets = found or self.encode(texts)
        right, ends = self._reference.encode(texts)
        if np.array_equal(offsets, ends) and np.array_equal(ids, right):
            return
        for index, text in enumerate(texts):
            ours = ids[offsets[index] : offsets[index + 1]]
            if not np.array_equal(ours, right[ends[index] : ends[index + 1]]):
                raise Mismatch(f"{self.name} gives other ids for {text[:60]!r}")


def _bare(path: Path) -> str:
    """A tokenizer file without what would add tokens, or take some away.

    It fails to load some of that, too. The rest, megabytes of vocabulary, is not parsed here.
    """
    content = msgspec.json.decode(path.read_bytes(), type=dict[str, msgspec.Raw])
    for name in ("post_processor", "truncation", "padding"):
        content[name] = msgspec.Raw(b"null")
    return msgspec.json.encode(content).decode()


@contextmanager
def _or_mismatch(what: str) -> Iterator[None]:
    """Whatever the fast one raises, a panic of Rust among it, there is the other one."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise Mismatch(f"{what}: {error}") from error


def load_fast(folder: Path, reference: Reference) -> tuple[Encoder, str | None]:
    """The fastest encoder that can be trusted, and why that is the reference, if it is."""
    try:
        return Fast(folder, reference), None
    except Mismatch as error:
        return reference, str(error)
