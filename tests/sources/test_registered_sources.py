"""Every corpus of the registry, read from an imitation of its source."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow.parquet as pq
import pytest
import xxhash
import zstandard

from pipeline.config import resolve
from pipeline.core.errors import CorruptInput
from pipeline.core.registry import find_dataset, ids
from pipeline.sources.csv_sources import OPINION_COLUMNS
from pipeline.tokenize.facts import SPLITS
from tests.helpers.runs import SMALL, advance
from tests.helpers.servers import FileServer, HubServer

ROOT = Path(__file__).parents[2]
COUNT = 150
PILE = ("nih", "nih-v1", "law", "law-v1")
TABLES = ("nih-exporter", "law-courtlistener")
HUB = ("law-cap",)


def grant(number: int, version: str) -> dict[str, Any]:
    """A record of NIH ExPORTER in the Pile, which is sorted by id."""
    text = f"We propose to study {version} the growth of {number * number} cells in mice."
    return {"meta": {"APPLICATION_ID": 100_065 + 7 * number}, "text": text}


def opinion(number: int, version: str) -> dict[str, Any]:
    """A record of FreeLaw in the Pile; a case may occur twice, the text keeps its layout."""
    text = (
        f"\n\n  {number} U.S. {number + 1}\n\n\tROE  v.  WADE ({version})\n\n - {number} -\n\x0c§"
    )
    meta = {
        "case_jurisdiction": "scotus.tar.gz" if number % 3 else "ca9.tar.gz",
        "case_ID": f"{110_921 + number // 2}.json",
        "date_created": f"2010-04-{1 + number % 28:02}T17:12:49Z",
    }
    return {"meta": meta, "text": text}


def pile(name: str, frames: int) -> tuple[bytes, list[dict[str, Any]]]:
    """The `.jsonl.zst` file of a corpus, and its records."""
    make = grant if name.startswith("nih") else opinion
    version = "v1" if name.endswith("v1") else "v2"
    records = [make(number, version) for number in range(COUNT)]
    lines = [json.dumps(record).encode() + b"\n" for record in records]
    step = -(-COUNT // frames)
    cuts = [b"".join(lines[n : n + step]) for n in range(0, COUNT, step)]
    return b"".join(map(zstandard.compress, cuts)), records


def rows(folder: Path) -> dict[str, list[tuple[str, bytes]]]:
    """(id, hash of the text) of every document, by split."""
    found: dict[str, list[tuple[str, bytes]]] = {split: [] for split in SPLITS}
    for path in sorted(folder.glob("chunk-*/*.parquet")):
        table = pq.read_table(path)
        found[path.stem] += zip(table["id"].to_pylist(), table["hash"].to_pylist(), strict=True)
    return found


def check(found: dict[str, list[tuple[str, bytes]]], records: list[dict[str, Any]]) -> None:
    """All records are found, with the id field that the registry names."""
    key = "case_ID" if "case_ID" in records[0]["meta"] else next(iter(records[0]["meta"]))
    expected = [
        (str(record["meta"][key]), xxhash.xxh3_128_digest(record["text"].encode()))
        for record in records
    ]
    assert sorted(row for split in found.values() for row in split) == sorted(expected)
    assert all(found.values())


@pytest.mark.slow
@pytest.mark.parametrize("frames", [1, 7])
@pytest.mark.parametrize("name", PILE)
def test_a_part_of_the_pile_becomes_shards(
    tmp_path: Path, models: Callable[[str], Path], name: str, frames: int
) -> None:
    data, records = pile(name, frames)
    urls = find_dataset(name).urls
    with FileServer() as server:
        # the first mirror does not have the file, the second has
        here = [f"{server.url}/{n}{urlsplit(url).path}" for n, url in enumerate(urls)]
        server.files = {urlsplit(here[1]).path: data}
        digest = sha256(data).hexdigest()
        given = [f"dataset.urls={json.dumps(here)}", f"dataset.size={len(data)}"]
        config = resolve(
            name, str(models("llama")), "lora-8bit", [*SMALL, *given, f"dataset.sha256={digest}"]
        )
        node = advance(config, tmp_path, "tokenize.seal")
    assert [request.path[:2] for request in server.requests if request.method == "GET"][-1] == "/1"
    facts = node.done["seal"].facts
    assert (facts["quarantined"], facts["empty"]) == (0, 0)
    found = rows(node.work.folder)
    check(found, records)
    if name.startswith("law"):
        cases = [{case for case, _ in split} for split in found.values()]
        assert sum(map(len, cases)) == COUNT // 2, "all texts of a case are in one split"


def test_the_versions_of_a_part_of_the_pile_are_told_apart_by_their_hash(
    tmp_path: Path, models: Callable[[str], Path]
) -> None:
    for name in ("nih", "law"):
        two, one = find_dataset(name), find_dataset(f"{name}-v1")
        assert two.urls[0].rpartition("/")[2] == one.urls[0].rpartition("/")[2]
        assert two.sha256 != one.sha256
        data, _ = pile(f"{name}-v1", 1)
        with FileServer({"/x": data}) as server:
            config = resolve(name, str(models("llama")), "lora-8bit",
                             [f"dataset.urls=['{server.url}/x']", "dataset.size=null"])  # fmt: skip
            with pytest.raises(CorruptInput, match=f"expected {two.sha256}"):
                advance(config, tmp_path, "download.corpus")


def year(number: int) -> tuple[bytes, list[dict[str, Any]]]:
    """A fiscal year of ExPORTER: a zip with one CSV in it."""
    records = [grant(1000 * number + n, "so") for n in range(COUNT // 2)]
    lines = ["APPLICATION_ID,ABSTRACT_TEXT"]
    lines += [f'{r["meta"]["APPLICATION_ID"]},"{r["text"]}"' for r in records]
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"RePORTER_PRJABS_C_FY{number}.csv", "\r\n".join(lines) + "\r\n")
    return out.getvalue(), records


def snapshot() -> tuple[bytes, list[dict[str, Any]]]:
    """A quarterly snapshot of CourtListener: output of PostgreSQL's COPY, in bzip2."""
    names = ["id", "date_created", "date_modified", "type", "sha1", *OPINION_COLUMNS, "cluster_id"]
    lines, records = [",".join(names)], []
    for number in range(COUNT):
        text = f'{number}. He said "no", and the court \\ affirmed.\nSo ordered.'
        row = {"id": f"{number}", "cluster_id": f"{number // 2}", "date_created": "2020-01-01",
               "plain_text": text}  # fmt: skip
        fields = [row.get(name, "").replace("\\", "\\\\").replace('"', '\\"') for name in names]
        lines.append(",".join(f'"{field}"' if field else "" for field in fields))
        records.append({"meta": {"id": row["id"]}, "text": text})
    return bz2.compress(("\n".join(lines) + "\n").encode()), records


