"""Malformed records in files of every format: quarantined with their position, or refused."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from pipeline.config import Config, resolve
from pipeline.core.errors import CorruptInput, InputError, UserError
from pipeline.core.receipt import load
from pipeline.dag import find
from pipeline.tokenize.quarantine import QUARANTINE
from tests.helpers.runs import SMALL, advance

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
TEXTS = [f"Document {n}. The record shows that the claim was filed in time." for n in range(60)]
JSON = [json.dumps({"text": text, "id": n}) for n, text in enumerate(TEXTS)]


@pytest.fixture
def local(models: Callable[[str], Path]) -> Callable[..., Config]:
    """The configuration of a run on a local file or folder."""

    def config(path: Path, *words: str) -> Config:
        plain = ["dataset.sha256=null", "dataset.size=null", "dataset.id_field=null"]
        settings = [*SMALL, "decompress.chunk_bytes=1500", *plain, *words]
        return resolve("nih", str(models("llama")), "lora-8bit", settings, file=str(path))

    return config


def write(path: Path, *lines: str, end: str = "\n") -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes("\n".join(lines).encode("utf-8", "surrogateescape") + end.encode())
    return path


def sealed(config: Config, root: Path) -> tuple[Any, list[Any], list[str]]:
    """The facts of the seal, the quarantined lines, and the ids of all documents."""
    node = advance(config, root, "tokenize.seal")
    folder = node.work.folder
    quarantined = [
        json.loads(line)
        for path in sorted(folder.glob(f"chunk-*/{QUARANTINE}"))
        for line in path.read_text(encoding="utf-8").split("\n")[:-1]
    ]
    shards = sorted(folder.glob("chunk-*/*.parquet"))
    ids = [name for shard in shards for name in pq.read_table(shard)["id"].to_pylist()]
    return node.done["seal"].facts, quarantined, sorted(ids)


def test_quarantine_records_file_line_reason_and_beginning(
    tmp_path: Path, local: Callable[..., Config]
) -> None:
    folder = tmp_path / "corpus"
    write(folder / "a.jsonl", *JSON[:20], "{", *JSON[20:30], end="")
    write(folder / "b.csv", "text,id", '"two\nlines",x', "one,two,three", 'one,"two"x', "last,y")
    # an empty file: the next one begins at the same line
    (folder / "c.jsonl.gz").write_bytes(gzip.compress(b""))
    (folder / "d.jsonl.gz").write_bytes(gzip.compress(b'\n{"text": 12}\n' + JSON[40].encode()))
    words = pa.Array.from_buffers(pa.string(), 2, pa.array([b"fine", b"caf\xe9"]).buffers())
    pq.write_table(pa.table({"text": words}), folder / "e.parquet")
    write(folder / "g.jsonl", *JSON[41:], '{"text": "cut o', end="")
    facts, quarantined, ids = sealed(local(folder, "tokenize.max_bad_share=0.2"), tmp_path / "root")
    assert [(entry["file"], entry["line"], entry["text"]) for entry in quarantined] == [
        ("a.jsonl", 21, "{"),
        ("b.csv", 4, "one,two,three"),
        ("b.csv", 5, 'one,"two"x'),
        ("d.jsonl.gz", 2, '{"text": 12}'),
        ("e.parquet", 2, ""),
        ("g.jsonl", 20, '{"text": "cut o'),
    ]
    reasons = [
        "not JSON", "3 columns, 2 expected", "',' expected after", "field text is int, not text",
        "'utf-8' codec can't decode", "not JSON",
    ]  # fmt: skip
    assert [
        entry["reason"][: len(part)] for entry, part in zip(quarantined, reasons, strict=True)
    ] == reasons
    assert all(list(entry) == ["file", "line", "reason", "text"] for entry in quarantined)
    assert facts["quarantined"] == 6
    assert facts["empty"] == 1, "the blank line"
    lines = [*range(1, 21), *range(22, 32)]
    assert ids == sorted(
        [f"a.jsonl:{n}" for n in lines]
        + ["b.csv:1", "b.csv:4", "d.jsonl.gz:3", "e.parquet:1"]
        + [f"g.jsonl:{n}" for n in range(1, 20)]
    ), "a document without an id is named by its position"


def test_a_file_cut_within_its_last_record_loses_that_one_and_says_so(
    tmp_path: Path, local: Callable[..., Config]
) -> None:
    whole = "\n".join(JSON)
    for cut in (1, 20):
        path = write(tmp_path / f"cut-{cut}.jsonl", whole[:-cut], end="")
        _, (entry,), ids = sealed(local(path, "dataset.id_field=id"), tmp_path / f"root-{cut}")
        assert (entry["file"], entry["line"]) == (path.name, 60)
        assert entry["reason"].startswith("not JSON: ")
        assert entry["text"] == JSON[-1][:-cut]
        assert ids == sorted(map(str, range(59)))


def test_a_wrong_text_field_is_told_with_the_right_one(
    tmp_path: Path, local: Callable[..., Config]
) -> None:
    path = write(tmp_path / "x.jsonl", *(line.replace('"text"', '"body"') for line in JSON))
    for words in ([], ["tokenize.max_bad_lines=3"]):
        with pytest.raises(CorruptInput) as caught:
            sealed(local(path, *words), tmp_path / "root")
        assert str(caught.value) == (
            "no record has the field 'text'; its fields are body, id (x.jsonl, line 1). "
            'Name the field with the text: ARGS="dataset.text_field=body"'
        )
        assert caught.value.exit_code == 3
    facts, quarantined, _ = sealed(local(path, "dataset.text_field=body"), tmp_path / "root")
    assert (facts["quarantined"], quarantined) == (0, [])


def test_split_by_keeps_groups_together_and_refuses_unknown_field(
    tmp_path: Path, local: Callable[..., Config]
) -> None:
    records = [{"text": text, "meta": {"case": n // 2}} for n, text in enumerate(TEXTS)]
    del records[-1]["meta"]
    path = write(tmp_path / "x.jsonl", *map(json.dumps, records))
    with pytest.raises(UserError) as caught:
        sealed(local(path, "dataset.split_by=meta.csae"), tmp_path / "root")
    assert str(caught.value) == (
        "no record has dataset.split_by=meta.csae, so near-copies would not stay together. Name "
        "the field that groups documents, or split by text: "
        'ARGS="dataset.split_by=null"'
    )
    fields = ("dataset.split_by=meta.case", "dataset.id_field=meta.case")
    config = local(path, *fields, "tokenize.validation=0.3", "tokenize.test=0.3")
    sealed(config, tmp_path / "root")
    folder = find(config, tmp_path / "root", "tokenize.seal").work.folder
    where: dict[str, set[str]] = {}
    for shard in folder.glob("chunk-*/*.parquet"):
        for case in pq.read_table(shard)["id"].to_pylist():
            where.setdefault(case, set()).add(shard.stem)
    assert set(map(str, range(29))) <= where.keys()
    assert all(len(where[str(case)]) == 1 for case in range(29))
    receipts = [load(unit.parent) for unit in folder.glob("chunk-*/receipt.json")]
    assert sum(receipt.facts["grouped"] for receipt in receipts if receipt) == 59


CHECK = "Check dataset.form and dataset.text_field"


@pytest.mark.parametrize(
    ("name", "content", "error", "hint"),
    [
        ("x.jsonl", "text,id\n" + "a,1\n" * 30, "31 of 31 lines are malformed", CHECK),
        ("x.jsonl", "<html>\n" + "<p>sign in</p>\n" * 30, "'<html>'", "a web page in place"),
        ("x.jsonl", "%PDF-1.7\n%\udce2\udce3\n" + "1 0 obj\n" * 30, "is a PDF", "its text"),
        ("x.csv", "\n".join(JSON), "holds JSON, not a table", "dataset.form=jsonl"),
        ("x.jsonl", "[\n" + ",\n".join(JSON) + "\n]", "is one JSON array", "jq -c '.[]'"),
    ],
)
def test_a_file_of_another_kind_than_its_name_says_is_refused(
    tmp_path: Path, local: Callable[..., Config], name: str, content: str, error: str, hint: str
) -> None:
    path = write(tmp_path / name, content)
    with pytest.raises(InputError, match=error) as caught:
        sealed(local(path), tmp_path / "root")
    assert hint in str(caught.value)
    assert "allow more" not in str(caught.value), "nothing would be left"


@pytest.mark.parametrize(
    ("name", "compress"),
    [
        ("x.jsonl.gz", zstandard.compress),
        ("x.jsonl.zst", bytes),
        ("x.jsonl", gzip.compress),
        ("x.jsonl.bz2", gzip.compress),
        ("x", zstandard.compress),
    ],
)
def test_wrong_compression_suffix_is_ignored(
    tmp_path: Path, local: Callable[..., Config], name: str, compress: Callable[[bytes], bytes]
) -> None:
    (tmp_path / name).write_bytes(compress("\n".join(JSON).encode()))
    _, quarantined, ids = sealed(local(tmp_path / name, "dataset.id_field=id"), tmp_path / "root")
    assert (quarantined, len(ids)) == ([], 60)


def test_too_many_bad_lines_are_refused_unless_allowed(
    tmp_path: Path, local: Callable[..., Config]
) -> None:
    path = write(tmp_path / "x.jsonl", *JSON, *["{}"] * 7)
    with pytest.raises(CorruptInput) as caught:
        sealed(local(path), tmp_path / "root")
    first = "the first is x.jsonl, line 61: no field text: '{}'"
    assert f"7 of 67 lines are malformed; {first}" in str(caught.value)
    assert f"/*/{QUARANTINE}. Check" in str(caught.value), "the error names the files"
    facts, quarantined, _ = sealed(local(path, "tokenize.max_bad_share=0.2"), tmp_path / "root")
    assert facts["quarantined"] == len(quarantined) == 7
    words = ["tokenize.max_bad_lines=3", "tokenize.max_bad_share=1", "tokenize.validation=0.11"]
    one_chunk = local(path, "decompress.chunk_bytes=1000000", *words)
    with pytest.raises(CorruptInput, match="4 of 64 lines are malformed"):
        sealed(one_chunk, tmp_path / "root")


def test_report_counts_quarantined_records(tmp_path: Path, local: Callable[..., Config]) -> None:
    path = write(tmp_path / "x.jsonl", *JSON, "{", "[]", '{"text": ""}')
    config = local(path)
    report = advance(config, tmp_path / "root", "evaluate.report").work.folder / "report"
    corpus = json.loads((report / "report.json").read_text())["corpus"]
    assert (corpus["documents"], corpus["quarantined"], corpus["empty"]) == (60, 2, 1)
    assert "and 2 malformed lines left out" in (report / "report.md").read_text()
    page = (report / "report.html").read_text()
    assert "2 malformed lines, 1 empty records" in page
    assert corpus["encoder"].startswith("fastokens ")
    assert f"Encoded by {corpus['encoder']}." in page


HUNGRY = """
import resource, sys
from pathlib import Path
sys.path.insert(0, ".")
from tests.helpers.runs import advance
from pipeline.config import resolve

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

