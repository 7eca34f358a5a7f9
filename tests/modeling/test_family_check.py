"""A family is trained and scored as Hugging Face computes it, or refused before tokenizing."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import families
from pipeline.config import resolve
from pipeline.core.errors import UserError
from pipeline.dag import find
from pipeline.dataset.packing import make_batch, pack
from pipeline.modeling.attention import attention_support, default_attention, pick_attention
from pipeline.modeling.family_check import check_config, check_family
from pipeline.modeling.loading import load_base, set_dropout
from pipeline.modeling.packed_batch import IGNORE_INDEX
from pipeline.modeling.scoring import SlidingWindows, score
from pipeline.modeling.small_config import shrink
from pipeline.train.optimizer import make_optimizer
from pipeline.train.stability import SpikeGuard
from pipeline.train.step_runner import StepRunner
from tests.dataset.helpers import END, PREFIX, corpus_of, sequence
from tests.helpers import tiny
from tests.helpers.runs import SMALL, advance
from tests.modeling.test_compatibility import SIZE, save_model

NARROW: dict[str, Any] = {"vocab_size": tiny.WORDS, "bos_token_id": 0, "eos_token_id": 1}
GPT: dict[str, Any] = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": tiny.POSITIONS}
OWN_ATTENTION: dict[str, tuple[str, dict[str, Any]]] = {
    "bloom": ("Bloom", {"hidden_size": 64, "n_layer": 2, "n_head": 4}),
    "codegen": ("CodeGen", {**GPT, "rotary_dim": 8}),
    "falcon": ("Falcon", {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}),
    "falcon-alibi": (
        "Falcon",
        {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "alibi": True},
    ),
    "gpt_neo": (
        "GPTNeo",
        {"hidden_size": 64, "num_layers": 2, "num_heads": 4, "window_size": 16,
         "attention_types": [[["global", "local"], 1]], "max_position_embeddings": 256},
    ),
    "gptj": ("GPTJ", {**GPT, "rotary_dim": 8}),
    "mpt": ("Mpt", {"d_model": 64, "n_layers": 2, "n_heads": 4, "max_seq_len": 256}),
    "openai-gpt": ("OpenAIGPT", GPT),
    "xglm": (
        "XGLM",
        {"d_model": 64, "num_layers": 2, "attention_heads": 4, "ffn_dim": 128, "dropout": 0.1},
    ),
}  # fmt: skip
"""Families that need their own attention: prefix of the class, and a small size."""
Models = Callable[[str], Path]


def make_config(family: str) -> Any:
    import transformers

    prefix, size = OWN_ATTENTION[family]
    return getattr(transformers, f"{prefix}Config")(**size, **NARROW)


@pytest.fixture(scope="module")
def own_attention(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Models]:
    """The folder of a small model that needs its own attention; each is made once."""
    made: dict[str, Path] = {}

    def model(family: str) -> Path:
        if family not in made:
            folder = tmp_path_factory.mktemp(family)
            made[family] = save_model(make_config(family), folder)
        return made[family]

    return model


@pytest.mark.slow
def test_the_page_of_models_lists_every_causal_family() -> None:
    """After an update of transformers, `python -m bench.families` writes the new table."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    page = Path(families.PAGE).read_text(encoding="utf-8")
    listed = re.findall(r"^\| `([^`]+)` \| \w+ \| (.+) \|$", page, re.MULTILINE)
    listed = [(name, outcome) for name, outcome in listed if families.count_as(outcome)]
    assert [name for name, _ in listed] == sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    found = dict(listed)
    for name in ("bloom", "cohere", "llama", "mamba"):
        assert families.check(name)[1] == found[name]


@pytest.mark.parametrize("family", OWN_ATTENTION)
def test_families_with_their_own_attention_use_it(family: str) -> None:
    assert check_config(make_config(family)) == "eager"


@pytest.mark.slow
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_families_that_honour_our_attention_use_it(models: Models, family: str) -> None:
    assert check_family(models(family)) == "default"


@pytest.mark.slow
def test_attention_that_we_do_not_compute_is_left_to_the_model() -> None:
    """Capped scores and sinks of attention; a convolution, which ignores a mask."""
    from transformers import Gemma2Config, GptOssConfig, Lfm2Config

    gemma = Gemma2Config(head_dim=16, final_logit_softcapping=None, **SIZE)
    gpt_oss = GptOssConfig(head_dim=16, num_local_experts=4, **SIZE)
    lfm = Lfm2Config(layer_types=["conv", "full_attention"], **SIZE)
    assert [check_config(config) for config in (gemma, gpt_oss, lfm)] == ["eager"] * 3


@pytest.mark.slow
def test_values_may_be_of_another_width_than_keys() -> None:
    from transformers import DeepseekV3Config

    size = SIZE | {"num_key_value_heads": 4}
    config = DeepseekV3Config(n_routed_experts=8, n_group=2, topk_group=1, **size)
    assert config.v_head_dim != config.qk_head_dim
    assert check_config(config) == "default"


