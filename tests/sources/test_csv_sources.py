"""CSV to JSON lines: what rows contain, and every way in which they are malformed."""

from __future__ import annotations

import bz2
import csv
import io
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.planning.preflight import check_sources
from pipeline.config import Config, resolve
from pipeline.core.errors import CorruptInput, InputError, Interrupted
from pipeline.core.receipt import Receipt, load
from pipeline.core.stop import Stop
from pipeline.sources import csv_sources
from pipeline.sources.codecs import CompressedFile
from pipeline.sources.csv_sources import OPINION_COLUMNS
from pipeline.sources.formats import json_lines
from tests.helpers.examples import examples
from tests.helpers.runs import SMALL, StopAfterChecks, advance
from tests.helpers.servers import FileServer
from tests.sources.helpers import dataset

NIH_HEADER = b"APPLICATION_ID,ABSTRACT_TEXT\r\n"


def zipped(data: bytes, name: str = "RePORTER_PRJABS_C_FY2020.csv") -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(zipfile.ZipInfo(name, (2026, 1, 1, 0, 0, 0)), data, zipfile.ZIP_DEFLATED)
    return out.getvalue()


def read(folder: Path, data: bytes, form: str) -> list[Any]:
    path = folder / "2020"
    path.write_bytes(data)
    text = b"".join(json_lines([CompressedFile(path, folder)], dataset(form)))
    assert not text or text.endswith(b"\n")
    return [json.loads(line) for line in text.split(b"\n")[:-1]]


def nih(folder: Path, rows: bytes) -> list[Any]:
    return read(folder, zipped(NIH_HEADER + rows), "nih-exporter")


def abstract(folder: Path, text: bytes) -> str:
    quoted = b'"' + text.replace(b'"', b'""') + b'"'
    (line,) = nih(folder, b"7," + quoted + b"\r\n")
    assert line["meta"] == {"APPLICATION_ID": 7}
    found: str = line["text"]
    return found


# ExPORTER


def test_a_row_may_hold_line_ends_quotes_and_commas(tmp_path: Path) -> None:
    assert nih(tmp_path, b'1,"a ""b"",\r\nc\n\nd"\r\n\r\n2,plain\r\n3,\r\n') == [
        {"text": 'a "b", c d', "meta": {"APPLICATION_ID": 1}},
        {"text": "plain", "meta": {"APPLICATION_ID": 2}},
        {"text": "", "meta": {"APPLICATION_ID": 3}},
    ]


