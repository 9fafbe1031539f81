"""The optimizers that are compared, and a compiled step of each."""

from collections.abc import Callable
from typing import Any

import jax
import optax
from optax import contrib

import ember_optax
from tests.compiling import bytes_of

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
# The compiler takes minutes for the matrix products of Muon.
WITHOUT_MUON = [name for name in OPTIMIZERS if name != "Muon"]


def clipped(name: str) -> optax.GradientTransformation:
    """Returns an optimizer of one table with clipping by the global norm."""
    if name == "Ember":
        return ember_optax.with_ember(
            optax.identity(),
            embed_learning_rate=1e-2,
            max_norm=1.0,
            labels=lambda params: jax.tree.map(lambda _: "embed", params),
        )
    return optax.chain(optax.clip_by_global_norm(1.0), OPTIMIZERS[name]())


def bytes_accessed_over_table(step: Any, table: jax.ShapeDtypeStruct) -> float:
    return step.cost_analysis()["bytes accessed"] / bytes_of(table)


def state_bytes(tx: optax.GradientTransformation, table: Any) -> int:
    return bytes_of(jax.eval_shape(tx.init, table))


def sizes(step: Any, table: jax.ShapeDtypeStruct) -> dict[str, float]:
    """Returns the memory and the bytes accessed of a compiled step.

    Returns:
      `temp_bytes`, and `bytes_accessed_over_table`: XLA's count of bytes read and
      written, in multiples of the table's size.
    """
    return {
        "temp_bytes": step.memory_analysis().temp_size_in_bytes,
        "bytes_accessed_over_table": bytes_accessed_over_table(step, table),
    }
