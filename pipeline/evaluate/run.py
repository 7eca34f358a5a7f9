"""Scores and samples of a model: what the stage `evaluate` computes.

Base and adapted model read the same documents under the same precision, and continue the same
openings.
"""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.core.errors import UserError
from pipeline.core.stage import Context, Inputs, Item, RunConfig
from pipeline.dataset.sealed import open_sealed
from pipeline.dataset.subset import sample_documents
from pipeline.dataset.token_cache import TokenizedSplit
from pipeline.evaluate.contamination.copies import longest_copies
from pipeline.evaluate.memorization import cut_prompts, generate_and_measure
from pipeline.evaluate.metrics import bits_per_byte, interval, perplexity, word_perplexity
from pipeline.modeling.compatibility import check_head
from pipeline.modeling.device import Precision, pick_device, pick_precision
from pipeline.modeling.generation import generate
from pipeline.modeling.loading import load_adapter, load_base
from pipeline.modeling.scoring import ScoredBatch, SlidingWindows, score
from pipeline.modeling.scoring_log import ScoringLog
from pipeline.tokenize.encoder import ReferenceEncoder

if TYPE_CHECKING:
    import torch

    from pipeline.evaluate.stage import EvaluateConfig


def score_split(config: RunConfig, item: Item, inputs: Inputs, ctx: Context) -> None:
    """Score the split that the item names, with the adapted model where the training is given.

    Raises:
        Interrupted, UserError, CorruptInput: As `pipeline.evaluate.stage.run`.
    """
    started = time.monotonic()
    bench = _prepare(config, item.name, item, inputs, ctx)
    table, measured, before = _score(bench, config.evaluate, ctx)
    with ctx.commit(item.name) as draft:
        pq.write_table(table, draft.path / "scores.parquet", compression="zstd")
        draft.facts = _circumstances(bench, config, ctx) | measured
        draft.facts["seconds"] = round(before + time.monotonic() - started, 3)
    shutil.rmtree(ctx.partial, ignore_errors=True)


def write_samples(config: RunConfig, item: Item, inputs: Inputs, ctx: Context) -> None:
    """Go on from openings of held-out documents, with the same model as `score_split`.

    Raises:
        Interrupted, UserError, CorruptInput: As `pipeline.evaluate.stage.run`.
    """
    started = time.monotonic()
    bench = _prepare(config, "test", item, inputs, ctx)
    samples, figures = _samples(bench, _corpus(inputs, "train", ctx), config.evaluate, ctx)
    with ctx.commit(item.name) as draft:
        text = json.dumps(samples, indent=1, ensure_ascii=False)
        (draft.path / "samples.json").write_text(text, encoding="utf-8")
        draft.facts = _circumstances(bench, config, ctx) | {"written": figures}
        draft.facts["seconds"] = round(time.monotonic() - started, 3)


def _circumstances(bench: _Bench, config: RunConfig, ctx: Context) -> dict[str, Any]:
    return {
        "precision": bench.precision,
        "weights": config.train.weights,
        "device": bench.device.type,
        "cpus": ctx.cpus,
        "gpus": ctx.gpus,
    }


@dataclass(frozen=True)
class _Bench:
    """A model ready to be judged, and the split it is judged by. `base`: folder with tokenizer."""

    model: Any
    device: torch.device
    precision: Precision
    corpus: TokenizedSplit
    base: Path
    context: int
    prefix: int
    end: int


def _prepare(config: RunConfig, split: str, item: Item, inputs: Inputs, ctx: Context) -> _Bench:
    import torch

    torch.set_num_threads(ctx.cpus)
    device = pick_device(ctx.gpus, ctx.local_rank)
    precision = pick_precision(item.data.get("precision", config.train.precision), device)
    if (there := item.data.get("device", device.type)) != device.type:
        raise UserError(
            f"the base model was scored on {there}, and arithmetic differs on {device.type}",
            "evaluate where the base model was scored, or remove its scores-… folder",
        )
    corpus = _corpus(inputs, split, ctx)
    base, receipt = inputs["download.model"].one()
    if "model" not in ctx.memo:
        model = _load(config, inputs, device)
        check_head(model, device, precision)
        ctx.memo["model"] = model
    ends = receipt.facts["prefix_id"], receipt.facts["end_id"]
    context = receipt.facts["context"]
    return _Bench(ctx.memo["model"], device, precision, corpus, base, context, *ends)


def _corpus(inputs: Inputs, split: str, ctx: Context) -> TokenizedSplit:
    """A split, verified once a task: that of what is learned may be large."""
    if (name := f"corpus of {split}") not in ctx.memo:
        ctx.memo[name] = open_sealed(inputs, split, ctx)
    found: TokenizedSplit = ctx.memo[name]
    return found


