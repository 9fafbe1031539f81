"""Reading documents: the standard library's own source, or the user's files."""

import glob
import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Never

from examples.lm import text_files
from examples.lm.errors import MissingFile, UserError

SUFFIXES = {".txt", ".md", ".py", ".jsonl"}
"""What is read from a directory, also with `.gz` at the end; a glob reads anything."""

_NOT_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idle_test"}
_PARTS = 100  # of a single document
_PART_SIZE = 256  # characters, at least


def read_documents(path: str | None = None) -> list[str]:
    """Returns documents in a fixed order, without empty ones and duplicates.

    A single document is cut into parts at the ends of lines, so that there is something
    to validate on.

    Args:
      path: files, directories and globs, separated by commas. A file ending in
        `.jsonl` holds one JSON object a line with the document under "text"; any other
        file is one document. Either may be compressed, `.gz`. Without a path, the
        source of the Python standard library.

    Raises:
      MissingFile: a part of `path` names no file.
      UserError: a file or directory cannot be read, or is not UTF-8 text; a line is not
        such a JSON object; or there are no two documents.
    """
    documents = [document for file in find_files(path) for document in _documents(file)]
    documents = list(dict.fromkeys(d for d in documents if d.strip()))
    if len(documents) == 1:
        documents = list(_cut(documents[0]))
    if len(documents) < 2:
        raise UserError(
            f"{path or 'The standard library'} holds {len(documents)} documents that"
            " are not empty, but at least 2 are needed: one to train on and one to"
            " validate on. Give more text: a longer file, several files, or JSON Lines"
            " with a document a line."
        )
    return documents


def find_files(path: str | None) -> list[Path]:
    """Returns the files that :func:`read_documents` reads, which raises the same."""
    if path is None:
        return _standard_library()
    files = []
    for pattern in map(str.strip, path.split(",")):
        entries = [pattern] if os.path.exists(pattern) else sorted(_glob(pattern))
        found = [file for entry in entries for file in _below(Path(entry))]
        if not found:
            kinds = ", ".join(sorted(SUFFIXES))
            raise MissingFile(
                f"data.path {pattern!r} names no file, and no directory with"
                f" {kinds} files. Check the spelling, or use a glob such as"
                " 'texts/**/*.tex'."
            )
        files += found
    return list(dict.fromkeys(files))


def _glob(pattern: str) -> list[str]:
    found = glob.glob(pattern, recursive=True)
    return [entry for entry in found if os.path.exists(entry)]  # "none/**" finds none/


def _below(entry: Path) -> list[Path]:
    if entry.is_file():
        return [entry]

    def refuse(error: OSError) -> Never:
        raise UserError(
            f"The directory {error.filename} cannot be read: {error.strerror}."
        ) from error

    files = (
        Path(directory, name)
        for directory, _, names in os.walk(entry, onerror=refuse)
        for name in names
    )
    return sorted(f for f in files if _suffix(f) in SUFFIXES and f.is_file())


def _suffix(file: Path) -> str:
    """Returns what a file name ends with, before `.gz`."""
    return Path(file.name.lower().removesuffix(".gz")).suffix


def _standard_library() -> list[Path]:
    root = Path(sysconfig.get_paths()["stdlib"])
    return sorted(
        file
        for file in root.rglob("*.py")
        if not _NOT_LIBRARY & set(file.relative_to(root).parts)
    )


def _documents(file: Path) -> Iterator[str]:
    if _suffix(file) == ".jsonl":
        yield from (text for (text,) in text_files.json_lines(file, "text"))
    else:
        yield text_files.read(file)


def _cut(document: str) -> Iterator[str]:
    """Cuts at the ends of lines, inside a long line at a space, else anywhere."""
    size = max(len(document) // _PARTS, _PART_SIZE)
    start = 0
    while start < len(document):
        window = start + size, start + 2 * size
        ends = (document.find(sign, *window) + 1 for sign in "\n ")
        end = next((end for end in ends if end), window[0])
        yield document[start:end]
        start = end
