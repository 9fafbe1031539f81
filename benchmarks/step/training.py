"""A compiled training step of a tiny model with token tables of a usual size."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

import ember_optax
from benchmarks.step.compiling import OPTIMIZERS

# Parts of smaller tables stay on the chip and do not count as memory.
TRAINED = (131072, 2048)


def compile_training_step(
    name: str,
    *,
    sharding: jax.sharding.Sharding | None = None,
    shape: tuple[int, int] = TRAINED,
    dtype: Any = jnp.float32,
    tied: bool = False,
    clip: bool = True,
) -> Any:
    """Compiles a training step with gradients of both kinds of token table.

    The gradient of the embedding comes from a scatter-add, that of the head from a
    matrix product; a tied table has the sum of both.

    Args:
      name: name of the optimizer of the token tables.
      sharding: sharding of all arrays; by default this machine's device.
      shape: shape of the embedding; the head is its transpose.
      dtype: dtype of the parameters.
      tied: one table for both.
      clip: clip all gradients by their global norm.
    """
    v, d = shape
    shapes = {"embed": (v, d), "mlp": (d, d)} | ({} if tied else {"lm_head": (d, v)})

    def abstract(tree: Any) -> Any:
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
        )

    def loss_fn(params: Any, tokens: jax.Array) -> jax.Array:
        x = params["embed"][tokens[:, :-1]]
        x = x + jnp.tanh(x @ params["mlp"])
        logits = x @ (params["embed"].T if tied else params["lm_head"])
        return optax.softmax_cross_entropy_with_integer_labels(
            logits.astype(jnp.float32), tokens[:, 1:]
        ).mean()

    if name == "Ember":
        tx = ember_optax.with_ember(
            optax.adamw(1e-3),
            embed_learning_rate=1e-2,
            head_learning_rate=1e-2,
            max_norm=1.0 if clip else None,
            vocab_size=v,
        )
    else:
        tx = optax.multi_transform(
            {"table": OPTIMIZERS[name](), "body": optax.adamw(1e-3)},
            ember_optax.label_token_tables,
        )
        tx = optax.chain(optax.clip_by_global_norm(1.0), tx) if clip else tx

    def step(params: Any, state: Any, tokens: jax.Array) -> tuple[Any, Any, jax.Array]:
        loss, grads = jax.value_and_grad(loss_fn)(params, tokens)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss

    params = abstract({k: jax.ShapeDtypeStruct(s, dtype) for k, s in shapes.items()})
    state = abstract(jax.eval_shape(tx.init, params))
    tokens = abstract(jax.ShapeDtypeStruct((2, 65), jnp.int32))
    return jax.jit(step, donate_argnums=(0, 1)).lower(params, state, tokens).compile()
