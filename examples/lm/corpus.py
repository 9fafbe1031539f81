"""Reading documents: the standard library's own source, or the user's files."""

import glob
import json
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SUFFIXES = {".txt", ".md", ".py", ".jsonl"}
"""What is read from a directory; a glob or a file name reads anything."""

_NOT_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idle_test"}


def read_documents(path: str | None = None) -> list[str]:
    """Returns documents in a fixed order, without empty ones and duplicates.

    Args:
      path: files, directories and globs, separated by commas. A file ending in
        `.jsonl` holds one JSON object a line with the document under "text"; any other
        file is one document. Without a path, the source of the Python standard library.

    Raises:
      FileNotFoundError: a part of `path` names no file.
      ValueError: a line is not such a JSON object, or there are no two documents.
    """
    files = _files(path) if path else _standard_library()
    documents = [document for file in files for document in _documents(file)]
    documents = list(dict.fromkeys(d for d in documents if d.strip()))
    if len(documents) < 2:
        raise ValueError(
            f"{path or 'The standard library'} holds {len(documents)} documents that"
            " are not empty, but at least 2 are needed: one to train on and one to"
            " validate on. Give several files, or JSON Lines with a document a line."
        )
    return documents


def _files(path: str) -> list[Path]:
    files = []
    for pattern in path.split(","):
        found = sorted(map(Path, glob.glob(pattern.strip(), recursive=True)))
        found = [file for entry in found for file in _below(entry)]
        if not found:
            kinds = ", ".join(sorted(SUFFIXES))
            raise FileNotFoundError(
                f"data.path {pattern.strip()!r} names no file, and no directory with"
                f" {kinds} files. Check the spelling, or use a glob such as"
                " 'texts/**/*.tex'."
            )
        files += found
    return files


def _below(entry: Path) -> list[Path]:
    if entry.is_file():
        return [entry]
    return sorted(f for f in entry.rglob("*") if f.suffix in SUFFIXES and f.is_file())


def _standard_library() -> list[Path]:
    root = Path(sysconfig.get_paths()["stdlib"])
    return sorted(
        file
        for file in root.rglob("*.py")
        if not _NOT_LIBRARY & set(file.relative_to(root).parts)
    )


def _documents(file: Path) -> Iterator[str]:
    text = file.read_text(encoding="utf-8", errors="replace")
    if file.suffix != ".jsonl":
        yield text
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        match _parse(line):
            case {"text": str(document)}:
                yield document
            case _:
                raise ValueError(
                    f'{file}:{number} is not a JSON object with a string "text":'
                    f" {line:.60}"
                )


def _parse(line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return None
