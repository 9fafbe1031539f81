"""What a change of the optimizer or of the vocabulary does to a run in progress.

    python -m benchmarks.switching

A small language model on Python's standard library changes the optimizer of its tables
in mid-run, and goes on beside a copy that does not. Then the first step of a token that
is new is compared, for several values of its `row`, with the step that it takes when it
is not. Takes about five minutes on one core; writes benchmarks/results/switching.json
and prints the tables of docs/switching.md.
"""

import argparse
import functools
import itertools
from collections.abc import Iterable, Iterator
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

import ember_optax
from benchmarks import results
from benchmarks.study_rows import interval
from configs.pretrain_small import get_config
from ember_optax import EmberState, TableMoments
from examples.lm import Config, data
from examples.lm.mesh import use_mesh
from examples.lm.optimizer import make_optimizer, table_b2
from examples.lm.program import Program, State, make_program

SEEDS = (0, 1, 2, 3, 4)
BEFORE, AFTER, EVERY = 150, 60, 5  # steps to the change, from it, between evaluations
SHOWN = (5, 10, 20, 40, 60)
# Optimizer and learning rate of the tables, before and after. Those of `make pretrain`
# are 0.1 for AdamW and 0.01 for Ember.
CHANGES = [
    (("adam", 0.03), ("ember", 0.03)),
    (("adam", 0.03), ("ember", 0.01)),
    (("adam", 0.1), ("ember", 0.01)),
    (("ember", 0.03), ("adam", 0.03)),
    (("ember", 0.01), ("adam", 0.03)),
    (("ember", 0.01), ("adam", 0.1)),
]
NAMES = {"adam": "AdamW", "ember": "Ember"}
CONVERSIONS = {"adam": ember_optax.from_adam, "ember": ember_optax.to_adam}

TRAINED, BATCHES = 400, 20  # steps before tokens are taken for new ones, and from there


def make_config(tables: tuple[str, float], steps: int) -> Config:
    config: Config = get_config()
    config.update(steps=steps, batch_size=8, sequence_length=64)
    config.model.update(width=64, mlp_width=192, vocab_multiple=1)
    config.tables.optimizer, config.tables.learning_rate = tables
    config.mesh.fsdp = 1
    return config


def batches(config: Config, tokens: data.Tokens) -> Iterator[jax.Array]:
    sizes = config.sequence_length, config.batch_size
    return map(jnp.asarray, data.train_batches(tokens.train, *sizes, config.seed))


def train(program: Program, state: State, some: Iterable[jax.Array]) -> State:
    for batch in some:
        state, _ = program.train_step(state, batch)
    return state


def title(change: Iterable[tuple[str, float]]) -> str:
    return " to ".join(f"{NAMES[optimizer]} {rate:g}" for optimizer, rate in change)


