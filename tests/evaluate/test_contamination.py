"""Held-out texts among the training documents, and what generated texts say by heart."""

from __future__ import annotations

import shutil
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import Config
from pipeline.core.errors import Interrupted
from pipeline.core.stage import Context, run_item
from pipeline.core.stop import Stop
from pipeline.dag import find
from pipeline.dataset.subset import sample_documents
from pipeline.dataset.token_cache import SealedShards, TokenizedSplit, open_token_cache
from pipeline.evaluate.contamination import copies, ngrams, similarity
from pipeline.evaluate.contamination.candidates import MAX_CANDIDATES, min_shared_ngrams
from pipeline.evaluate.contamination.copies import longest_copies
from pipeline.evaluate.contamination.ngrams import NGRAM_TOKENS, NgramIndex, rolling
from pipeline.evaluate.contamination.overlap import NEAR_JACCARD, QUOTED_SHARE, find_overlap
from pipeline.evaluate.contamination.similarity import SHINGLE_TOKENS, compare
from tests.helpers.examples import examples
from tests.helpers.runs import StopAfterChecks

Document = Sequence[int]


def corpus(documents: Sequence[Document], kind: Any = np.uint16) -> TokenizedSplit:
    lengths = [len(document) for document in documents]
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])
    ids = np.array([token for document in documents for token in document], kind)
    size = np.zeros(len(documents), np.int64)
    return TokenizedSplit(ids, offsets, size, np.zeros(len(documents), "V16"), "")


def arrays(documents: Sequence[Document]) -> list[np.ndarray]:
    return [np.array(document, np.int64) for document in documents]


def grams(document: Document, n: int = NGRAM_TOKENS) -> list[tuple[int, ...]]:
    return [tuple(document[i : i + n]) for i in range(len(document) - n + 1)]


def likeness(one: Document, other: Document) -> float:
    a, b = set(grams(one, SHINGLE_TOKENS)), set(grams(other, SHINGLE_TOKENS))
    return len(a & b) / max(1, len(a | b))


def words(generator: np.random.Generator, count: int) -> list[int]:
    return generator.integers(5, 50_000, count).tolist()


def others(generator: np.random.Generator, count: int) -> list[int]:
    """Words that are none of `words`."""
    return generator.integers(50_000, 60_000, count).tolist()


def edited(document: Document, every: int) -> list[int]:
    """Every so manieth token replaced by one that stands nowhere else."""
    return [1 if i % every == every - 1 else token for i, token in enumerate(document)]


