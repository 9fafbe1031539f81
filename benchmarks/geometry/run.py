"""What token tables look like while they are trained, compared with what chance gives.

    python -m benchmarks.geometry.run

Trains a small language model on Python's standard library, with Ember and with Adam on
its tables, and takes the statistics of `benchmarks.geometry.instrument` in the loop: of
the embedding, of the head and, for comparison, of a hidden matrix. Takes about three
minutes on one core. Each run is a line in benchmarks/geometry/results.jsonl and is not
run again; what watching costs is in cost.json.
"""

import argparse
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from tqdm import tqdm

from benchmarks.common import store
from benchmarks.common.store import Run, Settings
from benchmarks.geometry import instrument as geometry
from benchmarks.geometry import readings
from benchmarks.geometry.results import COST, RESULTS
from configs import pretrain_small
from examples.lm import Config, data
from examples.lm.optimizer import make_optimizer, schedule
from examples.lm.program import loss_fn, make_model

B2 = 0.999
# Of both tables; benchmarks/study has since found that each wants its own.
LEARNING_RATES = {"ember": 1e-2, "adam": 3e-2}
LAGS = 4
# Rows are followed in groups, by how often their token is to occur in the run.
GROUPS = {"rare": (3, 10), "middle": (30, 100), "frequent": (300, np.inf)}


Rows = dict[str, jax.Array]
"""Which rows of each matrix are followed."""


class Streams(NamedTuple):
    """What is updated at every step, of one matrix."""

    history: geometry.GradientHistory
    moment: geometry.SecondMoment
    steps: geometry.Steps


def get_config(optimizer: str, seed: int, steps: int) -> Config:
    config: Config = pretrain_small.get_config()
    config.seed, config.steps = seed, steps
    config.sequence_length, config.batch_size = 64, 16
    config.model.update({"width": 96, "mlp_width": 288})
    rate = LEARNING_RATES[optimizer]
    config.tables.update(optimizer=optimizer, b2=B2)
    config.tables.update(embed_learning_rate=rate, head_learning_rate=rate)
    config.tables.tuned.adam.b1 = 0.9
    config.body.learning_rate = 2e-3
    return config


def matrices(params: Any) -> dict[str, jax.Array]:
    """Returns what is watched, rows first; all have the width of the model as columns.

    A row of the hidden matrix is what one neuron reads.
    """
    return {
        "embedding": params["embed"]["embedding"],
        "head": params["lm_head"]["kernel"].T,
        "hidden": params["layers"][0]["mlp"]["up_proj"]["kernel"].T,
    }


def choose_rows(config: Config, tokens: np.ndarray, n: int) -> Rows:
    """Chooses n rows of each group and of the hidden matrix, the same for all runs."""
    rng = np.random.default_rng(0)
    counts = np.bincount(tokens, minlength=config.data.vocab_size)
    seen = config.steps * config.batch_size * config.sequence_length
    expected = counts / len(tokens) * seen
    groups = [
        rng.choice(np.nonzero((expected >= low) & (expected < high))[0], n, False)
        for low, high in GROUPS.values()
    ]
    rows = jnp.asarray(np.concatenate(groups))
    hidden = jnp.asarray(rng.choice(config.model.mlp_width, n, replace=False))
    return {"embedding": rows, "head": rows, "hidden": hidden}


def groups_of(name: str, n: int) -> readings.Groups:
    if name == "hidden":
        return {"all": slice(None)}
    return {group: slice(i * n, (i + 1) * n) for i, group in enumerate(GROUPS)}


