"""Training resumes bit for bit, ignores damaged checkpoints, and publishes the best weights."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.config import Config
from pipeline.core.errors import CorruptInput, Interrupted, UserError
from pipeline.core.receipt import Output, hash_file, load, write
from pipeline.core.stage import Context, Item, run_item
from pipeline.dag import find
from pipeline.modeling import cpu_attention
from pipeline.modeling.device import pick_precision
from pipeline.train.checkpoint import TrainState
from pipeline.train.metrics_log import METRICS_FILE, SAMPLES_FILE, MetricsLog
from tests.helpers.examples import thorough
from tests.helpers.runs import StopAfterChecks, advance
from tests.train.helpers import Killed, StopAfter, metrics, result, train, train_interrupted

pytestmark = pytest.mark.slow

Small = Callable[..., Config]


@pytest.fixture
def root(prepared: Path, tmp_path: Path) -> Path:
    """A root in which training is the next step."""
    return Path(shutil.copytree(prepared, tmp_path / "root"))


@pytest.mark.parametrize(
    "family",
    [
        "llama",
        pytest.param("gpt2", marks=pytest.mark.thorough),
        pytest.param("opt", marks=pytest.mark.thorough),
    ],
)
def test_stopping_at_any_moment_changes_nothing(family: str, small: Small, tmp_path: Path) -> None:
    words = ("train.lora_dropout=0.1",)
    config = small(*words, family=family, name="whole")
    whole = result(advance(config, tmp_path / "whole", "train.train"))
    broken = small(*words, family=family, name="broken")
    advance(broken, tmp_path, "tokenize.seal")
    stops, checks = 0, 1
    while True:
        try:
            node = train(broken, tmp_path, StopAfterChecks(checks))
            break
        except Interrupted:
            stops, checks = stops + 1, checks + 1
    assert stops >= 3
    assert result(node) == whole


def test_full_training_with_8_bit_optimizer_resumes_exactly(small: Small, tmp_path: Path) -> None:
    words = ("train.method=full", "train.weights=fp32", "train.optimizer=adamw8bit")
    whole = result(advance(small(*words, name="whole"), tmp_path / "whole", "train.train"))
    broken = small(*words, name="broken")
    advance(broken, tmp_path, "tokenize.seal")
    with pytest.raises(Interrupted):
        train(broken, tmp_path, StopAfterChecks(6))
    assert result(train(broken, tmp_path)) == whole


def test_a_killed_training_repeats_at_most_one_interval(
    small: Small, prepared: Path, tmp_path: Path
) -> None:
    for place in (tmp_path / "whole", tmp_path):
        shutil.copytree(prepared, place, dirs_exist_ok=True)
    whole = result(train(small(name="whole"), tmp_path / "whole"))
    config = small(name="killed")

    folder = find(config, tmp_path, "train.train").work.folder
    with pytest.raises(Killed):
        train(config, tmp_path, StopAfter(folder, 5, Killed))
    before = [
        row["step"]
        for row in metrics(find(config, tmp_path, "train.train"))
        if row["kind"] == "step"
    ]
    node = train(config, tmp_path)
    rows = metrics(node)
    again = [row["step"] for row in rows if row["kind"] == "step"][len(before) :]
    assert result(node) == whole
    assert before
    assert before[-1] - again[0] + 1 <= config.train.checkpoint_every


def test_damaged_checkpoint_is_skipped_with_a_warning(
    small: Small, prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for place in (tmp_path / "whole", tmp_path):
        shutil.copytree(prepared, place, dirs_exist_ok=True)
    whole = result(train(small(name="whole"), tmp_path / "whole"))
    config = small(name="damaged")
    folder = find(config, tmp_path, "train.train").work.folder
    with pytest.raises(Interrupted):
        train(config, tmp_path, StopAfter(folder, 5))
    newest = sorted(folder.glob("step-*"))[-1]
    content = bytearray((newest / "optimizer.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (newest / "optimizer.pt").write_bytes(content)
    capsys.readouterr()
    assert result(train(config, tmp_path)) == whole
    assert "IGNORED" in capsys.readouterr().out


class Hostile:
    """Creates a folder when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


