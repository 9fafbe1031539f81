"""The program that a newcomer runs and copies first."""

import ast
import sys
from pathlib import Path

import jax
import pytest

from examples import quickstart

pytestmark = pytest.mark.usefixtures("standard_promotion")


def test_it_learns_and_prints_tables_and_losses(capsys):
    with jax.numpy_rank_promotion("allow"):  # JAX's default
        before, after = quickstart.main(steps=20)
    assert after < before - 1
    out = capsys.readouterr().out
    assert "embed/embedding" in out
    assert "lm_head/kernel" in out
    assert f"{before:.2f} before, {after:.2f} after" in out


def test_one_file_is_enough_to_copy():
    imported = set()
    for node in ast.walk(ast.parse(Path(quickstart.__file__).read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add((node.module or "").partition(".")[0])
    third_party = {"jax", "flax", "optax", "ember_optax"}
    assert imported - sys.stdlib_module_names == third_party
