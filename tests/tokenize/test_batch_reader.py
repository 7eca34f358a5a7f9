"""A block of lines gives the same documents as its lines one by one."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.sources.records import MalformedRecord, Record, RecordParser
from pipeline.tokenize.batch_reader import BatchReader
from tests.helpers.examples import examples

PATHS = [
    ("text", None, None),
    ("text", "id", "meta.case"),
    ("body.text", "body.id", "case"),
    ("a.b.c", "a.b.d", "a.e"),
    ("text", "text.id", None),
    ("text", "text", "text"),
]
values = st.one_of(
    st.none(), st.integers(), st.text(max_size=5), st.lists(st.text(max_size=3), max_size=2)
)
names = st.sampled_from(["text", "id", "meta", "case", "body", "a", "b", "c", "d", "e"])
objects = st.recursive(
    values, lambda inner: st.dictionaries(names, inner, max_size=4), max_leaves=8
)
well_formed = st.builds(
    lambda text, inner: json.dumps(
        {"text": text, "body": {"text": text, "id": 1}, "a": {"b": {"c": text}}, "meta": inner}
    ),
    st.text(max_size=20),
    st.dictionaries(names, values, max_size=3),
)
unusual = st.sampled_from(
    ["", "  ", "{}", "[]", '"bare"', '{"text": "a"} {"text": "b"}', '{"text":', '"a"}', "{", "}",
     '{"meta": {"case": 1}', '{"text": "a"}\r', '\ufeff{"text": "b"}', '{"text": "\\ud800"}',
     '{"text": "a", "text": "b"}', '{"text": NaN}', '{"text": "x", "n": NaN}', '{"text": "  "}']
)  # fmt: skip
lines = st.lists(
    st.one_of(well_formed, well_formed, objects.map(json.dumps), unusual), min_size=1, max_size=6
)


@pytest.mark.slow
@settings(max_examples=examples(400), deadline=None, derandomize=True)
@given(lines=lines, paths=st.sampled_from(PATHS))
def test_a_block_is_read_as_its_lines_are(
    lines: list[str], paths: tuple[str, str | None, str | None]
) -> None:
    reader = RecordParser(*paths)
    data = [line.encode() for line in lines]
    batch = BatchReader(reader).read(b"\n".join(data) + b"\n")
    found = [reader.parse(line) for line in data]
    records = [(n, r) for n, r in enumerate(found) if isinstance(r, Record)]
    assert batch.count == len(lines)
    assert batch.lines == [n for n, _ in records]
    columns = zip(batch.texts, batch.ids, batch.groups, strict=True)
    assert [Record(*row) for row in columns] == [record for _, record in records]
    bad = [(n, data[n], r) for n, r in enumerate(found) if isinstance(r, MalformedRecord)]
    assert batch.malformed == bad
    assert batch.blank == len(lines) - len(records) - len(bad)


def test_a_value_over_two_lines_is_malformed_though_the_count_matches() -> None:
    block = b'{"text":\n"a"}\n{"text": "b"} {"text": "c"}\n'
    batch = BatchReader(RecordParser("text", None, None)).read(block)
    assert batch.texts == []
    assert [number for number, _, _ in batch.malformed] == [0, 1, 2]


def test_a_line_that_is_too_long_is_malformed_in_a_block_too() -> None:
    long = b'{"text": "' + b"x" * 100 + b'"}'
    reader = BatchReader(RecordParser("text", None, None, max_line_bytes=100))
    batch = reader.read(b'{"text": "a"}\n' + long + b"\n")
    assert batch.texts == ["a"]
    assert "longer than 100 bytes" in batch.malformed[0][2].reason


@pytest.mark.parametrize("number", [1, 2])
def test_invalid_values_of_unused_fields_do_no_harm(number: int) -> None:
    lines = [b'{"text": "a", "x": "\xff"}'] * number
    batch = BatchReader(RecordParser("text", None, None)).read(b"\n".join(lines) + b"\n")
    assert batch.texts == ["a"] * number
