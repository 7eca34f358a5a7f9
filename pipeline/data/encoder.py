"""Text to token ids: exactly those of the model's own tokenizer, with nothing added."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.errors import CorruptInput


class Encoder:
    """A tokenizer without post-processing, truncation and padding.

    Args:
        folder: A model folder with a `tokenizer.json`.
    """

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer

        try:
            self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # the library raises plain Exception
            raise CorruptInput(
                f"{folder / 'tokenizer.json'} cannot be loaded: {error}", unit=folder
            ) from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.name = f"tokenizers {version('tokenizers')}"
        # not the number of tokens: ids may have gaps
        self.vocabulary = 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values())

    def encode(self, texts: list[str]) -> list[npt.NDArray[np.int32]]:
        """Token ids of each text, int32, of the text's length; no special token is added."""
        batch = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.int32) for encoding in batch]

    def decode(self, ids: list[int]) -> str:
        """The text of token ids, special tokens shown."""
        text: str = self._tokenizer.decode(ids, skip_special_tokens=False)
        return text
