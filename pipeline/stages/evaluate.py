"""Evaluate: what adaptation brought, on documents that nothing has learned from.

Base and adapted model read the same documents under the same precision, and continue the same
openings. The base model's scores lie with the corpus, for all runs to share. The report at the end
puts together what the receipts of the whole run say.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, model_validator

from pipeline.data.choose import by_hash, choose
from pipeline.data.encoder import Encoder
from pipeline.data.seal import open_sealed, what_is_read
from pipeline.data.shards import Corpus
from pipeline.errors import UserError
from pipeline.model import load
from pipeline.model.measure import bits_per_byte, interval, perplexity
from pipeline.model.score import Kept, Windows, score
from pipeline.model.write import write
from pipeline.report.build import SECTIONS, build
from pipeline.settings import Section
from pipeline.stage import Context, Inputs, Item, Step

if TYPE_CHECKING:
    import torch

    from pipeline.config import Config

SPLITS = ("validation", "test")
SAMPLES = "samples"
LONGEST = 1024


class EvaluateConfig(Section):
    """What is scored, and what is written on.

    `max_documents`: a split, lowest text hash first. `max_tokens`: of those, the documents that fit
    in what is left, in that order; if not even one does, the first. `context`: tokens seen at once;
    None is the model's own, at most 1,024. `stride`: how far a window moves in longer documents;
    None is half the context. `prompts`: held-out documents whose first `prompt_tokens` are written
    on, by `new_tokens`. `resamples`: of the bootstrap. `batch_tokens`: in a batch, which
    decides results: LLM.int8 looks for outliers over a whole batch, a part in a thousand.
    """

    max_documents: int = Field(2000, ge=1)
    max_tokens: int | None = Field(None, ge=1)
    context: int | None = Field(None, ge=2)
    stride: int | None = Field(None, ge=1)
    prompts: int = Field(4, ge=0)
    prompt_tokens: int = Field(32, ge=1)
    new_tokens: int = Field(64, ge=1)
    resamples: int = Field(2000, ge=100)
    batch_tokens: int = Field(4096, ge=1)

    @model_validator(mode="after")
    def _moves_on(self) -> EvaluateConfig:
        if self.stride and self.context and self.stride > self.context:
            raise ValueError(
                f"evaluate.stride={self.stride} is more than evaluate.context={self.context}: "
                "tokens would be left out"
            )
        return self

    def windows(self, context: int | None, prefix: int) -> Windows:
        """How documents are cut for a model of that context (None: no limit)."""
        width = min(self.context or LONGEST, context or LONGEST)
        return Windows(width, min(self.stride or width // 2, width), prefix)


def base_items(config: Config, inputs: Inputs) -> list[Item]:
    """A score for each held-out split, and the samples."""
    return [Item(name, what_is_read(inputs)) for name in (*SPLITS, SAMPLES)]


def tuned_items(config: Config, inputs: Inputs) -> list[Item]:
    """The same as for the base model, under the precision that its scores were made under."""
    items = []
    for name, base in inputs["evaluate.base"].receipts.items():
        how = {name: base.facts[name] for name in ("precision", "device")}
        read = what_is_read(inputs) | {"train.train": inputs["train.train"].digest} | how
        items.append(Item(name, read, how))
    return items


def run(config: Config, item: Item, inputs: Inputs, ctx: Context) -> None:
    """Score a split or write samples, with the adapted model where one is given, else the base.

    Raises:
        Interrupted: A stop was asked for; the batches so far are kept.
        UserError: The device cannot compute under the precision of the base model's scores.
        CorruptInput: The corpus or the model is damaged.
    """
    started = time.monotonic()
    bench = _prepare(config, item, inputs, ctx)
    facts = {
        "precision": bench.precision,
        "weights": config.train.weights,
        "device": bench.device.type,
        "cpus": ctx.cpus,
        "gpus": ctx.gpus,
    }
    if item.name == SAMPLES:
        samples = _samples(bench, config.evaluate, ctx)
        with ctx.commit(item.name) as draft:
            text = json.dumps(samples, indent=1, ensure_ascii=False)
            (draft.path / "samples.json").write_text(text, encoding="utf-8")
            draft.facts = facts | {"prompts": len(samples)}
            draft.facts["seconds"] = round(time.monotonic() - started, 3)
        return
    table, measured, before = _score(bench, config.evaluate, ctx)
    with ctx.commit(item.name) as draft:
        pq.write_table(table, draft.path / "scores.parquet", compression="zstd")
        draft.facts = facts | measured
        draft.facts["seconds"] = round(before + time.monotonic() - started, 3)
    shutil.rmtree(ctx.partial, ignore_errors=True)


@dataclass(frozen=True)
class _Bench:
    """A model ready to be judged, and the split it is judged by. `base`: folder with tokenizer."""

    model: Any
    device: torch.device
    precision: load.Precision
    corpus: Corpus
    base: Path
    context: int | None
    prefix: int
    end: int


def _prepare(config: Config, item: Item, inputs: Inputs, ctx: Context) -> _Bench:
    import torch

    torch.set_num_threads(ctx.cpus)
    device = load.pick_device(ctx.gpus, ctx.local_rank)
    precision = load.pick_precision(item.data.get("precision", config.train.precision), device)
    if (there := item.data.get("device", device.type)) != device.type:
        raise UserError(
            f"the base model was scored on {there}, and 8-bit arithmetic differs on {device.type}",
            "evaluate where the base model was scored, or remove its scores-… folder",
        )
    split = "test" if item.name == SAMPLES else item.name
    corpus = open_sealed(inputs, split, ctx.code)
    base, receipt = inputs["download.model"].one()
    if "model" not in ctx.memo:
        ctx.memo["model"] = _load(config, inputs, device)
    ends = receipt.facts["prefix_id"], receipt.facts["end_id"]
    context = receipt.facts.get("context")
    return _Bench(ctx.memo["model"], device, precision, corpus, base, context, *ends)


def _load(config: Config, inputs: Inputs, device: torch.device) -> Any:
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
    model = load.load_base(folder, settings.weights, device, settings.threshold, settings.keep)
    return load.load_adapter(model, adapter) if adapter else model


def _score(
    bench: _Bench, settings: EvaluateConfig, ctx: Context
) -> tuple[pa.Table, dict[str, Any], float]:
    """A row a document, what they add up to, and the seconds that earlier attempts put into it."""
    corpus = bench.corpus
    chosen = choose(corpus, settings.max_documents, settings.max_tokens)
    windows = settings.windows(bench.context, bench.prefix)
    total = int(np.diff(corpus.offsets)[chosen].sum())
    kept = Kept(ctx.partial, {"precision": bench.precision, "device": bench.device.type})
    through = sum(int(counts.sum()) for _, _, counts in kept.parts)

    def keep(*part: Any) -> None:
        nonlocal through
        kept.add(*part)
        through += int(part[2].sum())
        ctx.progress(through, total, "tokens")

    with kept:
        nll, tokens = score(
            bench.model,
            [corpus.ids[corpus.offsets[i] : corpus.offsets[i + 1]] for i in chosen],
            windows,
            bench.device,
            bench.precision,
            batch_tokens=settings.batch_tokens,
            stop=ctx.stop,
            done=keep,
            parts=kept.parts,
        )
    size = corpus.bytes[chosen]
    hashes = [corpus.hashes[i].tobytes().hex() for i in chosen]
    columns = {"document": chosen, "hash": hashes, "nll": nll, "tokens": tokens, "bytes": size}
    facts = {
        "perplexity": perplexity(nll, tokens),
        "bits_per_byte": bits_per_byte(nll, size),
        "ci95": interval(nll, tokens, settings.resamples),
        "documents": len(chosen),
        "of_documents": len(corpus),
        "tokens": int(tokens.sum()),
        "bytes": int(size.sum()),
        "context": windows.context,
        "stride": windows.stride,
        "batch_tokens": settings.batch_tokens,
    }
    return pa.table(columns), facts, kept.seconds


def _samples(bench: _Bench, settings: EvaluateConfig, ctx: Context) -> list[dict[str, str]]:
    """Held-out openings, how they go on, and how the model goes on: greedily and drawn by lot."""
    room = bench.context or LONGEST
    opening = min(settings.prompt_tokens, room // 2)
    length = min(settings.new_tokens, room - opening - 1)
    documents = (bench.corpus.document(index).tolist() for index in by_hash(bench.corpus))
    chosen = list(islice((ids for ids in documents if len(ids) > opening), settings.prompts))
    prompts = [ids[:opening] for ids in chosen]
    texts = {"prompt": prompts, "reference": [ids[opening : opening + length] for ids in chosen]}
    how = bench.prefix, bench.end, bench.device, bench.precision
    for number, name in enumerate(("greedy", "sampled") if chosen else ()):
        sampled = name == "sampled"
        texts[name] = write(bench.model, prompts, length, *how, sampled=sampled, stop=ctx.stop)
        ctx.progress(number + 1, 2, "samples")
    decode = Encoder(bench.base).decode
    return [{n: decode(ids[i]) for n, ids in texts.items()} for i in range(len(chosen))]


def report_items(config: Config, inputs: Inputs) -> list[Item]:
    """One item: the report. It names the run, so that no other run's report is taken for it."""
    return [Item("report", {"run": config.name, **{n: i.digest for n, i in inputs.items()}})]