def test_families_that_cannot_be_trained_are_refused_with_the_reason() -> None:
    from transformers import BertConfig, CohereConfig, Gemma2Config, MambaConfig, RwkvConfig

    few = {name: SIZE[name] for name in ("vocab_size", "hidden_size", "num_hidden_layers")}
    capped = Gemma2Config(head_dim=16, final_logit_softcapping=1.0, **SIZE)
    head = "do not compute their logits by the output head alone, which is not supported"
    state = "carry a state from token to token, which is not supported"
    later = "let tokens attend to later ones, so their loss on the next token means nothing"
    reasons = [
        (capped, head),
        (CohereConfig(logit_scale=0.25, **SIZE), head),
        (MambaConfig(**few), state),
        (RwkvConfig(**few), state),
        (BertConfig(**few, num_attention_heads=4), later),
    ]
    for config, reason in reasons:
        with pytest.raises(UserError) as error:
            check_config(config)
        assert str(error.value) == (
            f"models of type {config.model_type} {reason}. Use another MODEL; docs/models.md lists "
            "the supported families"
        )


@pytest.mark.slow
def test_a_family_that_cannot_be_built_is_refused_with_its_error() -> None:
    from transformers import XmodConfig

    with pytest.raises(UserError, match="type xmod cannot be checked: ValueError: Input language"):
        check_config(XmodConfig(is_decoder=True))


def test_a_small_configuration_keeps_layers_of_each_kind_and_the_width_of_heads() -> None:
    from transformers import Gemma3TextConfig, GPTNeoConfig, Phi3Config

    gemma = Gemma3TextConfig()
    before = copy.deepcopy(gemma).to_dict()
    small = shrink(gemma)
    assert gemma.to_dict() == before, "the original is left as it is"
    assert sorted(small.layer_types) == ["full_attention", "sliding_attention"]
    assert (small.num_hidden_layers, small.num_attention_heads) == (2, 4)
    assert small.head_dim == gemma.head_dim
    assert small.sliding_window == gemma.sliding_window
    assert shrink(GPTNeoConfig()).attention_layers == ["global", "local"]
    phi = Phi3Config()
    assert shrink(phi).hidden_size // 4 == phi.hidden_size // phi.num_attention_heads
    assert shrink(phi, width=False).hidden_size == phi.hidden_size


def test_dropout_is_set_under_all_its_names() -> None:
    from transformers import BartConfig, BloomConfig, GPT2Config, GPTNeoConfig

    gpt_neo, bloom, gpt2 = GPTNeoConfig(), BloomConfig(), GPT2Config()
    bart = BartConfig(decoder_layerdrop=0.5)
    for config in (gpt_neo, bloom, gpt2, bart):
        set_dropout(config, 0.25)
    assert (gpt_neo.embed_dropout, gpt_neo.resid_dropout, gpt_neo.attention_dropout) == (0.25,) * 3
    assert (bloom.hidden_dropout, bloom.attention_dropout) == (0.25, 0.25)
    assert (gpt2.attn_pdrop, gpt2.summary_first_dropout) == (0.25, 0.1)
    assert (bart.decoder_layerdrop, bart.activation_dropout) == (0.0, 0.25)


@pytest.mark.parametrize("setting", ["sdpa", "flash"])
def test_other_attention_is_refused_for_a_model_with_its_own(setting: Any) -> None:
    import torch

    cpu = torch.device("cpu")
    with pytest.raises(UserError) as error:
        pick_attention(setting, cpu, "bf16", "eager")
    assert str(error.value) == (
        f"train.attention={setting} cannot be used with this model, which needs its own eager "
        "attention. Use train.attention=auto"
    )
    assert pick_attention("auto", cpu, "bf16", "eager") == "eager"


def test_a_receipt_without_the_fact_means_the_default() -> None:
    import torch

    gpu = torch.device("cuda", 0)
    assert attention_support({"context": 256}) == "default"
    assert default_attention(gpu, attention_support({})) == "sdpa"
    assert default_attention(gpu, attention_support({"attention": "eager"})) == "eager"


def sharpened(model: Any) -> Any:
    """The same model with larger weights, which make a leak visible."""
    import torch

    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3 if parameter.dim() > 1 else 1)
    return model


