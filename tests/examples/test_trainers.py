"""Plug-ins for trainers, as far as they can run without the trainer."""

import ast
import runpy
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from examples import trainers
from examples.trainers import tunix

pytestmark = pytest.mark.usefixtures("standard_promotion")

FILES = [
    path
    for path in sorted(Path(trainers.__file__).parent.glob("*.py"))
    if path.name != "__init__.py"
]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_plug_in_imports_nothing_from_this_repository(path: Path) -> None:
    imported: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            imported.add(node.module or "")
    assert not {name.split(".")[0] for name in imported} & {"examples", "benchmarks"}


def first_step(tx: optax.GradientTransformation, params: Any) -> tuple[Any, Any]:
    """Returns the updates of constant gradients, and the state after them."""
    return tx.update(params, tx.init(params), params)


@pytest.mark.parametrize(
    ("rates", "head_rate"), [({}, 1e-3), ({"head_learning_rate": 0}, 0)]
)
def test_tunix_tables_have_the_rate_of_the_body_unless_given(
    rates: dict[str, float], head_rate: float
) -> None:
    params = {"embed": jnp.ones((16, 4)), "lm_head": jnp.ones((4, 16))}
    updates, state = first_step(tunix.make_optimizer(1e-3, **rates), params)
    assert set(state.ember.tables) == set(params)
    # The first update of a constant gradient has the size of the learning rate.
    np.testing.assert_allclose(updates["embed"], -1e-3, rtol=1e-5)
    np.testing.assert_allclose(updates["lm_head"], -head_rate, rtol=1e-5)


def test_tunix_leaves_lora_to_adamw() -> None:
    params = {"q_proj": {"w_lora_a": jnp.ones((8, 2)), "w_lora_b": jnp.ones((2, 8))}}
    updates, state = first_step(tunix.make_optimizer(1e-3), params)
    assert not state.ember.tables
    assert all(jnp.all(update < 0) for update in jax.tree.leaves(updates))


def test_tunix_command_line_finds_ember(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "command_line.py").write_text("import sys; sys.started = sys.argv[1:]")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "argv", ["ember_tunix.py", "command_line", "config.yaml"])
    monkeypatch.setattr(sys, "started", None, raising=False)
    monkeypatch.setattr(optax, "ember", None, raising=False)
    runpy.run_path(tunix.__file__, run_name="__main__")
    assert sys.started == ["config.yaml"]  # pyright: ignore

    # As tunix calls it.
    make = optax.inject_hyperparams(optax.ember, hyperparam_dtype=jnp.float32)  # pyright: ignore
    tx = make(learning_rate=optax.constant_schedule(1e-3), head_learning_rate=1e-2)
    params = {"embed": jnp.ones((16, 4)), "lm_head": jnp.ones((4, 16))}
    updates, _ = first_step(tx, params)
    np.testing.assert_allclose(updates["embed"], -1e-3, rtol=1e-5)
    np.testing.assert_allclose(updates["lm_head"], -1e-2, rtol=1e-5)
