"""What scores add up to: perplexity and bits per byte, and how sure one can be of them.

Intervals are bootstrapped over documents, for those are what is independent of one another: the
tokens within a document are not, and an interval over tokens would be too narrow by far.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.modeling.scoring import Floats, Ints

LARGEST = 700.0
"""Nats of which exp is still a number."""

DEFINITIONS = {
    "perplexity": (
        "exp(sum of negative log-likelihoods / number of tokens) over all text tokens of the "
        "documents; the model's prefix token stands before each document, the first text token is "
        "scored given it, the end token is not scored"
    ),
    "bits_per_byte": (
        "sum of negative log-likelihoods / ln 2 / UTF-8 bytes of the text; it compares models of "
        "different tokenizers"
    ),
    "word_perplexity": (
        "exp(sum of negative log-likelihoods / number of words), words being what white space "
        "separates; it, too, compares models of different tokenizers"
    ),
    "ci95": "95 % interval: percentile bootstrap over documents",
    "gap": (
        "adaptation's gain on training documents beyond that on test documents, nats per token: "
        "paired difference on test minus that on train; above zero: some of what it learned does "
        "not carry over"
    ),
    "by_length": "documents by their tokens; each document's change counts by its tokens",
    "by_position": "tokens by how many stand before them in their document",
    "paired": (
        "adapted minus base on the same documents, nats per token (below zero: adapted is better), "
        "with the 95 % interval of a bootstrap over documents; perplexity_change_percent is "
        "100 (exp(difference) − 1)"
    ),
}
"""The measures in words, as they go into reports."""


@dataclass(frozen=True)
class Change:
    """By how much one model differs from another on the same documents, with 95 % intervals.

    `difference`, `ci95`: nats a token, negative is better. `percent`, `ci95_percent`: perplexity.
    """

    difference: float
    ci95: tuple[float, float]
    percent: float
    ci95_percent: tuple[float, float]


def perplexity(nll: Floats, tokens: Ints) -> float:
    """Of a token: exp of the mean negative log-likelihood. Both are (documents,)."""
    return float(np.exp(nll.sum() / tokens.sum()))


def word_perplexity(nll: Floats, words: Ints) -> float | None:
    """Of a word; None where that is no number, as in text that has no white space."""
    if not words.sum() or (mean := float(nll.sum() / words.sum())) > LARGEST:
        return None
    return float(np.exp(mean))


def bits_per_byte(nll: Floats, size: Ints) -> float:
    """Bits that the model needs for a byte of text. Both are (documents,)."""
    return float(nll.sum() / np.log(2) / size.sum())


def gap(
    train: tuple[Floats, Ints], test: tuple[Floats, Ints], resamples: int
) -> tuple[float, tuple[float, float]]:
    """How much more a model gained on what it learned from than on what it did not.

    Args:
        train: Adapted minus base, nats, and tokens, of each training document scored.
        test: The same of each test document.
        resamples: Of the bootstrap; the two samples are drawn independently.

    Returns:
        Nats a token, and its 95 % interval.
    """
    seen, unseen = (
        _resample(*sample, resamples, seed) for seed, sample in enumerate((train, test))
    )
    means = [float(values.sum() / tokens.sum()) for values, tokens in (train, test)]
    low, high = (float(v) for v in np.quantile(unseen - seen, [0.025, 0.975]))
    return means[1] - means[0], (low, high)


def interval(nll: Floats, tokens: Ints, resamples: int) -> tuple[float, float]:
    """95 % interval of `perplexity`."""
    low, high = np.exp(_bootstrap(nll, tokens, resamples))
    return float(low), float(high)


def change(base: Floats, tuned: Floats, tokens: Ints, resamples: int) -> Change:
    """The paired difference of two models' nats on the same documents, all (documents,).

    Pairing takes out that some documents are hard for both, which is most of the spread.
    """
    low, high = (float(v) for v in _bootstrap(tuned - base, tokens, resamples))
    mean = float((tuned - base).sum() / tokens.sum())
    percent = [100 * float(np.expm1(v)) for v in (mean, low, high)]
    return Change(mean, (low, high), percent[0], (percent[1], percent[2]))


def _bootstrap(values: Floats, tokens: Ints, resamples: int) -> Floats:
    """2.5 % and 97.5 % points of sum(values) / sum(tokens) over resampled documents.

    The percentile bootstrap of a ratio (Efron & Tibshirani 1993, §13.3).
    """
    return np.quantile(_resample(values, tokens, resamples), [0.025, 0.975])


def _resample(values: Floats, tokens: Ints, resamples: int, seed: int = 0) -> Floats:
    """sum(values) / sum(tokens) of each resample, (resamples,).

    A resample at a time, so that its memory is that of the documents.
    """
    generator = np.random.default_rng(seed)
    ratios = np.empty(resamples)
    for i in range(resamples):
        drawn = generator.integers(0, len(values), len(values))
        ratios[i] = values[drawn].sum() / tokens[drawn].sum()
    return ratios