def test_code_in_a_checkpoint_pickle_is_not_run(
    small: Small, prepared: Path, tmp_path: Path
) -> None:
    """Not even if the receipt matches; the next run resumes from the checkpoint before."""
    import torch

    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    config = small(name="hostile")
    folder = find(config, tmp_path, "train.train").work.folder
    with pytest.raises(Interrupted):
        train(config, tmp_path, StopAfter(folder, 5))
    newest = sorted(folder.glob("step-*"))[-1]
    path = newest / "optimizer.pt"
    content = torch.load(path, weights_only=True) | {"hostile": Hostile(tmp_path / "done")}
    torch.save(content, path)
    receipt = load(newest)
    assert receipt is not None
    changed = {"optimizer.pt": Output(path.stat().st_size, hash_file(path))}
    write(replace(receipt, outputs=receipt.outputs | changed), newest)
    with pytest.raises(CorruptInput) as caught:
        train(config, tmp_path)
    message = (
        f"{path} is a pickle that contains more than tensors and numbers; it is not loaded. It was"
    )
    assert str(caught.value).startswith(message)
    assert not newest.exists()
    assert not (tmp_path / "done").exists()
    assert train(config, tmp_path).complete
    (aside,) = folder.glob(".damaged-step-*")
    torch.load(aside / "optimizer.pt", weights_only=False)
    assert (tmp_path / "done").exists(), "so it is hostile"


@pytest.mark.parametrize("keep", [1, 3])
def test_only_the_newest_checkpoints_and_the_best_are_kept(
    small: Small, root: Path, keep: int
) -> None:
    """With all weights trained at this learning rate, the base model stays the best."""
    words = ("train.method=full", "train.weights=fp32", "train.lr=0.5", "train.warmup_ratio=0")
    words = (*words, "train.steps=7", "train.checkpoint_every=1")
    node = train(small(*words, f"train.keep_checkpoints={keep}"), root)
    (receipt,) = node.done.values()
    assert receipt.facts["best_step"] == 0
    kept = sorted(path.name for path in node.work.folder.glob("step-*"))
    assert kept == [f"step-{step:08d}" for step in (0, *range(7 - keep, 7))]


def test_it_learns_and_starts_from_the_loss_of_the_base(
    small: Small, prepared: Path, tmp_path: Path
) -> None:
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    node = train(small("train.steps=12"), tmp_path)
    losses = [row["loss"] for row in metrics(node) if row["kind"] == "validation"]
    assert losses[-1] < losses[0] - 0.05
    assert result(node)[1] == min(losses)


def test_the_adapter_opens_with_peft(small: Small, prepared: Path, tmp_path: Path) -> None:
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    node = train(small(), tmp_path)
    import peft
    import transformers

    base, _ = find(small(), tmp_path, "train.train").work.inputs["download.model"].one()
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    adapted = peft.PeftModel.from_pretrained(model, node.work.folder / "best")
    learned = [p for n, p in adapted.named_parameters() if "lora_B" in n]
    assert learned
    assert all(p.abs().sum() > 0 for p in learned)


