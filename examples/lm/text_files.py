"""Text files as people have them: decoded, or refused by name."""

import codecs
import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from examples.lm.errors import UserError

_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",  # begins like that of UTF-16
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


def read(file: Path) -> str:
    r"""Returns the text of a UTF-8 file, with or without a byte-order mark.

    A file ending in `.gz` is decompressed. Line ends become "\n".

    Raises:
      UserError: the file cannot be read, or is not UTF-8 text.
    """
    content = _content(file)
    for mark, encoding in _MARKS.items():
        if content.startswith(mark):
            raise UserError(
                f"{file} is {encoding}, but only UTF-8 can be read. Convert it: iconv"
                f" -f {encoding} -t UTF-8"
            )
    content = content.removeprefix(codecs.BOM_UTF8)
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        found = f"byte 0x{content[error.start]:02x}"
        raise _not_text(file, content, error.start, found) from error
    if "\0" in text:
        raise _not_text(file, content, content.index(b"\0"), "byte 0x00")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def json_lines(file: Path, *fields: str) -> Iterator[tuple[str, ...]]:
    """Yields the given fields of the JSON object in each line that is not blank.

    Raises:
      UserError: a line is no object with these fields as strings, or the file is not
        text.
    """
    for number, line in enumerate(read(file).split("\n"), start=1):
        if line.strip():
            try:
                yield tuple(_string(json.loads(line), field) for field in fields)
            except (ValueError, RecursionError) as error:
                wanted = " and ".join(f'"{field}"' for field in fields)
                kind = "strings" if len(fields) > 1 else "a string"
                reason = str(error).splitlines()[0]
                raise UserError(
                    f"{file}:{number} is not a JSON object with {kind} {wanted}:"
                    f" {reason}: {line:.60}"
                ) from error


def _string(value: Any, field: str) -> str:
    if not isinstance(value, dict) or not isinstance(value.get(field), str):
        raise ValueError(f"no string {field!r}")
    value[field].encode()  # a lone surrogate is JSON, and no text
    return value[field]


def _content(file: Path) -> bytes:
    try:
        content = file.read_bytes()
        return gzip.decompress(content) if file.suffix.lower() == ".gz" else content
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{file} cannot be read: {reason}.") from error


def _not_text(file: Path, content: bytes, position: int, found: str) -> UserError:
    line = content.count(b"\n", 0, position) + 1
    return UserError(
        f"{file}:{line} is not UTF-8 text: it holds {found}. Convert the file to UTF-8,"
        " or leave it out."
    )
