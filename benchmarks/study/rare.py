"""Predicted against actual frequencies of tokens, at the same loss for all arms."""

import itertools

import numpy as np

from benchmarks.study import stages
from benchmarks.study.rows import Row, Study
from benchmarks.study.settings import EDGES

_BETWEEN = [f"{low} to {high - 1}" for low, high in itertools.pairwise(EDGES)]
CLASSES = ["0", *_BETWEEN, f"{EDGES[-1]} or more"]
"""Occurrences of a token in the run so far."""


def at_equal_loss(study: Study) -> tuple[float, list[tuple[Row, np.ndarray]]]:
    """Returns the loss, and the arms with their errors there by class of frequency.

    The loss is that of the arm that ends worst. The errors, log(predicted / actual),
    are interpolated between the measurements of a run, and are means over seeds.
    """
    rows = [study.row("rare", case) for case in stages.CASES["rare"]]
    rows = [row for row in rows if row]
    if not rows:
        return float("nan"), []
    loss = max(row.mean for row in rows)
    return loss, [(row, _errors(study, row, loss)) for row in rows]


def _errors(study: Study, row: Row, loss: float) -> np.ndarray:
    found = []
    for run, result in study.runs.items():
        if run.seed in row.losses and _without_seed(run) == _without_seed(row.settings):
            measured = np.array(result["frequency_errors"], float)
            losses, errors = measured[::-1, 0], measured[::-1, 1:]
            found.append([np.interp(loss, losses, column) for column in errors.T])
    return np.nanmean(found, axis=0)


def _without_seed(run: stages.Settings) -> dict[str, object]:
    return {key: value for key, value in vars(run).items() if key != "seed"}