def make_step(config: Config, rows: Rows) -> tuple[Any, Any]:
    """Returns what a run starts from, and a step that watches what `rows` names."""
    graph, state = nnx.split(make_model(config), nnx.Param)
    params = nnx.to_pure_dict(state)
    clip, tx = optax.clip_by_global_norm(config.clip_norm), make_optimizer(config)
    tables = schedule(config, LEARNING_RATES[config.tables.optimizer])
    body = schedule(config, config.body.learning_rate)
    rates = {"embedding": tables, "head": tables, "hidden": body}
    streams = {
        name: Streams(
            geometry.history_init(x, rows[name], LAGS),
            geometry.second_moment_init(x, rows[name]),
            geometry.steps_init(x),
        )
        for name, x in matrices(params).items()
        if name in rows
    }

    def step(carry: Any, tokens: jax.Array, count: jax.Array) -> Any:
        params, opt_state, streams = carry

        def loss(params: Any) -> jax.Array:
            return loss_fn(nnx.merge(graph, params), tokens)

        value, grads = jax.value_and_grad(loss)(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        clipped, _ = clip.update(grads, clip.init(params))  # what the optimizers see
        streams = {
            name: watch(
                stream,
                matrices(clipped)[name],
                matrices(updates)[name],
                rates[name](count),
            )
            for name, stream in streams.items()
        }
        return (optax.apply_updates(params, updates), opt_state, streams), value

    return (params, tx.init(params), streams), jax.jit(step, donate_argnums=0)


def watch(streams: Streams, grad: Any, update: Any, rate: Any) -> Streams:
    relative = update / jnp.maximum(rate, 1e-12)  # the rate of the first step is 0
    return Streams(
        geometry.history_update(streams.history, grad),
        geometry.second_moment_update(streams.moment, grad, B2),
        geometry.steps_update(streams.steps, relative, grad),
    )


def train(settings: Settings, tokens: data.Tokens) -> Run:
    """Trains a model and returns its statistics."""
    n, every = settings["rows"], settings["every"]
    config = get_config(*(settings[key] for key in ("optimizer", "seed", "steps")))
    rows = choose_rows(config, tokens.train, n)
    carry, step = make_step(config, rows)
    sizes = config.sequence_length, config.batch_size
    batches = data.train_batches(tokens.train, *sizes, config.seed)
    snapshots: dict[str, list[Any]] = {name: [] for name in rows}
    counts = np.zeros(config.data.vocab_size, int)
    label = f"{config.tables.optimizer}, seed {config.seed}"
    for count in tqdm(range(config.steps), desc=label):
        if count % every == 0:
            snapshot(snapshots, carry[0], rows)
        batch = next(batches)
        counts += np.bincount(batch[:, 1:].ravel(), minlength=len(counts))
        carry, _ = step(carry, batch, jnp.asarray(count))
    params, _, streams = carry
    snapshot(snapshots, params, rows)

    key = jax.random.key(config.seed)
    measured = {}
    for name, stream in streams.items():
        groups = groups_of(name, n)
        measured[name] = {
            "ray": readings.rays(key, jnp.stack(snapshots[name]), groups),
            "autocorrelation": readings.autocorrelations(stream.history, groups),
            "factorization": readings.factorization(key, stream.moment),
        }
    held_out = data.validation_batches(tokens.validation, *sizes, n_batches=64)
    actual, drawn, loss = evaluate(key, config, params, held_out)
    steps = streams["embedding"].steps
    return {
        "validation_loss": loss,
        "matrices": measured,
        "steps": readings.step_sizes(steps, config.steps, B2),
        "frequencies": readings.predictions(actual, drawn, counts),
    }


def snapshot(snapshots: Any, params: Any, rows: Rows) -> None:
    for name, x in matrices(params).items():
        snapshots[name].append(x[rows[name]])


def evaluate(
    key: jax.Array, config: Config, params: Any, held_out: list[np.ndarray]
) -> tuple[geometry.Frequencies, geometry.Frequencies, float]:
    """Returns frequencies, those of drawn targets, and the validation loss."""
    model = nnx.merge(nnx.split(make_model(config), nnx.Param)[0], params)

    @jax.jit
    def update(carry: Any, batch: jax.Array, key: jax.Array) -> Any:
        actual, drawn, loss = carry
        logits, targets = model(batch[:, :-1]), batch[:, 1:]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
        at_random = geometry.calibrated_targets(key, logits)
        return (
            geometry.frequencies_update(actual, logits, targets),
            geometry.frequencies_update(drawn, logits, at_random),
            loss + losses.mean() / len(held_out),
        )

    empty = geometry.frequencies_init(config.data.vocab_size)
    carry = empty, empty, jnp.zeros(())
    for i, batch in enumerate(held_out):
        carry = update(carry, batch, jax.random.fold_in(key, i))
    return carry[0], carry[1], float(carry[2])


def measure_cost(config: Config, tokens: data.Tokens, n: int) -> dict[str, float]:
    """Returns what watching adds to a step, as XLA counts, and the bytes it keeps."""
    batch = np.zeros((config.batch_size, config.sequence_length + 1), np.int32)
    rows = choose_rows(config, tokens.train, n)
    counted = []
    for watched in ({}, rows):
        carry, step = make_step(config, watched)
        compiled = step.lower(carry, batch, jnp.asarray(0)).compile()
        counted.append(compiled.cost_analysis())
    return {
        "flops_ratio": counted[1]["flops"] / counted[0]["flops"],
        "bytes_ratio": counted[1]["bytes accessed"] / counted[0]["bytes accessed"],
        "state_bytes": sum(x.nbytes for x in jax.tree.leaves(carry[2])),
        "parameter_bytes": sum(x.nbytes for x in jax.tree.leaves(carry[0])),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--rows", type=int, default=64, help="of each group, to follow")
    parser.add_argument("--every", type=int, default=5, help="steps between snapshots")
    args = parser.parse_args()
    config = get_config("ember", 0, args.steps)
    tokens = data.load(**config.data)
    for seed in range(args.seeds):
        for optimizer, rate in LEARNING_RATES.items():
            of_all = {"b2": B2, "steps": args.steps, "rows": args.rows}
            settings = {"optimizer": optimizer, "seed": seed, "learning_rate": rate}
            settings |= of_all | {"every": args.every}
            execute = functools.partial(train, settings, tokens)
            store.run_once(RESULTS, settings, execute)
    store.write_object(COST, measure_cost(config, tokens, args.rows))
    print(f"Wrote {RESULTS} and {COST}")


if __name__ == "__main__":
    main()
