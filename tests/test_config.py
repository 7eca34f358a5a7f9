"""A configuration is right or refused in words, and a change of it re-runs what it has to."""

from __future__ import annotations

import re
import shutil
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from types import NoneType
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from jobs.cli.run_selection import Selection
from jobs.planning.preflight import check_device
from pipeline import dag
from pipeline.config import Config, differences, hashed_values, resolve
from pipeline.core import registry
from pipeline.core.errors import UserError
from pipeline.core.settings import Section, merge, parse_overrides
from pipeline.saved_config import begun_by, continue_run, load_config, resume_command, save_config
from pipeline.train.stage import TrainConfig
from tests.helpers.tiny import POSITIONS

SECTIONS = [
    name for name, field in Config.model_fields.items() if name not in ("name", "recipe", "request")
]


def refusal(*arguments: Any, **named: Any) -> str:
    with pytest.raises(UserError) as caught:
        resolve(*arguments, **named)
    assert caught.value.exit_code == 2
    told = str(caught.value)
    assert "\n" not in told, "one line"
    return told


def words(*overrides: str) -> Config:
    return resolve("nih", overrides=list(overrides))


def refused(*overrides: str) -> str:
    return refusal("nih", overrides=list(overrides))


# What the registry holds


def test_the_registry_holds_what_is_promised() -> None:
    opt = {f"opt-{size}" for size in ("125m", "350m", "1.3b", "2.7b", "6.7b")}
    gpt2 = {"gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"}
    pile = {"nih", "nih-v1", "law", "law-v1"}
    sources = {"nih-exporter", "law-courtlistener", "law-cap"}
    assert {"demo"} | pile | sources <= set(registry.ids("datasets"))
    assert opt | gpt2 | {"smollm2-135m"} <= set(registry.ids("models"))
    assert {"lora-8bit", "lora", "full", "demo", "original"} <= set(registry.ids("recipes"))


@pytest.mark.parametrize("name", registry.ids("datasets"))
def test_every_data_set_resolves_and_says_where_to_go_instead(name: str) -> None:
    config = resolve(name)
    assert config.name == config.dataset.id == name
    assert config.dataset.instead in (None, *registry.ids("datasets"))
    assert config.dataset.licence, "what may be done with it is said"
    assert len(dag.keys(config)) == len(dag.STEPS)


@pytest.mark.parametrize("name", registry.ids("models"))
def test_every_model_resolves_at_a_pinned_revision(name: str) -> None:
    model = resolve("nih", name).model
    assert model.id == name
    if model.repo:
        assert model.revision
        assert model.revision != "main"


@pytest.mark.parametrize("name", registry.ids("recipes"))
def test_every_recipe_resolves(name: str) -> None:
    assert resolve("nih", recipe=name).train.batch_size > 0


def test_the_recipe_of_the_first_project_is_its_settings() -> None:
    train = resolve("nih", recipe="original").train
    assert (train.method, train.precision, train.packing) == ("full", "fp16", "pad")
    assert (train.lr, train.lr * train.min_lr_ratio) == (5e-4, 5e-5)
    assert (train.betas, train.eps, train.weight_decay, train.max_grad_norm) == (
        (0.9, 0.95),
        1e-8,
        0.01,
        1.0,
    )
    assert (
        train.micro_batch_size,
        train.batch_size // train.micro_batch_size,
        train.sequence_length,
    ) == (64, 4, 512)
    assert (train.epochs, train.warmup_ratio, train.schedule) == (8, 0.003, "cosine")
    lora = resolve("nih", recipe="original-lora").train
    assert (lora.lora_rank, lora.lora_alpha, lora.lora_dropout, lora.int8_threshold) == (
        16,
        32,
        0.2,
        3.0,
    )
    assert (lora.lora_targets, lora.unquantized_modules) == (("q_proj", "v_proj"), ("lm_head",))
    assert (lora.weights, lora.optimizer) == ("int8", "adamw8bit")


def test_a_data_set_may_be_a_file_of_one_s_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("urls: [https://localhost/mine.jsonl]\ntext_field: body\nmodel: gpt2\n")
    config = resolve(str(path))
    assert (config.name, config.dataset.text_field, config.model.id) == ("mine", "body", "gpt2")
    path.write_text("urls: [https://localhost/mine.jsonl]\ntext_feld: body\n")
    assert "unknown setting text_feld; did you mean text_field?" in refusal(str(path))
    path.write_text("- a list\n")
    assert "holds list, not settings" in refusal(str(path))
    path.write_text("urls: [unclosed")
    assert "cannot read" in refusal(str(path))
    path.unlink()
    assert refusal(str(path)) == f"there is no file {path}"