def report(config: Config, item: Item, inputs: Inputs, ctx: Context) -> None:
    """Write `report.json`, `report.md`, `report.html` and the figures.

    Raises:
        CorruptInput: A score or a sample is damaged.
    """
    with ctx.commit(item.name) as draft:
        build(config, inputs, draft.path)


def _base_folder(config: Config, keys: Mapping[str, str]) -> str:
    return f"data/{config.dataset.id}/scores-{config.model.id}-{keys['evaluate.base']}"


def _tuned_folder(config: Config, keys: Mapping[str, str]) -> str:
    return f"runs/{config.name}/evaluate-{keys['evaluate.tuned']}"


_NEEDS = ("tokenize.shards", "tokenize.seal", "download.model")
_BASE = Step(
    stage="evaluate",
    name="evaluate.base",
    version=1,
    uses=("evaluate", "train.weights", "train.precision", "train.threshold", "train.keep"),
    needs=_NEEDS,
    folder=_base_folder,
    items=base_items,
    run=run,
    exclusive=True,
)
_TUNED = replace(
    _BASE,
    name="evaluate.tuned",
    needs=(*_NEEDS, "train.train", "evaluate.base"),
    folder=_tuned_folder,
    items=tuned_items,
)
_REPORT = Step(
    stage="evaluate",
    name="evaluate.report",
    version=1,
    uses=(),
    reads=("name", *SECTIONS),
    needs=("download.corpus", "decompress.chunks", *_NEEDS, "train.train", _BASE.name, _TUNED.name),
    folder=lambda config, keys: f"runs/{config.name}",
    items=report_items,
    run=report,
)
STEPS = (_BASE, _TUNED, _REPORT)
