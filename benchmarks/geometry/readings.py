"""What a run reads from its statistics, as numbers that JSON can hold."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.geometry import instrument as geometry

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
# Bins: by the share of steps that touch a row, and by the number of times that a token
# has occurred in the run.
SHARES = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 0.9)
COUNTS = (1, 3, 10, 30, 100, 1000)
TOUCHES = 10
"""Rows touched less often say nothing about autocorrelation."""

Groups = dict[str, slice]
"""Rows of a sample by name."""


def rays(key: jax.Array, points: jax.Array, groups: Groups) -> dict[str, Any]:
    """Returns quantiles over the rows of each group, and those of random walks.

    Args:
      key: of the random walks.
      points: [T, S, D].
      groups: of the S rows.
    """
    found: dict[str, Any] = {name: {} for name in groups}
    walk = geometry.random_walk(key, points)
    for case, x in (("actual", points), ("walk", walk)):
        share, cosine = geometry.ray_share(x), geometry.ray_cosine(x)
        for name, group in groups.items():
            found[name][case] = {
                "share": quantiles(share[group]),
                "cosine": quantiles(jnp.nanmean(cosine[:, group], axis=0)),
            }
    return found


def autocorrelations(
    history: geometry.GradientHistory, groups: Groups
) -> dict[str, Any]:
    """Returns means over the rows of each group that have been touched often enough."""
    enough = history.touches >= TOUCHES
    actual = jnp.where(enough[:, None], geometry.autocorrelation(history), jnp.nan)
    null = jnp.where(enough, geometry.autocorrelation_null(history), jnp.nan)
    return {
        name: {
            "rows": int(jnp.sum(enough[group])),
            "actual": numbers(jnp.nanmean(actual[group], axis=0)),
            "null": numbers(jnp.nanmean(null[group])),
        }
        for name, group in groups.items()
    }


def factorization(key: jax.Array, moment: geometry.SecondMoment) -> dict[str, Any]:
    """Returns errors of row x col, of its null models, and of row alone."""
    dense, col = moment.dense, moment.col
    shuffled = geometry.shuffled_null(key, dense)
    cases = {
        "row x col": (dense, col),
        "if it were exact": (geometry.factored_null(key, moment), col),
        "row alone": (dense, jnp.ones_like(col)),
        "shuffled": (shuffled, shuffled.mean(axis=0)),
    }
    found = {}
    for name, x in cases.items():
        error = geometry.factorization_error(*x, QUANTILES)
        found[name] = {
            "log_ratio": numbers(error.log_ratio),
            "divergence": numbers(error.divergence),
        }
    return found


def step_sizes(steps: geometry.Steps, n_steps: int, b2: float) -> dict[str, Any]:
    """Returns quantiles over the tokens of each bin of frequency."""
    share = np.asarray(steps.touches) / n_steps
    touched, per_touch = geometry.mean_steps(steps)
    bins = np.digitize(share, SHARES)
    found: list[dict[str, Any]] = []
    for i in range(len(SHARES) + 1):
        these = (bins == i) & (share > 0)
        if not these.any():
            continue
        median = float(np.median(share[these]))
        found.append(
            {
                "tokens": int(these.sum()),
                "share": median,
                "expected": expected_over_run(median, n_steps, b2),
                "touched": quantiles(touched[these]),
                "per_touch": quantiles(per_touch[these]),
                "largest": numbers(steps.largest[these].max()),
            }
        )
    return {"bins": found, "largest": numbers(steps.largest.max())}


def expected_over_run(share: float, n_steps: int, b2: float) -> float:
    """Returns the expected step of a row, whose touches may be any of the run."""
    counts = jnp.arange(1, n_steps + 1)
    return float(geometry.expected_step(jnp.full(n_steps, share), counts, b2).mean())


def predictions(
    actual: geometry.Frequencies, drawn: geometry.Frequencies, counts: np.ndarray
) -> dict[str, Any]:
    """Returns how often tokens are predicted, by how often they occurred in the run.

    Args:
      actual: of the model on a text that was held out.
      drawn: the same with targets drawn from the predictions.
      counts: [V], occurrences in the run.
    """
    # A model that predicts every token as often as it occurred in the run.
    unigram = jnp.float32(counts / counts.sum()) * actual.actual.sum()
    cases = {
        "model": actual,
        "calibrated": drawn,
        "unigram": actual._replace(predicted=unigram),
    }
    bins = np.digitize(counts, COUNTS)
    edges = jnp.asarray(COUNTS)
    return {
        "error": {
            name: numbers(geometry.frequency_error(x, jnp.asarray(counts), edges))
            for name, x in cases.items()
        },
        "tokens": np.bincount(bins, minlength=len(COUNTS) + 1).tolist(),
        "places": numbers(np.bincount(bins, actual.actual, len(COUNTS) + 1)),
    }


def quantiles(x: Any) -> list[float]:
    """Returns QUANTILES of what is not NaN."""
    return numbers(np.nanquantile(x, QUANTILES))


def numbers(x: Any) -> Any:
    """Returns what JSON can hold: null for what is not finite."""
    x = np.round(np.asarray(x, np.float64), 5)
    return jax.tree.map(lambda y: y if np.isfinite(y) else None, x.tolist())