def test_columns_are_known_by_their_names(tmp_path: Path) -> None:
    data = b'\xef\xbb\xbf"FY","ABSTRACT_TEXT","APPLICATION_ID"\n2020,text,12'
    line = {"text": "text", "meta": {"APPLICATION_ID": 12}}
    assert read(tmp_path, zipped(data), "nih-exporter") == [line]
    assert read(tmp_path, data, "nih-exporter") == [line], "the same without zip"


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ("naïve β-cells".encode(), "naïve β-cells"),
        (b"na\xefve \x93quoted\x94", "naïve “quoted”"),
        (
            b"\xce\xb2 and \xef alone",
            "Î² and ï alone",
        ),  # so the row is cp1252
        (b"\x81 \x8d \x8f \x90 \x9d", "� � � � �"),
        (b"line\x0bfeed\x0c \xc2\x85end", "line feed end"),
        (b"nul \x00 stays", "nul \0 stays"),
    ],
)
def test_bytes_that_are_not_utf8_are_cp1252_in_their_row(
    tmp_path: Path, raw: bytes, text: str
) -> None:
    assert abstract(tmp_path, raw) == text
    rows = b'1,"' + raw + b'"\r\n2,"' + "β".encode() + b'"\r\n'
    assert [line["text"] for line in nih(tmp_path, rows)] == [text, "β"], "only in that row"


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ("DESCRIPTION (provided by applicant): We study", "We study"),
        ("DESCRIPTION (provided by applicant):We study", "We study"),
        ("? DESCRIPTION (provided by applicant): We study", "We study"),
        ("DESCRIPTION  (provided\nby applicant):\n? We study", "We study"),
        ("Description: (adapted from the investigator's abstract) We study", "We study"),
        ("PROJECT SUMMARY/ABSTRACT We study", "We study"),
        ("Project Summary / Abstract: We study", "We study"),
        ("PROJECT SUMMARY (See instructions): We study", "We study"),
        ("[unreadable] [unreadable] We [unreadable] study\t it[unreadable]", "We study it"),
        ("[unreadable]DESCRIPTION (provided by applicant): We", "We"),
        ("? We study? Yes", "We study? Yes"),
        ("?We study", "?We study"),
        ("We read a DESCRIPTION (provided by applicant): it", None),
        ("DESCRIPTION (provided by applicant):", ""),
        ("? [unreadable]", "?"),
        (" \n\t\u00a0 ", ""),
    ],
)
def test_an_abstract_is_cleaned_as_in_the_pile(tmp_path: Path, raw: str, text: str | None) -> None:
    assert abstract(tmp_path, raw.encode()) == (raw if text is None else text)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (b"5\r\n", "1 columns, 2 expected"),
        (b"5,a,b\r\n", "3 columns, 2 expected"),
        (b"x5,a\r\n", "APPLICATION_ID is 'x5', not a number"),
        (b",a\r\n", "APPLICATION_ID is '', not a number"),
        (b"9999999999999999999,a\r\n", "not a number"),
        (b'5,"a"b\r\n', "',' expected after '\"'"),
        (b"5,a\rb\r\n", "new-line character seen in unquoted field"),
    ],
)
def test_a_malformed_row_becomes_a_line_with_the_reason(
    tmp_path: Path, row: bytes, message: str
) -> None:
    first, bad, last = nih(tmp_path, b'1,"two\nlines"\r\n' + row + b"2,after\r\n")
    assert (first["text"], last["text"]) == ("two lines", "after")
    assert list(bad) == ["malformed"]
    assert bad["malformed"]["line"] == 4
    assert message in bad["malformed"]["reason"]
    assert bad["malformed"]["text"] == row.strip().decode()


def test_the_size_of_a_field_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = csv.field_size_limit()
    assert len(abstract(tmp_path, b"x" * 3_000_000)) == 3_000_000
    monkeypatch.setattr(csv_sources, "MAX_FIELD_BYTES", 1000)
    bad, *rest = nih(tmp_path, b'1,"' + b"x" * 2000 + b'"\r\n2,after\r\n')
    assert "field larger than field limit (1000)" in bad["malformed"]["reason"]
    assert [line["text"] for line in rest] == ["after"]
    assert csv.field_size_limit() == before, "the global limit is restored"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no column APPLICATION_ID, ABSTRACT_TEXT"),
        (b"APPLICATION_ID,TEXT\n1,a\n", "no column ABSTRACT_TEXT"),
        (b'"never closed', "has no header: unexpected end of data"),
        (b"<html>sign in</html>", "no column APPLICATION_ID, ABSTRACT_TEXT"),
        (
            NIH_HEADER + b'1,whole\r\n2,"cut off',
            "a quote in the row at line 3 is never closed",
        ),
    ],
)
def test_a_malformed_table_is_an_error(tmp_path: Path, data: bytes, message: str) -> None:
    with pytest.raises(CorruptInput, match=message) as caught:
        read(tmp_path, zipped(data), "nih-exporter")
    assert caught.value.unit == tmp_path


def test_a_zip_truncated_anywhere_is_an_error(tmp_path: Path) -> None:
    data = zipped(NIH_HEADER + b"".join(b'%d,"text %d"\r\n' % (n, n * n) for n in range(2000)))
    for size in [*range(4, len(data), 97), len(data) - 1]:
        with pytest.raises(CorruptInput, match="truncated or not a valid zip"):
            read(tmp_path, data[:size], "nih-exporter")


fields = st.binary(max_size=40).map(lambda raw: raw.replace(b"\0", b""))


@settings(max_examples=examples(200), deadline=None)
@given(rows=st.lists(st.tuples(st.integers(0, 10**9), fields), max_size=8))
def test_rows_of_a_csv_writer_are_read_back(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[int, bytes]]
) -> None:
    out = io.StringIO(newline="")
    writer = csv.writer(out, quoting=csv.QUOTE_NONNUMERIC)
    writer.writerow(["APPLICATION_ID", "ABSTRACT_TEXT"])
    writer.writerows((number, raw.decode("latin-1")) for number, raw in rows)
    found = read(tmp_path_factory.getbasetemp(), out.getvalue().encode("latin-1"), "nih-exporter")
    assert [line["meta"]["APPLICATION_ID"] for line in found] == [number for number, _ in rows]


