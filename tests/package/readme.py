"""Tries README.md with what is installed, its code and its links: `make package`.

Python puts the folder of this file on its path and not the checkout, so the package has
to come from its wheel.
"""

import doctest
import re
from importlib.metadata import metadata
from pathlib import Path

import ember_optax

ROOT = Path(__file__).parents[2]


def main() -> None:
    assert not Path(ember_optax.__file__).is_relative_to(ROOT / "ember_optax")
    readme = (ROOT / "README.md").read_text("utf-8")
    blocks = re.findall(r"```python\n(.*?)```", readme, flags=re.DOTALL)
    assert blocks
    names: dict[str, object] = {}
    for block in blocks:
        if ">>>" not in block:
            exec(block, names)
    doctest.testfile(
        str(ROOT / "README.md"), module_relative=False, raise_on_error=True
    )
    on_pypi = metadata("ember-optax").json["description"]
    assert not re.findall(r"\]\((?!https?:|#)", str(on_pypi))
    print(f"{len(blocks)} blocks of README.md run with {ember_optax.__file__}")


if __name__ == "__main__":
    main()
