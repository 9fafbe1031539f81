"""The first program a newcomer runs and copies from."""

import ast
import sys
from pathlib import Path

import jax
import pytest

from examples import quickstart

pytestmark = pytest.mark.usefixtures("standard_promotion")


def test_it_learns_and_shows_what_it_does(capsys):
    with jax.numpy_rank_promotion("allow"):  # which is JAX's own setting
        before, after = quickstart.main(steps=20)
    assert after < before - 1
    out = capsys.readouterr().out
    assert "embed/embedding" in out
    assert "lm_head/kernel" in out
    assert "step 20" in out
    assert f"{before:.2f} before, {after:.2f} after" in out


def test_it_is_one_short_file_that_needs_no_other():
    source = Path(quickstart.__file__).read_text()
    assert len(source.splitlines()) <= 110
    imported = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add((node.module or "").partition(".")[0])
    third_party = {"jax", "flax", "optax", "ember_optax"}
    assert imported - sys.stdlib_module_names == third_party