def _load(config: RunConfig, inputs: Inputs, device: torch.device) -> Any:
    """The base model, or the adapted one where the training is among the inputs."""
    settings = config.train
    folder, receipt = inputs["download.model"].one()
    receipt.verify(folder)
    adapter = None
    if "train.train" in inputs:
        best, trained = inputs["train.train"].one()
        trained.verify(best)
        adapter = best if trained.facts["method"] == "lora" else None
        folder = folder if adapter else best
    model = load_base(
        folder, settings.weights, device, settings.int8_threshold, settings.unquantized_modules
    )
    return load_adapter(model, adapter) if adapter else model


def _score(
    bench: _Bench, settings: EvaluateConfig, ctx: Context
) -> tuple[pa.Table, dict[str, Any], float]:
    """A row a document, what they add up to, and the seconds that earlier attempts put into it."""
    corpus = bench.corpus
    chosen = sample_documents(corpus, settings.max_documents, settings.max_tokens)
    windows = SlidingWindows(*settings.window(bench.context), bench.prefix)
    total = int(np.diff(corpus.offsets)[chosen].sum())
    new: list[ScoredBatch] = []
    with ScoringLog(
        ctx.partial, {"precision": bench.precision, "device": bench.device.type}
    ) as log:
        through = sum(int(batch.tokens.sum()) for batch in log.batches)

        def keep(batch: ScoredBatch) -> None:
            nonlocal through
            log.add(batch)
            new.append(batch)
            through += int(batch.tokens.sum())
            ctx.progress(through, total, "tokens")

        nll, tokens = score(
            bench.model,
            [corpus.ids[corpus.offsets[i] : corpus.offsets[i + 1]] for i in chosen],
            windows,
            bench.device,
            bench.precision,
            batch_tokens=settings.batch_tokens,
            check=ctx.stop.check,
            on_batch=keep,
            scored=log.batches,
        )
    if odd := int((~np.isfinite(nll)).sum()):
        raise UserError(
            f"the losses of {odd} of {len(nll)} documents are no numbers under {bench.precision}",
            "score in another precision, as by a run with train.precision=bf16 or fp32",
        )
    size = corpus.bytes[chosen]
    hashes = [corpus.hashes[i].tobytes().hex() for i in chosen]
    decode = ReferenceEncoder(bench.base).decode
    words = np.array([len(decode(corpus.document(i).tolist()).split()) for i in chosen])
    columns = {"document": chosen, "hash": hashes, "nll": nll, "tokens": tokens, "bytes": size}
    facts = {
        "perplexity": perplexity(nll, tokens),
        "bits_per_byte": bits_per_byte(nll, size),
        "word_perplexity": word_perplexity(nll, words),
        "ci95": interval(nll, tokens, settings.resamples),
        "documents": len(chosen),
        "of_documents": len(corpus),
        "tokens": int(tokens.sum()),
        "bytes": int(size.sum()),
        "words": int(words.sum()),
        "places": np.sum([batch.by_position for batch in (*log.batches, *new)], axis=0).tolist(),
        "context": windows.context,
        "stride": windows.stride,
        "batch_tokens": settings.batch_tokens,
    }
    return pa.table(columns | {"words": words}), facts, log.seconds


def _samples(
    bench: _Bench, train: TokenizedSplit, settings: EvaluateConfig, ctx: Context
) -> tuple[dict[str, list[dict[str, str]]], dict[str, Any]]:
    """Texts after openings of held-out documents and of training documents, and their figures."""
    room = bench.context
    opening = min(settings.prompt_tokens, room // 2)
    length = min(settings.new_tokens, room - opening - 1)
    how = bench.prefix, bench.end, bench.device, bench.precision
    rounds = iter(range(1, 4))

    def go_on(prompts: list[list[int]], sampled: bool) -> list[list[int]]:
        found = generate(bench.model, prompts, length, *how, sampled=sampled, stop=ctx.stop)
        ctx.progress(next(rounds), 3, "rounds of samples")
        return found

    def copies(texts: list[list[int]]) -> Any:
        return longest_copies([np.array(ids) for ids in texts], train, check=ctx.stop.check).tokens

    held_out = cut_prompts(bench.corpus, settings.prompts, opening, length)
    # to recite a document is to go on with all of that
    learned = cut_prompts(train, settings.prompts, opening, length, full=True)
    written, figures = generate_and_measure(held_out, learned, go_on, copies)
    decode = ReferenceEncoder(bench.base).decode
    texts = {
        kind: [{name: decode(ids) for name, ids in row.items()} for row in rows]
        for kind, rows in written.items()
    }
    return texts, figures
