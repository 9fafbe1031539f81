"""Tables and paragraphs in Markdown."""

import textwrap
from collections.abc import Iterable, Sequence


def markdown(
    head: Sequence[str], rows: Iterable[Iterable[str]], left: int | None = None
) -> str:
    """Returns a table.

    Args:
      head: titles of the columns.
      rows: cells of each row.
      left: number of left-aligned columns; the others are right-aligned. Default: all.
    """
    left = len(head) if left is None else left
    rule = ["---"] * left + ["---:"] * (len(head) - left)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, rule, *rows])


def paragraphs(*texts: str) -> str:
    """Returns texts as paragraphs with lines of equal length."""
    return "\n\n".join(
        textwrap.fill(" ".join(text.split()), 92, break_on_hyphens=False)
        for text in texts
    )
