"""One run of the study: from its settings to its losses."""

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from tqdm import tqdm

import ember_optax
from benchmarks.geometry import instrument as geometry
from benchmarks.study import loss as fast
from benchmarks.study.arms import ARMS
from benchmarks.study.settings import EDGES, Settings
from configs import pretrain_124m, pretrain_small
from examples.lm import Config, data, program
from examples.lm.model import Decoder
from examples.lm.optimizer import body_optimizer, schedule

Rates = dict[str, float]

VALIDATION_TOKENS = 32_768
MEASUREMENTS = 8  # of frequencies in a run
CONFIGS = {"pretrain_small": pretrain_small, "pretrain_124m": pretrain_124m}


def make_config(run: Settings) -> Config:
    """Returns the config of a pretraining run, changed by the settings of a run."""
    config: Config = CONFIGS[run.config].get_config()
    config.update(
        steps=run.steps, batch_size=run.batch, sequence_length=run.window, seed=run.seed
    )
    config.model.update(
        width=run.width,
        mlp_width=config.model.mlp_width * run.width // config.model.width,
        layers=run.layers,
        tied=run.tied,
        vocab_multiple=1,  # the loss knows no padding
    )
    config.body.update(optimizer=run.body, learning_rate=run.body_lr)
    return config


def table_optimizer(
    run: Settings, config: Config, arm: str, b2: float | None, lr: Any
) -> optax.GradientTransformation:
    """Returns an arm with its learning rate, on the schedule of all others."""
    decay = optax.add_decayed_weights(run.weight_decay)
    return optax.chain(
        ARMS[arm].scale_by(b2),
        decay if run.weight_decay else optax.identity(),
        optax.scale_by_schedule(schedule(config, 1.0)),
        optax.scale(-lr),
        ember_optax.stochastic_rounding(0)
        if run.rounding == "stochastic"
        else optax.identity(),
    )


def arms_of(run: Settings) -> dict[str, tuple[str, float | None]]:
    """Returns the arm of each table and its b2."""
    arms = {"embed": (run.arm, run.b2), "lm_head": (run.arm, run.b2)}
    if run.head_arm:
        arms["lm_head"] = run.head_arm, ARMS[run.head_arm].b2
    if run.tables != "both":
        arms["lm_head" if run.tables == "embed" else "embed"] = "adam", 0.999
    return arms


def rates_of(run: Settings) -> dict[str, float]:
    """Returns the learning rate of each table."""
    rates = {"embed": run.lr, "lm_head": run.lr if run.head_lr is None else run.head_lr}
    if run.other_lr is not None:
        rates["lm_head" if run.tables == "embed" else "embed"] = run.other_lr
    return rates


def make_optimizer(
    run: Settings, config: Config, rates: dict[str, Any]
) -> optax.GradientTransformation:
    """Returns the optimizer of a whole model; learning rates may be traced."""
    tables: dict[Hashable, optax.GradientTransformation] = {
        table: table_optimizer(run, config, *arm, rates[table])
        for table, arm in arms_of(run).items()
    }
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.multi_transform(tables | {"body": body_optimizer(config)}, _labels),
    )


def _labels(params: Any) -> Any:
    """Labels each table by its name and everything else as the body."""
    return jax.tree_util.tree_map_with_path(
        lambda path, label: path[0].key if label == "table" else label,
        ember_optax.label_token_tables(params),
    )


class Functions(NamedTuple):
    """What XLA compiles."""

    init: Callable[[int], program.State]
    step: Callable[[program.State, Any, Rates], tuple[program.State, jax.Array]]
    loss: Callable[[Any, Any], jax.Array]
    logits: Callable[[Any, Any], jax.Array]


