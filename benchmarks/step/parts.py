"""Parts of a training step that are compiled on their own to count their costs."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

import ember_optax
from examples.lm import Config
from examples.lm.cost import bytes_per_device
from examples.lm.mesh import batch_sharding
from examples.lm.optimizer import label_roles, make_optimizer
from examples.lm.program import (
    Program,
    cross_entropy,
    make_model,
    make_program,
    table_rows,
)


class Repeated(NamedTuple):
    """A loop body, which the compiler counts once."""

    extra_iterations: int
    compiled: jax.stages.Compiled


def with_overrides(config: Config, **overrides: Any) -> Config:
    """Returns a copy of a config with other values in it."""
    config = ConfigDict(config.to_dict())
    config.update(overrides)
    return config


def repeated_parts(config: Config, mesh: Mesh) -> list[Repeated]:
    """Compiles the loop bodies of a step with gradients: a block, a part of the loss.

    The optimizers of the config do not matter.
    """
    one = with_overrides(config, model={"layers": 1, "scan_layers": False})
    graph, _ = nnx.split(nnx.eval_shape(lambda: make_model(one)), nnx.Param)
    params = make_program(one, mesh).state.params
    head = "embed" if config.model.tie_embeddings else "lm_head"

    def block(layers: Any, params: Any, x: jax.Array, gradient: jax.Array) -> Any:
        def forward(layers: Any, x: jax.Array) -> jax.Array:
            return nnx.merge(graph, params | {"layers": layers}).blocks(x)

        return jax.vjp(forward, layers, x)[1](gradient)

    def loss(table: Any, params: Any, x: jax.Array, targets: jax.Array) -> jax.Array:
        model = nnx.merge(graph, params | {head: table})
        return cross_entropy(model, x, targets)

    def activations(time: int) -> jax.ShapeDtypeStruct:
        shape = config.batch_size, time, config.model.width
        dtype = jnp.dtype(config.model.dtype)
        return jax.ShapeDtypeStruct(shape, dtype, sharding=batch_sharding(mesh))

    parts = []
    if config.model.scan_layers:
        x, layers = activations(config.sequence_length), params["layers"]
        shardings = jax.tree.map(lambda x: x.sharding, (layers, x))
        jitted = jax.jit(block, out_shardings=shardings)
        compiled = jitted.lower(layers, params, x, x).compile()
        parts.append(Repeated(config.model.layers - 1, compiled))
    if config.loss_chunks > 1:
        x = activations(config.sequence_length // config.loss_chunks)
        table = params[head]
        targets = jax.ShapeDtypeStruct(x.shape[:2], jnp.int32, sharding=x.sharding)
        shardings = jax.tree.map(lambda x: x.sharding, (table, x))
        jitted = jax.jit(jax.grad(loss, argnums=(0, 2)), out_shardings=shardings)
        compiled = jitted.lower(table, params, x, targets).compile()
        parts.append(Repeated(config.loss_chunks - 1, compiled))
    return parts


def cost(step: jax.stages.Compiled, parts: Sequence[Repeated], name: str) -> float:
    """Returns one of the compiler's counts for a whole step, NaN if it has none.

    Args:
      step: the compiled step.
      parts: its loop bodies.
      name: such as "optimal_seconds" or "bytes accessed".
    """
    counts = [(1, step), *parts]
    return sum(times * _count(compiled, name) for times, compiled in counts)


def _count(compiled: jax.stages.Compiled, name: str) -> float:
    count = (compiled.cost_analysis() or {}).get(name, math.nan)
    return count if count > 0 else math.nan


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