corpus, model, root, *words = sys.argv[1:]
config = lambda path: resolve("nih", model, "lora-8bit", words, file=path)
advance(config(corpus + "/short.jsonl"), Path(root, "short"), "tokenize.seal")
before = peak()
advance(config(corpus + "/long.jsonl.zst"), Path(root, "long"), "tokenize.seal")
print(peak() - before)
"""


def test_a_line_of_100_mb_is_put_aside_in_little_memory_and_one_of_1_mb_is_kept(
    tmp_path: Path, models: Callable[[str], Path]
) -> None:
    short = json.dumps({"text": "A million letters. " * 53_000})
    write(tmp_path / "short.jsonl", *JSON, short)
    long = [json.dumps({"text": word * 20_000_000}) for word in ("long ", "é ", "longer")]
    text = "\n".join([*JSON[:30], long[0], short, long[1], *JSON[30:], long[2]])
    (tmp_path / "long.jsonl.zst").write_bytes(zstandard.compress(text.encode()))
    words = ["dataset.sha256=null", "dataset.size=null", "dataset.id_field=null", *SMALL]
    root = tmp_path / "root"
    done = subprocess.run(
        [sys.executable, "-c", HUNGRY, tmp_path, models("llama"), root, *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
    )
    assert int(done.stdout.split()[-1]) < 200_000, "KB"
    (shards,) = (root / "long").glob("data/*/shards-*")
    quarantined = [
        json.loads(line)
        for path in sorted(shards.glob(f"chunk-*/{QUARANTINE}"))
        for line in path.read_text().splitlines()
    ]
    assert [(entry["line"], entry["text"][:14]) for entry in quarantined] == [
        (31, '{"text": "long'),
        (33, '{"text": "\\u00'),
        (64, '{"text": "long'),
    ]
    reason = "longer than 16000000 bytes, see tokenize.max_line_bytes"
    assert {entry["reason"] for entry in quarantined} == {reason}
    sizes = [
        n for p in shards.glob("chunk-*/*.parquet") for n in pq.read_table(p)["bytes"].to_pylist()
    ]
    assert (len(sizes), max(sizes)) == (61, 19 * 53_000)