@pytest.mark.slow
@pytest.mark.parametrize("name", TABLES)
def test_a_table_of_the_source_itself_becomes_shards(
    tmp_path: Path, models: Callable[[str], Path], name: str
) -> None:
    urls = find_dataset(name).urls
    with FileServer() as server:
        path = urlsplit(urls[0]).path
        given = [f"dataset.urls=['{server.url}{path}']"]
        if name == "nih-exporter":
            given.append("dataset.years=2020-2021")
            years = {number: year(number) for number in (2020, 2021)}
            server.files = {path.replace("{year}", f"{n}"): years[n][0] for n in years}
            records = [record for _, those in years.values() for record in those]
        else:
            data, records = snapshot()
            server.files = {path: data}
            given.append(f"dataset.size={len(data)}")
        config = resolve(name, str(models("llama")), "lora-8bit", [*SMALL, *given])
        node = advance(config, tmp_path, "tokenize.seal")
    assert node.done["seal"].facts["quarantined"] == 0
    check(rows(node.work.folder), records)


THROUGH = """
import sys
from pathlib import Path
sys.path.insert(0, ".")
from tests.helpers.runs import SMALL, advance
from pipeline.config import resolve
name, model, root = sys.argv[1:]
advance(resolve(name, model, "lora-8bit", SMALL), Path(root), "tokenize.seal")
"""


@pytest.mark.slow  # a process with the hub's libraries
@pytest.mark.parametrize("name", HUB)
def test_a_data_set_of_the_hub_becomes_shards(
    tmp_path: Path, models: Callable[[str], Path], name: str
) -> None:
    dataset, folder = find_dataset(name), tmp_path / "repo"
    folder.mkdir()
    for part in range(3):
        lines = [
            {
                "id": f"{part}-{n}",
                "text": f"Opinion {part}.{n}: the judgment is affirmed. Née Roe.",
                "source": "Caselaw Access Project",
                "added": "2024-08-24T03:29:51.129683",
                "created": "1901-01-01",
                "metadata": {"author": "HOLMES, J." if n % 3 else None, "license": "Public Domain"},
            }
            for n in range(COUNT // 3)
        ]
        data = "".join(json.dumps(line) + "\n" for line in lines).encode()
        (folder / f"cap_{part:05}.jsonl.gz").write_bytes(gzip.compress(data, mtime=0))
    with HubServer(datasets={dataset.urls[0].removeprefix("hf://"): folder}) as server:
        server.commit = dataset.revision or ""
        done = subprocess.run(
            [sys.executable, "-c", THROUGH, name, models("llama"), tmp_path / "root"],
            cwd=ROOT,
            env={**os.environ, "HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "hf"),
                 "NO_PROXY": "127.0.0.1", "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=240,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    (shards,) = (tmp_path / "root" / "data" / name).glob("shards-*")
    found = rows(shards)
    names = [name for split in found.values() for name, _ in split]
    assert sorted(names) == sorted(f"{part}-{n}" for part in range(3) for n in range(COUNT // 3))
    taken = [r.path for r in server.requests if "/resolve/" in r.path and r.method == "GET"]
    assert all(f"/resolve/{dataset.revision}/" in path for path in taken)
    assert len(taken) >= 3


def test_every_entry_of_the_registry_has_a_test() -> None:
    assert {*PILE, *TABLES, *HUB} == {*ids("datasets")} - {"demo"}
