"""One run of the study: from its settings to its losses."""

import dataclasses
import functools
import itertools
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
from benchmarks.common import text
from benchmarks.study import loss as fast
from benchmarks.study.arms import ARMS
from benchmarks.study.rules import add_cautious_decay, vocab_axis
from benchmarks.study.settings import Settings
from configs import pretrain_small
from examples.lm import Config, program
from examples.lm.model import Decoder
from examples.lm.optimizer import body_optimizer, schedule

Rates = dict[str, float]

FIRST_MODEL = {"embed_init": 0.02, "embed_norm": False, "head_init": 0.02}
"""What differed from the model of `configs/pretrain_small.py` in the first plan."""

TABLES = ("embed", "lm_head")
VALIDATION_TOKENS = 32_768
EDGES = (1, 4, 16, 64, 256, 1024)
"""Edges between classes of tokens, by their occurrences in the run so far."""
_BETWEEN = (f"{low} to {high - 1}" for low, high in itertools.pairwise(EDGES))
CLASSES = ["0", *_BETWEEN, f"{EDGES[-1]} or more"]
MEASUREMENTS = 8  # of frequencies in a run
TRACKED = 16  # measurements of tables in a run


def make_config(run: Settings) -> Config:
    """Returns the config of a pretraining run, changed by the settings of a run."""
    config: Config = pretrain_small.get_config()
    config.update(
        steps=run.steps, batch_size=run.batch, sequence_length=run.window, seed=run.seed
    )
    config.model.update(
        width=run.width,
        mlp_width=config.model.mlp_width * run.width // config.model.width,
        layers=run.layers,
        tie_embeddings=run.tied,
        pad_vocab_to_multiple_of=1,  # the loss does not support padding
        attention="plain",
    )
    config.model.qk_norm = run.qk_norm
    if not run.practice:
        config.model.update(FIRST_MODEL)
    if run.accelerated:
        config.model.update(dtype="bfloat16", scan_layers=True, heads=run.width // 64)
        config.loss_chunks = 8
    config.body.update(optimizer=run.body, learning_rate=run.body_lr)
    return config


def arms_of(run: Settings) -> dict[str, str]:
    """Returns the arm of each table."""
    return {"embed": run.arm, "lm_head": run.head_arm or run.arm}


def rates_of(run: Settings) -> Rates:
    """Returns the learning rate of each table."""
    return {"embed": run.lr, "lm_head": run.lr if run.head_lr is None else run.head_lr}


def table_optimizer(
    run: Settings, config: Config, arm: str, lr: Any
) -> optax.GradientTransformation:
    """Returns an arm with a learning rate. All arms have the same schedule."""
    steps = [ARMS[arm].scale_by()]
    if run.weight_decay:
        add = add_cautious_decay if run.cautious else optax.add_decayed_weights
        steps.append(add(run.weight_decay))
    steps += [optax.scale_by_schedule(schedule(config, 1.0)), optax.scale(-lr)]
    if run.rounding == "stochastic":
        steps.append(ember_optax.stochastic_rounding(0))
    return optax.chain(*steps)


def make_optimizer(
    run: Settings, config: Config, rates: dict[str, Any]
) -> optax.GradientTransformation:
    """Returns the optimizer of a whole model; learning rates may be traced."""
    tables: dict[Hashable, optax.GradientTransformation] = {
        table: table_optimizer(run, config, arm, rates[table])
        for table, arm in arms_of(run).items()
    }
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.multi_transform(tables | {"body": body_optimizer(config)}, _labels),
    )


