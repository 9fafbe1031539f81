"""How often a model predicts each token, and how often it occurs."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from benchmarks.geometry.instrument import _rows


class Frequencies(NamedTuple):
    """Sums over a text, two numbers for each token of the vocabulary."""

    predicted: jax.Array  # float32[V], sum of the token's probability over all places
    actual: jax.Array  # float32[V], number of places with the token


def frequencies_init(vocab_size: int) -> Frequencies:
    """Returns the sums over an empty text with V tokens in its vocabulary."""
    return Frequencies(_rows.zeros(vocab_size), _rows.zeros(vocab_size))


def frequencies_update(
    frequencies: Frequencies, logits: jax.Array, targets: jax.Array
) -> Frequencies:
    """Adds a batch.

    Args:
      frequencies: those of the batches before.
      logits: [..., V], any floating dtype.
      targets: integers [...], the tokens to be predicted; places where they are outside
        [0, V) are padding and do not count.

    Raises:
      ValueError: the shapes do not fit each other.
    """
    vocab_size = frequencies.actual.size
    if logits.shape != (*targets.shape, vocab_size):
        raise ValueError(
            f"logits have the shape {logits.shape}, but targets of {targets.shape} and"
            f" a state of {vocab_size} tokens need {(*targets.shape, vocab_size)}."
        )
    axes = tuple(range(targets.ndim))
    targets = targets.astype(jnp.int32)[..., None]
    probabilities = jax.nn.softmax(logits.astype(jnp.float32))
    counted = (targets >= 0) & (targets < vocab_size)
    # No scatter: sums of comparisons shard along every axis.
    ids = jax.lax.broadcasted_iota(jnp.int32, logits.shape, targets.ndim - 1)
    predicted = jnp.sum(probabilities * counted.astype(jnp.float32), axis=axes)
    actual = jnp.sum((ids == targets).astype(jnp.float32), axis=axes)
    return Frequencies(
        frequencies.predicted + _rows.replicated(predicted),
        frequencies.actual + _rows.replicated(actual),
    )


def frequency_error(
    frequencies: Frequencies, counts: jax.Array, edges: jax.Array
) -> jax.Array:
    """Returns log(predicted / actual) of all tokens of a bin together.

    Args:
      frequencies: sums over a text that was held out.
      counts: [V], how often each token occurs in another text, such as the training
        set. Bins of the same text would pick out tokens that happen to be rare in it.
      edges: [B], increasing: bin 0 has the tokens with counts below edges[0], bin b
        those from edges[b - 1] on, below edges[b].

    Returns:
      float32[B + 1], positive where tokens are predicted too often; not finite for bins
      that were never predicted, or never occurred.

    Raises:
      ValueError: `counts` is not of the same vocabulary.
    """
    if counts.shape != frequencies.actual.shape:
        raise ValueError(
            f"counts has the shape {counts.shape}, but there must be one for each token"
            f" of the state: {frequencies.actual.shape}."
        )
    bins = jnp.digitize(counts, edges)
    predicted, actual = (
        jax.ops.segment_sum(x, bins, edges.size + 1) for x in frequencies
    )
    return jnp.log(predicted) - jnp.log(actual)


def calibrated_targets(key: jax.Array, logits: jax.Array) -> jax.Array:
    """Draws the tokens of a text in which the model's probabilities are true.

    Their :func:`frequency_error` is what chance gives: it differs from zero because a
    text is finite, most for rare tokens.

    Args:
      key: of the random numbers, another one for each batch.
      logits: [..., V].

    Returns:
      int32[...], to give to :func:`frequencies_update` in place of the targets.
    """
    return jax.random.categorical(key, logits.astype(jnp.float32))
