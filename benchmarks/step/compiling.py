"""The optimizers that are compared, and a compiled step of one of them."""

from collections.abc import Callable
from typing import Any

import jax
import optax
from optax import contrib

import ember_optax

Optimizer = Callable[[], optax.GradientTransformation]

DTYPES = ("float32", "bfloat16")
OPTIMIZERS: dict[str, Optimizer] = {
    "SGD": lambda: optax.sgd(1e-2),
    "Ember": lambda: ember_optax.ember(1e-2, ember_optax.adafactor_decay()),
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
# A step of Muon is its matrix products; the compiler takes minutes over them.
WITHOUT_MUON = [name for name in OPTIMIZERS if name != "Muon"]


def clipped(name: str, inner: optax.GradientTransformation) -> Any:
    """Returns an optimizer behind clipping by the global norm, as people train.

    Args:
      name: of the optimizer of the tables; Ember has clipping of its own.
      inner: the whole optimizer.
    """
    if name == "Ember":
        return ember_optax.clipped(inner, 1.0)
    return optax.chain(optax.clip_by_global_norm(1.0), inner)


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


def state_bytes(tx: optax.GradientTransformation, table: Any) -> int:
    return bytes_of(jax.eval_shape(tx.init, table))


def sizes(step: Any, table: jax.ShapeDtypeStruct) -> dict[str, float]:
    """Returns what a compiled step takes.

    Returns:
      `temp_bytes`, and `bytes_accessed_over_table`: bytes read and written, by XLA's
      count, in sizes of the table.
    """
    return {
        "temp_bytes": step.memory_analysis().temp_size_in_bytes,
        "bytes_accessed_over_table": bytes_accessed_over_table(step, table),
    }
