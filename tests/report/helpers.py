"""What the stages leave of a run, made without running them."""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config import Config
from pipeline.core import commit as commits
from pipeline.core import receipt as receipts
from pipeline.core.receipt import UnitIdentity
from pipeline.core.registry import BaseModel, Dataset
from pipeline.core.stage import Input
from pipeline.evaluate.memorization import measure_texts
from pipeline.evaluate.metrics import bits_per_byte, perplexity, word_perplexity
from pipeline.evaluate.stage import EvaluateConfig, samples_item
from pipeline.report.build import write_report_files
from pipeline.report.compare.compare import ComparedRun
from pipeline.report.history.progress import RunProgress
from pipeline.train.stage import TrainConfig

FIGURES = {"intervals", "curve", "documents", "length", "position", "lengths", "norms", "speed"}


SCRIPT = '<script>alert("x")</script> & <b>bold</b>'


@dataclass
class Run:
    """What the stages would leave of a run, without running them."""

    root: Path
    change: float = -0.2
    documents: int = 300
    restarts: int = 0
    first: int = 0
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)

    @property
    def config(self) -> Config:
        dataset = Dataset(id="nih", urls=["file:///corpus.jsonl.zst"], licence="public domain")
        model = BaseModel(id="tiny", repo="a/tiny")
        return Config(name="nih+a", dataset=dataset, model=model, evaluate=self.evaluate)

    def unit(self, step: str, name: str, facts: dict[str, Any], **files: Any) -> Input:
        folder = self.root / step
        with commits.commit(
            folder, name, UnitIdentity(f"key of {step}", "own", {}, "abc123")
        ) as draft:
            for file, content in files.items():
                path = draft.path / file.replace("_", ".")
                if isinstance(content, pa.Table):
                    pq.write_table(content, path)
                else:
                    path.write_text(json.dumps(content))
            draft.facts = facts
        receipt = receipts.load_intact(folder / name)
        assert receipt
        return Input(folder, {name: receipt})

    def scores(self, who: str, split: str) -> Input:
        generator = np.random.default_rng(len(split))
        tokens = generator.integers(50, 900, self.documents)
        size = tokens * 4
        nll = generator.normal(3.2, 0.4, self.documents) * tokens
        if who == "tuned":
            nll = nll + generator.normal(self.change, 0.1, self.documents) * tokens
        hashes = [f"{i:032x}" for i in range(self.documents)]
        columns = {"document": range(self.documents), "hash": hashes, "nll": nll}
        facts = self.scored(nll, tokens, size, tokens // 2)
        table = pa.table({**columns, "tokens": tokens, "bytes": size})
        return self.unit(f"evaluate.{who}", split, facts, scores_parquet=table)

    def scored(self, nll: Any, tokens: Any, size: Any, words: Any) -> dict[str, Any]:
        """What a receipt says of scores, all (documents,)."""
        return {
            "perplexity": perplexity(nll, tokens),
            "bits_per_byte": bits_per_byte(nll, size),
            "word_perplexity": word_perplexity(nll, words),
            "documents": self.documents,
            "of_documents": 4 * self.documents,
            "words": int(words.sum()),
            "by_position": [[5000 * (7 - place), 2000 << place] for place in range(7)],
            "tokens": int(tokens.sum()),
            "bytes": int(size.sum()),
            "context": 1024,
            "stride": 512,
            "precision": "bf16",
            "weights": "int8",
            "cpus": 2,
            "gpus": 0,
            "seconds": 31.5,
        }

    def samples(self, who: str) -> Input:
        kinds = ("reference", "greedy", "sampled", "learned")
        figures = {kind: measure_texts([[1, 2, 3, 4, 5, 6]] * 4, [0, 14, 0, 60]) for kind in kinds}
        figures["learned"] |= {"recited": 0.25 if who == "tuned" else 0.0, "agreement": 7.5}
        facts = {"seconds": 8.0, "cpus": 2, "gpus": 0, "precision": "bf16", "written": figures}
        sample = {
            "prompt": "We propose to study the expression of",
            "reference": "genes that are known to be involved.",
            "greedy": f"{who}: the brain.",
            "sampled": SCRIPT,
        }
        texts = {"held_out": [sample] * 6, "learned": [sample]}
        return self.unit(f"evaluate.{who}", samples_item(self.config), facts, samples_json=texts)

    def overlap(self) -> Input:
        found = {"documents": self.documents, "near_duplicates": 30, "any_overlap": 90}
        found |= {"covered_share": 0.04, "too_short": 2}
        hashes = [f"{i:032x}" for i in range(self.first, self.first + self.documents)]
        near = [i < 30 for i in range(self.documents)]
        tables = {
            f"{split}_parquet": pa.table({"hash": hashes, "near": near})
            for split in ("validation", "test")
        }
        facts = {"validation": found, "test": found, "seconds": 3.0, "cpus": 1}
        return self.unit("evaluate.overlap", "overlap", facts, **tables)

    def metrics(self) -> None:
        steps = list(range(1, 61))
        rows: list[dict[str, Any]] = [{"kind": "start", "step": 0, "attempt": 1}]
        for attempt in range(self.restarts + 1):
            first = 0 if attempt == 0 else 20 * attempt - 5
            last = 20 * (attempt + 1) if attempt < self.restarts else 60
            if attempt:
                rows.append({"kind": "start", "step": first, "attempt": attempt + 1})
            for step in steps[first:last]:
                loss = 3.3 - 0.5 * (1 - np.exp(-step / 15)) + 0.05 * np.sin(step * 7)
                rows.append(
                    {"kind": "step", "step": step, "loss": loss, "seconds": 2.0}
                    | {"tokens": 2000 + step, "grad_norm": 0.5 + 1 / step}
                )
                if step % 10 == 0:
                    loss = 3.2 - 0.4 * (1 - np.exp(-step / 15)) + 0.002 * max(0, step - 40)
                    rows.append({"kind": "validation", "step": step, "loss": loss})
        folder = self.root / "train.train" / "best"
        folder.mkdir(parents=True, exist_ok=True)
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "metrics.jsonl").write_text(text + '{"kind": "st')

    def inputs(self, *without: str) -> dict[str, Input]:
        sums = {"documents": 1000, "tokens": 400_000, "bytes": 1_600_000}
        trained = {
            "method": "lora",
            "steps": 60,
            "tokens": 120_000,
            "seconds": 120.0,
            "tokens_per_second": 1000.0,
            "best_step": 40,
            "best_loss": 2.83,
            "skipped": 0,
            "attempts": 1 + self.restarts,
            "precision": "bf16",
            "trainable": 921_600,
            "parameters": 135_436_608,
        }
        seal = {
            "splits": dict.fromkeys(("train", "validation", "test"), sums),
            "duplicates": {"train": 7, "validation": 0, "test": 1},
            "quarantined": 3,
            "empty": 2,
        }
        found = {
            "download.corpus": self.unit("download.corpus", "corpus", {}),
            "tokenize.seal": self.unit("tokenize.seal", "seal", seal),
            "train.train": self.unit("train.train", "best", trained),
        }
        self.metrics()
        for who in ("base", "tuned"):
            parts = [self.scores(who, split) for split in ("train", "validation", "test")]
            parts.append(self.samples(who))
            merged = {name: r for part in parts for name, r in part.receipts.items()}
            found[f"evaluate.{who}"] = Input(parts[0].folder, merged)
        found["evaluate.overlap"] = self.overlap()
        return {step: given for step, given in found.items() if step not in without}

    def build(self, *without: str) -> dict[str, Any]:
        out = self.root / "out"
        out.mkdir(parents=True, exist_ok=True)
        return write_report_files(self.config, self.inputs(*without), out)

    @property
    def html(self) -> str:
        return (self.root / "out/report.html").read_text()