def plain_losses(folder: Path, sequences: list[list[int]]) -> list[Any]:
    """Losses and gradient of the embeddings by Hugging Face alone, a sequence at a time."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder)
    set_dropout(config, 0.0)
    model = sharpened(
        AutoModelForCausalLM.from_pretrained(
            folder, config=config, dtype=torch.float32, attn_implementation="eager"
        )
    ).eval()
    losses = []
    for tokens in sequences:
        logits = model(input_ids=torch.tensor([tokens[:-1]]), use_cache=False).logits[0]
        targets = torch.tensor(tokens[1:])
        losses.append(torch.nn.functional.cross_entropy(logits, targets, reduction="sum"))
    sum(losses).backward()  # type: ignore[union-attr]
    return [*(float(loss.detach()) for loss in losses), model.get_input_embeddings().weight.grad]


@pytest.mark.slow
@pytest.mark.parametrize("family", [*OWN_ATTENTION, "llama"])
def test_training_and_scores_equal_those_of_a_plain_loop(
    own_attention: Models, models: Models, family: str
) -> None:
    """Packed in training, in rows of other lengths in scoring; eager attention in fp32."""
    import torch

    folder = own_attention(family) if family in OWN_ATTENTION else models(family)
    cpu = torch.device("cpu")
    corpus = corpus_of([20, 5, 9, 1, 31, 70, 2])
    packing = pack(corpus.offsets, 80)
    batch = make_batch(corpus, packing, range(len(packing)), PREFIX, END)
    documents = [sequence(corpus, number) for number in range(7)]
    *wanted, gradient = plain_losses(folder, documents)

    attention = default_attention(cpu, check_family(folder))
    model = sharpened(load_base(folder, "fp32", cpu, attention=attention)).train()
    model.requires_grad_(True)
    runner = StepRunner(
        model,
        make_optimizer(model, "adamw", (0.9, 0.95), 1e-8, 0.0),
        torch.amp.GradScaler("cpu", enabled=False),
        cpu,
        "fp32",
        1.0,
        SpikeGuard(0),
    )
    loss = runner._loss_sum(batch)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(sum(wanted), rel=1e-5)
    ours = model.get_input_embeddings().weight.grad
    assert float((ours - gradient).norm() / gradient.norm()) < 1e-4

    windows = SlidingWindows(80, 80, PREFIX)
    texts = [corpus.document(number) for number in range(7)]
    nll, _ = score(model, texts, windows, cpu, "fp32", batch_tokens=512)
    *scores, _ = plain_losses(folder, [tokens[:-1] for tokens in documents])
    assert np.allclose(nll, scores, rtol=1e-5)
    assert np.std(nll) > 1, "losses vary, so the check is sharp"


def test_rows_hold_each_piece_once_with_little_padding() -> None:
    corpus = corpus_of([20, 5, 9, 0, 31, 70, 1])
    packing = pack(corpus.offsets, 40)
    batch = make_batch(corpus, packing, range(len(packing)), PREFIX, END)
    pieces, positions = [], 0
    for arguments, targets in batch.row_inputs():
        rows = arguments["input_ids"]
        positions += rows.numel()
        for row, target in zip(rows, targets.view_as(rows), strict=True):
            length = int((target != IGNORE_INDEX).sum())
            assert 2 * length > len(row)
            pieces.append((row[:length].tolist(), target[:length].tolist()))
    wanted = []
    for document, first, count in packing.pieces.tolist():
        tokens = sequence(corpus, document)[first : first + count + 1]
        wanted.append((tokens[:-1], tokens[1:]))
    assert sorted(pieces) == sorted(wanted)
    assert positions < 1.5 * packing.pairs


@pytest.mark.slow
def test_the_check_comes_before_tokenizing_and_its_outcome_is_recorded(
    own_attention: Models, dataset: Path, tmp_path: Path
) -> None:
    from transformers import MambaConfig

    few = {name: SIZE[name] for name in ("vocab_size", "hidden_size", "num_hidden_layers")}
    state = save_model(MambaConfig(**few), tmp_path / "mamba")
    config = resolve(str(dataset), str(state), "lora-8bit", SMALL, "state")
    with pytest.raises(UserError, match="models of type mamba carry a state"):
        advance(config, tmp_path, "download.model")
    assert not find(config, tmp_path, "download.model").complete

    config = resolve(str(dataset), str(own_attention("bloom")), "lora-8bit", SMALL, "own")
    ((_, receipt),) = advance(config, tmp_path, "download.model").done.items()
    assert receipt.facts["attention"] == "eager"


@pytest.mark.slow
@pytest.mark.parametrize("family", ["bloom", "openai-gpt"])
def test_a_run_with_a_family_of_its_own_attention(
    own_attention: Models, dataset: Path, tmp_path: Path, family: str
) -> None:
    words = [*SMALL, "train.weights=int8", "train.lora_targets=all-linear"]
    config = resolve(str(dataset), str(own_attention(family)), "lora-8bit", words, "own")
    assert advance(config, tmp_path, "evaluate.tuned").complete
    words += ["train.attention=sdpa", "train.lr=1e-3"]
    refused = resolve(str(dataset), str(own_attention(family)), "lora-8bit", words, "b")
    with pytest.raises(UserError, match=r"train\.attention=sdpa cannot be used with this model"):
        advance(refused, tmp_path, "train.train")
