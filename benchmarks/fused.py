import functools
from typing import Any

import jax
from ember_optax import fused


def compile_fused(
    shape: tuple[int, int],
    dtype: Any,
    sharding: jax.sharding.Sharding,
    vocab_axis: int = 0,
) -> Any:
    """Compiles a step with table and state donated."""

    def place(x: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    table = place(jax.ShapeDtypeStruct(shape, dtype))
    init = functools.partial(fused.init, vocab_axis=vocab_axis)
    state = jax.tree.map(place, jax.eval_shape(init, table))
    step = functools.partial(fused.apply, learning_rate=1e-2, vocab_axis=vocab_axis)
    return jax.jit(step, donate_argnums=(0, 1)).lower(table, state, table).compile()