def chunked(run: Run, sizes: list[int], slow: dict[int, float]) -> dict[str, Input]:
    """A run whose text is in chunks, some of which took their time: index → seconds."""
    inputs = run.inputs()
    folder = run.root / "decompress.chunks"
    digests, shards = {}, {}
    for index, size in enumerate(sizes):
        name, seconds = f"chunk-{index:05d}", slow.get(index, 2.0)
        facts = {"bytes": size, "lines": size // 100, "seconds": seconds}
        digests[name] = run.unit(folder.name, name, facts, chunk_zst=index).receipts[name].digest
        splits = {split: {"bytes": size // 4} for split in ("train", "validation", "test")}
        facts = {"splits": splits, "seconds": seconds * 10}
        shards |= run.unit("tokenize.shards", name, facts, train_parquet=index).receipts
    with commits.commit(folder, "complete", UnitIdentity("key", "own", {})) as draft:
        draft.units, draft.facts = digests, {"bytes": sum(sizes)}
    complete = receipts.load(folder / "complete")
    assert complete
    chunks = Input(folder, {"complete": complete})
    made = {
        "decompress.chunks": chunks,
        "tokenize.shards": Input(run.root / "tokenize.shards", shards),
    }
    return {"download.corpus": inputs.pop("download.corpus"), **made, **inputs}


def with_logs(run: Run) -> Path:
    """The folder in which the tasks of a run say when they ran: training was killed once."""
    folder = run.root / "logs"
    folder.mkdir(parents=True)
    share = {"element": 0, "of": 1, "plan": "p", "job": "7"}
    asked = {"train.train": [], "evaluate.base": [], "evaluate.tuned": ["train.train"]}
    (folder / "plans.jsonl").write_text(json.dumps({"plan": "p", "time": 1000, "steps": asked}))
    for step, state, begun, end in [
        ("train.train-0.history", "running", 1060, 3000),
        ("train.train-0", "done", 3300, 4600),
        ("evaluate.base-0", "done", 1030, 1100),
        ("evaluate.tuned-0", "done", 4700, 4800),
    ]:
        row = {**share, "state": state, "started": begun, "time": end}
        suffix = ".jsonl" if "history" in step else ".json"
        (folder / f"{step}{suffix}").write_text(json.dumps(row) + "\n")
    return folder


HOSTILE = "<b>a'b\"c $x$ & %é|d"


@dataclass
class Made(Run):
    """A run as the stages leave it; `noise` is of its own, `finer` cuts more tokens of a text."""

    name: str = "nih"
    lr: float = 2e-4
    model: str = "tiny"
    noise: float = 0.02
    finer: float = 1.0
    first: int = 0

    @property
    def config(self) -> Config:
        update = {
            "name": self.name,
            "train": TrainConfig(lr=self.lr),
            "model": BaseModel(id=self.model, repo=f"a/{self.model}"),
        }
        return super().config.model_copy(update=update)

    def scores(self, who: str, split: str) -> Input:
        common = np.random.default_rng(len(split))
        words = common.integers(50, 900, self.documents)
        nll = common.normal(3.2, 0.4, self.documents) * words
        tokens, size = (words * self.finer).astype(int), words * 4
        if who == "tuned":
            own = np.random.default_rng([len(split), *self.name.encode()])
            nll = nll + own.normal(self.change, self.noise, self.documents) * words
        facts = self.scored(nll, tokens, size, words)
        columns = {
            "document": range(self.documents),
            "hash": [f"{i:032x}" for i in range(self.first, self.first + self.documents)],
            "nll": nll,
            "tokens": tokens,
            "bytes": size,
        }
        return self.unit(f"evaluate.{who}", split, facts, scores_parquet=pa.table(columns))

    def metrics(self) -> None:
        """Faster and noisier with a higher rate, and over 2,000 tokens a step."""
        swift, chance = math.sqrt(self.lr / 2e-4), np.random.default_rng(len(self.name))
        rows: list[dict[str, Any]] = [{"kind": "start", "step": 0, "total": 60, "attempt": 1}]
        for step in range(61):
            fallen = -2.2 * self.change * (1 - math.exp(-step * swift / 15))
            loss = 3.3 - fallen + 0.03 * swift * chance.normal()
            row = {"kind": "step", "step": step, "loss": loss, "seconds": 2.0, "tokens": 2000}
            rows += [row] if step else []
            if step % 10 == 0:
                rows.append({"kind": "validation", "step": step, "loss": 3.25 - fallen})
        folder = self.root / "train.train" / "best"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def placed(self, *without: str) -> ComparedRun:
        inputs = self.inputs(*without)
        journal = self.root / "train.train" / "best"
        return ComparedRun(self.config, inputs, RunProgress((), journal, time.time()))
