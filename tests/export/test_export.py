"""What was trained leaves the house: the adapter by README's lines, the merged model by export."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.housekeeping.export import _source, export_run
from pipeline.config import Config
from pipeline.core import receipt as receipts
from pipeline.core.errors import CorruptInput, InputError, UserError
from pipeline.dag import find
from pipeline.export import export
from pipeline.modeling.loading import add_lora, load_adapter, load_base
from pipeline.saved_config import save_config
from tests.export.helpers import apart, in_fp32, logits, parts
from tests.helpers.files import mode
from tests.helpers.runs import advance, refused

ROOT = Path(__file__).resolve().parents[2]
FAMILIES = ("llama", "gpt2", "opt")
TEXT = "The court of appeals affirmed the judgment of the lower court."
Small = Callable[..., Config]
Trained = Callable[[str], Path]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, small: Small) -> Trained:
    """A root with an adapter of the family, trained on a base in 8 bits. Copy, do not change."""
    made: dict[str, Path] = {}

    def root(family: str) -> Path:
        if family not in made:
            made[family] = tmp_path_factory.mktemp(f"trained-{family}")
            config = small(family=family)
            save_config(config, made[family])
            advance(config, made[family], "train.train")
        return made[family]

    return root


def lines_of_readme(base: Path, best: Path) -> str:
    """The lines that README shows, with these folders in place of its own."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (lines,) = [block for block in blocks if "PeftModel" in block]
    assert len(lines.split("\n\n")) == 2
    for shown, folder in (("facebook/opt-125m", base), ("runs/runs/nih/train-<key>/best", best)):
        assert lines.count(f'"{shown}"') == 1
        lines = lines.replace(f'"{shown}"', repr(str(folder)))
    return lines


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_loads_by_the_lines_of_readme(
    family: str, small: Small, trained: Trained, tmp_path: Path
) -> None:
    """Trained in 8 bits, laid on a plain base in fp32 and in bf16; without a warning of peft's."""
    import torch
    from transformers import AutoModelForCausalLM

    base, best = parts(small(family=family), trained(family))
    half = tmp_path / "half"
    AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).save_pretrained(half)
    found: dict[str, Any] = {}
    for name, folder in (("fp32", base), ("bf16", half)):
        names: dict[str, Any] = {}
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            exec(lines_of_readme(folder, best), names)
        assert (
            next(names["model"].parameters()).dtype
            == {
                "fp32": torch.float32,
                "bf16": torch.bfloat16,
            }[name]
        )
        assert not any(module.training for module in names["model"].modules())
        found[name] = logits(names["model"])
    plain = in_fp32(base)
    before = logits(plain)
    ours = logits(load_adapter(plain, best))
    in_8_bits = load_base(base, "int8", torch.device("cpu"))
    assert apart(found["fp32"], ours) < 1e-6
    assert apart(found["bf16"], ours) < 0.03
    assert apart(logits(load_adapter(in_8_bits, best)), ours) < 0.05
    assert apart(before, ours) > 0.1, "it has learned something"


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_merged_is_base_and_adapter(
    family: str, small: Small, trained: Trained, tmp_path: Path
) -> None:
    """To the rounding of fp32, though it was trained in 8 bits; it opens without a word of ours."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    config, root = small(family=family), trained(family)
    base, best = parts(config, root)
    export_run(config, root, tmp_path / "out", "fp32")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert next(merged.parameters()).dtype == torch.float32
    assert {p.suffix for p in (tmp_path / "out").iterdir()} == {".json", ".md", ".safetensors"}
    adapted = logits(load_adapter(in_fp32(base), best))
    assert apart(logits(merged), adapted) < 2e-6
    through_8_bits = load_adapter(load_base(base, "int8", torch.device("cpu")), best)
    assert apart(logits(through_8_bits.merge_and_unload()), adapted) > 1e-3, "what is avoided"
    plain = AutoTokenizer.from_pretrained(base)
    assert AutoTokenizer.from_pretrained(tmp_path / "out")(TEXT) == plain(TEXT)
    generation = GenerationConfig.from_pretrained(tmp_path / "out").to_dict()
    assert generation == GenerationConfig.from_pretrained(base).to_dict()
    ours, theirs = (AutoConfig.from_pretrained(p).to_dict() for p in (tmp_path / "out", base))
    same = theirs.keys() - {"_name_or_path", "transformers_version"}
    assert {k: ours[k] for k in same} == {k: theirs[k] for k in same}, "dropout and cache, too"


@pytest.mark.parametrize(
    ("own", "ends"), [(2, [2, 7]), ([2, 3], [2, 3, 7]), (None, 7), (7, 7), ([2, 7], [2, 7])]
)
def test_what_is_generated_ends_where_documents_ended(own: Any, ends: Any, tmp_path: Path) -> None:
    from transformers import GenerationConfig

    GenerationConfig(eos_token_id=own, max_length=99).save_pretrained(tmp_path)
    before = (tmp_path / "generation_config.json").read_bytes()
    export._add_end_token(tmp_path, 7)
    assert (before == (tmp_path / "generation_config.json").read_bytes()) == (own == ends)
    found = GenerationConfig.from_pretrained(tmp_path)
    assert (found.eos_token_id, found.max_length) == (ends, 99)


@pytest.mark.slow
def test_an_export_ends_where_training_ended(
    small: Small, trained: Trained, tmp_path: Path
) -> None:
    from transformers import GenerationConfig

    config, root = small(), trained("llama")
    source = _source(config, find(config, root, "train.train"), root)
    facts = {**source.base_receipt.facts, "end_id": 5}
    source = replace(source, base_receipt=replace(source.base_receipt, facts=facts))
    export.export(source, "", tmp_path / "out", export.identity(source, "", "fp32", "code"))
    own = GenerationConfig.from_pretrained(source.base).eos_token_id
    assert isinstance(own, int)
    assert own != 5
    assert GenerationConfig.from_pretrained(tmp_path / "out").eos_token_id == [own, 5]


@pytest.mark.slow
def test_16_bits_are_half_the_size_and_rounded_after_merging(
    small: Small, trained: Trained, tmp_path: Path
) -> None:
    import torch
    from safetensors.torch import load_file

    for precision in ("fp32", "bf16"):
        export_run(small(), trained("llama"), tmp_path / precision, precision)  # type: ignore[arg-type]
    one, half = (load_file(tmp_path / p / "model.safetensors") for p in ("fp32", "bf16"))
    assert one.keys() == half.keys()
    assert all(torch.equal(half[name], one[name].bfloat16()) for name in one)


def test_what_does_not_fit_into_fp16_is_told() -> None:
    import torch

    model = torch.nn.Linear(2, 2)
    model.weight.data[0, 0] = 1e5
    with pytest.raises(UserError, match=r"not finite in fp16\. Try --precision=fp32"):
        export._round(model, "fp16")


@pytest.mark.slow
def test_all_weights_trained_are_exported_too(small: Small, prepared: Path, tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    shutil.copytree(prepared, tmp_path / "root")
    config = small("train.method=full", "train.weights=fp32", "train.model_dropout=0.2")
    save_config(config, tmp_path / "root")
    advance(config, tmp_path / "root", "train.train")
    base, best = parts(config, tmp_path / "root")
    export_run(config, tmp_path / "root", None, "fp32")
    folder = tmp_path / "root" / "runs" / "small" / "export"
    ours, theirs = (AutoModelForCausalLM.from_pretrained(p) for p in (folder, best))
    assert apart(logits(ours), logits(theirs)) == 0
    assert (
        AutoConfig.from_pretrained(folder).use_cache == AutoConfig.from_pretrained(base).use_cache
    )
    assert "all weights" in (folder / "README.md").read_text()


def test_an_adapter_on_tied_weights_is_not_merged_wrongly(
    models: Callable[[str], Path],
) -> None:
    import torch

    base = load_base(models("llama"), "fp32", torch.device("cpu"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = add_lora(base, 2, 4, 0.0, ["lm_head"], 0)
    with pytest.raises(UserError, match="merged, it would change both"):
        export._check_ties(adapted)


@pytest.mark.slow
def test_the_card_is_what_the_hub_reads(
    small: Small, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from huggingface_hub import ModelCard

    config = small()
    config = config.model_copy(
        update={
            "dataset": config.dataset.model_copy(update={"licence": "CC0", "language": "en"}),
            "model": config.model.model_copy(update={"about": "made for tests; licence none"}),
        }
    )
    export_run(config, finished, tmp_path / "out", "bf16")
    text = (tmp_path / "out" / "README.md").read_text()
    said = capsys.readouterr().out
    assert str(tmp_path / "out") in said
    assert "of memory" in said
    head = yaml.safe_load(text.split("---")[1])
    assert head["library_name"] == "transformers"
    assert head["language"] == "en"
    (index,) = head["model-index"]
    report = json.loads((finished / "runs/small/report/report.json").read_text())
    for result in index["results"]:
        tuned = report["evaluation"][result["dataset"]["split"]]["tuned"]
        for metric in result["metrics"]:
            assert metric["value"] == pytest.approx(tuned[metric["type"]], rel=1e-5)
    card = ModelCard(text)
    assert card.data.model_name == "small"
    assert {(r.dataset_split, r.metric_type) for r in card.data.eval_results or []} == {
        (split, metric)
        for split in ("validation", "test")
        for metric in ("perplexity", "bits_per_byte")
    }
    for told in (
        *("licence none", "licence: CC0", "language: en", "LoRA: rank 16", "weights int8, "),
        *("then rounded to bf16", "exp(sum of negative log-likelihoods", "score them again"),
        report["verdict"]["words"][1:],
    ):
        assert told in text
    assert str(finished) not in text
    assert "file:" not in text


def test_the_card_names_a_hub_model_and_no_secret(small: Small) -> None:
    from pipeline.core.registry import BaseModel
    from pipeline.export.model_card import write_card

    config = small()
    urls = ["https://example.org/c.jsonl.zst?signature=secret"]
    config = config.model_copy(
        update={
            "dataset": config.dataset.model_copy(update={"urls": urls}),
            "model": BaseModel(id="a--b", repo="a/b", revision="abc"),
        }
    )
    facts = {"method": "lora", "trainable": 1, "parameters": 2, "precision": "bf16", "steps": 1}
    facts |= {"tokens": 1, "best_step": 1, "best_loss": 1.0}
    text = write_card(config, facts, None, "fp32")
    assert yaml.safe_load(text.split("---")[1])["base_model"] == "a/b"
    assert "https://example.org/c.jsonl.zst?…" in text
    assert "secret" not in text
    assert "Not evaluated yet" in text
    assert "model-index" not in text


def test_a_training_that_is_not_finished_is_told_with_what_to_type(
    small: Small, prepared: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as caught:
        export_run(small(), prepared, None, "fp32")
    told = "the training of small is not finished. See how far it is with make status and the "
    told += "same NAME and RUNS; to resume: "
    assert str(caught.value) == f"{told}the make pipeline command that began it, with all its words"
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    save_config(small(), tmp_path, "make pipeline DATASET=small")
    with pytest.raises(InputError) as caught:
        export_run(small(), tmp_path, None, "fp32")
    assert str(caught.value) == f"{told}make pipeline DATASET=small"


@pytest.mark.slow
def test_too_little_memory_is_told_before_anything_is_read(
    small: Small, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.export.export.memory", lambda: 900_000_000)
    with pytest.raises(UserError) as caught:
        export_run(small(), trained("llama"), tmp_path / "new" / "out", "fp32")
    told = r"exporting \d+,\d+ weights takes 1 GB of memory .* only 900 MB may be used here\. Run"
    assert re.match(told, str(caught.value))
    assert str(caught.value).endswith("srun --mem=2G make export …")
    assert not (tmp_path / "new").exists()


def exported(config: Config, root: Path, to: Path) -> dict[str, bytes]:
    export_run(config, root, to, "fp32")
    return {path.name: path.read_bytes() for path in to.iterdir()}


@pytest.mark.slow
def test_twice_is_once_and_ours_is_replaced(
    small: Small, trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to = tmp_path / "out"
    to.mkdir()  # an empty folder is no one's work
    first = exported(small(), trained("llama"), to)
    capsys.readouterr()
    assert exported(small(), trained("llama"), to) == first
    assert capsys.readouterr().out.splitlines()[-1] == f"already exported: {to}"
    export_run(small(), trained("llama"), to, "bf16")
    assert (to / "model.safetensors").stat().st_size < len(first["model.safetensors"])
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("what", ["a file", "a folder", "a note", "another card", "a link"])
def test_what_export_did_not_write_is_not_touched(
    what: str, small: Small, trained: Trained, tmp_path: Path
) -> None:
    to = tmp_path / "out"
    if what == "a file":
        to.write_text("mine")
    elif what == "a folder":
        to.mkdir()
        (to / "config.json").write_text("mine")
    elif what == "a link":
        (tmp_path / "there").mkdir()
        (tmp_path / "there" / "notes").write_text("mine")
        to.symlink_to(tmp_path / "there")
    else:
        export_run(small(), trained("llama"), to, "fp32")
        (to / ("notes" if what == "a note" else "README.md")).write_text("mine")
    with pytest.raises(
        UserError, match=r"/(out|there) (was|exists) .*choose another folder: make export ARG"
    ):
        export_run(small(), trained("llama"), to, "bf16")
    texts = [to] if to.is_file() else [p for p in to.iterdir() if p.suffix != ".safetensors"]
    assert "mine" in [path.read_text() for path in texts]


KILLED = """
import os, signal, sys
from pathlib import Path
import pipeline.core.commit as commit
from jobs.housekeeping.export import _source, export_run
from pipeline.saved_config import load_config
seal = commit._hash_and_sync_outputs
def kill(draft):
    found = seal(draft)
    os.kill(os.getpid(), signal.SIGKILL)
