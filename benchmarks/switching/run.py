"""What a change of the optimizer or of the vocabulary does to a run in progress.

    python -m benchmarks.switching.run

A small language model on Python's standard library changes the optimizer of its tables
halfway, while a copy keeps it. Then the first step of a new token is compared, for
several values of its `row`, with the step that it takes when it is not new. Takes about
five minutes on one core. Each change and seed is a line in
benchmarks/switching/results.jsonl and is not run again; the first steps are in
first_steps.json.
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

import ember_optax
from benchmarks.common import store
from benchmarks.common.store import Run
from benchmarks.switching.report import EVERY, FIRST_STEPS, RESULTS
from configs.pretrain_small import get_config
from ember_optax import EmberState, TableMoments
from examples.lm import Config, data
from examples.lm.mesh import use_mesh
from examples.lm.optimizer import make_optimizer
from examples.lm.program import Program, State, make_program

Tables = tuple[str, float]
"""Optimizer of the token tables, and the learning rate of both."""

SEEDS = (0, 1, 2, 3, 4)
BEFORE, AFTER = 150, 60  # steps to the change, and from it
# Before and after.
CHANGES = [
    (("adam", 0.03), ("ember", 0.03)),
    (("adam", 0.03), ("ember", 0.01)),
    (("adam", 0.1), ("ember", 0.01)),
    (("ember", 0.03), ("adam", 0.03)),
    (("ember", 0.01), ("adam", 0.03)),
    (("ember", 0.01), ("adam", 0.1)),
]
B2 = {"ember": 0.999, "adam": 0.95}
CONVERSIONS = {"adam": ember_optax.from_adam, "ember": ember_optax.to_adam}

TRAINED, BATCHES = 400, 20  # steps before tokens are taken for new ones, and from there


def make_config(tables: Tables, steps: int) -> Config:
    config: Config = get_config()
    config.update(steps=steps, batch_size=8, sequence_length=64)
    config.model.update(width=64, mlp_width=192, vocab_multiple=1)
    optimizer, rate = tables
    config.tables.update(optimizer=optimizer, b2=B2[optimizer])
    config.tables.update(embed_learning_rate=rate, head_learning_rate=rate)
    config.tables.tuned.adam.b1 = 0.9
    config.body.learning_rate = 2e-3
    config.mesh.fsdp = 1
    return config


def batches(config: Config, tokens: data.Tokens) -> Iterator[jax.Array]:
    sizes = config.sequence_length, config.batch_size
    return map(jnp.asarray, data.train_batches(tokens.train, *sizes, config.seed))


def train(program: Program, state: State, some: Iterable[jax.Array]) -> State:
    for batch in some:
        state, _ = program.train_step(state, batch)
    return state


def losses_after(before: Tables, after: Tables, seed: int, tokens: data.Tokens) -> Run:
    """Returns validation losses of the run that changes and of its copy.

    Args:
      before: optimizer and learning rate of the tables.
      after: those that the run changes to.
      seed: of the initial values and the batches.
      tokens: to train on and to evaluate.
    """
    old_config, new_config = (make_config(x, 2 * BEFORE) for x in (before, after))
    old_config.seed = seed
    sizes = old_config.sequence_length, old_config.batch_size
    held_out = data.validation_batches(tokens.validation, *sizes, n_batches=16)
    with use_mesh(old_config) as mesh:
        old, new = make_program(old_config, mesh), make_program(new_config, mesh)

        def loss(state: State) -> float:
            losses = [old.eval_step(state.params, jnp.asarray(b)) for b in held_out]
            return float(np.mean(losses))

        ahead = batches(old_config, tokens)
        kept = train(old, old.init(), itertools.islice(ahead, BEFORE))
        opt_state = CONVERSIONS[before[0]](
            kept.opt_state,
            make_optimizer(new_config),
            kept.params,
            adam_b2=B2["adam"],
            ember_b2=B2["ember"],
        )
        # Both share arrays, which steps donate.
        changed = jax.tree.map(jnp.copy, State(kept.params, opt_state))
        losses: Run = {"changed": [], "kept": []}
        for _ in range(AFTER // EVERY):
            some = list(itertools.islice(ahead, EVERY))
            kept, changed = train(old, kept, some), train(new, changed, some)
            losses["kept"].append(loss(kept))
            losses["changed"].append(loss(changed))
    return losses


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
        row, col = ember.tables[name.replace("/", ":")]  # no key of a state has a "/"
        taken = jnp.zeros(row.shape, bool).at[ids].set(True) & (row > 0)
        counts[name] = taken.sum()
        key = jax.eval_shape(tx.init, grad).tables  # that of a table on its own
        for label, value in ROWS.items():
            moments = TableMoments(jnp.where(taken, value(row), row), col)
            state = ember._replace(tables=dict.fromkeys(key, moments))
            update, _ = tx.update(grad / jnp.maximum(norm, 1), state)  # clipped
            mean_squares = jnp.mean(jnp.square(cast(jax.Array, update)), axis=1)
            squares[label][name] = jnp.sum(jnp.where(taken, mean_squares, 0))
    return squares, counts


def main() -> None:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    config: Config = get_config()
    tokens = data.load(**config.data)
    for before, after in CHANGES:
        for seed in SEEDS:
            settings = {"before": list(before), "after": list(after), "seed": seed}
            execute = functools.partial(losses_after, before, after, seed, tokens)
            store.run_once(RESULTS, settings, execute)
    store.write_object(FIRST_STEPS, {"first_steps": first_steps(tokens)})
    print(f"Wrote {RESULTS} and {FIRST_STEPS}")


if __name__ == "__main__":
    main()
