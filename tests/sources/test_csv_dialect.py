"""Tables are read as they were written; those that parse otherwise than meant are refused."""

from __future__ import annotations

import contextlib
import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.errors import InputError
from pipeline.sources.codecs import CompressedFile
from pipeline.sources.csv_dialect import DELIMITERS
from pipeline.sources.formats import json_lines
from tests.helpers.examples import examples
from tests.sources.helpers import dataset

ROWS = [{"id": str(n), "text": f"Abstract {n}. It has a few words."} for n in range(120)]


def lines(rows: list[dict[str, str]], delimiter: str = ",") -> list[str]:
    return [delimiter.join(rows[0]), *(delimiter.join(row.values()) for row in rows)]


def read(path: Path, text: str | list[str], **options: Any) -> list[Any]:
    path.write_text(text if isinstance(text, str) else "\n".join(text) + "\n")
    raw = CompressedFile(path, path.parent)
    found = b"".join(json_lines([raw], dataset(**options)))
    return [json.loads(line) for line in found.splitlines()]


def refusal(path: Path, text: str | list[str], **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        read(path, text, **options)
    return str(caught.value).removeprefix(f"{path} ")


def with_quotes(delimiter: str, opens: int, closes: int | None) -> list[str]:
    """A table with a quote that opens in one line of the file and may close in another."""
    table = lines(ROWS, delimiter)
    number, _, text = table[opens - 1].partition(delimiter)
    table[opens - 1] = f'{number}{delimiter}"{text}'
    if closes:
        table[closes - 1] += '"'
    return table


@pytest.mark.parametrize("name", ["c.tsv", "c.csv"])
@pytest.mark.parametrize("closes", [None, 92, 60, 11])
def test_a_quote_in_an_even_table_is_text(tmp_path: Path, name: str, closes: int | None) -> None:
    delimiter = "\t" if name == "c.tsv" else ","
    if closes == 11:  # two lines may well be one field
        closes = 16
    found = read(tmp_path / name, with_quotes(delimiter, 9, closes))
    assert len(found) == 120
    assert found[7]["text"] == '"Abstract 7. It has a few words.'


def test_quotes_that_enclose_fields_are_none_of_the_text(tmp_path: Path) -> None:
    texts = ['"', "a\tb", "two\nlines", 'say "hi"', "\n" * 30, "plain", ""]
    for name, delimiter in (("c.tsv", "\t"), ("c.csv", ",")):
        sink = io.StringIO()
        writer = csv.writer(sink, delimiter=delimiter)
        writer.writerows([["id", "text"], *([n, text] for n, text in enumerate(texts))])
        found = read(tmp_path / name, sink.getvalue(), quoting="double")
        assert [row["text"] for row in found] == texts


def test_a_field_that_swallowed_rows_is_refused_with_its_line(tmp_path: Path) -> None:
    table = ["id,text", *(f'{n},"He said, ""no"", and left."' for n in range(1500))]
    table[1099] = '1098,"A quote that opens'
    table[1149] = '1148,and closes"'
    table[1100:1149] = [f"{n},plain" for n in range(1099, 1148)]
    assert refusal(tmp_path / "c.csv", table) == (
        "has a field of 51 lines, each like a row; its quote opens at line 1100. "
        'If quotes are part of the text: ARGS="dataset.quoting=none". '
        'If they enclose fields: ARGS="dataset.quoting=double"'
    )
    assert len(read(tmp_path / "c.csv", table, quoting="double")) == 1450


def test_a_malformed_row_that_swallowed_others_is_refused(tmp_path: Path) -> None:
    table = ["text", *(f"Abstract {n}; it has words." for n in range(120))]
    table[8] = '"' + table[8]
    table[60] = 'and" left.'
    message = "has a malformed row of 53 lines; its quote opens at line 9. If quotes are part"
    assert refusal(tmp_path / "c.csv", table).startswith(message)


def test_a_field_of_most_lines_is_refused(tmp_path: Path) -> None:
    table = ["text", *(f"Abstract {n}; it has words." for n in range(120))]
    table[8], table[91] = '"' + table[8], table[91] + '"'
    message = "has a field of 84 lines, more than half of the file's 121; its quote opens at line 9"
    assert refusal(tmp_path / "c.csv", table).startswith(message)


@pytest.mark.parametrize("lines_of_it", [1200, 2])
def test_an_unusually_long_field_is_refused_unless_the_header_is_quoted(
    tmp_path: Path, lines_of_it: int
) -> None:
    long = "\n".join(["A paragraph, with commas, of a book."] * lines_of_it)
    long += "x" * (1_000_000 if lines_of_it == 2 else 0)
    rows = "".join(f'{n},"short, and plain"\n' for n in range(1300))
    text = f'id,text\n{rows}1300,"{long}"\n'
    message = refusal(tmp_path / "c.csv", text)
    assert message.startswith(f"has a field of {lines_of_it} lines, which is unusual; its quote")
    assert "line 1302" in message
    assert read(tmp_path / "c.csv", text, quoting="double")[-1]["text"] == long
    assert read(tmp_path / "c.csv", text.replace("id,text", '"id","text"', 1))[-1]["text"] == long


def test_a_quote_that_is_never_closed_is_told_with_its_line(tmp_path: Path) -> None:
    table = ["text", *(f"Abstract {n}" for n in range(40))]
    table[8] = '"' + table[8]
    assert refusal(tmp_path / "c.csv", table) == (
        "ends in the middle of a row: a quote in the row at line 9 is never closed. "
        'If quotes are part of the text: ARGS="dataset.quoting=none"'
    )
    assert len(read(tmp_path / "c.csv", table, quoting="none")) == 40


@pytest.mark.parametrize("name", DELIMITERS)
def test_a_delimiter_is_found_or_named(tmp_path: Path, name: str) -> None:
    table = lines(ROWS, DELIMITERS[name])
    assert read(tmp_path / "c.csv", table) == ROWS
    assert read(tmp_path / "c.tsv", table, delimiter=name) == ROWS


@pytest.mark.parametrize("rows", [499, 500, 501, 3000])
def test_the_sample_may_end_within_a_field(tmp_path: Path, rows: int) -> None:
    text = "id;text\n" + "".join(f'{n};"x{n}\ny, z"\n' for n in range(rows))
    assert [row["text"] for row in read(tmp_path / "c.csv", text)] == [
        f"x{n}\ny, z" for n in range(rows)
    ]
    sink = io.StringIO()
    writer = csv.writer(sink, delimiter="\t", lineterminator="\n")
    texts = [*["one"] * (rows - 2), 'He said "first"\nsecond', *['plain "quoted" one'] * 2000]
    writer.writerows([["id", "text"], *([n, text] for n, text in enumerate(texts))])
    assert [row["text"] for row in read(tmp_path / "c.tsv", sink.getvalue())] == texts


def test_a_last_line_may_lack_its_end(tmp_path: Path) -> None:
    path = tmp_path / "c.csv"
    path.write_text("id;text\n1;abc")
    raw = CompressedFile(path, tmp_path)
    assert b"".join(json_lines([raw], dataset())) == b'{"id":"1","text":"abc"}\n'


def test_many_short_swallows_are_noticed(tmp_path: Path) -> None:
    table = ["id,text", *(f'{n},"He said ""no"", and left."' for n in range(1200))]
    for n in range(0, 400, 4):
        table += [f'{n},"a quote opens', f"{n + 1},plain", f'{n + 2},and closes"', f"{n + 3},plain"]
    assert "each like a row; its quote opens at line" in refusal(tmp_path / "c.csv", table)


def test_names_of_columns_keep_their_letters(tmp_path: Path) -> None:
    for name in ("città", "内", "Å"):
        found = read(tmp_path / "c.csv", f"id,{name}\n1,abc\n", text_field=name)
        assert found == [{"id": "1", name: "abc"}]


def test_an_empty_table_has_no_rows(tmp_path: Path) -> None:
    assert read(tmp_path / "c.csv", "") == read(tmp_path / "c.csv", "text\n") == []


def test_one_column_with_semicolons_in_its_text_is_one_column(tmp_path: Path) -> None:
    table = ["text", "first; second", "third", "a; b; c"]
    assert [row["text"] for row in read(tmp_path / "c.csv", table)] == table[1:]


def test_spaces_around_names_are_stripped(tmp_path: Path) -> None:
    assert read(tmp_path / "c.csv", "id , text\n1,a\n") == [{"id": "1", "text": "a"}]


def test_a_name_may_have_a_dot(tmp_path: Path) -> None:
    text = "id,body.text\n1,a\n"
    assert read(tmp_path / "c.csv", text, text_field="body.text") == [{"id": "1", "body.text": "a"}]


def test_a_table_without_a_header_is_told_and_read(tmp_path: Path) -> None:
    long = "A long abstract, " * 10
    text = f'0,"{long}"\n1,"another, {long}"\n'
    assert refusal(tmp_path / "c.csv", text) == (
        "has no header: its first row begins '0'. Name its columns, one of them text: "
        'ARGS="dataset.columns=[c1,c2]"'
    )
    found = read(tmp_path / "c.csv", text, columns=("id", "text"))
    assert found == [{"id": "0", "text": long}, {"id": "1", "text": f"another, {long}"}]


def test_a_missing_column_is_told_with_the_longest_one(tmp_path: Path) -> None:
    assert refusal(tmp_path / "c.csv", "id,title,body\n1,a,a long text\n2,b,another\n") == (
        "has no column text; its columns are id, title, body. "
        'Name the column with the text: ARGS="dataset.text_field=body"'
    )


def test_two_columns_of_one_name_are_refused_or_left_out(tmp_path: Path) -> None:
    text = "text,id,text\na,1,b\n"
    assert refusal(tmp_path / "c.csv", text) == "has 2 columns named text. Rename one"
    assert read(tmp_path / "c.csv", text, text_field="id") == [{"id": "1"}]


cells = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\0"), max_size=30)


@settings(max_examples=examples(200), deadline=None)
@given(
    rows=st.lists(st.tuples(cells, cells), max_size=20),
    name=st.sampled_from([*DELIMITERS]),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
)
def test_what_a_writer_wrote_is_read_back_or_refused(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]], name: str, quoting: int
) -> None:
    sink = io.StringIO()
    writer = csv.writer(sink, delimiter=DELIMITERS[name], lineterminator="\n", quoting=quoting)
    writer.writerows([("id", "text"), *rows])
    path = tmp_path_factory.getbasetemp() / "written.csv"
    expected = [{"id": number, "text": text} for number, text in rows]
    assert read(path, sink.getvalue(), delimiter=name, quoting="double") == expected
    with contextlib.suppress(InputError):
        assert read(path, sink.getvalue()) == expected
