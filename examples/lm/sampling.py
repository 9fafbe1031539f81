"""Text that a model writes, for a person to see what it has learned."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from tokenizers import Tokenizer

TEMPERATURE = 0.8


class Sample(NamedTuple):
    """A piece of text, and how a model goes on from there."""

    prompt: str
    continuation: str


def make_sampler(graph: Any, seed: int) -> Callable[..., jax.Array]:
    """Returns a function from parameters and int32[batch, time] to such tokens.

    The second half of each row is replaced by what the model draws. It computes all
    places again for each: simple, and enough for a few.
    """

    def sample(params: Any, tokens: jax.Array) -> jax.Array:
        model = nnx.merge(graph, params)

        def draw(place: jax.Array, tokens: jax.Array) -> jax.Array:
            hidden = model.hidden(tokens)
            before = jax.lax.dynamic_slice_in_dim(hidden, place - 1, 1, axis=1)
            logits = model.logits(before)[:, 0] / TEMPERATURE
            key = jax.random.fold_in(jax.random.key(seed), place)
            drawn = jax.random.categorical(key, logits)
            return tokens.at[:, place].set(drawn.astype(tokens.dtype))

        time = tokens.shape[1]
        return jax.lax.fori_loop(time - time // 2, time, draw, tokens)

    return sample


def as_text(tokenizer: str, row: np.ndarray) -> Sample:
    """Returns the text of a row of tokens whose second half was drawn."""
    decode = Tokenizer.from_str(tokenizer).decode
    end = row.size - row.size // 2
    return Sample(decode(row[:end].tolist()), decode(row[end:].tolist()))