# CourtListener


def copied(rows: list[dict[str, str | None]], columns: tuple[str, ...] | None = None) -> bytes:
    """Rows as PostgreSQL's COPY writes them: quoted and escaped, NULL is an empty field."""
    names = columns or ("id", "date_created", "type", *OPINION_COLUMNS, "cluster_id")

    def field(value: str | None) -> str:
        if value is None:
            return ""
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'

    lines = [",".join(names), *(",".join(field(row.get(n)) for n in names) for row in rows)]
    return ("\n".join(lines) + "\n").encode()


def opinion(folder: Path, **columns: str | None) -> str:
    row = {"id": "1", "cluster_id": "2", "date_created": "2020-01-01 00:00:00+00", **columns}
    (line,) = read(folder, bz2.compress(copied([row])), "courtlistener")
    assert line["meta"] == {
        "id": "1", "cluster_id": "2", "date_created": "2020-01-01 00:00:00+00"
    }  # fmt: skip
    found: str = line["text"]
    return found


@pytest.mark.parametrize(
    "text",
    [
        'He said "no", and left.',
        'a \\ b \\\\ c \\" d \\n e \\',
        '"',
        "\\",
        '\\"',
        "one,\ntwo\r\nthree\n\n",
        "  white   space\tstays ",
        "§ 12 — naïve",
        "\\.\n",
    ],
)
def test_plain_text_is_untouched(tmp_path: Path, text: str) -> None:
    assert opinion(tmp_path, plain_text=text) == text


@settings(max_examples=examples(200), deadline=None)
@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=40))
def test_rows_of_postgresql_are_read_back(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    found = opinion(tmp_path_factory.getbasetemp(), plain_text=text)
    assert found == text


@pytest.mark.parametrize("last", range(len(OPINION_COLUMNS)))
def test_the_last_column_that_is_not_empty_is_the_text(tmp_path: Path, last: int) -> None:
    given: dict[str, str | None] = {name: name for name in OPINION_COLUMNS[: last + 1]}
    given |= dict.fromkeys(OPINION_COLUMNS[last + 1 :], ["", None, " \n"][last % 3])
    assert opinion(tmp_path, **given) == OPINION_COLUMNS[last]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("markup", "text"),
    [
        (
            "<p>A &amp; B,<br/>\n<i>Roe</i>&nbsp;v. Wade &#8212; \\x</p>",
            "A & B,\nRoe\xa0v. Wade — \\x",
        ),
        ('<a href="/x\\y" title="a, b">"quoted"</a>\n', '"quoted"\n'),
        ("a<script>if (1<2) {x()}</script>b<STYLE>p {}</STYLE>c<!-- no -->d", "abcd"),
        ("no markup, 1 < 2", "no markup, 1 < 2"),
        ("<p>never <b>closed <i>anything", "never closed anything"),
        ("</p></div>closed too often</b>", "closed too often"),
        ('<?xml version="1.0" encoding="latin-1"?><opinion><p id="a">naïve</p></opinion>', "naïve"),
        ('<html><head><meta charset="latin-1"/></head><body>naïve</body></html>', "naïve"),
        ("<p>&#xD800;&#0;&#x1F600;</p>", "\ufffd\ufffd😀"),
        ("<div>" * 5000 + "deep" + "</div>" * 5000 + "after", "deepafter"),
        ("<p>" + "x" * 11_000_000 + "</p>after", "x" * 11_000_000 + "after"),
    ],
    ids=range(11),
)
@pytest.mark.parametrize("column", ["html", "xml_harvard"])
def test_markup_becomes_text(tmp_path: Path, column: str, markup: str, text: str) -> None:
    assert opinion(tmp_path, **{"plain_text": "not this", column: markup}) == text