def test_a_local_copy_stands_in_for_the_urls(tmp_path: Path) -> None:
    path = tmp_path / "it's a $copy.jsonl.zst"
    path.touch()
    config = resolve("nih", file=str(path))
    assert config.dataset.urls == [path.as_uri()]
    assert config.dataset.sha256 == resolve("nih").dataset.sha256
    assert "there is no such file" in refusal("nih", file=str(tmp_path / "none"))


def test_a_local_copy_stands_in_for_all_years(tmp_path: Path) -> None:
    path = tmp_path / "2020.zip"
    path.touch()
    dataset = resolve("nih-exporter", file=str(path)).dataset
    assert dataset.files == {"corpus": [path.as_uri()]}
    assert dataset.form == "nih-exporter"


def years(word: str) -> list[str]:
    return list(resolve("nih-exporter", overrides=[f"dataset.years={word}"]).dataset.files)


def test_there_is_one_file_a_year() -> None:
    assert years("2020") == years("'2020'") == years("2020-2020") == ["2020"]
    assert years("2019-2021") == ["2019", "2020", "2021"]
    dataset = resolve("nih-exporter").dataset
    assert len(dataset.files) == 40
    assert dataset.files["1985"] == [
        "https://reporter.nih.gov/exporter/abstracts/download/1985",
    ]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["dataset.years=2021-2020"], "dataset.years = '2021-2020': the first year comes after"),
        (["dataset.years=20"], "dataset.years = '20': String should match"),
        (["dataset.years=2020-"], "dataset.years = '2020-': String should match"),
        (["dataset.years=1985,1990"], "dataset.years = '1985,1990': String should match"),
        (["dataset.years=true"], "dataset.years = True: Input should be a valid string"),
        (["dataset.years="], "dataset: years=None with urls=['https://reporter"),
        (["dataset.urls=[https://x/a]"], "years=1985-2024 with urls=['https://x/a']: where years"),
        (['dataset.urls=["https://x/{year}", https://y/a]'], "every URL is https://, http://"),
        (["dataset.urls=['hf://x/{year}']"], "every URL is https://, http:// or file://"),
        (["dataset.size=5"], "years=1985-2024: sha256 and size name one file, years several"),
        ([f"dataset.sha256={'a' * 64}"], "sha256 and size name one file, years several"),
        (
            ["dataset.form=cvs"],
            "dataset.form = 'cvs': Input should be 'auto', 'jsonl', 'csv'",
        ),
    ],
)
def test_years_that_cannot_be_are_told_with_their_rule(words: list[str], told: str) -> None:
    assert told in refusal("nih-exporter", overrides=words)


def test_other_years_are_another_corpus() -> None:
    one, two = (
        dag.keys(resolve("nih-exporter", overrides=[f"dataset.years={span}"]))
        for span in ("2020-2021", "2020-2022")
    )
    assert {name for name in one if one[name] == two[name]} == {"download.model"}


def test_a_model_may_be_a_folder_or_a_hub_repository(tmp_path: Path) -> None:
    folder = tmp_path / "my model (v2)"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    model = resolve("nih", str(folder)).model
    assert (model.id, model.path) == ("my-model-v2", str(folder))
    model = resolve("nih", "owner/name").model
    assert (model.id, model.repo, model.revision) == ("owner--name", "owner/name", "main")
    assert resolve("nih", "owner/name@v1.0").model.revision == "v1.0"


# What is refused


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("nihh",), "unknown dataset 'nihh'; did you mean nih?"),
        (("nih", "opt-125n"), "unknown model 'opt-125n'; did you mean opt-125m?"),
        (("nih", None, "lora8bit"), "unknown recipe 'lora8bit'; did you mean lora-8bit?"),
    ],
)
def test_an_unknown_name_is_told_with_the_nearest(arguments: Any, told: str) -> None:
    assert refusal(*arguments) == told


