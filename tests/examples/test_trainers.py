"""Plug-ins for trainers are short."""

import ast
from pathlib import Path

import pytest

from examples import trainers

FILES = [
    path
    for path in sorted(Path(trainers.__file__).parent.glob("*.py"))
    if path.name != "__init__.py"
]


def lines_of_code(source: str) -> int:
    """Counts lines that are neither empty, comments nor docstrings."""
    documented = (ast.Module, ast.FunctionDef, ast.ClassDef)
    docstrings: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, documented) and ast.get_docstring(node):
            text = node.body[0]
            docstrings |= set(range(text.lineno, (text.end_lineno or 0) + 1))
    return sum(
        bool(line.strip()) and not line.strip().startswith("#") and i not in docstrings
        for i, line in enumerate(source.splitlines(), start=1)
    )


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_at_most_sixty_lines_of_code(path: Path) -> None:
    assert lines_of_code(path.read_text()) <= 60


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_copy_needs_nothing_else_from_here(path: Path) -> None:
    imported: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            imported.add(node.module or "")
    assert not {name.split(".")[0] for name in imported} & {"examples", "benchmarks"}


def test_lines_are_counted() -> None:
    assert lines_of_code('"""Two\nlines."""\n\n# a comment\nx = 1\ny = (\n  2)\n') == 3
