"""Python blocks of README and docs run as printed; those with prompts as doctests."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


@pages
@pytest.mark.usefixtures("standard_promotion")
def test_blocks_without_prompts_run(page: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL)
    namespace: dict[str, object] = {}
    for block in blocks:
        if ">>>" not in block:
            exec(block, namespace)


@pages
def test_links_to_files_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text())
    assert [t for t in targets if not (page.parent / t).exists()] == []


@pages
def test_files_named_in_the_text_exist(page: Path) -> None:
    names = re.findall(
        r"`((?:tests|docs|examples|configs|benchmarks)/[\w/.]+)`", page.read_text()
    )
    assert [name for name in names if not (ROOT / name).exists()] == []