def test_a_name_that_is_near_to_none_is_told_with_all() -> None:
    told = refusal("zzzzzz")
    assert all(name in told for name in registry.ids("datasets"))


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("train.lrr=1", "unknown setting train.lrr; did you mean train.lr?"),
        ("trian.lr=1", "unknown setting trian; did you mean train?"),
        ("dataset.text_feld=x", "setting dataset.text_feld; did you mean dataset.text_field?"),
        ("lr=1", "unknown setting lr; did you mean train.lr?"),
        ("tokenize.lr=1", "unknown setting tokenize.lr; did you mean train.lr?"),
        ("tasks=1", "setting tasks; did you mean decompress.tasks or tokenize.tasks?"),
        ("speed=1", "unknown setting speed; valid names: dataset, decompress"),
        ("train.lr.x=1", "train.lr: Input should be a valid number"),
        ("train.lr=fast", "train.lr = 'fast': Input should be a valid number"),
        ("train.lr=", "train.lr = None: Input should be a valid number"),
        ("train.lr=0", "train.lr = 0: Input should be greater than 0"),
        ("train.lr=.inf", "train.lr = inf: Input should be a finite number"),
        ("train.lr=.nan", "train.lr = nan: Input should be a finite number"),
        ("train.batch_size=many", "train.batch_size = 'many': Input should be a valid integer"),
        ("train.batch_size=1.5", "train.batch_size = 1.5: Input should be a valid integer"),
        ("train.method=ful", "train.method = 'ful': Input should be 'lora' or 'full'"),
        ("train.gradient_checkpointing=maybe", "train.gradient_checkpointing = 'maybe': Input"),
        ("train.betas=[1,2,3]", "train.betas = [1, 2, 3]: Tuple should have at most 2 items"),
        (
            "train.unquantized_modules=lm_head",
            "train.unquantized_modules = 'lm_head': Input should be a list such as [a,b]",
        ),
        ("tokenize.validation=fast", "'fast': Input should be 'auto' or a valid number"),
        ("tokenize.validation=0.7", "tokenize: validation and test must lie between 0 and 0.5"),
        ("train=5", "train = 5: Input should be a valid dictionary"),
        ("dataset.urls=[ftp://x]", "'ftp://x' must start with https://"),
        ("dataset.sha256=abc", "dataset.sha256 = 'abc': String should match"),
        ("name=x", "the run's name is not a setting. Write NAME="),
        ("train.lr", "cannot read 'train.lr'. Write it as section.field=value"),
        (".lr=1", "cannot read '.lr=1'"),
        ("=1", "cannot read '=1'"),
        ("train.lr={a", "the value of train.lr is not YAML: '{a'"),
    ],
)  # fmt: skip
def test_a_wrong_setting_is_told_with_its_name_value_and_rule(word: str, told: str) -> None:
    assert told in refused(word)


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["train.method=full"], "train.method=full cannot train weights=int8; use fp32"),
        (["train.method=full", "train.weights=bf16"], "use train.weights=fp32, which"),
        (["train.tokens=5", "train.epochs=1"], "at most one of train.tokens, train.epochs"),
        (["train.steps=5", "train.epochs=1"], "at most one of train.tokens, train.epochs"),
        (["train.batch_size=4"], "train.micro_batch_size=8 is more than train.batch_size=4"),
        (["train.attention=flash", "train.precision=fp32"], "flash computes in bf16 or fp16 only"),
        (["train.lr=1", "train.lr.x=2"], "goes into lr, which another word sets to 1"),
        (["model.path=/x"], "name exactly one of repo, path, package"),
        (
            ["train.sequence_length=4096"],
            "train.sequence_length=4096 is longer than the model's context of 2048",
        ),
        (["evaluate.context=4096"], "evaluate.context=4096 is longer than the model's context of"),
        (["evaluate.stride=2000"], "evaluate.stride=2000 is more than the 1024 tokens that are"),
        (
            ["train.lora_targets=[q_prog]"],
            "for an adapter. did you mean q_proj?",
        ),
        (
            ["train.lora_targets=[fc1,attn.c_attn]"],
            "no module attn.c_attn for an adapter",
        ),
    ],
)
def test_an_impossible_combination_is_refused(overrides: list[str], told: str) -> None:
    assert told in refused(*overrides)


@pytest.mark.parametrize(
    ("word", "told"),
    [
        (
            "weights=nf4",
            "a CPU nothing is learned after the first validation. Use train.weights=int8",
        ),
        ("precision=fp16", "slower than fp32 and overflows. Use train.precision=auto"),
        ("attention=flash", "train.attention=flash needs a GPU, and there is none here. Use"),
    ],
)
def test_what_needs_a_gpu_is_refused_where_none_is_asked_for(word: str, told: str) -> None:
    config = resolve("nih", overrides=[f"train.{word}"])
    check_device(config, 1)
    with pytest.raises(UserError) as caught:
        check_device(config, 0)
    assert told in str(caught.value)


def test_what_needs_a_gpu_to_be_scored_is_refused_before_it_is_trained() -> None:
    for word in ("weights=nf4", "precision=fp16"):
        config = resolve("nih", overrides=[f"train.{word}"])
        check_device(config, 1, 1)
        with pytest.raises(UserError, match=f"train.{word} needs a GPU, and evaluate gets none"):
            check_device(config, 1, 0)
    check_device(resolve("nih", overrides=["train.attention=flash"]), 1, 0)


