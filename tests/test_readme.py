"""The README's Python blocks run as printed; those with prompts run as doctests."""

import re
from pathlib import Path

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_blocks_without_prompts_run() -> None:
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    plain = [block for block in blocks if ">>>" not in block]
    assert plain
    namespace: dict[str, object] = {}
    for block in plain:
        exec(block, namespace)


def test_links_to_files_lead_somewhere() -> None:
    targets = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert targets
    assert [t for t in targets if not (Path(__file__).parents[1] / t).exists()] == []