def test_validation_loss_selects_the_adapter_and_stops_early(
    small: Small, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """At this learning rate the first steps overshoot."""
    words = ("train.lr=0.1", "train.warmup_ratio=0", "train.steps=30", "train.validate_every=2")
    node = train(small(*words, "train.early_stopping_patience=1"), root)
    (receipt,) = node.done.values()
    rows = [row for row in metrics(node) if row["kind"] == "validation"]
    losses = {row["step"]: row["loss"] for row in rows}
    best = min(losses, key=lambda step: losses[step])
    assert receipt.facts["stopped_early"]
    assert (receipt.facts["best_step"], receipt.facts["best_loss"]) == (best, losses[best])
    assert max(losses) == receipt.facts["steps"] == best + 2 < 30
    message = f"stopped early at step {best + 2} of 30: 1 validations in a row without"
    assert message in capsys.readouterr().out


def test_the_samples_of_each_validation_are_readable(small: Small, root: Path) -> None:
    node = train(small("train.sample_tokens=60"), root)
    text = (node.work.folder / "best" / "samples.txt").read_text()
    for step, row in enumerate(r for r in metrics(node) if r["kind"] == "validation"):
        assert f"=== step {3 * step}, validation loss {row['loss']:.4f}\n    " in text
    assert text.count("\n  ▶\n") == 3
    assert max(map(len, text.splitlines())) <= 100
    assert all(c.isprintable() for c in text.replace("\n", ""))


def test_gradient_checkpointing_computes_layers_twice_and_changes_nothing(
    small: Small, root: Path, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attention_forward, count = cpu_attention.attention_forward, [0]

    def counting(module: Any, *arguments: Any, **words: Any) -> Any:
        count[0] += module.training
        return attention_forward(module, *arguments, **words)

    monkeypatch.setattr(cpu_attention, "attention_forward", counting)
    results, calls = [], []
    for on, place in (("true", root), ("false", tmp_path / "other")):
        if not place.exists():
            shutil.copytree(prepared, place)
        count[0] = 0
        words = ("train.lora_dropout=0.1", f"train.gradient_checkpointing={on}")
        results.append(result(train(small(*words), place)))
        calls.append(count[0])
    layers, micro_batches, steps = 2, 2, 6
    assert calls == [2 * layers * micro_batches * steps, layers * micro_batches * steps]
    assert results[0] == results[1], "dropout drops the same elements, too"


@pytest.mark.parametrize(
    ("first", "then"), [("fp32", "bf16"), pytest.param("bf16", "fp32", marks=pytest.mark.thorough)]
)
def test_resolved_precision_is_kept_on_another_machine(
    small: Small, root: Path, tmp_path: Path, prepared: Path, monkeypatch: pytest.MonkeyPatch,
    first: str, then: str
) -> None:  # fmt: skip
    """As when one node has bf16 and the next has not; `auto` alone would change the precision."""
    best = [first]  # precision that `auto` finds on this machine
    monkeypatch.setattr(
        "pipeline.train.run.pick_precision",
        lambda wanted, device: pick_precision(best[0] if wanted == "auto" else wanted, device),
    )
    wholes = {}
    for precision in (first, then):
        place = Path(shutil.copytree(prepared, tmp_path / precision))
        wholes[precision] = result(train(small(f"train.precision={precision}"), place))
    assert wholes[first] != wholes[then], "the results differ, so the check is sharp"
    config = small()
    with pytest.raises(Interrupted):
        train(config, root, StopAfter(find(config, root, "train.train").work.folder, 3))
    best[0] = then
    node = train(config, root)
    assert result(node) == wholes[first]
    (receipt,) = node.done.values()
    assert receipt.facts["precision"] == first


def test_resume_time_does_not_grow_with_metrics_file(tmp_path: Path) -> None:
    """A sparse file of a terabyte, with an incomplete last line."""
    for name in (METRICS_FILE, SAMPLES_FILE):
        (tmp_path / name).touch()
    MetricsLog(tmp_path, TrainState(attempts=1))
    assert (tmp_path / METRICS_FILE).read_text().count("\n") == 1, (
        "an empty file has no incomplete line"
    )
    with (tmp_path / METRICS_FILE).open("r+b") as file:
        file.truncate(1 << 40)
        file.seek(0, os.SEEK_END)
        file.write(b'{"kind": "st')
    for attempt in (2, 3):
        MetricsLog(tmp_path, TrainState(attempts=attempt))
    with (tmp_path / METRICS_FILE).open("rb") as file:
        file.seek(1 << 40)
        incomplete, *rows = file.read().decode().splitlines()
    assert incomplete == '{"kind": "st'
    assert [json.loads(row)["attempt"] for row in rows] == [2, 3]


@pytest.mark.parametrize("micro_batch", [1, 3, 4])
def test_another_micro_batch_continues_the_same_data_order(
    small: Small, root: Path, prepared: Path, tmp_path: Path, micro_batch: int
) -> None:
    shutil.copytree(prepared, tmp_path / "whole")
    whole = train(small(), tmp_path / "whole")
    with pytest.raises(Interrupted):
        train(small(), root, StopAfter(find(small(), root, "train.train").work.folder, 3))
    node = train(small(f"train.micro_batch_size={micro_batch}"), root)
    rows, wanted = ([r for r in metrics(n) if r["kind"] == "step"] for n in (node, whole))
    assert [row["tokens"] for row in rows] == [row["tokens"] for row in wanted]
    for row, other in zip(rows, wanted, strict=True):
        assert row["loss"] == pytest.approx(other["loss"], rel=2e-3)


def test_checkpoints_of_another_corpus_are_refused(small: Small, root: Path) -> None:
    config = small()
    with pytest.raises(Interrupted):
        train(config, root, StopAfter(find(config, root, "train.train").work.folder, 3))
    node = find(config, root, "train.train")
    assert node.items is not None
    item = Item("best", node.items[0].inputs | {"tokenize.shards": "another"})
    with pytest.raises(UserError) as caught:
        run_item(node.work, item, Context(log=print))
    folder = node.work.folder
    assert str(caught.value) == (
        f"{folder} contains checkpoints that were trained on other data: tokenize.shards changed "
        f"since. To start again with the present data, remove it: rm -r {folder}"
    )
    assert train(config, root).complete, "nothing was lost"


def test_a_schedule_of_another_length_is_refused(
    small: Small, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small()
    with pytest.raises(Interrupted):
        train(config, root, StopAfter(find(config, root, "train.train").work.folder, 3))
    monkeypatch.setattr("pipeline.train.run._total_steps", lambda *_: 60)
    with pytest.raises(UserError, match=r"schedule of 6 steps, and the schedule now has 60\."):
        train(config, root)


def test_interrupted_training_gives_the_same_bytes(
    small: Small, prepared: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Stopped after a step (positive), which saves, or killed after it (negative)."""
    config = small("train.lora_dropout=0.1", "train.checkpoint_every=1")
    place = Path(shutil.copytree(prepared, tmp_path_factory.mktemp("whole") / "root"))
    whole = result(train(config, place))

    @settings(max_examples=8 if thorough else 2, deadline=None, database=None)
    @example([-1])
    @example([3, -3])
    @example([6])
    @given(st.lists(st.integers(-6, 6), min_size=1, max_size=4))
    def check(moments: list[int]) -> None:
        folder = tmp_path_factory.mktemp("broken")
        assert result(train_interrupted(config, prepared, folder, moments)) == whole

    check()


def test_4_bits_on_a_cpu_are_refused(small: Small, prepared: Path, tmp_path: Path) -> None:
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    with pytest.raises(UserError, match="nf4 cannot be trained on a CPU"):
        train(small("train.weights=nf4"), tmp_path)


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("train", {"lora_targets": ("query",)}, r"no module query .*_proj"),
        (
            "train",
            {"lora_targets": ("q_proj", "layers.99.v_proj")},
            r"no module layers.* .*_proj",
        ),
        ("evaluate", {"context": 100_000}, r"evaluate\.context=100000 is longer than"),
    ],
)
def test_settings_that_do_not_fit_the_model_are_refused_before_a_step(
    small: Small, prepared: Path, tmp_path: Path, section: str, values: dict[str, Any], message: str
) -> None:
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    config = small()
    settings = getattr(config, section).model_copy(update=values)
    with pytest.raises(UserError, match=message):
        train(config.model_copy(update={section: settings}), tmp_path)
    assert not list(tmp_path.glob("runs/*/train-*/metrics.jsonl"))


def test_a_training_is_adopted_when_only_evaluation_settings_differ(
    small: Small, prepared: Path, tmp_path: Path
) -> None:
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    first = train(small(name="first"), tmp_path)
    later = small("evaluate.resamples=300", name="later")
    node = find(later, tmp_path, "train.train")
    assert run_item(node.work, (node.items or [])[0], Context(log=print)) == "adopted"
    node = find(later, tmp_path, "train.train")
    assert result(node) == result(first)
    assert (node.work.folder / "best" / "metrics.jsonl").exists()


def test_damaged_best_checkpoint_does_not_block_resuming(
    small: Small, prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    config = small("train.lr=0.5", "train.warmup_ratio=0", "train.checkpoint_every=1")
    folder = find(config, tmp_path, "train.train").work.folder
    with pytest.raises(Interrupted):
        train(config, tmp_path, StopAfter(folder, 5))
    (best,) = {
        json.loads((u / "state.json").read_text())["best_step"] for u in folder.glob("step-*5")
    }
    (folder / f"step-{best:08d}" / "trainable.safetensors").write_bytes(b"")
    capsys.readouterr()
    node = train(config, tmp_path)
    assert "IGNORED" in capsys.readouterr().out
    assert node.complete


def test_the_dropout_of_the_base_model_s_configuration_is_ignored(
    models: Callable[[str], Path], tmp_path: Path
) -> None:
    import torch

    from pipeline.modeling.loading import load_base

    shutil.copytree(models("opt"), tmp_path / "opt")
    path = tmp_path / "opt" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"dropout": 0.5}))
    model = load_base(tmp_path / "opt", "fp32", torch.device("cpu")).train()
    ids = torch.arange(20)[None]
    assert torch.equal(model(ids).logits, model(ids).logits)
