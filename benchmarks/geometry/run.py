"""Statistics of token tables during training, compared with chance.

    python -m benchmarks.geometry.run

Trains a small language model on Python's standard library, with Ember and with Adam on
its tables, and measures the statistics of `benchmarks.geometry.statistics` at every
step: of the embedding, of the head and, for comparison, of a hidden matrix. Takes about
three minutes on one core. Each run is a line in benchmarks/geometry/results.jsonl and
is not run again.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from tqdm import tqdm

from benchmarks.common import store, text
from benchmarks.common.command import make_parser
from benchmarks.common.store import Run, Settings
from benchmarks.geometry import statistics
from benchmarks.geometry.report import RESULTS, SHARES
from benchmarks.study.training import FIRST_MODEL
from configs import pretrain_small
from examples.lm import Config
from examples.lm.optimizer import make_optimizer, schedule
from examples.lm.program import loss_fn, make_model

B2 = 0.999
STEPS = 250
LEARNING_RATES = {"ember": 1e-2, "adam": 3e-2}  # of both tables, not tuned
LAGS = 4
# Rows are followed in groups, by the expected occurrences of their token in the run.
GROUPS = {"rare": (3, 10), "middle": (30, 100), "frequent": (300, np.inf)}
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
MIN_TOUCHES = 10  # of a row whose autocorrelation counts


class Streams(NamedTuple):
    """The statistics of one matrix that every step updates."""

    history: statistics.History
    moment: statistics.SecondMoment
    steps: statistics.Steps


def get_config(optimizer: str, seed: int, steps: int) -> Config:
    config: Config = pretrain_small.get_config()
    config.seed, config.steps = seed, steps
    config.sequence_length, config.batch_size = 64, 16
    config.model.update({"width": 96, "mlp_width": 288} | FIRST_MODEL)
    rate = LEARNING_RATES[optimizer]
    config.tables.update(optimizer=optimizer, b2=B2)
    config.tables.update(embed_learning_rate=rate, head_learning_rate=rate)
    config.tables.defaults.adam.b1 = 0.9
    config.body.learning_rate = 2e-3
    config.data.vocab_size = 4096
    return config


def matrices(params: Any) -> dict[str, jax.Array]:
    """Returns the matrices as [rows, width]; a hidden row is the input of a neuron."""
    return {
        "embedding": params["embed"]["embedding"],
        "head": params["lm_head"]["kernel"].T,
        "hidden": params["layers"][0]["mlp"]["up_proj"]["kernel"].T,
    }


def choose_rows(config: Config, tokens: np.ndarray, n: int) -> dict[str, jax.Array]:
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


def make_step(config: Config, rows: dict[str, jax.Array]) -> tuple[Any, Any]:
    """Returns the initial state of a run and its training step with statistics."""
    graph, state = nnx.split(make_model(config), nnx.Param)
    params = nnx.to_pure_dict(state)
    clip, tx = optax.clip_by_global_norm(config.clip_norm), make_optimizer(config)
    tables = schedule(config, LEARNING_RATES[config.tables.optimizer])
    body = schedule(config, config.body.learning_rate)
    rates = {"embedding": tables, "head": tables, "hidden": body}
    streams = {
        name: Streams(
            statistics.history_init(rows[name].size, LAGS, x.shape[1]),
            statistics.second_moment_init(rows[name].size, x.shape[1]),
            statistics.steps_init(x.shape[0]),
        )
        for name, x in matrices(params).items()
    }

    def step(carry: Any, tokens: jax.Array, count: jax.Array) -> Any:
        params, opt_state, streams = carry

        def loss(params: Any) -> jax.Array:
            return loss_fn(nnx.merge(graph, params), tokens)

        grads = jax.grad(loss)(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        clipped, _ = clip.update(grads, clip.init(params))  # as the optimizers see them
        grads_of, updates_of = matrices(clipped), matrices(updates)
        streams = {
            name: Streams(
                statistics.history_update(x.history, grads_of[name][rows[name]]),
                statistics.second_moment_update(
                    x.moment, grads_of[name], rows[name], B2
                ),
                statistics.steps_update(
                    x.steps,
                    # The rate of the first step is 0.
                    updates_of[name] / jnp.maximum(rates[name](count), 1e-12),
                    grads_of[name],
                ),
            )
            for name, x in streams.items()
        }
        return optax.apply_updates(params, updates), opt_state, streams

    return (params, tx.init(params), streams), jax.jit(step, donate_argnums=0)


def train(settings: Settings, tokens: text.Tokens) -> Run:
    """Trains a model and returns its statistics."""
    config = get_config(*(settings[key] for key in ("optimizer", "seed", "steps")))
    rows = choose_rows(config, tokens.train, settings["rows"])
    carry, step = make_step(config, rows)
    sizes = config.sequence_length, config.batch_size
    batches = text.train_batches(tokens.train, *sizes, config.seed)
    snapshots = []
    label = f"{config.tables.optimizer}, seed {config.seed}"
    for count in tqdm(range(config.steps), desc=label):
        if count % settings["every"] == 0:
            snapshots.append({k: x[rows[k]] for k, x in matrices(carry[0]).items()})
        carry = step(carry, next(batches), jnp.asarray(count))
    snapshots.append({k: x[rows[k]] for k, x in matrices(carry[0]).items()})

    key = jax.random.key(config.seed)
    measured = {}
    for name, stream in carry[2].items():
        n = settings["rows"]
        groups = {group: slice(i * n, (i + 1) * n) for i, group in enumerate(GROUPS)}
        groups = {"all": slice(None)} if name == "hidden" else groups
        points = jnp.stack([snapshot[name] for snapshot in snapshots])
        measured[name] = {
            "ray": rays(key, points, groups),
            "autocorrelation": autocorrelations(stream.history, groups),
            "factorization": factorizations(key, stream.moment),
        }
    steps = step_sizes(carry[2]["embedding"].steps, config.steps)
    return {"matrices": measured, "steps": steps}


Groups = dict[str, slice]
"""Followed rows by name."""


def rays(key: jax.Array, points: jax.Array, groups: Groups) -> dict[str, Any]:
    """Returns quantiles over the rows of each group, and those of random walks."""
    found: dict[str, Any] = {name: {} for name in groups}
    walk = statistics.random_walk(key, points)
    for case, x in (("actual", points), ("walk", walk)):
        share = statistics.ray_share(x)
        cosine = jnp.nanmean(statistics.ray_cosine(x), axis=0)
        for name, group in groups.items():
            of_group = {"share": share[group], "cosine": cosine[group]}
            found[name][case] = {k: quantiles(x) for k, x in of_group.items()}
    return found


def autocorrelations(history: statistics.History, groups: Groups) -> dict[str, Any]:
    """Returns means over the rows of each group with enough touches."""
    enough = history.touches >= MIN_TOUCHES
    actual = statistics.autocorrelation(history)
    null = statistics.autocorrelation_null(history)
    actual = jnp.where(enough[:, None], actual, jnp.nan)
    null = jnp.where(enough, null, jnp.nan)
    return {
        name: {
            "rows": int(jnp.sum(enough[group])),
            "actual": numbers(jnp.nanmean(actual[group], axis=0)),
            "null": numbers(jnp.nanmean(null[group])),
        }
        for name, group in groups.items()
    }


def factorizations(key: jax.Array, moment: statistics.SecondMoment) -> dict[str, Any]:
    """Returns errors of row x col, of its null models, and of the row moment alone."""
    dense, col = moment.dense, moment.col
    shuffled = jax.random.permutation(key, dense.ravel()).reshape(dense.shape)
    cases = {
        "row x col": (dense, col),
        "if it were exact": (statistics.factored_null(key, moment), col),
        "row alone": (dense, jnp.ones_like(col)),
        "shuffled": (shuffled, shuffled.mean(axis=0)),
    }
    found = {}
    for name, case in cases.items():
        log_ratio, divergence = statistics.factorization_error(*case, QUANTILES)
        found[name] = {
            "log_ratio": numbers(log_ratio),
            "divergence": numbers(divergence),
        }
    return found


def step_sizes(steps: statistics.Steps, n_steps: int) -> list[dict[str, Any]]:
    """Returns quantiles over the tokens of each class of frequency."""
    share = np.asarray(steps.touches) / n_steps
    touches = np.maximum(steps.touches, 1)
    counts = jnp.arange(1, n_steps + 1)
    bins, found = np.digitize(share, SHARES), []
    for i in range(len(SHARES) + 1):
        these = (bins == i) & (share > 0)
        median = float(np.median(share[these]))
        expected = statistics.expected_step(jnp.asarray(median), counts, B2).mean()
        found.append(
            {
                "tokens": int(these.sum()),
                "share": median,
                "expected": float(expected),
                "touched": quantiles((np.asarray(steps.touched) / touches)[these]),
                "per_touch": quantiles((np.asarray(steps.path) / touches)[these]),
            }
        )
    return found


def quantiles(x: Any) -> list[float]:
    return numbers(np.nanquantile(x, QUANTILES))


def numbers(x: Any) -> Any:
    """Returns numbers for JSON: null for those that are not finite."""
    x = np.round(np.asarray(x, np.float64), 5)
    return jax.tree.map(lambda y: y if np.isfinite(y) else None, x.tolist())


def main() -> None:
    make_parser(__doc__).parse_args()
    tokens = text.load()
    for seed in (0, 1):
        for optimizer, rate in LEARNING_RATES.items():
            settings = {"optimizer": optimizer, "seed": seed, "learning_rate": rate}
            settings |= {"b2": B2, "steps": STEPS, "rows": 64, "every": 5}
            execute = functools.partial(train, settings, tokens)
            store.run_once(RESULTS, settings, execute)
    print(f"Wrote {RESULTS}")


if __name__ == "__main__":
    main()