def losses_after(
    change: Iterable[tuple[str, float]], tokens: data.Tokens
) -> list[dict[str, Any]]:
    """Returns validation losses of the run that changes and of its copy, by seed."""
    before, after = (make_config(tables, 2 * BEFORE) for tables in change)
    sizes = before.sequence_length, before.batch_size
    held_out = data.validation_batches(tokens.validation, *sizes, n_batches=16)
    decays = {c.tables.optimizer: table_b2(c) for c in (before, after)}
    convert = functools.partial(
        CONVERSIONS[before.tables.optimizer],
        tx=make_optimizer(after),
        adam_b2=decays["adam"],
        ember_b2=decays["ember"],
    )
    runs = []
    with use_mesh(before) as mesh:
        old, new = make_program(before, mesh), make_program(after, mesh)

        def loss(state: State) -> float:
            losses = [old.eval_step(state.params, jnp.asarray(b)) for b in held_out]
            return float(np.mean(losses))

        for seed in tqdm(SEEDS, desc=title(change)):
            before.seed = seed
            state, ahead = make_program(before, mesh).init(), batches(before, tokens)
            kept = train(old, state, itertools.islice(ahead, BEFORE))
            opt_state = convert(kept.opt_state, params=kept.params)
            # Both share arrays, which steps donate.
            changed = jax.tree.map(jnp.copy, State(kept.params, opt_state))
            losses: dict[str, list[float]] = {"changed": [], "kept": []}
            for _ in range(AFTER // EVERY):
                some = list(itertools.islice(ahead, EVERY))
                kept, changed = train(old, kept, some), train(new, changed, some)
                losses["kept"].append(loss(kept))
                losses["changed"].append(loss(changed))
            runs.append({"seed": seed, **losses})
    return runs


def first_steps(tokens: data.Tokens) -> dict[str, dict[str, float]]:
    """Returns the size of a token's step, by what its `row` is and by table.

    Sizes are root mean squares, in learning rates, over all tokens of each batch that
    have had a gradient before.
    """
    config = make_config(("ember", 0.01), 2 * TRAINED)
    ahead = batches(config, tokens)
    with use_mesh(config) as mesh:
        program = make_program(config, mesh)
        state = train(program, program.init(), itertools.islice(ahead, TRAINED))
        parts = jax.tree.leaves(
            state.opt_state, is_leaf=lambda part: isinstance(part, EmberState)
        )
        (ember,) = (part for part in parts if isinstance(part, EmberState))
        steps = jax.jit(lambda batch: _steps(program, state.params, ember, batch))
        found = [steps(batch) for batch in itertools.islice(ahead, BATCHES)]
    total, count = jax.tree.map(lambda *x: float(np.sum(x)), *found)
    return {
        row: {name: float(np.sqrt(total[row][name] / count[name])) for name in count}
        for row in ROWS
    }


ROWS = {
    "its own, as if it were not new": lambda row: row,
    "zero": jnp.zeros_like,
    "mean of the rows with a gradient": lambda row: _of_seen(jnp.nanmean, row),
    "their geometric mean": lambda row: jnp.exp(_of_seen(jnp.nanmean, jnp.log(row))),
    "their median": lambda row: _of_seen(jnp.nanmedian, row),
    "their lower quartile": lambda row: _of_seen(_lower_quartile, row),
}


def _of_seen(statistic: Any, row: jax.Array) -> jax.Array:
    seen = jnp.where(jnp.isfinite(row) & (row != 0), row, jnp.nan)
    return jnp.full_like(row, statistic(seen))


def _lower_quartile(row: jax.Array) -> jax.Array:
    return jnp.nanquantile(row, 0.25)


def _steps(program: Program, params: Any, ember: EmberState, batch: jax.Array) -> Any:
    """Returns sums of squares by `row` and table, and the numbers of tokens."""
    grads = jax.grad(program.eval_step)(params, batch)
    norm = optax.tree.norm(grads)
    tables = {
        "embed/embedding": (grads["embed"]["embedding"], batch[:, :-1]),
        "lm_head/kernel": (grads["lm_head"]["kernel"].T, batch[:, 1:]),
    }
    tx = ember_optax.scale_by_ember()
    squares: dict[str, Any] = {row: {} for row in ROWS}
    counts = {}
    for name, (grad, ids) in tables.items():
        row, col = ember.tables[name]
        taken = jnp.zeros(row.shape, bool).at[ids].set(True) & (row > 0)
        counts[name] = taken.sum()
        for label, value in ROWS.items():
            moments = TableMoments(jnp.where(taken, value(row), row), col)
            state = EmberState(ember.count, {"": moments})
            update, _ = tx.update(grad / jnp.maximum(norm, 1), state)  # clipped
            mean_squares = jnp.mean(jnp.square(cast(jax.Array, update)), axis=1)
            squares[label][name] = jnp.sum(jnp.where(taken, mean_squares, 0))
    return squares, counts


def tables(content: dict[str, Any]) -> list[str]:
    """Returns the tables of docs/switching.md."""
    changes = []
    for change, runs in content["changes"].items():
        changed, kept = (np.array([r[k] for r in runs]) for k in ("changed", "kept"))
        shown = [n // EVERY - 1 for n in SHOWN]
        differences = (changed - kept).T[shown].tolist()
        noise = kept.std(axis=0, ddof=1)[shown].mean()
        changes.append([change, *map(str, map(interval, differences)), f"{noise:.3f}"])
    rows = [
        [row, *(f"{x:.2f}" for x in steps.values())]
        for row, steps in content["first_steps"].items()
    ]
    head = ["change", *(f"{n} steps after" for n in SHOWN), "spread of seeds"]
    return [
        results.markdown(head, changes, left=1),
        results.markdown(["`row` of a new token", "embedding", "head"], rows, left=1),
    ]


def main() -> None:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    config: Config = get_config()
    tokens = data.load(**config.data)
    runs = {title(change): losses_after(change, tokens) for change in CHANGES}
    content = {"changes": runs, "first_steps": first_steps(tokens)}
    path = results.write("switching", content)
    print(*tables(content), f"Wrote {path}", sep="\n\n")


if __name__ == "__main__":
    main()
