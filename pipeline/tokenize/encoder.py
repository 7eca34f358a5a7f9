"""Text to token ids: exactly those of the model's own tokenizer, with no special token added.

`tokenizers` is the reference, and `fastokens` is about seventy times faster. The fast encoder is
checked against the reference: on difficult texts when it is loaded, then on about one document in a
thousand, the same ones in every run. Where it does not load or differs, the reference is used: see
`pipeline.tokenize.reference_marker` for chunks whose sample has shown nothing.

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

from pipeline.core.errors import CorruptInput, UserError

FlatIds = tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64]]
"""Ids of several texts end to end, and where each begins in them, (texts + 1,), from 0."""

TOKENIZER_FILE = "tokenizer.json"
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
    """A tokenizer without post-processing, truncation or padding. `name`: package and version."""

    name: str

    def encode(self, texts: list[str]) -> FlatIds:
        """Token ids of texts, without special tokens added."""
        ...


class EncoderMismatch(Exception):
    """The fast encoder cannot be used, or its ids differ from the reference's."""


class WrongIds(EncoderMismatch):
    """The fast encoder gives other ids than the reference."""


class ReferenceEncoder:
    """The model's own tokenizer, run by `tokenizers`.

    Args:
        folder: A model folder with a `tokenizer.json`.

    Raises:
        CorruptInput: It cannot be loaded.
    """

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer

        path = folder / TOKENIZER_FILE
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises plain Exception
            raise CorruptInput(f"{path} cannot be loaded: {error}", unit=folder) from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.name = f"tokenizers {version('tokenizers')}"
        # the largest id + 1, not the number of tokens: ids may have gaps
        self.vocabulary_size = 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values())
        added = self._tokenizer.get_added_tokens_decoder().values()
        self.added_tokens = [str(token.content) for token in added]

    def encode(self, texts: list[str]) -> FlatIds:
        """Token ids of texts, without special tokens added."""
        encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        offsets = np.zeros(len(texts) + 1, dtype=np.int64)
        np.cumsum([len(encoding) for encoding in encodings], out=offsets[1:])
        ids = chain.from_iterable(encoding.ids for encoding in encodings)
        return np.fromiter(ids, dtype=np.uint32, count=int(offsets[-1])), offsets

    def decode(self, ids: list[int]) -> str:
        """The text of token ids, including special tokens."""
        text: str = self._tokenizer.decode(ids, skip_special_tokens=False)
        return text

    def check_rows(self, rows: int, names: list[str], encoded: FlatIds) -> None:
        """Refuse ids for which a model has no embedding.

        Args:
            rows: Rows of the model's embedding.
            names: The names of documents.
            encoded: Their ids.

        Raises:
            UserError: An id is not below `rows`.
        """
        ids, offsets = encoded
        beyond = np.flatnonzero(ids >= rows)
        if not len(beyond):
            return
        name = names[int(np.searchsorted(offsets, beyond[0], side="right")) - 1]
        token = int(ids[beyond[0]])
        raise UserError(
            f"the document {name} contains {self.decode([token])!r}, which is token {token}, and "
            f"the embedding of the model has {rows} rows",
            "Take another MODEL, or save this one after "
            f"resize_token_embeddings({self.vocabulary_size})",
        )


class FastEncoder:
    """The tokenizer run by `fastokens`.

    Args:
        folder: A model folder with a `tokenizer.json`.
        reference: The encoder to check against.

    Raises:
        EncoderMismatch: The tokenizer is not supported, or ids of `PROBES` differ.
    """

    def __init__(self, folder: Path, reference: ReferenceEncoder) -> None:
        try:
            self.name = f"fastokens {version('fastokens')}"
        except PackageNotFoundError as error:
            raise EncoderMismatch("the package fastokens is not installed") from error
        self._reference = reference
        with _or_mismatch(f"{self.name} does not load this tokenizer"):
            import fastokens

            self._tokenizer = fastokens.Tokenizer.from_json_str(
                _without_postprocessing(folder / TOKENIZER_FILE)
            )
        self.check([*PROBES, *(f"a{token} b{token}" for token in reference.added_tokens)])

    def encode(self, texts: list[str]) -> FlatIds:
        """Token ids of texts, without special tokens added.

        Raises:
            EncoderMismatch: A text cannot be encoded.
        """
        with _or_mismatch(f"{self.name} cannot encode a text"):
            ids, offsets = self._tokenizer.encode_batch_flat(texts)
        return np.frombuffer(ids, np.uint32), np.frombuffer(offsets, np.int64)

    def check(self, texts: list[str], encoded: FlatIds | None = None) -> None:
        """Compare the ids of texts with the reference's.

        Args:
            texts: The texts.
            encoded: Their ids; if None, the texts are encoded.

        Raises:
            WrongIds: They differ.
        """
        ids, offsets = encoded or self.encode(texts)
        right_ids, right_offsets = self._reference.encode(texts)
        if np.array_equal(offsets, right_offsets) and np.array_equal(ids, right_ids):
            return
        for index, text in enumerate(texts):
            actual = ids[offsets[index] : offsets[index + 1]]
            if not np.array_equal(
                actual, right_ids[right_offsets[index] : right_offsets[index + 1]]
            ):
                raise WrongIds(f"{self.name} gives other ids for {text[:60]!r}")


def _without_postprocessing(path: Path) -> str:
    """The content of a tokenizer file without the parts that add or remove tokens.

    `fastokens` cannot load some of these parts. The rest, megabytes of vocabulary, is not parsed.
    """
    content = msgspec.json.decode(path.read_bytes(), type=dict[str, msgspec.Raw])
    for name in ("post_processor", "truncation", "padding"):
        content[name] = msgspec.Raw(b"null")
    return msgspec.json.encode(content).decode()


@contextmanager
def _or_mismatch(what: str) -> Iterator[None]:
    """Turn any exception of the fast encoder, including a Rust panic, into `EncoderMismatch`."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise EncoderMismatch(f"{what}: {error}") from error


def load_encoder(folder: Path, reference: ReferenceEncoder) -> tuple[Encoder, str | None]:
    """The fast encoder and None; where it cannot be used, the reference and the reason."""
    try:
        return FastEncoder(folder, reference), None
    except EncoderMismatch as error:
        return reference, str(error)