def counted(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> list[int]:
    """Have the calls of a function counted."""
    real, calls = getattr(owner, name), [0]

    def call(*args: Any) -> Any:
        calls[0] += 1
        return real(*args)

    monkeypatch.setattr(owner, name, call)
    return calls


def texts_of(most: int, vocabulary: int) -> st.SearchStrategy[list[list[int]]]:
    return st.lists(st.lists(st.integers(0, vocabulary), max_size=most), max_size=5)


# ---- n-grams


@settings(deadline=None)
@given(st.lists(st.integers(0, 1 << 31), max_size=40), st.integers(1, 17), st.integers(0, 3))
def test_a_run_has_the_hash_of_its_tokens_wherever_it_stands(
    ids: list[int], n: int, seed: int
) -> None:
    found = rolling(np.array(ids, np.uint32), n, seed)
    assert len(found) == max(0, len(ids) - n + 1)
    alone = [int(rolling(np.array(gram, np.int64), n, seed)[0]) for gram in grams(ids, n)]
    assert found.tolist() == alone
    assert len(set(alone)) == len(set(grams(ids, n)))


def test_the_hashes_are_those_of_the_formula() -> None:
    """What is compared, and so what is found, must not depend on the machine."""

    def spread(token: int) -> int:
        product = (token + 1) * 0x9E3779B97F4A7C15 % 2**64
        return product ^ product >> 32

    ids = [0, 7, 50_000, 65_535, 1 << 31] * 3
    base = 0xD1342543DE82EF95
    for n in (5, 13):
        wanted = [
            sum(spread(token) * base ** (n - 1 - j) for j, token in enumerate(gram)) % 2**64
            for gram in grams(ids, n)
        ]
        assert rolling(np.array(ids, np.uint32), n).tolist() == wanted


@settings(max_examples=examples(300), deadline=None)
@given(texts_of(12, 1), texts_of(14, 1), st.integers(1, 9))
def test_every_place_is_found_once_wherever_blocks_end(
    texts: list[list[int]], documents: list[list[int]], block: int
) -> None:
    index, train = NgramIndex(arrays(texts), 4), corpus(documents)
    known = {gram for text in texts for gram in grams(text, 4)}
    wanted = [
        (number, int(train.offsets[number]) + i, gram)
        for number, document in enumerate(documents)
        for i, gram in enumerate(grams(document, 4))
        if gram in known
    ]
    names = {
        int(g): tuple(index.ids[place : place + 4].tolist())
        for g, place in zip(index.grams, index.positions, strict=True)
    }
    assert len(names) == index.distinct == len(known)
    found, met = [], set()
    for hits in index.scan(train, block=block):
        assert not met & set(hits.documents.tolist()), "a document comes whole"
        met |= set(hits.documents.tolist())
        columns = (hits.documents.tolist(), hits.positions.tolist(), hits.grams.tolist())
        found += [(d, place, names[gram]) for d, place, gram in zip(*columns, strict=True)]
    assert found == wanted


def weak(ids: np.ndarray, n: int, seed: int = 0) -> np.ndarray:
    """A hash that knows no order; a good one under other seeds."""
    if seed:
        return rolling(ids, n, seed)
    return np.array([sum(map(int, gram)) for gram in grams(ids, n)], np.uint64) << np.uint64(40)


def test_what_has_the_hash_only_is_not_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ngrams, "rolling", weak)
    text = list(range(NGRAM_TOKENS))
    train = corpus([text[::-1], text, [*text[1:], 0, 99]])
    (hits,) = NgramIndex(arrays([text])).scan(train)
    assert (hits.documents.tolist(), hits.positions.tolist()) == ([1], [NGRAM_TOKENS])
    index = NgramIndex(arrays([text, text[::-1]]))
    assert index.seed == 1, "under the first seed, the two could not be told apart"
    assert [len(hits) for hits in index.scan(train)] == [2]


