"""Makes all documents again that come from results: `make report`.

    python -m benchmarks.report

A generated part of a page stands between two comments:

    <!-- begin: step.summary -->
    ...
    <!-- end -->

The `parts` of benchmarks/SUBJECT/report.py say what belongs there, by name. Subjects
with figures have a function `draw` as well. docs/evidence.md is generated as a whole.
"""

import re
from pathlib import Path

from benchmarks.collectives import report as collectives
from benchmarks.fused import report as fused
from benchmarks.geometry import report as geometry
from benchmarks.lazy import report as lazy
from benchmarks.pods import report as pods
from benchmarks.post_training import report as post_training
from benchmarks.step import report as step
from benchmarks.study import report as study
from benchmarks.switching import report as switching
from benchmarks.trainers import report as trainers

WITH_PARTS = (
    collectives,
    fused,
    geometry,
    lazy,
    pods,
    post_training,
    step,
    study,
    switching,
    trainers,
)
WITH_FIGURES = (collectives, geometry, lazy, step, study)
ROOT = Path(__file__).parents[1]
PART = re.compile(r"<!-- begin: (?P<name>\S+) -->\n(.*?)<!-- end -->", re.DOTALL)


def pages() -> dict[Path, str]:
    """Returns all documents that have generated parts, as they should be.

    Raises:
      ValueError: a part that a page names does not exist, or no page names a part.
    """
    parts: dict[str, str] = {}
    for subject in WITH_PARTS:
        parts |= subject.parts()
    found = {ROOT / path: text for path, text in study.pages().items()}
    used = set()
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
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