def _labels(params: Any) -> Any:
    """Labels both tables by their names and everything else as the body."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: path[0].key if path[0].key in TABLES else "body", params
    )


class Functions(NamedTuple):
    """The compiled functions of a run."""

    init: Callable[[int], program.State]
    step: Callable[[program.State, Any, Rates], tuple[program.State, jax.Array]]
    loss: Callable[[Any, Any], jax.Array]
    predicted: Callable[[Any, Any], jax.Array]  # expected occurrences of each token
    losses: Callable[[Any, Any], jax.Array]  # of each token
    tables: Callable[[program.State, Any, Rates], dict[str, list[jax.Array]]]


@functools.lru_cache(maxsize=2)  # each takes tens of megabytes
def make_functions(run: Settings, vocab_size: int) -> Functions:
    """Returns functions that serve all learning rates of tables, and all seeds."""
    config = make_config(run)
    make_model = functools.partial(Decoder, vocab_size, **config.model)
    abstract = nnx.eval_shape(lambda: make_model(rngs=nnx.Rngs(0)))
    if not run.accelerated:
        fast.flatten_products(abstract)
    graph = nnx.graphdef(abstract)

    def init(seed: int) -> program.State:
        model = make_model(rngs=nnx.Rngs(jax.random.key(seed)))
        params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
        if run.rounding:
            for name in set(TABLES) & params.keys():
                params[name] = optax.tree.cast(params[name], jnp.bfloat16)
        tx = make_optimizer(run, config, rates_of(run))
        return program.State(params, tx.init(params))

    def loss(params: Any, tokens: jax.Array) -> jax.Array:
        if run.rounding:  # computes in float32, with gradients in bfloat16
            params = optax.tree.cast(params, jnp.float32)
        model = nnx.merge(graph, params)
        if run.accelerated:
            return program.loss_fn(model, tokens, config.loss_chunks)
        return fast.loss_fn(model, tokens)

    def step(
        state: program.State, tokens: jax.Array, rates: Rates
    ) -> tuple[program.State, jax.Array]:
        value, grads = jax.value_and_grad(loss)(state.params, tokens)
        tx = make_optimizer(run, config, rates)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return program.State(params, opt_state), value

    def predicted(params: Any, tokens: jax.Array) -> jax.Array:
        logits = nnx.merge(graph, params)(tokens[:, :-1])
        return jax.nn.softmax(logits).sum((0, 1))

    def losses(params: Any, tokens: jax.Array) -> jax.Array:
        logits = nnx.merge(graph, params)(tokens[:, :-1])
        return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])

    def tables(
        state: program.State, tokens: jax.Array, rates: Rates
    ) -> dict[str, list[jax.Array]]:
        """By table: its RMS, and the largest RMS of a row of its next update."""
        after, _ = step(state, tokens, rates)
        found = {}
        for name in sorted(set(TABLES) & state.params.keys()):
            (old,), (new,) = map(
                jax.tree.leaves, (state.params[name], after.params[name])
            )
            rows = jnp.mean(jnp.square(new - old), axis=1 - vocab_axis(old))
            found[name] = [jnp.sqrt(jnp.mean(old**2)), jnp.sqrt(rows.max())]
        return found

    return Functions(
        jax.jit(init),
        jax.jit(step, donate_argnums=0),
        *map(jax.jit, (loss, predicted, losses, tables)),
    )


def execute(run: Settings, tokens: text.Tokens, vocab_size: int) -> dict[str, Any]:
    """Trains one model and returns its record.

    The validation loss is measured after the last step, on the same text for all runs
    with the same window; it is None where training diverged.

    Args:
      run: settings of the run.
      tokens: tokens of its text and vocabulary.
      vocab_size: number of tokens in the vocabulary.
    """
    rates = {"lr": 0.0, "head_lr": None if run.head_lr is None else 0.0}
    functions = make_functions(dataclasses.replace(run, **rates, seed=0), vocab_size)
    state = functions.init(run.seed)
    state_bytes = table_state_bytes(run, state.params)
    batches = text.train_batches(tokens.train, run.window, run.batch, run.seed)
    size = min(run.batch, 64)  # limits the memory of logits
    n_batches = VALIDATION_TOKENS // (size * run.window)
    validation = text.validation_batches(tokens.validation, run.window, size, n_batches)

    def validate(params: Any) -> float:
        return float(np.mean([functions.loss(params, batch) for batch in validation]))

    start, losses, measured, tracked = time.perf_counter(), [], [], []
    counts = np.zeros(vocab_size, int)
    for step in tqdm(range(run.steps), leave=False, mininterval=1, desc=run.arm):
        batch = next(batches)
        if run.track and step % (run.steps // TRACKED) == run.steps // TRACKED // 2:
            found = functions.tables(state, batch, rates_of(run))
            tracked.append([step, jax.tree.map(lambda x: round(float(x), 6), found)])
        state, loss = functions.step(state, batch, rates_of(run))
        losses.append(float(loss))
        if not math.isfinite(losses[-1]):
            break
        if run.frequencies or run.track:
            counts += np.bincount(batch[:, 1:].ravel(), minlength=vocab_size)
            if run.frequencies and (step + 1) % (run.steps // MEASUREMENTS) == 0:
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
    if run.track:
        # Rare tokens are rare in validation as well: take all text that is held out.
        n_batches = len(tokens.validation) // (size * run.window)
        held_out = text.validation_batches(
            tokens.validation, run.window, size, n_batches
        )
        by_class = losses_by_class(functions, state.params, held_out, counts)
        result |= {"tables": tracked, "held_out_by_class": by_class}
    return result | ({"frequency_errors": measured} if run.frequencies else {})


def losses_by_class(
    functions: Functions, params: Any, batches: list[np.ndarray], counts: np.ndarray
) -> list[tuple[float | None, int]]:
    """Returns mean loss and number of the tokens in each class by `EDGES`."""
    losses = np.concatenate(
        [np.asarray(functions.losses(params, batch)).ravel() for batch in batches]
    )
    targets = np.concatenate([batch[:, 1:].ravel() for batch in batches])
    classes = np.digitize(counts, EDGES)[targets]
    found = [losses[classes == i] for i in range(len(EDGES) + 1)]
    means = [round(float(x.mean()), 4) if x.size else None for x in found]
    return list(zip(means, [x.size for x in found], strict=True))


def frequency_error(
    functions: Functions, params: Any, batches: list[np.ndarray], counts: np.ndarray
) -> list[float | None]:
    """Returns log(predicted / actual) frequency by `EDGES`, None where not finite."""
    predicted = sum(np.asarray(functions.predicted(params, x), float) for x in batches)
    targets = np.concatenate([batch[:, 1:].ravel() for batch in batches])
    actual = np.bincount(targets, minlength=counts.size)
    classes = np.digitize(counts, EDGES)
    n = len(EDGES) + 1
    with np.errstate(divide="ignore", invalid="ignore"):
        errors = np.log(np.bincount(classes, predicted, n))
        errors -= np.log(np.bincount(classes, actual, n))
    return [round(e, 4) if math.isfinite(e) else None for e in errors.tolist()]


def table_state_bytes(run: Settings, params: Any) -> int:
    """Returns the bytes of optimizer state of the token tables."""
    total = 0
    for table, arm in arms_of(run).items():
        if table in params:
            init = ARMS[arm].scale_by().init
            state = jax.eval_shape(init, {table: params[table]})
            total += sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
    return total


def _thinned(losses: list[float]) -> list[float]:
    """Returns the means over 16 parts of a run, or fewer if it has fewer steps."""
    parts = np.array_split(losses, min(16, len(losses)))
    return [round(float(np.mean(part)), 4) for part in parts]
