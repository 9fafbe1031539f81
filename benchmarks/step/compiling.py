"""The optimizers that are compared, and a compiled step of one of them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax import contrib

import ember_optax

Optimizer = Callable[[], optax.GradientTransformation]

DTYPES = ("float32", "bfloat16")


def floor() -> optax.GradientTransformation:
    """Reduces the gradient, then takes a step along it."""

    def init(params: Any) -> Any:
        return jnp.zeros(params.shape[0], jnp.float32)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del state, params
        sums = jnp.sum(jnp.square(updates.astype(jnp.float32)), axis=1)
        # Else XLA:CPU stores a float32 copy of a bfloat16 gradient.
        updates, sums = jax.lax.optimization_barrier((updates, sums))
        return -1e-2 * updates, sums

    return optax.GradientTransformation(init, update)


OPTIMIZERS: dict[str, Optimizer] = {
    "floor": floor,
    "SGD": lambda: optax.sgd(1e-2),
    "Ember": lambda: ember_optax.ember(1e-2),
    "Lion": lambda: optax.lion(1e-3),
    "Adam": lambda: optax.adam(1e-3),
    "Adam, b1 = 0": lambda: optax.adam(1e-3, b1=0.0),
    "SM3": lambda: optax.sm3(1e-2),
    "factored RMS": lambda: optax.chain(
        optax.scale_by_factored_rms(), optax.scale_by_learning_rate(1e-2)
    ),
    "Adafactor": lambda: optax.adafactor(1e-2),
    "Muon": lambda: contrib.muon(1e-2),
}


def bytes_of(tree: Any) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def compile_step(tx: optax.GradientTransformation, table: jax.ShapeDtypeStruct) -> Any:
    """Compiles update and apply, with table and state donated, where the table is."""

    def step(table: Any, state: Any, grad: Any) -> tuple[Any, Any]:
        updates, state = tx.update(grad, state, table)
        return optax.apply_updates(table, updates), state

    state = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=table.sharding),
        jax.eval_shape(tx.init, table),
    )
    return jax.jit(step, donate_argnums=(0, 1)).lower(table, state, table).compile()


def bytes_accessed_over_table(step: Any, table: jax.ShapeDtypeStruct) -> float:
    return step.cost_analysis()["bytes accessed"] / bytes_of(table)


def sizes(
    step: Any, tx: optax.GradientTransformation, table: jax.ShapeDtypeStruct
) -> dict[str, float]:
    """Returns what a compiled step takes.

    Returns:
      `state_bytes`, `temp_bytes`, and `bytes_accessed_over_table`: bytes read and
      written, by XLA's count, in sizes of the table.
    """
    return {
        "state_bytes": bytes_of(jax.eval_shape(tx.init, table)),
        "temp_bytes": step.memory_analysis().temp_size_in_bytes,
        "bytes_accessed_over_table": bytes_accessed_over_table(step, table),
    }
