"""Losses of a small model with a hashed table of bigrams, by the rule that trains it.

    python -m benchmarks.lazy.ngram_table

Runs `examples.ngram_table` without its table and with it: trained by lazy Ember, by the
same without columns, and by row-wise Adagrad, each at its best of some learning rates
(shorter runs, another seed). Takes half an hour on one core. Each run is a
line in benchmarks/lazy/ngram_table.jsonl and is not run again.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.common import store
from benchmarks.common.command import make_parser
from benchmarks.common.store import Run
from benchmarks.lazy.report import NGRAM_TABLE, SWEPT_SEED
from ember_optax import lazy
from examples import ngram_table
from examples.ngram_table import TableStep


def ember(rate: float) -> TableStep:
    return partial(lazy.update, learning_rate=rate)


def rows_only(rate: float) -> TableStep:
    return partial(lazy.update, learning_rate=rate, factored=False)


def row_wise_adagrad(rate: float) -> TableStep:
    def schedule(count: Any) -> jax.Array:
        return rate / jnp.sqrt(jnp.float32(count) + 1)

    # Such a b2 forgets nothing: the mean times the number of steps is the sum.
    return partial(lazy.update, learning_rate=schedule, b2=1 - 1e-9, factored=False)


RULES: dict[str, tuple[Callable[[float], TableStep], tuple[float, ...]]] = {
    "Ember": (ember, (0.01, 0.03, 0.1, 0.3, 1.0)),
    "Ember, rows only": (rows_only, (0.01, 0.03, 0.1, 0.3, 1.0)),
    "row-wise Adagrad": (row_wise_adagrad, (0.03, 0.1, 0.3, 1.0)),
}


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--rows", type=int, default=10**7, help="rows of the table")
    parser.add_argument("--steps", type=int, default=1000, help="of 1024 tokens each")
    parser.add_argument("--sweep-steps", type=int, default=400, help="for the rates")
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()

    def loss_at(rule: str, rate: float) -> float:
        return train(args.rows, args.sweep_steps, SWEPT_SEED, rule, rate)

    best = {
        rule: min(rates, key=partial(loss_at, rule))
        for rule, (_, rates) in RULES.items()
    }
    for rule, rate in (best | {"no table": None}).items():
        for seed in range(args.seeds):
            train(args.rows if rate else 0, args.steps, seed, rule, rate)


def train(rows: int, steps: int, seed: int, rule: str, rate: float | None) -> float:
    """Returns the validation loss of a run, which is done if it is not on file."""
    settings = {"rule": rule, "learning_rate": rate, "rows": rows, "steps": steps}
    settings["seed"] = seed

    def execute() -> Run:
        if rate is None:
            result = ngram_table.train(rows, steps, seed)
        else:
            table_step = RULES[rule][0](rate)
            result = ngram_table.train(rows, steps, seed, table_step=table_step)
        del result["seconds_per_step"]  # benchmarks/lazy/run.py times in turns
        return result

    return store.run_once(NGRAM_TABLE, settings, execute)["validation_loss"]


if __name__ == "__main__":
    main()
