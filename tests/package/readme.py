"""Runs the code of README.md against what is installed: `make package`.

Python puts the folder of this file on its path and not the checkout, so the package has
to come from its wheel.
"""

import doctest
import re
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
    failed, tried = doctest.testfile(str(ROOT / "README.md"), module_relative=False)
    assert tried
    assert not failed
    print(f"{len(blocks)} blocks of README.md run with {ember_optax.__file__}")


if __name__ == "__main__":
    main()