commit._hash_and_sync_outputs = kill
root = Path(sys.argv[1])
export_run(load_config(root / "runs/small/config.yaml"), root, Path(sys.argv[2]), "fp32")
"""


@pytest.mark.slow
def test_a_kill_leaves_nothing_half_and_the_next_one_clears_up(
    small: Small, trained: Trained, tmp_path: Path
) -> None:
    to = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-c", KILLED, trained("llama"), to],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=120,
    )
    assert done.returncode == -9
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".tmp-out-")
    export_run(small(), trained("llama"), to, "fp32")
    assert list(tmp_path.iterdir()) == [to]
    assert receipts.load_intact(to)


def test_a_damaged_adapter_is_not_exported(small: Small, trained: Trained, tmp_path: Path) -> None:
    root = tmp_path / "root"
    shutil.copytree(trained("llama"), root)
    _, best = parts(small(), root)
    content = bytearray((best / "adapter_model.safetensors").read_bytes())
    content[-1] ^= 1
    (best / "adapter_model.safetensors").write_bytes(content)
    with pytest.raises(CorruptInput, match=r"is damaged.*run the make pipeline command that"):
        export_run(small(), root, tmp_path / "out", "fp32")
    assert not (tmp_path / "out").exists()
    assert not best.exists()


@pytest.mark.slow
def test_it_is_as_open_as_its_run_wherever_it_is(
    small: Small, trained: Trained, tmp_path: Path, umask: None, group: str
) -> None:
    """To the group, and to nobody else; not even to the group that a file has by itself."""
    root = tmp_path / "root"
    shutil.copytree(trained("llama"), root)
    run = root / "runs" / "small"
    shutil.chown(run, group=group)
    for rights, folder, file in ((0o2750, "0o2750", "0o640"), (0o700, "0o700", "0o600")):
        run.chmod(rights)
        for to in (tmp_path / f"new{rights:o}" / "out", run / f"out{rights:o}"):
            os.umask(0)
            export_run(small(), root, to, "fp32")
            assert mode(to) == folder
            assert {mode(path) for path in to.iterdir()} == {file}
            if rights == 0o2750:
                of_run = {run.stat().st_gid}
                assert {p.stat().st_gid for p in (to, to.parent, *to.iterdir())} == of_run
                assert stat.S_IMODE(to.parent.stat().st_mode) == 0o2750


@pytest.mark.slow
def test_the_command_says_it_in_a_line(
    prepared: Path, small: Small, trained: Trained, tmp_path: Path
) -> None:
    shutil.copytree(prepared, tmp_path / "root")
    save_config(small(), tmp_path / "root")
    words = ("export", f"--root={tmp_path / 'root'}", "--name=small")

    def jobs(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "jobs", *words, *more],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
        )

    assert refused(jobs(), 3).startswith("error: the training of small is not finished. See how")
    shutil.copytree(trained("llama"), tmp_path / "root", dirs_exist_ok=True)
    done = jobs(f"--to={tmp_path / 'out'}")
    assert done.returncode == 0
    assert done.stderr == "", "no library has its say"
    assert len(done.stdout.splitlines()) == 3
    assert "fp8" in refused(jobs("--precision=fp8"), 2)