@pytest.mark.parametrize("markup", [None, "", " ", "<p></p>", "<!-- no -->", "<?xml?>", "</p>"])
def test_an_opinion_without_text_is_empty(tmp_path: Path, markup: str | None) -> None:
    assert opinion(tmp_path, html=markup).strip() == ""


def test_a_row_of_another_width_or_encoding_is_told(tmp_path: Path) -> None:
    data = copied([{"id": "1", "plain_text": "first"}, {"id": "3", "plain_text": "last"}])
    head, first, last = data.splitlines(keepends=True)
    bad = first.replace(b"first", b"na\xe2")  # "unexpected end of data", as csv says it of a row
    lines = read(tmp_path, head + first + b'2,"two"\n' + bad + last, "courtlistener")
    assert [line.get("text") for line in lines] == ["first", None, None, "last"]
    short, latin = (line["malformed"] for line in lines[1:3])
    assert short == {"reason": "2 columns, 11 expected", "line": 3, "text": "2,two"}
    assert latin["line"] == 4
    assert latin["reason"].startswith("'utf-8' codec can't decode byte 0xe2")
    assert latin["text"].startswith("1,,,naâ,")


def test_a_column_that_is_gone_is_told(tmp_path: Path) -> None:
    data = copied([{"id": "1"}], ("id", "cluster_id", "date_created", "plain_text", "html"))
    with pytest.raises(CorruptInput, match="no column html_lawbox, html_columbia"):
        read(tmp_path, data, "courtlistener")


def test_a_truncated_bzip2_is_an_error(tmp_path: Path) -> None:
    data = bz2.compress(copied([{"id": f"{n}", "html": f"<p>{n * n}</p>"} for n in range(500)]))
    for size in range(10, len(data), 211):
        with pytest.raises(CorruptInput, match=f"at byte {size}"):
            read(tmp_path, data[:size], "courtlistener")
    whole = copied([{"id": "1", "html": "<p>cut</p>"}])
    with pytest.raises(CorruptInput, match="a quote in the row at line 2 is never closed"):
        read(tmp_path, bz2.compress(whole[: whole.index(b"cut")]), "courtlistener")


