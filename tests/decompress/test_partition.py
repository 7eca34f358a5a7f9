"""Parts of a corpus: each line is read once, whatever the parts, and damage is reported."""

from __future__ import annotations

import errno
import itertools
import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Semaphore
from typing import Any

import pyarrow.parquet as pq
import pytest
import xxhash
import yaml
import zstandard
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from jobs.housekeeping.clean import releasable_parts, remove
from pipeline.config import Config, resolve
from pipeline.core import commit as commits
from pipeline.core.errors import CorruptInput, Interrupted, UserError
from pipeline.core.receipt import load
from pipeline.core.registry import Dataset
from pipeline.core.stage import Context, run_item
from pipeline.dag import Node, find, survey
from pipeline.decompress.cutting import ChunkCutter
from pipeline.decompress.partition import FileSlice, SlicedFile, partition
from pipeline.saved_config import save_config
from pipeline.sources import spans as spans_module
from pipeline.sources import zstd_frames as frames_module
from pipeline.sources.formats import json_lines
from pipeline.sources.records import LineReader
from pipeline.sources.spans import Fingerprint, Span
from tests.helpers.runs import StopAfterChecks, advance, write_corpus
from tests.sources.helpers import dataset, frames

pytestmark = pytest.mark.slow

Make = Callable[..., Config]


@pytest.fixture(autouse=True)
def short_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    """Allow short spans, so that a few kilobytes have several."""
    monkeypatch.setattr(spans_module, "MIN_SPAN_BYTES", 1)


def spans_of(data: bytes, step: int = 1 << 20) -> tuple[Span, ...]:
    seen = Fingerprint()
    for at in range(0, len(data), step):
        seen.update(data[at : at + step])
    return seen.spans


@pytest.mark.parametrize("seed", range(20))
def test_spans_are_whole_frames_and_cover_the_stream(seed: int) -> None:
    chance = random.Random(seed)
    data = b"".join([*frames(chance), zstandard.compress(b"last")])
    found = spans_of(data, chance.choice([997, 1 << 16]))
    assert found == spans_of(data)
    assert len(found) > 1 or data.count(b"\x28\xb5\x2f\xfd") == 1
    place, text = 0, b""
    for span in found:
        assert span.start == place
        piece = data[place : place + span.size]
        assert span.xxh3 == xxhash.xxh3_128_hexdigest(piece)
        text += decoded(piece)
        place += span.size
    assert (place, text) == (len(data), decoded(data))


def decoded(data: bytes) -> bytes:
    with zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True) as reader:
        return reader.readall()


@pytest.mark.parametrize(
    "data",
    [b"", b"text", zstandard.compress(b"one frame"), zstandard.compress(b"x") * 2 + b"garbage",
     (zstandard.compress(b"x" * 1000) * 2)[:-1]],
    ids=["empty", "plain", "one", "garbage", "cut"],
)  # fmt: skip
def test_a_stream_that_is_not_several_whole_frames_is_one_span(data: bytes) -> None:
    assert spans_of(data) == (Span(0, len(data), xxhash.xxh3_128_hexdigest(data)),)


def test_many_small_frames_share_spans() -> None:
    frame = zstandard.compress(random.Random(0).randbytes(20_000))
    found = spans_of(frame * 1000)
    assert 500 < len(found) < 1000
    assert max(span.size for span in found) < len(frame) * 1000 / 200


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 50), st.integers(0, 5)), min_size=1, max_size=6),
    st.integers(1, 100),
)
def test_parts_hold_every_span_once_in_order(files: list[tuple[int, int]], size: int) -> None:
    listed = [
        (f"f{n}", whole * max(1, count), [Span(whole * i, whole, "") for i in range(count)])
        for n, (whole, count) in enumerate(files)
    ]
    parts = partition(listed, size)
    pieces = {
        (name, index): held // max(1, len(spans))
        for name, held, spans in listed
        for index in range(max(1, len(spans)))
    }
    found = [
        [(s.name, index) for s in part for index in range(s.first, max(s.end, s.first + 1))]
        for part in parts
    ]
    assert list(itertools.chain(*found)) == list(pieces)
    assert all(sum(pieces[piece] for piece in part) >= size for part in found[:-1])


