"""Parquet to JSON lines: only the columns that are needed, see `docs/inputs.md` for their types."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import msgspec

from pipeline.core.errors import CorruptInput
from pipeline.core.registry import Dataset
from pipeline.sources.archives import Member
from pipeline.sources.data_files import format_of
from pipeline.sources.file_kinds import UNPACK
from pipeline.sources.records import MAX_LISTED_FIELDS, malformed_line

if TYPE_CHECKING:
    import pyarrow as pa

PARQUET_MAGIC = b"PAR1"
BATCH_ROWS = 1000
BATCH_BYTES = 1 << 24


def read_parquet(member: Member, dataset: Dataset) -> Iterator[bytes]:
    """One JSON line for each row, with the columns that `dataset` names.

    Raises:
        CorruptInput: The file is damaged.
        InputError: It has no such text column, or two columns of one name.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    raw = member.raw
    if member.name != raw.path.name:
        raise member.refusal("is Parquet inside an archive, which is not read", UNPACK)
    if raw.head(len(PARQUET_MAGIC)) != PARQUET_MAGIC and member.head.startswith(PARQUET_MAGIC):
        raise member.refusal("is compressed Parquet, which is not read", "Decompress it")
    raw.hash_remaining()
    row = 1
    try:
        with pq.ParquetFile(raw.path, page_checksum_verification=True) as file:
            columns = _columns(file.schema_arrow, member, dataset)
            if "parquet" not in (dataset.form, format_of(member.name)):
                # only where settings or name say Parquet, the key of the chunks tells the columns
                names = file.schema_arrow.names
                columns = [name for name in names if names.count(name) == 1]
            for batch in file.iter_batches(_batch_rows(file.metadata), columns=columns):
                yield from _encode(batch, row)
                row += len(batch)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).partition("\n")[0]
        what = f"{raw.path} cannot be read as Parquet: {reason}"
        raise CorruptInput(what, unit=raw.unit) from None


def _batch_rows(metadata: Any) -> int:
    """How many rows to hold at once."""
    groups = (metadata.row_group(number) for number in range(metadata.num_row_groups))
    size = sum(group.total_byte_size for group in groups)
    return min(BATCH_ROWS, max(1, BATCH_BYTES * metadata.num_rows // max(size, 1)))


def _columns(schema: pa.Schema, member: Member, dataset: Dataset) -> list[str]:
    """The columns with the fields of the dataset that the file has."""
    names = schema.names
    columns = []
    for field in filter(None, (dataset.text_field, dataset.id_field, dataset.split_by)):
        # a column of that name, else the one whose nested fields are named by dots
        column = field if field in names else field.partition(".")[0]
        if names.count(column) > 1:
            raise member.refusal(
                f"has {names.count(column)} columns named {column}", "Rename one of them"
            )
        if column in names:
            columns.append(column)
        elif field == dataset.text_field:
            shown = ", ".join(name[:40] for name in names[:MAX_LISTED_FIELDS])
            texts = [name for name in names if _holds_text(schema.field(name).type)]
            hint = f'Name the one with the text: ARGS="dataset.text_field={[*texts, ""][0]}"'
            what = f"has no column {field}; its columns are {shown}" if shown else "has no columns"
            raise member.refusal(what, hint if texts else "")
    type_ = _leaf_type(schema, dataset.text_field, columns[0])
    if type_ is not None and not _holds_text(type_):
        what = f"has no text in column {dataset.text_field}, whose type is {type_}"
        raise member.refusal(what, "Name another column: dataset.text_field=NAME")
    return list(dict.fromkeys(columns))


def _leaf_type(schema: pa.Schema, field: str, column: str) -> Any:
    """The type of a field in a column, which may be nested; None if it has no such field."""
    import pyarrow as pa

    type_ = schema.field(column).type
    for name in field.split(".")[1:] if column != field else ():
        index = type_.get_field_index(name) if pa.types.is_struct(type_) else -1
        if index < 0:
            return None
        type_ = type_.field(index).type
    return type_


def _holds_text(type_: Any) -> bool:
    """Whether values of an Arrow type can be a document: text, UTF-8 bytes, or a list of them."""
    import pyarrow as pa

    types = pa.types
    if isinstance(type_, pa.BaseExtensionType):
        return _holds_text(type_.storage_type)
    if types.is_dictionary(type_) or types.is_run_end_encoded(type_):
        return _holds_text(type_.value_type)
    is_list = (
        types.is_list(type_) or types.is_large_list(type_) or types.is_fixed_size_list(type_)
        or types.is_list_view(type_) or types.is_large_list_view(type_)
    )  # fmt: skip
    inner = type_.value_type if is_list else type_
    return (
        types.is_string(inner) or types.is_large_string(inner) or types.is_string_view(inner)
        or types.is_binary(inner) or types.is_large_binary(inner) or types.is_binary_view(inner)
        or types.is_fixed_size_binary(inner) or types.is_null(inner)
    )  # fmt: skip


def _encode(rows: pa.RecordBatch, first: int) -> Iterator[bytes]:
    """The rows of a batch, whose first one has that number."""
    try:
        yield b"".join(_encode_row(row) for row in rows.to_pylist())
    except (ValueError, OverflowError):
        for index in range(len(rows)):
            yield _encode_alone(rows.slice(index, 1), first + index)


def _encode_alone(row: pa.RecordBatch, number: int) -> bytes:
    """A row of a batch with a value that JSON cannot hold, such as the year 10,000."""
    try:
        return _encode_row(row.to_pylist()[0])
    except (ValueError, OverflowError) as error:
        return malformed_line(str(error), number)


def _encode_row(row: dict[str, Any]) -> bytes:
    return msgspec.json.encode(as_text(row), enc_hook=str) + b"\n"


def as_text(value: Any) -> Any:
    """A value with all bytes in it decoded as UTF-8.

    Raises:
        UnicodeDecodeError: They are not UTF-8.
    """
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, dict):
        return {name: as_text(inner) for name, inner in value.items()}
    return [as_text(inner) for inner in value] if isinstance(value, list) else value