HUNGRY = """
import resource, sys
from pathlib import Path
from pipeline.sources.codecs import CompressedFile
from pipeline.core.registry import Dataset
from pipeline.sources.formats import json_lines
dataset = Dataset(id="x", urls=["file:///x"], form=sys.argv[1])
list(json_lines([CompressedFile(Path(sys.argv[2]))], dataset))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
size = sum(map(len, json_lines([CompressedFile(Path(sys.argv[3]))], dataset)))
print(size, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "form", [pytest.param("nih-exporter", marks=pytest.mark.thorough), "courtlistener"]
)
def test_memory_stays_small_for_long_tables(tmp_path: Path, form: str) -> None:
    text = "All work and no play makes Jack a dull boy. " * 200
    if form == "nih-exporter":
        row = f'7,"{text}"\r\n'.encode()
        files = [zipped(NIH_HEADER + row * count) for count in (1, 12_000)]
    else:
        head, row = copied([{"id": "7", "html": f"<p>{text}</p>"}]).splitlines(keepends=True)
        some = bz2.compress(row * 100)
        files = [bz2.compress(head) + some * count for count in (1, 120)]
    for name, data in zip(("short", "long"), files, strict=True):
        (tmp_path / name).write_bytes(data)
    done = subprocess.run(
        [sys.executable, "-c", HUNGRY, form, tmp_path / "short", tmp_path / "long"],
        cwd=Path(csv_sources.__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    size, grown = map(int, done.stdout.split())
    assert size > 100_000_000
    assert grown < 50_000, f"{size} bytes took {grown} KB"


# Several files, and all stages


def test_a_file_that_does_not_end_its_line_does_not_run_on_in_the_next(tmp_path: Path) -> None:
    parts = [b'{"a": 1}\n{"b"', b": 2}", b"", b'{"c": 3}\n', b'{"d": 4}']
    files = [parts[0] + parts[1], *parts[2:]]
    raws = []
    for number, data in enumerate(files):
        path = tmp_path / str(number)
        path.write_bytes(data if number % 2 else zstandard.compress(data))
        raws.append(CompressedFile(path))
    text = b"".join(json_lines(raws, dataset("jsonl")))
    assert text == b'{"a": 1}\n{"b": 2}\n{"c": 3}\n{"d": 4}\n'


def year_of(year: int) -> bytes:
    """Forty varied rows; the last of each year is a copy of the first row of 2019."""
    rows = [
        b'%d%02d,"DESCRIPTION (provided by applicant): We\r\nstudy ""%d"" cells \xef%d, %s"\r\n'
        % (year, n, n, year, b"the growth of mice " * n)
        for n in range(40)
    ]
    rows[1] = b"%d01,\r\n" % year
    rows[2] = b"%d02,too,many\r\n" % year
    copy = rows[0].replace(b"%d" % year, b"2019")
    return zipped(NIH_HEADER + b"".join([*rows, b"%d99" % year + copy[copy.index(b",") :]]))


YEARS = {f"/abstracts/{year}": year_of(year) for year in (2019, 2020, 2021)}


@pytest.fixture
def exporter(tmp_path: Path, models: Callable[[str], Path]) -> Any:
    """A server with three years that sends neither size nor ETag, and a config for them."""
    with FileServer(YEARS) as server:
        server.behavior.send_length, server.behavior.etag = False, None
        path = tmp_path / "exporter.yaml"
        url = server.url + "/abstracts/{year}"
        values = {"years": "2019-2021", "form": "nih-exporter", "id_field": "meta.APPLICATION_ID"}
        path.write_text(yaml.safe_dump({"urls": [url], **values}))

        def config(*words: str) -> Config:
            model = str(models("llama"))
            words = ("decompress.chunk_bytes=5000", *words)
            return resolve(str(path), model, "lora-8bit", [*SMALL, *words])

        yield server, config


def lines_of(folder: Path) -> list[Any]:
    chunks = sorted(folder.glob("chunk-*/chunk.jsonl.zst"))
    text = b"".join(zstandard.ZstdDecompressor().stream_reader(p.open("rb")).read() for p in chunks)
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.slow
def test_three_years_become_shards_and_a_year_is_not_fetched_twice(
    exporter: Any, tmp_path: Path
) -> None:
    server, config = exporter
    root, stop = tmp_path / "root", Stop()
    server.behavior.on_request = lambda request: (
        request.path.endswith("2020") and stop.set("a test")
    )
    with pytest.raises(Interrupted):
        advance(config(), root, "download.corpus", stop)
    asked = [request.path for request in server.requests]
    assert asked == ["/abstracts/2019", "/abstracts/2020"]
    server.behavior.on_request = lambda request: None
    (raw,) = advance(config(), root, "download.corpus").done.values()
    assert [request.path for request in server.requests].count("/abstracts/2019") == 1
    assert list(raw.outputs) == ["2019", "2020", "2021"]
    assert raw.facts["files"]["2020"]["url"] == server.url + "/abstracts/2020"

    node = advance(config(), root, "decompress.chunks")
    lines = lines_of(node.work.folder)
    assert len(lines) == 3 * 41
    years = [line["meta"]["APPLICATION_ID"] // 100 for line in lines if "meta" in line]
    assert years == sorted(years)
    assert lines[3]["text"].startswith('We study "3" cells ï2019, the growth')
    assert len(list(node.work.folder.glob("chunk-*"))) > 3

    node = advance(config(), root, "tokenize.seal")
    shards = sorted(node.work.folder.glob("chunk-*/*.parquet"))
    ids = [name for shard in shards for name in pq.read_table(shard)["id"].to_pylist()]
    assert sorted(ids) == sorted(
        f"{year}{n:02d}" for year in (2019, 2020, 2021) for n in (0, *range(3, 40), 99)
    )
    facts = node.done["seal"].facts
    assert (facts["empty"], facts["quarantined"]) == (3, 3)
    assert sum(facts["duplicates"].values()) == 3, "the copies of the first row"
    bad = [
        json.loads(line)
        for path in sorted(node.work.folder.glob("chunk-*/quarantine.jsonl"))
        for line in path.read_text().splitlines()
    ]
    assert bad == [
        {
            "file": str(year),
            "line": 5,
            "reason": "3 columns, 2 expected",
            "text": f"{year}02,too,many",
        }
        for year in (2019, 2020, 2021)
    ]


@pytest.mark.slow
def test_other_years_are_another_corpus_in_another_folder(exporter: Any, tmp_path: Path) -> None:
    _, config = exporter
    one = advance(config(), tmp_path, "download.corpus")
    two = advance(config("dataset.years=2020"), tmp_path, "download.corpus")
    assert one.work.folder != two.work.folder
    assert [list(r.outputs) for r in two.done.values()] == [["2020"]]
    chunks = advance(config("dataset.years=2020"), tmp_path, "decompress.chunks")
    assert chunks.done["part-00000"].facts["files"] == {"2020": 0}


def receipts(folder: Path) -> dict[str, Receipt | None]:
    return {path.name: load(path) for path in folder.glob("chunk-*")}


@pytest.mark.slow
def test_an_interrupted_decompress_resumes_with_the_same_bytes(
    exporter: Any, tmp_path: Path
) -> None:
    _, config = exporter
    whole = advance(config(), tmp_path / "whole", "decompress.chunks")
    root, before = tmp_path / "broken", {}
    advance(config(), root, "download.model")
    for left in (6, 14, 24):
        with pytest.raises(Interrupted):
            advance(config(), root, "decompress.chunks", StopAfterChecks(left))
        after = receipts(next(root.glob("data/*/chunks-*")))
        assert before.items() <= after.items(), "committed chunks are not written again"
        before = after
    broken = advance(config(), root, "decompress.chunks")
    assert before
    assert before.items() < receipts(broken.work.folder).items()
    assert broken.done["part-00000"].digest == whole.done["part-00000"].digest
    assert lines_of(broken.work.folder) == lines_of(whole.work.folder)


@pytest.mark.slow
@pytest.mark.parametrize("year", ["2019", "2021"])
def test_a_damaged_year_is_detected_and_downloaded_again(
    exporter: Any, tmp_path: Path, year: str
) -> None:
    _, config = exporter
    node = advance(config(), tmp_path, "download.corpus")
    file = node.work.folder / "corpus" / year
    sound = file.read_bytes()
    # the date in the header of the member, which no reader uses
    file.write_bytes(sound[:12] + bytes([sound[12] ^ 1]) + sound[13:])
    with pytest.raises(CorruptInput, match=f"corpus/{year} is damaged"):
        advance(config(), tmp_path, "decompress.chunks")
    advance(config(), tmp_path, "decompress.chunks")
    assert file.read_bytes() == sound


@pytest.mark.slow
def test_a_year_that_is_damaged_at_its_source_is_an_error(exporter: Any, tmp_path: Path) -> None:
    server, config = exporter
    server.files = {**YEARS, "/abstracts/2020": YEARS["/abstracts/2020"][:-30]}
    refusal = r"2020 is truncated.* it was downloaded in this state.* FILE="
    with pytest.raises(CorruptInput, match=refusal):
        advance(config(), tmp_path, "decompress.chunks")


@pytest.mark.slow
def test_a_missing_year_is_an_error(exporter: Any, tmp_path: Path) -> None:
    server, config = exporter
    with pytest.raises(InputError, match="/abstracts/2022: status 404"):
        advance(config("dataset.years=2021-2022"), tmp_path, "download.corpus")
    before = len(server.requests)
    check_sources(config("dataset.years=2021-2022"), tmp_path / "other")
    assert [r.path for r in server.requests[before:]] == ["/abstracts/2021"], "the first is probed"
    with pytest.raises(InputError, match="/abstracts/1999: status 404"):
        check_sources(config("dataset.years=1999-2021"), tmp_path / "other")


def test_years_may_be_files_that_change(exporter: Any, tmp_path: Path) -> None:
    _, config = exporter
    for path, data in YEARS.items():
        (tmp_path / path.rpartition("/")[2]).write_bytes(data)
    words = [f"dataset.urls=['file://{tmp_path}/{{year}}']", "dataset.years=2019-2020"]
    first = advance(config(*words), tmp_path, "download.corpus")
    assert first.complete
    (tmp_path / "2020").unlink()
    (tmp_path / "2020").write_bytes(YEARS["/abstracts/2021"])
    second = advance(config(*words), tmp_path, "download.corpus")
    assert second.done["corpus"].digest != first.done["corpus"].digest