def test_the_context_of_a_local_model_is_known(models: Callable[[str], Path]) -> None:
    for family in ("opt", "gpt2", "llama"):
        with pytest.raises(UserError, match=f"context of {POSITIONS}"):
            resolve(
                "nih", str(models(family)), overrides=[f"train.sequence_length={POSITIONS + 1}"]
            )
        config = resolve("nih", str(models(family)), "original", ["train.sequence_length=128"])
        assert config.train.window_tokens(config.model.context) == 128
        assert resolve("nih", str(models(family))).train.window_tokens(POSITIONS) == POSITIONS


def test_the_modules_of_a_local_model_are_known(
    models: Callable[[str], Path], tmp_path: Path
) -> None:
    for family, there in (("opt", "q_proj"), ("gpt2", "attn.c_attn"), ("llama", "gate_proj")):
        with pytest.raises(UserError, match="has no module query_key_value"):
            resolve("nih", str(models(family)), overrides=["train.lora_targets=[query_key_value]"])
        resolve("nih", str(models(family)), overrides=[f"train.lora_targets=[{there},lm_head]"])
    for odd in ("ln_1", "input_layernorm", "embed_positions"):
        with pytest.raises(UserError, match=f"no module {odd} for an adapter"):
            resolve("nih", str(models("opt")), overrides=[f"train.lora_targets=[{odd}]"])
    shutil.copy(models("opt") / "config.json", tmp_path)
    resolve("nih", str(tmp_path), overrides=["train.lora_targets=[a]"])  # who knows
    (tmp_path / "model.safetensors").write_bytes(b"cut off")
    resolve("nih", str(tmp_path), overrides=["train.lora_targets=[a]"])


@pytest.mark.parametrize("name", registry.ids("models"))
def test_the_modules_of_a_registered_model_are_those_it_has(name: str) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    family = {"gpt2": "gpt2", "opt": "opt", "smollm2": "llama"}[name.split("-")[0]]
    how = {"num_hidden_layers": 1} | ({"word_embed_proj_dim": 512} if name == "opt-350m" else {})
    with torch.device("meta"):
        shell = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **how))
    matrices = {
        n.split(".")[-2] for n, w in shell.named_parameters(remove_duplicate=False) if w.ndim == 2
    }
    assert set(registry.find_model(name).modules) == matrices - registry.NOT_ADAPTABLE_MODULES


@pytest.mark.slow
def test_what_was_typed_stands_above_the_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GRISTMILL_PROFILE", raising=False)
    config, run = resolve("nih", name="try"), tmp_path / "runs" / "try"
    assert resume_command(run) == "the make pipeline command that began it, with all its words"
    save_config(config, tmp_path)
    assert begun_by(run) == ""
    line = Selection(
        dataset="nih", name="try", root="/my runs", words=["train.lr=1", "train.lora_targets=[a,b]"]
    ).make_command()
    assert line == (
        "make pipeline DATASET=nih NAME=try RUNS='/my runs' "
        "ARGS='train.lr=1 train.lora_targets=[a,b]'"
    )
    save_config(config, tmp_path, line)
    save_config(config, tmp_path)
    assert resume_command(run) == begun_by(run) == line
    for odd in ("\n", "\r", "\x1b", "\u2028", "\udce2"):
        save_config(config, tmp_path, f"make pipeline FILE='a{odd}b: 1'")
    save_config(config, tmp_path, "make pipeline ARGS='dataset.urls=[https://host/x?sig=s3cret]'")
    assert begun_by(run) == line, "these cannot be typed as they would stand there"
    assert load_config(run / "config.yaml") == config
    assert (
        Selection(dataset="nih", words=["train.unquantized_modules=[a, b]"]).make_command() == ""
    ), "make would split it"
    (run / "config.yaml").write_text("# notes of my own\nname: try\n")
    assert begun_by(run) == ""


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("train.length=64", "the setting train.length is now called train.sequence_length"),
        ("train.lenght=64", "unknown setting train.lenght; did you mean train.sequence_length?"),
        (
            "train.dropout=0.1",
            "is now called train.lora_dropout (of the adapters), or train.model_",
        ),
        ("train.lrr=1", "unknown setting train.lrr; did you mean train.lr?"),
    ],
)
def test_a_former_name_is_refused_with_the_present_one(word: str, message: str) -> None:
    assert message in refused(word)


def test_every_mistake_is_told_and_not_only_the_first() -> None:
    told = refused("train.lrr=1", "train.batch_size=many", "decompres.level=1")
    for name in ("train.lrr", "train.batch_size", "decompres"):
        assert name in told


