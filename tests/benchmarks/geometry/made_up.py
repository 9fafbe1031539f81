"""Made-up gradients and logits, and a loop that folds a statistic over them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

V, D = 40, 16
KEY = jax.random.key(0)
EVERY_ROW = jnp.arange(V)
B2 = 0.999


def sparse_gradients(steps: int, shape: Any = (V, D), seed: int = 0) -> np.ndarray:
    """Gradients [steps, V, *D] of rows that are touched more or less often."""
    rng = np.random.default_rng(seed)
    grads = rng.standard_normal((steps, *shape)) * np.exp(rng.standard_normal(shape))
    rare = np.linspace(0.02, 1, shape[0])
    grads[rng.random((steps, shape[0])) > rare] = 0
    return np.float32(grads)


def fold(update: Any, state: Any, *batches: Any) -> Any:
    """Updates a state with one batch after the other, in one compiled loop."""

    def loop(state: Any, batches: Any) -> Any:
        step = lambda state, batch: (update(state, *batch), None)  # noqa: E731
        return jax.lax.scan(step, state, batches)[0]

    return jax.jit(loop)(state, batches)


def text(places: int, seed: int = 11) -> tuple[np.ndarray, np.ndarray]:
    """Logits with rare tokens, and targets of which some are padding."""
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal((4, places, V)) - np.linspace(0, 5, V)
    targets = rng.choice(V, (4, places))
    targets[:, ::7] = -1
    return np.float32(logits), np.int32(targets)
