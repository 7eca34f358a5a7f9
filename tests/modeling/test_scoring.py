"""Scoring equals a plain loop over whole documents, scores each token once, and resumes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.errors import Interrupted
from pipeline.core.stop import Stop
from pipeline.evaluate.metrics import bits_per_byte, change, gap, interval, perplexity
from pipeline.modeling import scoring
from pipeline.modeling.scoring import ScoredBatch, SlidingWindows, score
from pipeline.modeling.scoring_log import ScoringLog
from tests.helpers.tiny import WORDS, make_model

CONTEXT = 48
PREFIX = 0
LONG_CONTEXT = 16384  # longer than any document
FAMILIES = ("opt", "gpt2", "llama")


def corpus(
    seed: int = 0, lengths: tuple[int, ...] = (1, 2, 7, 48, 30, 31, 47, 5, 100)
) -> list[Any]:
    generator = np.random.default_rng(seed)
    return [generator.integers(3, WORDS, n) for n in lengths]


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    import torch

    from pipeline.modeling.loading import load_base

    folder = make_model(request.param, tmp_path_factory.mktemp("model"))
    made = load_base(folder, "fp32", torch.device("cpu"))
    return enlarge_weights(made)


def enlarge_weights(model: Any) -> Any:
    """Enlarge the weights: a fresh model predicts nearly the same for every context."""
    import torch

    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(6 if parameter.dim() > 1 else 1)
    return model


def score_plainly(model: Any, document: Any, windows: SlidingWindows) -> float:
    """The nats of one document, token by token, each with all available context."""
    import torch

    ids = [windows.prefix_id, *document.tolist()]
    total = 0.0
    with torch.no_grad():
        for start, first, end in windows.split(len(document)):
            logits = model(input_ids=torch.tensor([ids[start:end]])).logits[0].double()
            for position in range(first, end):
                total -= float(logits[position - start].log_softmax(-1)[ids[position + 1]])
    return total


def run(model: Any, documents: list[Any], **options: Any) -> Any:
    import torch

    stride = options.pop("stride", CONTEXT)
    windows = SlidingWindows(CONTEXT, stride, PREFIX)
    return score(model, documents, windows, torch.device("cpu"), "fp32", **options)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("stride", [CONTEXT, 20])
def test_batched_scores_are_those_of_a_plain_loop(
    model: Any, stride: int, padded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if padded:  # as on a GPU, with more padding
        monkeypatch.setattr(scoring, "NO_PADDING_DEVICES", ())
        monkeypatch.setattr(scoring, "MAX_PADDING_RATIO", 0.3)
    documents = corpus()
    windows = SlidingWindows(CONTEXT, stride, PREFIX)
    wanted = [score_plainly(model, document, windows) for document in documents]
    nll, tokens = run(model, documents, stride=stride, batch_tokens=160)
    np.testing.assert_allclose(nll, wanted, rtol=1e-5, atol=1e-4)
    assert tokens.tolist() == [len(d) for d in documents]
    assert np.std(nll / tokens) > 0.05, "documents differ in their losses, so the check is sharp"


def test_documents_within_the_context_agree_with_the_loss_of_the_library(model: Any) -> None:
    import torch

    for document in corpus(lengths=(2, 30, 47)):
        ids = torch.tensor([[PREFIX, *document.tolist()]])
        with torch.no_grad():
            wanted = float(model(input_ids=ids, labels=ids).loss) * len(document)
        assert run(model, [document])[0][0] == pytest.approx(wanted, rel=1e-5)


def test_scores_do_not_depend_on_the_batch_size(model: Any) -> None:
    one, other = (run(model, corpus(), stride=20, batch_tokens=n)[0] for n in (1, 4096))
    np.testing.assert_allclose(one, other, rtol=1e-5)


@given(st.integers(0, 300), st.integers(1, 64), st.data())
def test_windows_tile_a_document(length: int, context: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, context))
    scored = []
    for start, first, end in SlidingWindows(context, stride, PREFIX).split(length):
        assert 0 <= start <= first < end <= length
        assert end - start == min(context, end), "a window is as long as possible"
        assert first - start >= min(first, context - stride), "the promised context"
        scored += range(first, end)
    assert scored == list(range(length))


def test_a_stride_beyond_the_context_is_refused() -> None:
    with pytest.raises(ValueError, match="stride 9 must be between 1 and the context, 8"):
        SlidingWindows(8, 9, PREFIX)


@pytest.mark.slow
def test_losses_are_summed_by_position_in_the_document(model: Any) -> None:
    documents = corpus()
    parts: list[Any] = []
    nll, _ = run(model, documents, stride=20, batch_tokens=160, on_batch=parts.append)
    nats, tokens = sum(part.by_position for part in parts).T
    assert nats.sum() == pytest.approx(nll.sum())
    # bucket p has the positions from 2^p − 1 on
    for bucket in range(8):
        first, last = 2**bucket - 1, 2 ** (bucket + 1) - 1
        inside = [len(d[first:last]) for d in documents]
        assert tokens[bucket] == sum(inside)
        upto = [d[:last] for d in documents if len(d) > first]
        before = [d[:first] for d in documents if len(d) > first]
        wanted = sum(score_plainly(model, d, SlidingWindows(CONTEXT, 20, PREFIX)) for d in upto)
        wanted -= sum(score_plainly(model, d, SlidingWindows(CONTEXT, 20, PREFIX)) for d in before)
        if last < CONTEXT:  # beyond, a shorter document has other windows
            assert nats[bucket] == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("world", [2, 3])
def test_the_scores_of_several_ranks_add_up_to_those_of_one(model: Any, world: int) -> None:
    wanted, counted = run(model, corpus(), stride=20, batch_tokens=100)
    checks, batches = [0] * world, [0] * world
    shares = []
    for rank in range(world):

        def check(rank: int = rank) -> None:
            checks[rank] += 1

        def done(batch: ScoredBatch, rank: int = rank) -> None:
            batches[rank] += 1

        share = (rank, world)
        how = {"stride": 20, "batch_tokens": 100}
        shares.append(run(model, corpus(), **how, check=check, on_batch=done, rank_and_world=share))
    assert sum(nll for nll, _ in shares) == pytest.approx(wanted, rel=1e-13)
    assert (sum(tokens for _, tokens in shares) == counted).all()
    assert len(set(checks)) == 1, "all ranks check the stop equally often"
    assert max(batches) - min(batches) <= 1
    assert min(batches) > 1


@pytest.mark.parametrize("after", [1, 3])
def test_an_interrupted_scoring_resumes_with_the_same_digits(model: Any, after: int) -> None:
    whole: list[Any] = []
    wanted, _ = run(model, corpus(), stride=20, batch_tokens=100, on_batch=whole.append)
    stop, parts = Stop(), []

    def keep(batch: ScoredBatch) -> None:
        parts.append(batch)
        if len(parts) == after:
            stop.set("a test")

    with pytest.raises(Interrupted):
        run(model, corpus(), stride=20, batch_tokens=100, check=stop.check, on_batch=keep)
    rest: list[Any] = []
    nll, tokens = run(
        model,
        corpus(),
        stride=20,
        batch_tokens=100,
        resumed_batches=parts,
        on_batch=rest.append,
    )
    assert len(rest) == len(whole) - after
    assert nll.tobytes() == wanted.tobytes()
    assert tokens.tolist() == [len(d) for d in corpus()]


def test_logged_batches_are_read_up_to_the_first_out_of_order(tmp_path: Path) -> None:
    places = np.array([[0.1, 1.0], [1 / 3, 8.0]])
    batch = ScoredBatch(np.array([0, 2]), np.array([0.1, 1 / 3]), np.array([4, 5]), places)
    for _ in range(2):
        with ScoringLog(tmp_path, {"precision": "bf16"}) as kept:
            kept.add(batch)
    path = tmp_path / "batches.jsonl"
    whole = path.read_text()
    last = whole.splitlines()[-1]
    # a process that lost its lease may write a batch that its successor has written
    path.write_text(whole + last + "\n" + last.replace('"batch": 1', '"batch": 2') + "\n")
    with ScoringLog(tmp_path, {"precision": "bf16"}) as kept:
        assert len(kept.batches) == 2
    assert path.read_text() == whole
    assert all((one == other).all() for one, other in zip(kept.batches[1], batch, strict=True))
    with ScoringLog(tmp_path, {"precision": "fp32"}) as kept:
        assert kept.batches == []


@pytest.mark.slow
def test_scoring_disables_dropout_and_restores_training_mode(tmp_path: Path) -> None:
    import torch

    from pipeline.modeling.loading import add_lora, load_base

    base = load_base(make_model("llama", tmp_path), "fp32", torch.device("cpu"))
    wanted = run(base, corpus())[0]
    model = add_lora(base, 4, 8, 0.5, ["q_proj", "v_proj"], seed=0)
    model.train()
    frozen = next(m for m in model.modules() if type(m).__name__ == "LlamaRMSNorm")
    frozen.eval()
    before = [m.training for m in model.modules()]
    np.testing.assert_allclose(run(model, corpus())[0], wanted, rtol=1e-5)
    assert [m.training for m in model.modules()] == before
    ids = torch.from_numpy(corpus()[3])[None]
    model(input_ids=ids, labels=ids).loss.backward()


def test_perplexity_and_bits_per_byte() -> None:
    nll, tokens = np.array([3.0, 1.0]), np.array([3, 1])
    assert perplexity(nll, tokens) == pytest.approx(np.e)
    assert bits_per_byte(nll, np.array([2, 2])) == pytest.approx(1 / np.log(2))


@pytest.mark.slow
def test_the_interval_holds_the_truth_19_times_in_20() -> None:
    generator = np.random.default_rng(1)
    hits = 0
    for _ in range(200):
        tokens = generator.integers(50, 800, 150)
        low, high = interval(generator.normal(3.0, 0.5, 150) * tokens, tokens, 300)
        hits += low <= np.exp(3.0) <= high
    assert 0.90 <= hits / 200 <= 0.985


@pytest.mark.slow
@pytest.mark.thorough
def test_two_hundred_abstracts_score_as_in_a_plain_loop(tmp_path: Path) -> None:
    """A random OPT on real documents; `make bench-score` compares SmolLM2-135M."""
    import torch
    from transformers import AutoModelForCausalLM

    from bench import corpora, text
    from pipeline.modeling.loading import load_base
    from pipeline.tokenize.encoder import ReferenceEncoder
    from tests.helpers.tiny import make_config, make_tokenizer

    texts = list(text.nih())[:200]
    if not texts:  # then other texts of this machine, with the lengths of NIH abstracts
        every = corpora.documents("nih", text.collect(limit=1_000_000))
        texts = [next(every) for _ in range(200)]
    config = make_config("opt")
    config.max_position_embeddings = LONG_CONTEXT
    torch.manual_seed(0)
    enlarge_weights(AutoModelForCausalLM.from_config(config)).save_pretrained(tmp_path)
    ids, offsets = ReferenceEncoder(make_tokenizer(tmp_path)).encode(texts)
    documents = np.split(ids, offsets[1:-1])
    plain = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    wanted = []
    for document in documents:
        row = torch.tensor([[PREFIX, *document.tolist()]])
        with torch.no_grad():
            wanted.append(float(plain(input_ids=row, labels=row).loss) * len(document))
    device, windows = torch.device("cpu"), SlidingWindows(LONG_CONTEXT, LONG_CONTEXT, PREFIX)
    nll, tokens = score(load_base(tmp_path, "fp32", device), documents, windows, device, "fp32")
    size = np.array([len(text.encode()) for text in texts])
    reference = np.array(wanted)
    assert perplexity(nll, tokens) == pytest.approx(perplexity(reference, tokens), rel=5e-5)
    assert bits_per_byte(nll, size) == pytest.approx(bits_per_byte(reference, size), rel=5e-5)
    np.testing.assert_allclose(nll, reference, rtol=1e-4)
    assert np.std(reference / tokens) > 0.02, "documents differ in their losses"


def drawn(generator: Any, documents: int) -> tuple[Any, Any, Any]:
    """Nats of base and adapted model, and tokens; lengths and losses are skewed and correlated."""
    tokens = np.clip(generator.lognormal(5.9, 0.6, documents), 13, 4000).astype(np.int64)
    loss = 2.5 + 0.35 * generator.standard_gamma(2, documents) - 0.15 * (np.log(tokens) - 5.9)
    change = generator.normal(-0.2, 0.15, documents) * (1 + generator.standard_gamma(1, documents))
    return loss * tokens, (loss + change) * tokens, tokens


@pytest.mark.slow
@pytest.mark.parametrize(
    ("documents", "least"), [pytest.param(20, 0.86, marks=pytest.mark.thorough), (200, 0.915)]
)
def test_the_intervals_hold_the_truth_of_skewed_documents(documents: int, least: float) -> None:
    """As docs/evaluation.md says; 400 samples have a standard error of 0.011."""
    generator = np.random.default_rng(5)
    base, tuned, tokens = drawn(generator, 1_000_000)
    truth, shift = np.exp(base.sum() / tokens.sum()), (tuned - base).sum() / tokens.sum()
    hits = np.zeros(2)
    for _ in range(400):
        base, tuned, tokens = drawn(generator, documents)
        low, high = interval(base, tokens, 400)
        found = change(base, tuned, tokens, 400)
        hits += low <= truth <= high, found.ci95[0] <= shift <= found.ci95[1]
    assert (hits / 400 >= least).all()
    assert (hits / 400 <= 0.98).all()


def test_a_gap_between_seen_and_unseen_texts_is_found() -> None:
    generator = np.random.default_rng(3)

    def sample(change: float) -> Any:
        tokens = generator.integers(50, 800, 200)
        return generator.normal(change, 0.1, 200) * tokens, tokens

    seen, unseen = sample(-0.5), sample(-0.2)
    difference, (low, high) = gap(seen, unseen, 1000)
    assert low < difference < high
    assert low < 0.3 < high
    assert low > 0.2
    _, (low, high) = gap(sample(-0.2), unseen, 1000)
    assert low < 0 < high


def test_pairing_finds_a_small_planted_difference() -> None:
    generator = np.random.default_rng(2)
    tokens = generator.integers(50, 800, 300)
    base = generator.normal(3.0, 0.5, 300) * tokens
    tuned = base + generator.normal(-0.02, 0.05, 300) * tokens
    found = change(base, tuned, tokens, 1000)
    assert found.ci95[0] < -0.02 < found.ci95[1] < 0
    assert found.percent == pytest.approx(100 * (np.exp(found.difference) - 1))
    assert found.ci95_percent[0] < found.percent < found.ci95_percent[1] < 0
    one, other = interval(base, tokens, 1000), interval(tuned, tokens, 1000)
    assert one[0] < other[1], "the unpaired intervals overlap"