@pytest.mark.parametrize("name", ["a/b", "..", ".hidden", "two\nlines", "nul\0", "x" * 201])
def test_a_name_that_cannot_be_a_folder_is_refused(name: str) -> None:
    message = refusal("nih", name=name)
    assert message.startswith("NAME=")
    assert "cannot be a folder's name" in message or "is longer than 200 bytes" in message


@pytest.mark.parametrize("name", ["try2", "it's é $x", "a+b=c", "x" * 200])
def test_any_other_name_is_taken_as_it_is(name: str, tmp_path: Path) -> None:
    config = resolve("nih", name=name, overrides=["train.lr=1"])
    assert config.name == name
    assert save_config(config, tmp_path).parent.name == name


# How values are read


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-4", 3e-4), ("3E4", 30000.0), ("1_000", 1000), ("1.5", 1.5), ("true", True),
        ("null", None), ("", None), ("text", "text"), ("[a, b]", ["a", "b"]), ("'3e-4'", "3e-4"),
        ("12e4567", "12e4567"), ("1:00:00", "1:00:00"),
        ("e", "e"), ("a=b", "a=b"), ("https://x/y.z", "https://x/y.z"),
    ],
)  # fmt: skip
def test_a_value_is_what_one_means_by_it(text: str, value: Any) -> None:
    found = parse_overrides([f"train.x={text}"])
    assert found == {"train": {"x": value}}
    assert type(found["train"]["x"]) is type(value)


def test_numbers_arrive_as_numbers_and_names_as_names() -> None:
    config = words("train.lr=3e-4", "train.tokens=1e6", 'model.revision="1234567"')
    assert (config.train.lr, config.train.tokens) == (3e-4, 1_000_000)
    assert config.model.revision == "1234567"
    assert words("model.revision=12e4567").model.revision == "12e4567"