@pytest.mark.slow
def test_memory_is_that_of_the_texts_and_not_of_the_corpus() -> None:
    generator = np.random.default_rng(0)
    texts = [generator.integers(0, 50_000, 300) for _ in range(20)]
    peaks = []
    for size in (1 << 19, 1 << 21):
        documents = generator.integers(0, 50_000, (size // 256, 256)).astype(np.uint16)
        documents[::10, 100:150] = texts[0][100:150]
        offsets = np.arange(0, size + 1, 256)
        train = TokenizedSplit(documents.ravel(), offsets, offsets[1:], np.zeros(0, "V16"), "")
        find_overlap(texts, train)  # the libraries are there
        tracemalloc.start()
        found = find_overlap(texts, train)
        longest_copies(texts, train)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert found.covered.tolist() == [50] + 19 * [0]
    assert peaks[1] < 1.1 * peaks[0]


# ---- overlap


@pytest.mark.slow
@settings(max_examples=examples(150), deadline=None)
@given(st.integers(0, 1 << 32), st.integers(1, 3), st.integers(1, 50))
def test_overlap_is_what_comparing_all_with_all_finds(
    seed: int, vocabulary: int, block: int
) -> None:
    generator = np.random.default_rng(seed)

    def some(count: int, least: int) -> list[list[int]]:
        lengths = generator.integers(least, 60, count)
        return [generator.integers(0, vocabulary + 1, n).tolist() for n in lengths]

    texts, documents = some(4, 1), some(MAX_CANDIDATES, 0)
    for text in texts:
        piece = text[: generator.integers(0, 60)]
        documents[generator.integers(0, MAX_CANDIDATES)] += piece
    found = find_overlap(arrays(texts), corpus(documents), block=block)
    for index, text in enumerate(texts):
        known = [set(grams(document)) for document in documents]
        inside = {
            i + j
            for i, gram in enumerate(grams(text))
            for j in range(NGRAM_TOKENS)
            if any(gram in one for one in known)
        }
        assert found.covered[index] == len(inside)
        assert found.short[index] == (len(text) < NGRAM_TOKENS)
        near = [
            likeness(text, document) if set(grams(text)) & one else 0.0
            for document, one in zip(documents, known, strict=True)
        ]
        assert found.jaccard[index] == max(near)
        assert found.nearest[index] == (near.index(max(near)) if max(near) else -1)
        quoted = len(inside) >= QUOTED_SHARE * len(text)
        assert found.near[index] == (max(near) >= NEAR_JACCARD or quoted)


def test_a_planted_leak_is_found_and_nothing_else() -> None:
    generator = np.random.default_rng(1)
    footer = words(generator, 80)
    held = [words(generator, 300) + footer for _ in range(6)] + [words(generator, 12)]
    train = [words(generator, 300) + footer for _ in range(400)]
    train[17] = [*held[0], 7]  # a copy of another hash
    train[99] = edited(held[1], 15)
    train[250] = held[2][150:] + words(generator, 20) + held[2][:150]  # halves changed places
    train[251] = held[3][:150] + words(generator, 230)  # less than half is left
    train[260] = edited(held[4], 13)  # no 13 tokens in a row, but for the footer of the others
    train.append(held[6])
    found = find_overlap(arrays(held), corpus(train))
    assert found.near.tolist() == [True, True, True, False, False, False, False]
    assert found.nearest[:4].tolist() == [17, 99, 250, 251]
    for index in range(4):
        assert found.jaccard[index] == likeness(held[index], train[found.nearest[index]])
    assert found.covered.tolist() == [380, 20 * 14 + 80, 380, 150 + 80, 80, 80, 0]
    assert found.short.tolist() == 6 * [False] + [True]


def test_a_text_that_is_quoted_in_longer_ones_is_near() -> None:
    generator = np.random.default_rng(7)
    whole, most, less, pieces = held = [words(generator, 200) for _ in range(4)]
    train = [words(generator, 2000) for _ in range(50)]
    for place, quotation in (
        (7, whole),
        (8, most[:160]),
        (9, less[41:]),
        (10, pieces[:100]),
        (11, pieces[100:]),
    ):
        train[place][900:900] = quotation
    found = find_overlap(arrays(held), corpus(train))
    assert found.covered.tolist() == [200, 160, 159, 200]
    assert found.near.tolist() == [True, True, False, True]
    assert max(found.jaccard) < 0.1, "none of them is like the longer document"


def test_unrelated_documents_have_nothing_in_common(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(2)
    sketched = counted(monkeypatch, similarity, "sketch")
    texts, train = ([words(generator, 200) for _ in range(n)] for n in (5, 50))
    found = find_overlap(arrays(texts), corpus(train))
    assert not found.covered.any()
    assert not found.near.any()
    assert not found.jaccard.any()
    assert set(found.nearest.tolist()) == {-1}
    assert sketched == [0]


@pytest.mark.slow
def test_a_footer_costs_no_comparison_and_a_form_a_few(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(3)
    sketched = counted(monkeypatch, similarity, "sketch")
    footer, form = words(generator, 25), words(generator, 300)
    texts = [words(generator, 400) + footer for _ in range(10)]
    train = corpus([words(generator, 400) + footer for _ in range(500)])
    found = find_overlap(arrays(texts), train)
    assert found.covered.tolist() == 10 * [25]
    assert (sketched, set(found.nearest.tolist())) == ([0], {-1})
    texts = [words(generator, 20) + form for _ in range(10)]
    filled = [words(generator, 20) + form for _ in range(3000)]
    filled[2000] = texts[4]
    found = find_overlap(arrays(texts), corpus(filled))
    assert found.near.all()
    assert (found.nearest[4], found.jaccard[4]) == (2000, 1.0)
    assert 0 < sketched[0] <= 10 * (MAX_CANDIDATES + 1)


@settings(deadline=None)
@given(st.integers(0, 1 << 32), st.integers(13, 400), st.integers(4, 60))
def test_a_near_duplicate_shares_as_many_13_grams_as_are_asked_for(
    seed: int, length: int, apart: int
) -> None:
    """The claim at the top of `contamination.candidates`; no token comes twice."""
    generator = np.random.default_rng(seed)
    one, other, new = list(range(length)), [], 1000
    regular = bool(generator.integers(2))
    for token in one:
        chance = token % apart == apart - 1 if regular else generator.integers(apart) == 0
        kind = generator.integers(3) if chance else 3
        new += 1
        other += {0: [new], 1: [], 2: [token, new]}.get(int(kind), [token])
    shared = len(set(grams(one)) & set(grams(other)))
    if likeness(one, other) >= NEAR_JACCARD:
        assert shared >= min_shared_ngrams(len(one), len(other))


def test_so_many_are_needed_and_no_fewer() -> None:
    one = list(range(12 * 40))
    other = [t for i in range(0, len(one), 12) for t in (*one[i : i + 12], 1000 + i)]
    assert likeness(one, other) < NEAR_JACCARD
    assert not set(grams(one)) & set(grams(other))
    assert (
        min_shared_ngrams(112, 112),
        min_shared_ngrams(113, 113),
        min_shared_ngrams(500, 500),
    ) == (0, 1, 29)


def test_of_two_that_are_as_near_the_first_is_told() -> None:
    generator = np.random.default_rng(4)
    text, other = words(generator, 100), words(generator, 100)
    train = corpus([other, text, text])
    pairs = np.array([0, 0, 0]), np.arange(3)
    jaccard, nearest = compare(arrays([text]), train, *pairs, lambda: None)
    assert (jaccard.tolist(), nearest.tolist()) == ([1.0], [1])


# ---- copies


def longest(text: Document, documents: Sequence[Document]) -> tuple[int, int, int, int]:
    best = (0, -1, -1, -1)
    for index, document in enumerate(documents):
        for start in range(len(document)):
            for at in range(len(text)):
                length = 0
                while (
                    start + length < len(document)
                    and at + length < len(text)
                    and document[start + length] == text[at + length]
                ):
                    length += 1
                if length >= max(NGRAM_TOKENS, best[0] + 1):
                    best = (length, index, start, at)
    return best


@pytest.mark.slow
@settings(max_examples=examples(150), deadline=None)
@given(st.integers(0, 1 << 32), st.integers(0, 2), st.integers(1, 50))
def test_the_longest_copy_is_what_looking_everywhere_finds(
    seed: int, vocabulary: int, block: int
) -> None:
    generator = np.random.default_rng(seed)

    def some(count: int) -> list[list[int]]:
        lengths = generator.integers(0, 45, count)
        return [generator.integers(0, vocabulary + 1, n).tolist() for n in lengths]

    texts, documents = some(3), some(5)
    for text in texts:
        documents[generator.integers(0, 5)] += text[generator.integers(0, 20) :]
    found = longest_copies(arrays(texts), corpus(documents), block=block)
    columns = (found.tokens, found.document, found.start, found.at)
    rows = zip(*(column.tolist() for column in columns), strict=True)
    assert list(rows) == [longest(text, documents) for text in texts]


@pytest.mark.slow
def test_a_passage_that_stands_everywhere_is_looked_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    generator = np.random.default_rng(5)
    looked = counted(monkeypatch, copies._Longest, "_compare")
    passage = words(generator, 60)
    texts = [others(generator, 10) + passage[: 20 + i] + others(generator, 5) for i in range(20)]
    dots = 3 * [[4] * 1000]
    train = corpus([*(words(generator, 10) + passage for _ in range(20_000)), *dots])
    found = longest_copies(arrays([*texts, [4] * 30, []]), train)
    assert found.tokens.tolist() == [*range(20, 40), 30, 0]
    assert set(found.document[:20].tolist()) == {0}
    assert (found.start[:20].tolist(), found.at[:20].tolist()) == (20 * [10], 20 * [10])
    assert (found.document[20], found.start[20], found.at[20]) == (20_000, 0, 0)
    assert looked[0] < 50


def test_a_long_run_is_seen_through_windows_that_miss_nothing() -> None:
    passage = words(np.random.default_rng(6), 1000)
    texts = [passage[begin : begin + 60] for begin in range(0, 941, 20)]
    found = longest_copies(arrays(texts), corpus([[1, 2, 3, *passage, 4]]))
    assert found.tokens.tolist() == [60] * len(texts)
    assert found.start.tolist() == list(range(3, 944, 20))


def test_a_scan_can_be_stopped_and_says_how_far_it_is() -> None:
    train = corpus([list(range(1000))])
    seen: list[tuple[int, int]] = []
    find_overlap([np.arange(20)], train, block=300, progress=lambda *a: seen.append(a))
    assert seen == [(300, 1000), (600, 1000), (900, 1000), (1000, 1000)]
    for look in (find_overlap, longest_copies):
        with pytest.raises(Interrupted):
            look([np.arange(20)], train, block=300, check=StopAfterChecks(2).check)


# ---- the step


def opened(config: Config, root: Path, split: str) -> TokenizedSplit:
    node = find(config, root, "tokenize.seal")
    sealed, receipt = node.work.folder / "seal", node.done["seal"]
    shards = SealedShards.load(sealed.parent, sealed, receipt.digest)
    return open_token_cache(shards, split, Context())


def run(config: Config, root: Path, stop: Stop | None = None) -> str:
    node = find(config, root, "evaluate.overlap")
    (item,) = node.items or []
    return run_item(node.work, item, Context(stop=stop or Stop(), log=lambda text: None))


@pytest.mark.slow
def test_the_step_tells_of_each_document_that_is_scored(
    small: Callable[..., Config], prepared: Path, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(prepared, tmp_path / "root"))
    config = small("evaluate.max_documents=5")
    with pytest.raises(Interrupted):
        run(config, root, StopAfterChecks(30))
    assert not find(config, root, "evaluate.overlap").complete
    assert run(config, root) == "done"
    node = find(config, root, "evaluate.overlap")
    facts = node.done["overlap"].facts
    train = opened(config, root, "train")
    assert (facts["train_documents"], facts["train_tokens"]) == (len(train), len(train.ids))
    assert (facts["n"], facts["threshold"], facts["quoted"], facts["gpus"]) == (13, 0.5, 0.8, 0)
    learned = [train.document(index).tolist() for index in range(len(train))]
    known = {gram for document in learned for gram in grams(document)}
    shared = 0
    for split in ("validation", "test"):
        held = opened(config, root, split)
        chosen = sample_documents(held, 5, None)
        table = pq.read_table(node.work.folder / f"overlap/{split}.parquet")
        columns = table.to_pydict()
        assert list(columns) == [
            *("document", "hash", "tokens", "covered", "near", "jaccard", "nearest"),
        ]
        assert columns["document"] == chosen
        assert columns["hash"] == [held.hashes[index].tobytes().hex() for index in chosen]
        texts = [held.document(index).tolist() for index in chosen]
        assert columns["tokens"] == [len(text) for text in texts]
        covered = [
            len(
                {
                    i + j
                    for i, gram in enumerate(grams(t))
                    for j in range(NGRAM_TOKENS)
                    if gram in known
                }
            )
            for t in texts
        ]
        assert columns["covered"] == covered
        for text, jaccard, nearest in zip(
            texts, columns["jaccard"], columns["nearest"], strict=True
        ):
            assert jaccard == (likeness(text, learned[nearest]) if nearest >= 0 else 0)
        assert columns["near"] == [
            jaccard >= 0.5 or inside >= 0.8 * len(text)
            for jaccard, inside, text in zip(columns["jaccard"], covered, texts, strict=True)
        ]
        assert facts[split] == {
            "documents": len(chosen),
            "near_duplicates": sum(columns["near"]),
            "any_overlap": sum(n > 0 for n in covered),
            "covered_share": sum(covered) / sum(columns["tokens"]),
            "too_short": sum(len(text) < NGRAM_TOKENS for text in texts),
        }
        shared += sum(covered)
    assert shared, "the sentences of this corpus come again and again"


@pytest.mark.slow
def test_its_result_is_shared_by_all_runs_that_choose_the_same_documents(
    small: Callable[..., Config], prepared: Path, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(prepared, tmp_path / "root"))
    run(small(), root)
    assert find(small("train.lr=1e-3", name="other"), root, "evaluate.overlap").complete
    assert find(small("evaluate.resamples=300", name="other"), root, "evaluate.overlap").complete
    fewer = find(small("evaluate.max_tokens=500", name="other"), root, "evaluate.overlap")
    assert not fewer.complete
    assert fewer.work.folder.parent == find(small(), root, "evaluate.overlap").work.folder.parent
