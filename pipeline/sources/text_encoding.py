"""Text files as UTF-8 with a newline after each line, whatever they are written in.

UTF-16 and UTF-32 are known by their byte order mark. Other encodings are left as they are.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Iterator

from pipeline.sources.archives import Member

BYTE_ORDER_MARKS = {  # those of UTF-32 begin with those of UTF-16
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
# ASCII text in UTF-16 that lacks its mark
UTF16_START = re.compile(rb"(?:[\t\n\r -~]\0){8}|(?:\0[\t\n\r -~]){8}")


def utf8_blocks(member: Member, carriage_return: bytes = b"\r") -> Iterable[bytes]:
    """The bytes of a text file in UTF-8.

    Args:
        member: The file.
        carriage_return: Its lines end in a carriage return if it begins with these bytes, which
            contain one, somewhere, and without a newline.

    Raises:
        InputError: It is UTF-16 without a byte order mark, or ends within a character.
    """
    head = member.head
    mark = next((mark for mark in BYTE_ORDER_MARKS if head.startswith(mark)), None)
    blocks = member.blocks
    if mark:
        if member.raw.partial:
            raise member.refusal(f"is {BYTE_ORDER_MARKS[mark].upper()}", "Convert it to UTF-8")
        blocks = _decoded(member, BYTE_ORDER_MARKS[mark])
        head = head.replace(b"\0", b"")
    elif UTF16_START.match(head):
        raise member.refusal(
            "seems to be UTF-16 without a byte order mark",
            "Convert it: iconv -f UTF-16LE -t UTF-8 (or UTF-16BE)",
        )
    if member.whole and b"\n" not in head and carriage_return in head:
        return (block.replace(b"\r", b"\n") for block in blocks)
    return blocks


def _decoded(member: Member, encoding: str) -> Iterator[bytes]:
    decoder = codecs.getincrementaldecoder(encoding)()
    try:
        for block in member.blocks:
            yield decoder.decode(block).encode()
        yield decoder.decode(b"", final=True).encode()
    except UnicodeError as error:
        reason = getattr(error, "reason", error)
        raise member.refusal(f"is not valid {encoding.upper()}: {reason}") from None
