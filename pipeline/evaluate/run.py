"""Score a split or generate texts with a model: what the stage `evaluate` computes.

Base and adapted model score the same documents in the same precision, and continue the same
prompts.
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
from pipeline.evaluate.facts import SampleFacts, ScoreFacts, Scores, ScoringConditions
from pipeline.evaluate.memorization import cut_prompts, generate_and_measure
from pipeline.evaluate.metrics import bits_per_byte, perplexity, word_perplexity
from pipeline.modeling.attention import attention_support, default_attention
from pipeline.modeling.compatibility import check_head
from pipeline.modeling.device import Precision, pick_device, pick_precision
from pipeline.modeling.generation import generate
from pipeline.modeling.loading import load_adapter, load_base
from pipeline.modeling.scoring import Floats, Ints, ScoredBatch, SlidingWindows, score
from pipeline.modeling.scoring_log import ScoringLog
from pipeline.tokenize.encoder import ReferenceEncoder

if TYPE_CHECKING:
    import torch


def score_split(config: RunConfig, item: Item, inputs: Inputs, ctx: Context) -> None:
    """Score the split that the item names.

    Raises:
        Interrupted, UserError, CorruptInput: As `pipeline.evaluate.stage.run`.
    """
    started = time.monotonic()
    setup = _prepare(config, item.name, item, inputs, ctx)
    table, scores, earlier_seconds = _score(setup, config, ctx)
    with ctx.commit(item.name) as draft:
        pq.write_table(table, draft.path / "scores.parquet", compression="zstd")
        seconds = round(earlier_seconds + time.monotonic() - started, 3)
        facts = ScoreFacts(**_conditions(setup, config, ctx), **scores, seconds=seconds)
        draft.facts = dict(facts)
    shutil.rmtree(ctx.partial, ignore_errors=True)


def write_samples(config: RunConfig, item: Item, inputs: Inputs, ctx: Context) -> None:
    """Continue prompts from test documents and from training documents.

    Raises:
        Interrupted, UserError, CorruptInput: As `pipeline.evaluate.stage.run`.
    """
    started = time.monotonic()
    setup = _prepare(config, "test", item, inputs, ctx)
    samples, metrics = _generate(setup, _open_split(inputs, "train", ctx), config, ctx)
    with ctx.commit(item.name) as draft:
        text = json.dumps(samples, indent=1, ensure_ascii=False)
        (draft.path / "samples.json").write_text(text, encoding="utf-8")
        seconds = round(time.monotonic() - started, 3)
        conditions = _conditions(setup, config, ctx)
        draft.facts = dict(SampleFacts(**conditions, written=metrics, seconds=seconds))


def _conditions(setup: _Setup, config: RunConfig, ctx: Context) -> ScoringConditions:
    return {
        "precision": setup.precision,
        "weights": config.train.weights,
        "device": setup.device.type,
        "cpus": ctx.cpus,
        "gpus": ctx.gpus,
    }


@dataclass(frozen=True)
class _Setup:
    """A loaded model and the split to use.

    `base_folder`: of the base model, for its tokenizer. `context`: tokens the model can see at
    once. `prefix_id`, `end_id`: the tokens before and after a document.
    """

    model: Any
    device: torch.device
    precision: Precision
    split: TokenizedSplit
    base_folder: Path
    context: int
    prefix_id: int
    end_id: int


def _prepare(config: RunConfig, split: str, item: Item, inputs: Inputs, ctx: Context) -> _Setup:
    """Open the split, and load the model unless an earlier item of this task has."""
    import torch

    torch.set_num_threads(ctx.cpus)
    device = pick_device(ctx.gpus, ctx.local_rank)
    precision = pick_precision(item.data.get("precision", config.train.precision), device)
    if (base_device := item.data.get("device", device.type)) != device.type:
        raise UserError(
            f"the base model was scored on {base_device}; scores on {device.type} differ by "
            "rounding",
            "Evaluate where the base model was scored, or remove its scores-… folder",
        )
    opened = _open_split(inputs, split, ctx)
    base, receipt = inputs["download.model"].one()
    if "model" not in ctx.memo:
        model = _load(config, inputs, device)
        check_head(model, device, precision)
        ctx.memo["model"] = model
    return _Setup(
        model=ctx.memo["model"],
        device=device,
        precision=precision,
        split=opened,
        base_folder=base,
        context=receipt.facts["context"],
        prefix_id=receipt.facts["prefix_id"],
        end_id=receipt.facts["end_id"],
    )


def _open_split(inputs: Inputs, split: str, ctx: Context) -> TokenizedSplit:
    """Open a split; it is verified once per task, because the training split may be large."""
    if (name := f"split {split}") not in ctx.memo:
        ctx.memo[name] = open_sealed(inputs, split, ctx)
    opened: TokenizedSplit = ctx.memo[name]
    return opened


def _load(config: RunConfig, inputs: Inputs, device: torch.device) -> Any:
    """The adapted model if the training is among the inputs, else the base model."""
    settings = config.train
    folder, receipt = inputs["download.model"].one()
    receipt.verify(folder)
    adapter = None
    # only `evaluate.tuned` needs `train.train`
    if "train.train" in inputs:
        best, trained = inputs["train.train"].one()
        trained.verify(best)
        adapter = best if trained.facts["method"] == "lora" else None
        folder = folder if adapter else best
    model = load_base(
        folder,
        settings.weights,
        device,
        settings.int8_threshold,
        settings.unquantized_modules,
        attention=default_attention(device, attention_support(receipt.facts)),
    )
    return load_adapter(model, adapter) if adapter else model


def _score(setup: _Setup, config: RunConfig, ctx: Context) -> tuple[pa.Table, Scores, float]:
    """Score documents of the split.

    Returns:
        A table with a row per document, the totals, and the seconds that earlier attempts took.
    """
    split, settings = setup.split, config.evaluate
    chosen = sample_documents(split, settings.max_documents, settings.max_tokens)
    context, stride = settings.window_and_stride(setup.context)
    windows = SlidingWindows(context, stride, setup.prefix_id)
    nll, tokens, by_position, earlier_seconds = _losses(setup, chosen, windows, config, ctx)
    if bad := int((~np.isfinite(nll)).sum()):
        raise UserError(
            f"the losses of {bad} of {len(nll)} documents are not finite in {setup.precision}",
            "Score in another precision: start a run with train.precision=bf16 or fp32",
        )
    size = split.bytes[chosen]
    decode = ReferenceEncoder(setup.base_folder).decode
    words = np.array([len(decode(split.document(i).tolist()).split()) for i in chosen])
    columns = {
        "document": chosen,
        "hash": [split.hashes[i].tobytes().hex() for i in chosen],
        "nll": nll,
        "tokens": tokens,
        "bytes": size,
        "words": words,
    }
    scores: Scores = {
        "perplexity": perplexity(nll, tokens),
        "bits_per_byte": bits_per_byte(nll, size),
        "word_perplexity": word_perplexity(nll, words),
        "documents": len(chosen),
        "of_documents": len(split),
        "tokens": int(tokens.sum()),
        "bytes": int(size.sum()),
        "words": int(words.sum()),
        "by_position": by_position.tolist(),
        "context": windows.context,
        "stride": windows.stride,
        "batch_tokens": settings.batch_tokens,
    }
    return pa.table(columns), scores, earlier_seconds


def _losses(
    setup: _Setup, chosen: list[int], windows: SlidingWindows, config: RunConfig, ctx: Context
) -> tuple[Floats, Ints, Floats, float]:
    """Score documents, batch by batch, and resume after an interruption.

    Returns:
        Nats and tokens of each document; nats and tokens by position, see `ScoredBatch`; the
        seconds that earlier attempts took.
    """
    split = setup.split
    total = int(np.diff(split.offsets)[chosen].sum())
    new: list[ScoredBatch] = []
    log_header = {"precision": setup.precision, "device": setup.device.type}
    with ScoringLog(ctx.partial, log_header) as log:
        done = sum(int(batch.tokens.sum()) for batch in log.batches)

        def keep(batch: ScoredBatch) -> None:
            nonlocal done
            log.add(batch)
            new.append(batch)
            done += int(batch.tokens.sum())
            ctx.progress(done, total, "tokens")

        nll, tokens = score(
            setup.model,
            [split.ids[split.offsets[i] : split.offsets[i + 1]] for i in chosen],
            windows,
            setup.device,
            setup.precision,
            batch_tokens=config.evaluate.batch_tokens,
            check=ctx.stop.check,
            on_batch=keep,
            resumed_batches=log.batches,
        )
    by_position = np.sum([batch.by_position for batch in (*log.batches, *new)], axis=0)
    return nll, tokens, by_position, log.seconds


def _generate(
    setup: _Setup, train: TokenizedSplit, config: RunConfig, ctx: Context
) -> tuple[dict[str, list[dict[str, str]]], dict[str, Any]]:
    """Texts after prompts from test and from training documents, and their metrics."""
    settings = config.evaluate
    prompt_tokens = min(settings.prompt_tokens, setup.context // 2)
    new_tokens = min(settings.new_tokens, setup.context - prompt_tokens - 1)
    tokens = setup.prefix_id, setup.end_id
    rounds = iter(range(1, 4))

    def continue_texts(prompts: list[list[int]], sampled: bool) -> list[list[int]]:
        texts = generate(
            setup.model, prompts, new_tokens, *tokens, setup.device, setup.precision,
            sampled=sampled, stop=ctx.stop,
        )  # fmt: skip
        ctx.progress(next(rounds), 3, "rounds of samples")
        return texts

    def longest_spans(texts: list[list[int]]) -> Any:
        return longest_copies([np.array(ids) for ids in texts], train, check=ctx.stop.check).tokens

    held_out = cut_prompts(setup.split, settings.prompts, prompt_tokens, new_tokens)
    # A recited text equals the document for all of `new_tokens`, so the document must be as long.
    learned = cut_prompts(train, settings.prompts, prompt_tokens, new_tokens, full=True)
    written, metrics = generate_and_measure(held_out, learned, continue_texts, longest_spans)
    decode = ReferenceEncoder(setup.base_folder).decode
    texts = {
        kind: [{name: decode(ids) for name, ids in row.items()} for row in rows]
        for kind, rows in written.items()
    }
    return texts, metrics