@settings(deadline=None)
@given(
    lines=st.lists(st.binary(max_size=12).map(lambda b: b.replace(b"\n", b"")), max_size=30),
    cuts=st.lists(st.integers(0, 400), max_size=12),
    ended=st.booleans(),
    bounds=st.sets(st.integers(1, 12)),
)
def test_each_line_is_read_by_one_part_wherever_frames_end(
    tmp_path_factory: pytest.TempPathFactory,
    lines: list[bytes],
    cuts: list[int],
    ended: bool,
    bounds: set[int],
) -> None:
    start = b"-" if lines else b""  # so that it has the magic number of no other kind
    text = start + b"\n".join(lines) + b"\n" * ended
    places = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    data = b"".join(zstandard.compress(text[a:b]) for a, b in itertools.pairwise(places))
    spans = spans_of(data)
    path = tmp_path_factory.mktemp("parts") / "corpus.zst"
    path.write_bytes(data)
    assume(len(spans) > 1)
    ends = [0, *sorted(bound for bound in bounds if bound < len(spans)), len(spans)]
    found = [
        b"".join(
            json_lines(
                [SlicedFile(path, path.parent, spans, FileSlice("corpus.zst", *bounds))],
                dataset("jsonl"),
            )
        )
        for bounds in itertools.pairwise(ends)
    ]
    assert b"".join(found) == text + b"\n" * (not text.endswith(b"\n") and bool(text))
    assert all(piece.endswith(b"\n") for piece in filter(None, found))