@functools.lru_cache(maxsize=2)  # each takes tens of megabytes
def make_functions(run: Settings, vocab_size: int) -> Functions:
    """Returns functions that serve all learning rates of tables, and all seeds."""
    config = make_config(run)
    make_model = functools.partial(Decoder, vocab_size, **config.model)
    abstract = nnx.eval_shape(lambda: make_model(rngs=nnx.Rngs(0)))
    fast.flatten_products(abstract)
    graph = nnx.graphdef(abstract)

    def init(seed: int) -> program.State:
        model = make_model(rngs=nnx.Rngs(jax.random.key(seed)))
        params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
        if run.rounding:
            params |= jax.tree.map(
                lambda x: x.astype(jnp.bfloat16),
                {table: params[table] for table in arms_of(run) if table in params},
            )
        tx = make_optimizer(run, config, rates_of(run))
        return program.State(params, tx.init(params))

    def loss(params: Any, tokens: jax.Array) -> jax.Array:
        if run.rounding:  # computes in float32, with gradients in bfloat16
            params = jax.tree.map(lambda x: x.astype(jnp.float32), params)
        model = nnx.merge(graph, params)
        if config.loss_chunks == 1:
            return fast.loss_fn(model, tokens)
        return program.loss_fn(model, tokens, config.loss_chunks)

    def step(
        state: program.State, tokens: jax.Array, rates: Rates
    ) -> tuple[program.State, jax.Array]:
        value, grads = jax.value_and_grad(loss)(state.params, tokens)
        tx = make_optimizer(run, config, rates)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return program.State(params, opt_state), value

    def logits(params: Any, tokens: jax.Array) -> jax.Array:
        return nnx.merge(graph, params)(tokens[:, :-1])

    step = jax.jit(step, donate_argnums=0)
    return Functions(jax.jit(init), step, jax.jit(loss), jax.jit(logits))


def execute(run: Settings, tokens: data.Tokens, vocab_size: int) -> dict[str, Any]:
    """Trains one model.

    Args:
      run: its settings.
      tokens: of its text and vocabulary.
      vocab_size: number of tokens in the vocabulary.

    Returns:
      What is kept of it. The validation loss is that of the last step on the same
      text for every run with the same window; it is None where training diverged.
    """
    functions = make_functions(_compiled(run), vocab_size)
    state = functions.init(run.seed)
    state_bytes = table_state_bytes(run, state.params)
    batches = data.train_batches(tokens.train, run.window, run.batch, run.seed)
    size = min(run.batch, 64)  # one size of logits for large batches
    n_batches = VALIDATION_TOKENS // (size * run.window)
    validation = data.validation_batches(tokens.validation, run.window, size, n_batches)

    def validate(params: Any) -> float:
        return float(np.mean([functions.loss(params, batch) for batch in validation]))

    start, losses, measured = time.perf_counter(), [], []
    counts = np.zeros(vocab_size, int)
    for step in tqdm(range(run.steps), leave=False, mininterval=1, desc=run.arm):
        batch = next(batches)
        state, loss = functions.step(state, batch, rates_of(run))
        losses.append(float(loss))
        if not math.isfinite(losses[-1]):
            break
        if run.frequencies:
            counts += np.bincount(batch[:, 1:].ravel(), minlength=vocab_size)
            if (step + 1) % (run.steps // MEASUREMENTS) == 0:
                error = frequency_error(functions, state.params, validation, counts)
                measured.append([validate(state.params), *error])
    final = validate(state.params)
    finite = math.isfinite(losses[-1]) and math.isfinite(final)
    result = {
        "settings": dataclasses.asdict(run),
        "validation_loss": final if finite else None,
        "train_losses": _thinned(losses) if finite else None,
        "steps": len(losses),
        "table_state_bytes": state_bytes,
        "seconds": round(time.perf_counter() - start, 1),
    }
    return result | ({"frequency_errors": measured} if run.frequencies else {})


def frequency_error(
    functions: Functions, params: Any, batches: list[np.ndarray], counts: np.ndarray
) -> list[float | None]:
    """Returns log(predicted / actual) frequency by `EDGES`, None where not finite."""
    frequencies = geometry.frequencies_init(counts.size)
    for batch in batches:
        logits = functions.logits(params, batch)
        frequencies = _update_frequencies(frequencies, logits, batch[:, 1:])
    errors = geometry.frequency_error(frequencies, jnp.array(counts), jnp.array(EDGES))
    return [round(e, 4) if math.isfinite(e) else None for e in errors.tolist()]


_update_frequencies = jax.jit(geometry.frequencies_update)


def table_state_bytes(run: Settings, params: Any) -> int:
    """Returns the bytes of optimizer state of the token tables."""
    total = 0
    for table, (arm, b2) in arms_of(run).items():
        if table in params:
            init = ARMS[arm].scale_by(b2).init
            state = jax.eval_shape(init, {table: params[table]})
            total += sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
    return total


def _compiled(run: Settings) -> Settings:
    """Returns the settings of all runs that the same functions serve."""
    rates = {
        "lr": 0.0,
        "head_lr": None if run.head_lr is None else 0.0,
        "other_lr": None if run.other_lr is None else 0.0,
    }
    return dataclasses.replace(run, **rates, seed=0)


def _thinned(losses: list[float]) -> list[float]:
    """Returns the means over 16 parts of a run, or fewer where it has fewer steps."""
    parts = np.array_split(losses, min(16, len(losses)))
    return [round(float(np.mean(part)), 4) for part in parts]
