"""Training survives interruption bit by bit, passes over damage, and publishes the best."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import advance

from pipeline.config import Config
from pipeline.dag import Node, find
from pipeline.errors import CorruptInput, Interrupted, UserError
from pipeline.receipt import hash_file
from pipeline.stage import Context, run_item
from pipeline.stop import Stop

Small = Callable[..., Config]


class StopAt(Stop):
    """Asks for a stop at the n-th look."""

    def __init__(self, looks: int) -> None:
        super().__init__()
        self.looks = looks

    @property
    def reason(self) -> str | None:
        """None until the look that counts."""
        self.looks -= 1
        return "a test" if self.looks < 0 else None


class StopAfter(Stop):
    """Asks for a stop, or raises an error of its own, once the metrics hold a step."""

    def __init__(self, folder: Path, step: int, error: type[BaseException] | None = None) -> None:
        super().__init__()
        self.path, self.sign, self.error = folder / "metrics.jsonl", f'"step": {step},', error

    def check(self) -> None:
        """Raise when the time has come."""
        if self.path.exists() and self.sign in self.path.read_text():
            raise self.error or Interrupted("a test")


class Killed(BaseException):
    """Stands for SIGKILL within one process: nothing is saved on the way out."""


def result(node: Node) -> tuple[str, float]:
    """Digest of what was learned, and the best loss."""
    (receipt,) = node.done.values()
    return receipt.digest, receipt.facts["best_loss"]


def train(config: Config, root: Path, stop: Stop | None = None) -> Node:
    """Run the train step in this process."""
    node = find(config, root, "train.train")
    assert node.items is not None
    run_item(node.work, node.items[0], Context(stop=stop or Stop(), log=print))
    return find(config, root, "train.train")


def metrics(node: Node) -> list[dict[str, object]]:
    """The rows of the run's metrics."""
    text = (node.work.folder / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_stopping_at_any_moment_changes_nothing(family: str, small: Small, tmp_path: Path) -> None:
    words = ("train.dropout=0.1",)
    config = small(*words, family=family, name="whole")
    whole = result(advance(config, tmp_path / "whole", "train.train"))
    broken = small(*words, family=family, name="broken")
    advance(broken, tmp_path, "tokenize.seal")
    stops, looks = 0, 1
    while True:
        try:
            node = train(broken, tmp_path, StopAt(looks))
            break
        except Interrupted:
            stops, looks = stops + 1, looks + 1
    assert stops >= 3
    assert result(node) == whole


def test_full_training_with_8_bit_optimizer_resumes_exactly(small: Small, tmp_path: Path) -> None:
    words = ("train.method=full", "train.weights=fp32", "train.optimizer=adamw8bit")
    whole = result(advance(small(*words, name="whole"), tmp_path / "whole", "train.train"))
    broken = small(*words, name="broken")
    advance(broken, tmp_path, "tokenize.seal")
    with pytest.raises(Interrupted):
        train(broken, tmp_path, StopAt(6))
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


def test_a_damaged_checkpoint_is_passed_over_loudly(
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
    assert "PASSED OVER" in capsys.readouterr().out


class Hostile:
    """Unpickled, it makes a folder."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


def test_what_a_checkpoint_s_pickle_would_do_is_not_done(
    small: Small, prepared: Path, tmp_path: Path
) -> None:
    """Not even where the receipt vouches for it; the next run goes on from the one before."""
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
    receipt = json.loads((newest / "receipt.json").read_text())
    receipt["outputs"]["optimizer.pt"] = {"size": path.stat().st_size, "sha256": hash_file(path)}
    (newest / "receipt.json").write_text(json.dumps(receipt))
    with pytest.raises(CorruptInput) as caught:
        train(config, tmp_path)
    said = f"{path} is a pickle with more in it than tensors and numbers, which is not run. It was"
    assert str(caught.value).startswith(said)
    assert not newest.exists()
    assert not (tmp_path / "done").exists()
    assert train(config, tmp_path).complete
    (aside,) = folder.glob(".damaged-step-*")
    torch.load(aside / "optimizer.pt", weights_only=False)
    assert (tmp_path / "done").exists(), "so it is hostile"


def test_only_the_newest_checkpoints_and_the_best_are_kept(
    small: Small, prepared: Path, tmp_path: Path
) -> None:
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    config = small("train.checkpoint_every=1", "train.steps=5")
    node = train(config, tmp_path)
    (receipt,) = node.done.values()
    kept = {path.name for path in node.work.folder.glob("step-*")}
    assert len(kept) <= config.train.keep_checkpoints + 1
    assert f"step-{receipt.facts['best_step']:08d}" in kept


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


def test_4_bits_on_a_cpu_are_refused(small: Small, prepared: Path, tmp_path: Path) -> None:
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    with pytest.raises(UserError, match="nf4 does not learn on a CPU"):
        train(small("train.weights=nf4"), tmp_path)


def test_targets_that_fit_nothing_are_refused_naming_those_that_do(
    small: Small, prepared: Path, tmp_path: Path
) -> None:
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    with pytest.raises(UserError, match="q_proj"):
        train(small("train.targets=[query]"), tmp_path)


def test_another_setting_of_a_later_stage_takes_the_training_over(
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


def test_a_best_checkpoint_that_is_damaged_does_not_block(
    small: Small, prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    config = small("train.lr=0.5", "train.warmup=0", "train.checkpoint_every=1")
    folder = find(config, tmp_path, "train.train").work.folder
    with pytest.raises(Interrupted):
        train(config, tmp_path, StopAfter(folder, 5))
    (best,) = {
        json.loads((u / "state.json").read_text())["best_step"] for u in folder.glob("step-*5")
    }
    (folder / f"step-{best:08d}" / "trainable.safetensors").write_bytes(b"")
    capsys.readouterr()
    node = train(config, tmp_path)
    assert "PASSED OVER" in capsys.readouterr().out
    assert node.complete


def test_the_base_drops_nothing_out_whatever_its_configuration_says(
    models: Callable[[str], Path], tmp_path: Path
) -> None:
    import torch

    from pipeline.model.load import load_base

    shutil.copytree(models("opt"), tmp_path / "opt")
    path = tmp_path / "opt" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"dropout": 0.5}))
    model = load_base(tmp_path / "opt", "fp32", torch.device("cpu")).train()
    ids = torch.arange(20)[None]
    assert torch.equal(model(ids).logits, model(ids).logits)