def test_the_last_word_counts_and_sections_are_merged() -> None:
    config = words("train.lr=1", "train.seed=3", "train.lr=2")
    assert (config.train.lr, config.train.seed) == (2, 3)
    one, other = {"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 9}, "e": 4}
    assert merge(one, other) == {"a": {"b": 9, "c": 2}, "d": 3, "e": 4}
    assert one == {"a": {"b": 1, "c": 2}, "d": 3}, "nothing is changed in place"


# Names of runs


def test_a_run_is_named_by_what_is_not_the_default() -> None:
    assert resolve("nih").name == "nih"
    assert words("train.lr=3e-4").name == "nih+train.lr=0.0003"
    assert words("train.seed=0").name == "nih", "the default, said aloud"
    assert words("tokenize.tasks=3").name == "nih", "no part of the result"
    assert resolve("nih", "gpt2", "full").name == "nih+gpt2+full"
    assert resolve("nih", "opt-125m", "lora-8bit").name == "nih"
    one, other = words("train.seed=1", "train.lr=2"), words("train.lr=2", "train.seed=1")
    assert one.name == other.name == "nih+train.lr=2.0+train.seed=1"


@pytest.mark.slow
@given(st.lists(st.text("aé/ \t$'", min_size=1, max_size=30), min_size=1, max_size=8))
def test_a_long_name_is_shortened_and_still_tells_runs_apart(keep: list[str]) -> None:
    name, other = (
        words(
            "train.unquantized_modules="
            + yaml.safe_dump(value, default_flow_style=True, width=10**6)
        ).name
        for value in (keep, [*keep, "b"])
    )
    assert name != other
    assert name.startswith("nih+train.unquantized_modules=")
    for each in (name, other):
        assert len(each) <= 80
        assert not {*" /\t\n"} & {*each}


# The frozen configuration


def test_a_frozen_configuration_comes_back_as_it_was(tmp_path: Path) -> None:
    for config in (
        resolve("nih"),
        resolve("law", "gpt2", "original", ["train.lr=1e-5", "train.betas=[0.8, 0.999]"], "x"),
        words("train.unquantized_modules=[a, '1e5', 'null', 'é']", 'model.revision="007"'),
    ):
        assert load_config(save_config(config, tmp_path)) == config


def test_name_of_another_configuration_is_refused(tmp_path: Path) -> None:
    save_config(resolve("nih", name="try"), tmp_path)
    other = resolve(
        "nih", "gpt2", overrides=["train.lr=1", "train.unquantized_modules=[x]"], name="try"
    )
    with pytest.raises(UserError, match="run 'try' exists with another configuration") as caught:
        save_config(other, tmp_path)
    told = str(caught.value)
    assert "train.lr: 0.0002 in the run, 1.0 now" in told
    assert "train.unquantized_modules: [] in the run, ['x'] now" in told
    assert "model.id: 'opt-125m' in the run, 'gpt2' now" in told
    assert told.endswith(f"Choose another NAME, or start over: rm -r {tmp_path / 'runs' / 'try'}")
    assert "train.seed" not in told
    assert load_config(tmp_path / "runs" / "try" / "config.yaml").train.lr == 2e-4, (
        "it is not touched"
    )


def test_run_name_does_not_contain_a_signature(tmp_path: Path) -> None:
    data = tmp_path / "x.yaml"
    data.write_text("urls: [https://x/a]\n")

    def signed(token: str, name: str | None = None) -> Config:
        return resolve(
            str(data), overrides=[f"dataset.urls=['https://x/a?token={token}']"], name=name
        )

    one, other = signed("s3cret").name, signed("other").name
    assert "s3cret" not in one
    assert one != other, "a name stands for one configuration"
    save_config(signed("s3cret", "mine"), tmp_path)
    with pytest.raises(UserError, match="exists with another configuration") as caught:
        save_config(signed("other", "mine"), tmp_path)
    assert "token" not in str(caught.value)


def test_what_decides_nothing_may_change_under_a_name(tmp_path: Path) -> None:
    save_config(resolve("nih", name="try"), tmp_path)
    path = save_config(resolve("nih", name="try", overrides=["tokenize.tasks=3"]), tmp_path)
    assert load_config(path).tokenize.tasks == 3, "the newest counts"


# Continuing a run


def asked(root: Path, *words: str, **named: Any) -> tuple[Config, dict[str, Any]]:
    return continue_run(resolve("nih", overrides=list(words), **named), root)


def test_a_new_default_does_not_change_a_run_that_has_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = resolve("nih", overrides=["train.seed=1"])
    save_config(begun, tmp_path)
    field = TrainConfig.model_fields["lr"]
    monkeypatch.setattr(field, "default", 3e-4)
    TrainConfig.model_rebuild(force=True)
    Config.model_rebuild(force=True)
    try:
        config, changed = asked(tmp_path, "train.seed=1", "tokenize.tasks=3")
        assert (config.train.lr, config.tokenize.tasks) == (2e-4, 3)
        assert changed == {"train.lr": (2e-4, 3e-4)}
        assert dag.keys(config) == dag.keys(begun)
        config, changed = asked(tmp_path, "train.seed=2")
        assert (config.train.lr, changed) == (3e-4, {}), "another request is another run"
    finally:
        monkeypatch.undo()
        TrainConfig.model_rebuild(force=True)
        Config.model_rebuild(force=True)


def test_a_new_default_model_does_not_rename_a_run_that_has_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_config(resolve("nih", "opt-125m"), tmp_path)
    monkeypatch.setattr("pipeline.config.DEFAULT_MODEL", "gpt2")
    assert resolve("nih", "opt-125m").name == "nih+opt-125m"
    assert asked(tmp_path, model="opt-125m")[0].name == "nih"


def test_a_name_that_is_taken_does_not_hide_the_run_that_has_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_config(resolve("nih"), tmp_path)
    save_config(resolve("nih", "gpt2"), tmp_path)
    monkeypatch.setattr("pipeline.config.DEFAULT_MODEL", "gpt2")
    assert resolve("nih", "gpt2").name == "nih", "the name of the other run"
    assert asked(tmp_path, model="gpt2")[0].name == "nih+gpt2"


def test_the_first_request_counts(tmp_path: Path) -> None:
    begun = resolve("nih", name="nih")
    path = save_config(begun, tmp_path)
    for more in ({}, {"model": "opt-125m"}, {"overrides": ["train.seed=0"]}):
        save_config(continue_run(resolve("nih", **more), tmp_path)[0], tmp_path)
        assert load_config(path).request == begun.request


def test_a_setting_that_the_file_lacks_has_its_neutral_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save_config(resolve("nih", name="try"), tmp_path)
    path.write_text(re.sub(r"^  spike_factor: .*\n", "", path.read_text(), flags=re.MULTILINE))
    facts = TrainConfig.model_fields["spike_factor"].json_schema_extra
    assert isinstance(facts, dict)
    monkeypatch.setitem(facts, "neutral", 7.0)
    assert load_config(path).train.spike_factor == 7.0


def test_a_file_of_another_format_is_refused(tmp_path: Path) -> None:
    path = save_config(resolve("nih", name="try"), tmp_path)
    path.write_text(path.read_text().replace("format: 2", "format: 3"))
    with pytest.raises(UserError, match="has format 3, and this version of Gristmill reads form"):
        load_config(path)


def test_settings_that_do_not_fit_the_run_are_refused_and_not_saved(tmp_path: Path) -> None:
    words = ["train.precision=fp32"]
    path = save_config(resolve("nih", overrides=words), tmp_path)
    before = path.read_text()
    with pytest.raises(UserError, match="flash computes in bf16 or fp16 only"):
        asked(tmp_path, *words, "train.attention=flash")
    assert path.read_text() == before


def test_what_decides_nothing_in_a_file_of_one_s_own_may_change(tmp_path: Path) -> None:
    data = tmp_path / "mine.yaml"
    data.write_text("urls: [https://localhost/mine.jsonl]\nlicence: unknown\n")
    save_config(resolve(str(data)), tmp_path)
    data.write_text("urls: [https://localhost/mine.jsonl]\nlicence: CC0\n")
    new = resolve(str(data)).model_copy(update={"train": TrainConfig(lr=1.0)})
    config, changed = continue_run(new, tmp_path)
    assert (config.dataset.licence, list(changed)) == ("CC0", ["train.lr"])
    data.write_text("urls: [https://localhost/other.jsonl]\nlicence: CC0\n")
    other = resolve(str(data))
    assert continue_run(other, tmp_path) == (other, {})


def test_another_file_is_another_corpus_unless_its_hash_is_known(tmp_path: Path) -> None:
    data = tmp_path / "mine.yaml"
    data.write_text("urls: [https://localhost/mine.jsonl]\n")
    one, other = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    one.touch()
    other.touch()
    save_config(resolve(str(data), name="try", file=str(one)), tmp_path)
    again = resolve(str(data), name="try", file=str(other))
    assert continue_run(again, tmp_path) == (again, {})
    with pytest.raises(UserError, match="exists with another configuration"):
        save_config(again, tmp_path)
    data.write_text(f"urls: [https://localhost/mine.jsonl]\nsha256: {'a' * 64}\n")
    save_config(resolve(str(data), name="known", file=str(one)), tmp_path)
    config, changed = continue_run(resolve(str(data), name="known", file=str(other)), tmp_path)
    assert (config.dataset.urls, changed) == ([other.as_uri()], {})


def test_a_model_in_another_folder_of_the_same_name_is_another_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in ("one", "two"):
        (tmp_path / place / "model").mkdir(parents=True)
        (tmp_path / place / "model" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path / "one")
    save_config(resolve("nih", "./model", name="try"), tmp_path)
    monkeypatch.chdir(tmp_path / "two")
    new = resolve("nih", "./model", name="try")
    assert continue_run(new, tmp_path) == (new, {})


def test_a_run_that_cannot_be_read_does_not_hinder_another(tmp_path: Path) -> None:
    save_config(resolve("nih", overrides=["train.seed=7"]), tmp_path)
    (path,) = tmp_path.glob("runs/*/config.yaml")
    path.write_text(path.read_text().replace("seed: 7", "seed: many"))
    assert asked(tmp_path)[0].name == "nih"


# What a change re-runs


def other(field: FieldInfo, value: Any) -> Iterator[Any]:
    """Valid values of a field that differ from `value`."""
    numbers = [value * 2, value / 2] if isinstance(value, float) else []
    whole = [value + 1, value * 2] if type(value) is int else []
    options: list[Any] = []
    for kind in (field.annotation, *typing.get_args(field.annotation)):
        if typing.get_origin(kind) is typing.Literal:
            options += typing.get_args(kind)
        elif kind is not NoneType:
            options += {
                bool: [True, False],
                int: [4000],
                float: [0.25],
                str: ["other", "f" * 64],
            }.get(typing.cast(Any, kind), [["https://other/x"], ("other",), (0.1, 0.2)])
    adapter = TypeAdapter(typing.Annotated[field.annotation, field])
    for candidate in (*numbers, *whole, *options):
        try:
            valid = adapter.validate_python(candidate)
        except ValidationError:
            continue
        if valid != value:
            yield valid


def fields(free: bool) -> list[str]:
    """Every field of every section, as dotted names."""
    found = []
    for section in SECTIONS:
        model = Config.model_fields[section].annotation
        assert issubclass(model, Section)
        inside = set(model.model_validate(example(section)).hashed_values())
        # the ways to a corpus stand in its key as its content, whose fields are tested by name
        ways = set() if section != "dataset" else WAYS
        named = [n for n in model.model_fields if n not in ways]
        found += [f"{section}.{n}" for n in named if (n not in inside) == free]
    return found


WAYS = {"urls", "years", "sha256", "revision", "subset", "split", "max_bytes"}


def example(section: str) -> dict[str, Any]:
    urls = {"id": "any", "urls": ["https://localhost/any"]}
    return {"dataset": urls, "model": {"id": "any", "repo": "any/any"}}.get(section, {})


@pytest.fixture(scope="module")
def base() -> Config:
    """A corpus without a known hash: where it comes from is what names it."""
    return Config.model_validate(
        {"name": "any", "dataset": example("dataset"), "model": example("model")}
    )


def changed(config: Config, path: str) -> Config:
    """The configuration with another value in one field."""
    section, name = path.split(".")
    old = getattr(config, section)
    value = next(other(type(old).model_fields[name], getattr(old, name)), None)
    assert value is not None, f"say in other() how {path} could differ"
    return config.model_copy(update={section: old.model_copy(update={name: value})})


# id names a folder, no content. The samples' item is named by its settings, and the report is
# rebuilt whenever its inputs change.
SAMPLES = {"evaluate.prompts", "evaluate.prompt_tokens", "evaluate.new_tokens"}
NOT_IN_KEYS = {"dataset.id", "model.id", *SAMPLES}
PROPERTIES = {
    "dataset.content": {
        f"dataset.{n}" for n in ("sha256", "urls", "years", "revision", "subset", "split")
    },
    "model.content": {f"model.{n}" for n in ("repo", "revision", "path", "package", "gguf")},
}


def names(paths: tuple[str, ...], field: str) -> bool:
    """Whether declared paths name a field, or a property made from it."""
    return any(field == path or field in PROPERTIES.get(path, ()) for path in paths)


def downstream(names: set[str]) -> set[str]:
    found = set(names)
    for step in dag.STEPS:
        if found & set(step.needs):
            found.add(step.name)
    return found


@pytest.mark.parametrize("path", fields(free=False))
def test_a_changed_field_changes_the_keys_of_what_declares_it_and_of_what_needs_that(
    base: Config, path: str
) -> None:
    new = changed(base, path)
    assert set(differences(base, new)) == {path}
    own = {step.name for step in dag.STEPS if step.step_key(base) != step.step_key(new)}
    assert own == {step.name for step in dag.STEPS if names(step.uses, path)}
    declaring = {s.name for s in dag.STEPS if names((*s.uses, *s.resolved), path)}
    assert bool(declaring) != (path in NOT_IN_KEYS), "a field that nobody declares decides nothing"
    one, two = dag.keys(base), dag.keys(new)
    assert {name for name in one if one[name] != two[name]} == downstream(declaring)


@pytest.mark.parametrize("path", fields(free=True))
def test_a_free_field_changes_no_key(base: Config, path: str) -> None:
    new = changed(base, path)
    assert new != base
    assert differences(base, new) == {}
    assert dag.keys(new) == dag.keys(base)


def test_a_corpus_of_known_hash_is_the_same_from_any_mirror(base: Config) -> None:
    def at(url: str, digest: str) -> dict[str, str]:
        dataset = base.dataset.model_copy(update={"urls": [url], "sha256": digest})
        return dag.keys(base.model_copy(update={"dataset": dataset}))

    assert at("https://one/x", "a" * 64) == at("file:///two/y", "a" * 64)
    assert at("https://one/x", "a" * 64) != at("https://one/x", "b" * 64)


def test_the_learning_rate_changes_training_and_what_follows_and_nothing_before() -> None:
    one, two = dag.keys(words()), dag.keys(words("train.lr=3e-4"))
    moved = {name for name in one if one[name] != two[name]}
    assert moved == {"train.train", "evaluate.tuned", "evaluate.report"}


def test_keys_do_not_depend_on_the_name_or_the_machine(base: Config) -> None:
    renamed = base.model_copy(update={"name": "other"})
    assert dag.keys(renamed) == dag.keys(base)
    assert all(len(key) == 64 for key in dag.keys(base).values())
    assert len(set(dag.keys(base).values())) == len(dag.STEPS)


def test_every_setting_that_a_step_names_is_there(base: Config) -> None:
    """A renamed field must not silently fall out of a key."""
    for step in dag.STEPS:
        for path in (*step.uses, *step.reads):
            value: Any = base
            for name in path.split("."):
                assert hasattr(value, name), f"{step.name} names {path}"
                value = getattr(value, name)


def test_every_step_needs_only_what_comes_before(base: Config) -> None:
    seen: set[str] = set()
    for step in dag.STEPS:
        assert set(step.needs) <= seen, step.name
        assert step.name.split(".")[0] == step.stage
        seen.add(step.name)
    assert dag.STAGES == ("download", "decompress", "tokenize", "train", "evaluate")


def test_sections_are_frozen_and_say_what_is_keyed(base: Config) -> None:
    with pytest.raises(ValidationError):
        base.train.lr = 1  # type: ignore[misc]
    assert set(hashed_values(base)) == set(SECTIONS)
