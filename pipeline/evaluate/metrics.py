"""Metrics of scored documents, with confidence intervals.

Intervals are bootstrapped over documents, because documents are independent of one another. The
tokens of a document are not, and an interval over tokens would be far too narrow.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.modeling.scoring import Floats, Ints

MAX_EXP_NATS = 700.0
"""Largest exponent whose exp is finite in float64."""

DEFINITIONS = {
    "perplexity": (
        "exp(sum of negative log-likelihoods / number of tokens) over all text tokens of the "
        "documents; each document follows the model's prefix token, so its first token is scored, "
        "too; the end token is not scored"
    ),
    "bits_per_byte": (
        "sum of negative log-likelihoods / ln 2 / UTF-8 bytes of the text; comparable between "
        "models with different tokenizers"
    ),
    "word_perplexity": (
        "exp(sum of negative log-likelihoods / number of words), where white space separates "
        "words; also comparable between tokenizers"
    ),
    "ci95": "95 % interval: percentile bootstrap over documents",
    "gap": (
        "how much more adaptation gained on training documents than on test documents, nats per "
        "token: the paired difference on test minus that on train; above zero, part of the gain "
        "does not generalize"
    ),
    "by_length": "documents grouped by their number of tokens; each token has the same weight",
    "by_position": "tokens grouped by the number of tokens before them in their document",
    "paired": (
        "adapted minus base on the same documents, nats per token (below zero, adapted is better), "
        "with the 95 % interval of a bootstrap over documents; perplexity_change_percent is "
        "100 (exp(difference) − 1)"
    ),
}
"""Definitions for reports."""


@dataclass(frozen=True)
class Change:
    """The difference of two models on the same documents, with 95 % intervals.

    `difference`, `ci95`: nats per token; negative is better. `percent`, `ci95_percent`: perplexity.
    """

    difference: float
    ci95: tuple[float, float]
    percent: float
    ci95_percent: tuple[float, float]


def perplexity(nll: Floats, tokens: Ints) -> float:
    """Exp of the mean negative log-likelihood (nats) of a token; both are (documents,)."""
    return float(np.exp(nll.sum() / tokens.sum()))


def word_perplexity(nll: Floats, words: Ints) -> float | None:
    """Exp of the mean negative log-likelihood (nats) of a word; both are (documents,).

    None if it is not finite, e.g. for text without white space.
    """
    if not words.sum() or (mean := float(nll.sum() / words.sum())) > MAX_EXP_NATS:
        return None
    return float(np.exp(mean))


def bits_per_byte(nll: Floats, size: Ints) -> float:
    """Mean negative log-likelihood of a byte in bits; `nll` is in nats, both are (documents,)."""
    return float(nll.sum() / np.log(2) / size.sum())


def gap(
    train: tuple[Floats, Ints], test: tuple[Floats, Ints], resamples: int
) -> tuple[float, tuple[float, float]]:
    """How much more a model gained on training documents than on test documents.

    Args:
        train: Adapted minus base in nats, and tokens, of each training document that was scored.
        test: The same of each test document. Each array is (documents,).
        resamples: Of the bootstrap; the two splits are resampled independently.

    Returns:
        Nats per token, and the 95 % interval.
    """
    train_ratios, test_ratios = (
        _resample(*sample, resamples, seed) for seed, sample in enumerate((train, test))
    )
    means = [float(values.sum() / tokens.sum()) for values, tokens in (train, test)]
    low, high = (float(v) for v in np.quantile(test_ratios - train_ratios, [0.025, 0.975]))
    return means[1] - means[0], (low, high)


def interval(nll: Floats, tokens: Ints, resamples: int) -> tuple[float, float]:
    """95 % interval of exp(sum(nll) / sum(tokens)), the perplexity; both are (documents,).

    With bytes in place of tokens: of the perplexity per byte, whose log2 is bits per byte.
    """
    low, high = np.exp(_bootstrap(nll, tokens, resamples))
    return float(low), float(high)


def change(base: Floats, tuned: Floats, tokens: Ints, resamples: int) -> Change:
    """The paired difference of two models' nats on the same documents; all are (documents,).

    Pairing removes the spread that both models share: some documents are hard for both.
    """
    low, high = (float(v) for v in _bootstrap(tuned - base, tokens, resamples))
    mean = float((tuned - base).sum() / tokens.sum())
    percent = [100 * float(np.expm1(v)) for v in (mean, low, high)]
    return Change(mean, (low, high), percent[0], (percent[1], percent[2]))


def _bootstrap(values: Floats, tokens: Ints, resamples: int) -> Floats:
    """2.5 % and 97.5 % quantiles of sum(values) / sum(tokens) over resampled documents.

    The percentile bootstrap of a ratio (Efron & Tibshirani 1993, §13.3).
    """
    return np.quantile(_resample(values, tokens, resamples), [0.025, 0.975])


def _resample(values: Floats, tokens: Ints, resamples: int, seed: int = 0) -> Floats:
    """sum(values) / sum(tokens) of each resample, (resamples,).

    One resample at a time, so that memory stays that of the documents.
    """
    generator = np.random.default_rng(seed)
    ratios = np.empty(resamples)
    for i in range(resamples):
        drawn = generator.integers(0, len(values), len(values))
        ratios[i] = values[drawn].sum() / tokens[drawn].sum()
    return ratios
