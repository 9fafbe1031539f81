"""A step on 8,192 rows of tables of up to 10^8 rows: lazy against dense Ember.

    python -m benchmarks.lazy.run

Times are medians of steps on new random rows, taken in turns in one process. XLA counts
an array that is updated in place as if all of it were accessed, several times; these
counts are subtracted. Tables that need more than two thirds of the free memory are left
out. Takes about a minute on two cores. Writes
benchmarks/lazy/results.json.
"""

import functools
import os
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

import ember_optax
from benchmarks.common import store
from benchmarks.common.command import make_parser
from benchmarks.lazy.report import RESULTS
from ember_optax import lazy

SIZES = (10**5, 10**6, 10**7, 10**8)
LARGEST_DENSE = 10**7  # with its gradient and update three tables


TX = ember_optax.ember(1e-2, vocab_axis=0)


def dense_step(table: Any, state: Any, ids: Any, row_grads: Any) -> Any:
    grads = jnp.zeros_like(table).at[ids].add(row_grads)
    updates, state = TX.update(grads, state, table)
    return optax.apply_updates(table, updates), state


lazy_step = functools.partial(lazy.update, learning_rate=1e-2)
RULES = {
    "lazy": (lazy.init, lazy_step),
    "lazy, rows only": (lazy.init, functools.partial(lazy_step, factored=False)),
    "dense": (TX.init, dense_step),
}


def compile_step(rule: str, rows: int, n: int, columns: int) -> Any:
    """Compiles a step on n of the rows, with table and state donated."""
    init, step = RULES[rule]
    table = jax.ShapeDtypeStruct((rows, columns), jnp.float32)
    ids = jax.ShapeDtypeStruct((n,), jnp.int32)
    row_grads = jax.ShapeDtypeStruct((n, columns), jnp.float32)
    jitted = jax.jit(step, donate_argnums=(0, 1))
    return jitted.lower(table, jax.eval_shape(init, table), ids, row_grads).compile()


def time_in_turns(
    rule: str, steps: dict[int, Any], n: int, columns: int, repeats: int
) -> dict[int, list[float]]:
    """Times a step on each table, one after the other: seconds by rows."""
    rng = np.random.default_rng(0)
    row_grads = jax.random.normal(jax.random.key(0), (n, columns))
    carry = {}
    for rows in steps:
        table = jnp.zeros((rows, columns))
        carry[rows] = table, RULES[rule][0](table)
    seconds: dict[int, list[float]] = {rows: [] for rows in steps}
    for repeat in tqdm(range(repeats + 2), desc=rule):
        for rows, step in steps.items():
            ids = jnp.asarray(rng.integers(0, rows, n, dtype=np.int32))
            jax.block_until_ready((carry[rows], ids, row_grads))
            start = time.perf_counter()
            carry[rows] = jax.block_until_ready(step(*carry[rows], ids, row_grads))
            if repeat >= 2:  # the first ones touch memory that is not there yet
                seconds[rows].append(time.perf_counter() - start)
    return seconds


def measure(n: int, columns: int, repeats: int) -> dict[str, dict[str, Any]]:
    """Measures both rules on tables of all sizes that fit.

    Returns:
      By rule and number of rows: `seconds` (median), `time_over_smallest` (median of
      the ratios of each turn), `temp_bytes`, and as XLA counts `bytes_accessed`; for
      lazy steps also `batch_bytes`, which is that without whole arrays.
    """
    fits = 2 * free_memory() / 3
    sizes = [rows for rows in SIZES if 4 * rows * (columns + 2) < fits]
    measured: dict[str, dict[str, Any]] = {}
    for rule in RULES:
        tables = [x for x in sizes if rule != "dense" or x <= LARGEST_DENSE]
        steps = {rows: compile_step(rule, rows, n, columns) for rows in tables}
        times = repeats if rule != "dense" else repeats // 10
        seconds = time_in_turns(rule, steps, n, columns, times)
        measured[rule] = {
            str(rows): {
                "seconds": statistics.median(seconds[rows]),
                "temp_bytes": step.memory_analysis().temp_size_in_bytes,
                "bytes_accessed": step.cost_analysis()["bytes accessed"],
            }
            for rows, step in steps.items()
        }
        for rows, m in measured[rule].items():
            ratios = zip(seconds[int(rows)], seconds[sizes[0]], strict=True)
            m["time_over_smallest"] = statistics.median(a / b for a, b in ratios)
    for rule in ("lazy", "lazy, rows only"):
        smallest, second = (measured[rule][str(rows)] for rows in sizes[:2])
        # XLA's count for a row that the batch does not access.
        per_row = (second["bytes_accessed"] - smallest["bytes_accessed"]) / (
            sizes[1] - sizes[0]
        )
        for rows, m in measured[rule].items():
            m["batch_bytes"] = m["bytes_accessed"] - per_row * int(rows)
    return measured


def free_memory() -> int:
    """Bytes that a new array may take, on Linux; elsewhere 4 GB are assumed."""
    if not os.path.exists("/proc/meminfo"):
        return 4 * 10**9
    with open("/proc/meminfo") as lines:
        found = dict(line.split(":", 1) for line in lines)
    return 1024 * int(found["MemAvailable"].split()[0])


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--batch", type=int, default=8192, help="rows of a step")
    parser.add_argument("--columns", type=int, default=32, help="width of the table")
    parser.add_argument("--repeats", type=int, default=200, help="timed lazy steps")
    args = parser.parse_args()
    measured = measure(args.batch, args.columns, args.repeats)
    content = {"batch": args.batch, "columns": args.columns, "measured": measured}
    store.write_object(RESULTS, content)
    print(f"Wrote {RESULTS}")


if __name__ == "__main__":
    main()
