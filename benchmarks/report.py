"""`make report`: writes the generated parts of all pages from the results.

    python -m benchmarks.report

A generated part of a page is enclosed in two comments:

    <!-- begin: step.summary -->
    ...
    <!-- end -->

`parts` of benchmarks/SUBJECT/report.py returns the parts by name, and `draw` draws the
figures of a subject.
"""

import re
from pathlib import Path

from benchmarks.collectives import report as collectives
from benchmarks.data import report as data
from benchmarks.geometry import report as geometry
from benchmarks.lazy import report as lazy
from benchmarks.pods import report as pods
from benchmarks.post_training import report as post_training
from benchmarks.step import report as step
from benchmarks.study import report as study
from benchmarks.trainers import report as trainers

WITH_PARTS = (
    collectives,
    data,
    geometry,
    lazy,
    pods,
    post_training,
    step,
    study,
    trainers,
)
WITH_FIGURES = (lazy, step, study)
ROOT = Path(__file__).parents[1]
PART = re.compile(r"<!-- begin: (?P<name>\S+) -->\n(.*?)<!-- end -->", re.DOTALL)


def pages() -> dict[Path, str]:
    """Returns all pages with generated parts, generated anew.

    Raises:
      ValueError: a page names a part that does not exist, or no page names a part.
    """
    parts: dict[str, str] = {}
    for subject in WITH_PARTS:
        parts |= subject.parts()
    found: dict[Path, str] = {}
    used = set()
    tables = sorted((ROOT / "benchmarks").glob("*/TABLES.md"))
    docs = sorted((ROOT / "docs").glob("*.md"))
    for path in (ROOT / "README.md", *tables, *docs):
        names = [match["name"] for match in PART.finditer(path.read_text())]
        used |= set(names)
        if names:
            found[path] = fill(path.read_text(), parts)
    if parts.keys() - used:
        raise ValueError(
            f"No page has the part {min(parts.keys() - used)!r}: put it between"
            " <!-- begin: NAME --> and <!-- end -->, or drop it from its report.py."
        )
    return found


def fill(page: str, parts: dict[str, str]) -> str:
    """Returns a page with its generated parts replaced."""

    def replace(match: re.Match[str]) -> str:
        name = match["name"]
        if name not in parts:
            raise ValueError(
                f"A page has the part {name!r}, but the parts that exist are"
                f" {', '.join(sorted(parts))}."
            )
        return f"<!-- begin: {name} -->\n\n{parts[name]}\n\n<!-- end -->"

    return PART.sub(replace, page)


def main() -> None:
    for subject in WITH_FIGURES:
        subject.draw()
    for path, text in pages().items():
        path.write_text(text)
        print("Wrote", path.relative_to(ROOT))


if __name__ == "__main__":
    main()