LINES = 400


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Ten frames that end anywhere, inside documents without an id."""
    lines = decoded(write_corpus(tmp_path / "whole.jsonl.zst", LINES).read_bytes())
    chance = random.Random(1)
    places = [0, *sorted(chance.sample(range(len(lines)), 9)), len(lines)]
    path = tmp_path / "parts.jsonl.zst"
    path.write_bytes(
        b"".join(zstandard.compress(lines[a:b]) for a, b in itertools.pairwise(places))
    )
    return path


@pytest.fixture
def many(corpus: Path, small: Make) -> Callable[..., Config]:
    """The configuration of a run on `corpus`, e.g. `many("decompress.part_bytes=1000")`."""

    def config(*words: str) -> Config:
        dataset = corpus.with_name("parts.yaml")
        dataset.write_text(yaml.safe_dump({"urls": [corpus.as_uri()]}))
        settings = ["decompress.part_bytes=3000", "decompress.chunk_bytes=9000", *words]
        plain = small()
        held_out = ["tokenize.validation=0.1", "tokenize.test=0.1"]
        return resolve(str(dataset), plain.model.path, "lora", [*held_out, *settings], "parts")

    return config


def text_of(node: Node) -> bytes:
    chunks = [chunk for receipt in node.done.values() for chunk in receipt.units]
    return b"".join(
        decoded((node.work.folder / chunk / "chunk.jsonl.zst").read_bytes()) for chunk in chunks
    )


def documents(config: Config, root: Path) -> dict[str, bytes]:
    """The text hash of each document, by its id."""
    folder = find(config, root, "tokenize.shards").work.folder
    found = {}
    for path in folder.glob("chunk-*/*.parquet"):
        table = pq.read_table(path)
        found |= dict(zip(table["id"].to_pylist(), table["hash"].to_pylist(), strict=True))
    return found


def test_parts_give_the_text_and_the_places_of_one_pass(
    many: Callable[..., Config], tmp_path: Path
) -> None:
    one, several = many("decompress.part_bytes=100000000"), many()
    whole = advance(one, tmp_path / "one", "decompress.chunks")
    node = advance(several, tmp_path / "several", "decompress.chunks")
    assert (len(whole.done), len(node.done) > 3) == (1, True)
    assert text_of(node) == text_of(whole)
    advance(one, tmp_path / "one", "tokenize.shards")
    advance(several, tmp_path / "several", "tokenize.shards")
    found = documents(several, tmp_path / "several")
    assert found == documents(one, tmp_path / "one")
    assert sorted(int(name.rpartition(":")[2]) for name in found) == list(range(1, LINES + 1))


def test_files_are_shared_out_and_come_in_order(small: Make, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for number in range(1, 8):
        rows = [json.dumps({"text": f"file {number}, line {n}" * 9}) for n in range(number)]
        (folder / f"{number}.jsonl").write_text("\n".join(rows))
    dataset = Dataset(id="folder", urls=[folder.as_uri()])
    config = small("decompress.part_bytes=1000", "decompress.chunk_bytes=1000")
    node = advance(
        config.model_copy(update={"dataset": dataset}), tmp_path / "root", "decompress.chunks"
    )
    assert len(node.done) > 2
    lines = [json.loads(line)["text"][:14] for line in text_of(node).splitlines()]
    assert lines == [f"file {f}, line {n}" for f in range(1, 8) for n in range(f)]


def receipts_of(folder: Path) -> dict[str, tuple[int, int]]:
    found = ((path, path.stat()) for path in folder.glob("*/receipt.json"))
    return {path.parent.name: (stat.st_ino, stat.st_mtime_ns) for path, stat in found}


def test_interrupted_anywhere_no_committed_chunk_is_written_again(
    many: Callable[..., Config], tmp_path: Path
) -> None:
    config = many("decompress.part_bytes=8000", "decompress.chunk_bytes=4000")
    whole = advance(config, tmp_path / "whole", "decompress.chunks")
    root, before = tmp_path / "root", {}
    folder = find(config, root, "decompress.chunks").work.folder
    for checks in itertools.count(5, 7):
        try:
            advance(config, root, "decompress.chunks", StopAfterChecks(checks))
        except Interrupted:
            now = receipts_of(folder)
            assert before.items() <= now.items()
            before = now
        else:
            break
    node = find(config, root, "decompress.chunks")
    assert len(before) > 2
    assert [r.digest for r in node.done.values()] == [r.digest for r in whole.done.values()]


@pytest.mark.parametrize("failing", [0, 1, 3])
def test_a_failed_commit_ends_the_part_and_leaves_no_partial_unit(
    failing: int, many: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, root = many("decompress.part_bytes=100000000", "decompress.chunk_bytes=4000"), tmp_path
    whole = advance(config, tmp_path / "whole", "decompress.chunks")
    advance(config, root, "download.corpus")
    node, place = find(config, root, "decompress.chunks"), commits._place

    def full(temporary: Path, unit: Path, *rest: Any) -> None:
        if unit.name == f"chunk-00000-{failing:05d}":
            raise OSError(errno.EDQUOT, "Disk quota exceeded", str(unit))
        place(temporary, unit, *rest)

    context = Context(log=lambda text: None)
    with monkeypatch.context() as patch:
        patch.setattr(commits, "_place", full)
        with pytest.raises(UserError, match="quota"):
            run_item(node.work, node.items[0], context)
    before = receipts_of(node.work.folder)
    # all before it, and the one after it, which was being cut
    assert len(before) == failing + 1
    assert not list(node.work.folder.glob(".tmp-*"))
    node = advance(config, root, "decompress.chunks")
    assert before.items() <= receipts_of(node.work.folder).items()
    assert [r.digest for r in node.done.values()] == [r.digest for r in whole.done.values()]


def test_a_failed_write_back_is_raised_though_it_is_reported_once(
    many: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = many("decompress.part_bytes=100000000", "decompress.chunk_bytes=9000")
    advance(config, tmp_path, "download.corpus")
    node, failed = find(config, tmp_path, "decompress.chunks"), []

    def lost(file: int) -> None:
        if not failed:
            failed.append(file)
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(frames_module, "SYNC_BYTES", 1000)
    monkeypatch.setattr(frames_module, "FRAME_TEXT_BYTES", 2000)
    monkeypatch.setattr(frames_module.os, "fdatasync", lost)
    with pytest.raises(OSError, match="Input/output error"):
        run_item(node.work, node.items[0], Context(log=lambda text: None))
    assert failed
    assert "chunk-00000-00000" not in receipts_of(node.work.folder)
    assert len(advance(config, tmp_path, "decompress.chunks").done) == 1


def test_a_chunk_is_cut_while_the_one_before_it_is_committed(
    many: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = many("decompress.part_bytes=100000000", "decompress.chunk_bytes=4000")
    add_text, seal, added = ChunkCutter._add_text, commits._hash_and_sync_outputs, Semaphore(0)

    def watched(*arguments: Any) -> None:
        add_text(*arguments)
        added.release()

    def slow(draft: commits.Draft) -> Any:
        if "text" in draft.facts and draft.facts["offset"] == 0:
            assert added.acquire(timeout=60)
            assert added.acquire(timeout=60), "the second chunk must not wait for the first"
        return seal(draft)

    advance(config, tmp_path, "download.corpus")
    monkeypatch.setattr(ChunkCutter, "_add_text", watched)
    monkeypatch.setattr(commits, "_hash_and_sync_outputs", slow)
    assert len(advance(config, tmp_path, "decompress.chunks").done) == 1


def test_damaged_part_is_reported_and_only_its_chunks_are_rebuilt(
    many: Callable[..., Config], tmp_path: Path
) -> None:
    config, root = many(), tmp_path / "root"
    raw = next(advance(config, root, "download.corpus").work.folder.glob("corpus/*.zst"))
    sound = raw.read_bytes()
    node = find(config, root, "decompress.chunks")
    spans = [Span(**span) for span in load(raw.parent).facts["spans"][raw.name]]
    # in an uncompressed block of a frame of the second part, which still decodes, to another text
    first = node.items[1].data["slices"][0].first
    hurt = bytearray(sound)
    place = spans[first].start + spans[first].size // 2
    hurt[place] ^= 0xFF
    raw.unlink()  # it is a hard link to the corpus
    raw.write_bytes(hurt)
    context = Context(log=lambda text: None)
    # the part before it reads the end of its last line there, and verifies the whole span
    for item in node.items[:2]:
        with pytest.raises(CorruptInput) as caught:
            run_item(node.work, item, context)
        assert raw.name in str(caught.value)
        if not raw.exists():
            advance(config, root, "download.corpus")
            raw.unlink()
            raw.write_bytes(hurt)
    assert not list(node.work.folder.glob("part-*"))
    assert not list(node.work.folder.glob("chunk-*"))
    run_item(node.work, node.items[-1], context)
    raw.write_bytes(sound)
    assert text_of(advance(config, root, "decompress.chunks")) == decoded(sound)


def test_chunks_are_deleted_after_sealing_and_rebuilt_on_demand(
    many: Callable[..., Config], tmp_path: Path
) -> None:
    kept, config = many(), many("decompress.keep_chunks=false")
    whole = advance(kept, tmp_path / "kept", "tokenize.seal")
    root = tmp_path / "root"
    node = advance(config, root, "tokenize.seal")
    chunks = find(config, root, "decompress.chunks")
    assert chunks.complete
    assert not list(chunks.work.folder.glob("chunk-*"))
    assert [r.digest for r in node.done.values()] == [r.digest for r in whole.done.values()]
    # nothing is done again, by the plan or by a task
    assert all(node.complete for node in steps(config, root))
    for item in chunks.items:
        assert run_item(chunks.work, item, Context(log=lambda text: None)) == "skipped"
    # a damaged shard needs its chunk, and the other chunks of the same part
    shards = find(config, root, "tokenize.shards").work.folder
    lost = sorted(shards.glob("chunk-*"))[2]
    (lost / "train.parquet").write_bytes(b"")
    assert [node.work.step.name for node in steps(config, root) if not node.complete] == [
        "decompress.chunks",
        "tokenize.shards",
        "tokenize.seal",
    ]
    again = advance(config, root, "tokenize.shards")
    assert again.complete
    made = {path.name for path in chunks.work.folder.glob("chunk-*")}
    (part,) = (receipt for receipt in chunks.done.values() if lost.name in receipt.units)
    assert made == part.units.keys()
    assert find(config, root, "tokenize.seal").complete, "the seal covers the same bytes"
    save_config(config, root)
    assert releasable_parts(root, "elsewhere") == []
    assert remove([], releasable_parts(root, "parts")) > 0
    assert not list(chunks.work.folder.glob("chunk-*"))
    assert find(config, root, "decompress.chunks").complete
    shutil.rmtree(root / "models")
    assert find(config, root, "decompress.chunks").complete, (
        "missing chunks are complete while nothing needs them"
    )


def steps(config: Config, root: Path) -> Iterator[Node]:
    """The nodes of the steps up to the seal."""
    for node in survey(config, root):
        yield node
        if node.work.step.name == "tokenize.seal":
            return


def test_chunks_stay_while_another_model_may_need_them(
    many: Callable[..., Config], tmp_path: Path
) -> None:
    config = many("decompress.keep_chunks=false")
    advance(config, tmp_path, "tokenize.shards")
    folder = find(config, tmp_path, "decompress.chunks").work.folder
    other = find(config, tmp_path, "tokenize.shards").work.folder.with_name("shards-other-1")
    other.mkdir()
    advance(config, tmp_path, "tokenize.seal")
    assert list(folder.glob("chunk-*"))


def test_chunks_stay_while_any_run_keeps_them(many: Callable[..., Config], tmp_path: Path) -> None:
    config = many("decompress.keep_chunks=false")
    advance(many(), tmp_path, "tokenize.seal")
    save_config(config, tmp_path)
    assert releasable_parts(tmp_path, None)
    save_config(many().model_copy(update={"name": "keeps"}), tmp_path)
    assert releasable_parts(tmp_path, None) == []


def test_the_card_lists_only_sealed_shards(many: Callable[..., Config], tmp_path: Path) -> None:
    import datasets

    node = advance(many(), tmp_path, "tokenize.seal")
    folder = node.work.folder
    stale = sorted(folder.glob("chunk-*"))[0]
    shutil.copytree(stale, stale.with_name("chunk-00099-00000"))
    loaded = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
    (receipt,) = node.done.values()
    rows = {split: len(table) for split, table in loaded.items()}
    kept = {split: total["documents"] for split, total in receipt.facts["splits"].items()}
    twice = receipt.facts["duplicates"]
    assert rows == {split: kept[split] + twice[split] for split in kept}


def test_a_missing_raw_file_leaves_committed_parts_in_place(
    many: Callable[..., Config], tmp_path: Path
) -> None:
    config = many()
    raw = next(advance(config, tmp_path, "download.corpus").work.folder.glob("corpus/*.zst"))
    node = find(config, tmp_path, "decompress.chunks")
    context = Context(log=lambda text: None)
    run_item(node.work, node.items[0], context)
    raw.parent.rename(raw.parent.with_name(".damaged-corpus"))  # as another task does
    with pytest.raises(CorruptInput, match=r"is gone\. Another task .* run the same command"):
        run_item(node.work, node.items[1], context)
    assert list(node.work.folder.glob("part-00000"))


def test_a_line_at_a_boundary_belongs_to_the_first_part(tmp_path: Path) -> None:
    path = tmp_path / "x.zst"
    path.write_bytes(zstandard.compress(b"a\nb") + zstandard.compress(b"c\nd"))
    spans = spans_of(path.read_bytes())
    lines = LineReader(SlicedFile(path, tmp_path, spans, FileSlice("x.zst", 0, 1)))
    assert b"".join(lines.next_lines(100)) == b"a\nbc\n"
    lines = LineReader(SlicedFile(path, tmp_path, spans, FileSlice("x.zst", 1, 2)))
    assert b"".join(lines.next_lines(100)) == b"d\n"
