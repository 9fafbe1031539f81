"""Parts of a training step that are compiled on their own to count their costs."""

from typing import Any, NamedTuple

import jax
import optax
from ml_collections import ConfigDict

import ember_optax
from examples.lm import Config
from examples.lm.cost import bytes_per_device
from examples.lm.optimizer import label_roles, make_optimizer
from examples.lm.program import Program, table_rows


def with_overrides(config: Config, **overrides: Any) -> Config:
    """Returns a copy of a config with other values in it."""
    config = ConfigDict(config.to_dict())
    config.update(overrides)
    return config


class TableStep(NamedTuple):
    """The part of a step that updates the token tables from their gradients."""

    compiled: jax.stages.Compiled
    state_bytes: int  # of the tables' optimizer on each device


def compile_tables(config: Config, program: Program) -> TableStep:
    """Compiles the update of the token tables, without clipping."""
    rows = table_rows(config)
    leaves, structure = jax.tree.flatten(program.state.params)
    labels = jax.tree.leaves(label_roles(rows)(program.state.params))
    tables = jax.tree.unflatten(
        structure,
        [x if y != "body" else None for x, y in zip(leaves, labels, strict=True)],
    )
    shardings = jax.tree.map(lambda x: x.sharding, tables)
    unclipped = with_overrides(config, clip_norm=None)
    tx = make_optimizer(unclipped, rows, shardings, body=optax.set_to_zero())
    state_shardings = ember_optax.opt_state_shardings(tx, tables, shardings)
    state = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        jax.eval_shape(tx.init, tables),
        state_shardings,
    )

    def step(tables: Any, state: Any, grads: Any) -> Any:
        updates, state = tx.update(grads, state, tables)
        return optax.apply_updates(tables, updates), state

    out = shardings, state_shardings
    jitted = jax.jit(step, donate_argnums=(0, 1), out_shardings=out)
    compiled = jitted.lower(tables, state, tables).compile()
    return TableStep(compiled, bytes_per_device(state))
