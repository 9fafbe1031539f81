"""Predicted and actual frequencies of tokens, against NumPy in float64."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.geometry import instrument as geometry
from tests.benchmarks.geometry.made_up import KEY, V, fold, text

# Read as users may read them, compiled.
frequency_error = jax.jit(geometry.frequency_error)


def frequencies_of(logits: Any, targets: Any) -> Any:
    init = geometry.frequencies_init(V)
    return fold(geometry.frequencies_update, init, logits, targets)


def test_predicted_against_actual_frequency() -> None:
    logits, targets = text(50)
    frequencies = frequencies_of(logits, targets)
    exp = np.exp(np.float64(logits))
    probabilities = (exp / exp.sum(axis=-1, keepdims=True))[targets >= 0]
    predicted = probabilities.sum(axis=0)
    actual = np.bincount(targets[targets >= 0], minlength=V)
    np.testing.assert_allclose(frequencies.predicted, predicted, rtol=1e-5)
    np.testing.assert_allclose(frequencies.actual, actual)

    counts, edges = np.arange(V), np.array([1, 20])
    error = frequency_error(frequencies, jnp.asarray(counts), jnp.asarray(edges))
    bins = [counts < 1, (counts >= 1) & (counts < 20), counts >= 20]
    expected = [np.log(predicted[b].sum() / actual[b].sum()) for b in bins]
    np.testing.assert_allclose(error, expected, rtol=1e-4)


def test_calibrated_targets_have_no_error_but_chance() -> None:
    logits, _ = text(4000)
    keys = jax.random.split(KEY, len(logits))
    targets = jax.vmap(geometry.calibrated_targets)(keys, jnp.asarray(logits))
    frequencies = frequencies_of(logits, targets)
    assert frequencies.actual.sum() == targets.size
    edges = jnp.arange(1, V)
    error = frequency_error(frequencies, jnp.arange(V), edges)
    deviations = error * jnp.sqrt(frequencies.actual)  # in standard deviations
    assert jnp.abs(deviations).max() < 4
    assert 0.5 < jnp.std(deviations) < 1.5
