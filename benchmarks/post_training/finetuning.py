"""One finetuning run of SmolLM2: the tied table on one optimizer, the body on AdamW."""

import functools
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import ember_optax
from benchmarks.common.store import Run, Settings
from benchmarks.post_training import data, decoder
from benchmarks.post_training.decoder import Params

MODEL = Path(".cache/smollm2-135m-instruct")
BATCH, HELD_OUT = 8, 64
MAX_NORM = 1.0


class Setup(NamedTuple):
    """A model and its data, the same for many runs."""

    config: decoder.Config
    initial: Params
    train: data.Batch
    held_out: data.Batch
    english: data.Batch


@functools.lru_cache(maxsize=1)
def setup(task: str, seed: int, steps: int, tied: bool) -> Setup:
    config, initial = decoder.load(MODEL, tied)
    sides = data.load(MODEL, task, seed, steps * BATCH, HELD_OUT)
    return Setup(config, initial, *sides, data.english(MODEL))


def optimizer(settings: Settings) -> optax.GradientTransformation:
    """Makes AdamW for the body, and the optimizer of the run for the tables.

    No weight decay: a short run would hardly notice it.
    """
    steps = settings["steps"]

    def schedule(peak: float) -> optax.Schedule:
        shape = optax.warmup_cosine_decay_schedule(
            0, peak, steps // 10, steps, peak / 10
        )
        return lambda count: shape(count + 1)  # no step with a rate of 0

    body = optax.adamw(schedule(settings["body_rate"]), weight_decay=0)
    roles = ("embed", "head")
    rates = {r: settings[f"{r}_rate"] for r in roles if settings.get(f"{r}_rate")}
    if settings["tables"] == "ember":
        b2 = settings["b2"] or ember_optax.adafactor_decay()
        return ember_optax.with_ember(
            body,
            embed_learning_rate=schedule(rates["embed"]) if "embed" in rates else None,
            head_learning_rate=schedule(rates["head"]),
            b2=b2,
            eps=settings["eps"],
            max_norm=MAX_NORM,
            labels=label,
        )
    tables: Any = {role: optax.set_to_zero() for role in roles}
    if settings["tables"] == "adamw":
        tables = {r: optax.adamw(schedule(x), weight_decay=0) for r, x in rates.items()}
    routed = optax.multi_transform(tables | {"body": body}, label)
    return optax.chain(optax.clip_by_global_norm(MAX_NORM), routed)


def label(params: Params) -> Any:
    return {
        name: name if name in ("embed", "head") else jax.tree.map(lambda _: "body", x)
        for name, x in params.items()
    }


@functools.partial(jax.jit, static_argnums=0)
def losses(config: decoder.Config, params: Params, batch: data.Batch) -> jax.Array:
    return decoder.losses(config, params, batch.tokens, batch.places) * batch.real


@functools.partial(jax.jit, static_argnums=0)
@functools.partial(jax.value_and_grad, argnums=1)
def loss_and_grad(
    config: decoder.Config, params: Params, batch: data.Batch
) -> jax.Array:
    found = decoder.losses(config, params, batch.tokens, batch.places)
    return (found * batch.real).sum() / batch.real.sum()


def evaluate(config: decoder.Config, params: Params, batch: data.Batch) -> np.ndarray:
    """Returns the summed loss of each sequence."""
    parts = [batch.part(i, BATCH) for i in range(0, len(batch.tokens), BATCH)]
    return np.concatenate([losses(config, params, part).sum(1) for part in parts])


def execute(settings: Settings) -> Run:
    """Does a run and returns its losses and the movement of its tables."""
    start = time.perf_counter()
    config, initial, train, held_out, english = setup(
        settings["task"], settings["seed"], settings["steps"], settings["tied"]
    )
    tx = optimizer(settings)
    tables = [name for name in ("embed", "head") if name in initial]

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def update(params: Params, state: Any, grads: Params) -> Any:
        if settings["tables"] == "frozen":  # out of the global norm too
            grads = grads | {name: jnp.zeros_like(grads[name]) for name in tables}
        updates: Any
        updates, state = tx.update(grads, state, params)
        relative = {t: row_rms(updates[t]) / row_rms(params[t]) for t in tables}
        largest = {t: x.max() for t, x in relative.items()}
        return optax.apply_updates(params, updates), state, largest

    params: Any = jax.tree.map(jnp.array, initial)
    state = jax.jit(tx.init)(params)
    train_losses, largest_steps = [], []
    for step in range(settings["steps"]):
        batch = train.part(step * BATCH, BATCH)
        loss, grads = loss_and_grad(config, params, batch)
        params, state, largest = update(params, state, grads)
        train_losses.append(round(float(loss), 4))
        largest_steps.append(max(map(float, largest.values())))
    by_task = evaluate(config, params, held_out)
    targets = np.take_along_axis(train.tokens, train.places + 1, axis=1)[train.real]
    seen = np.zeros(len(initial["head"]), bool)
    seen[np.union1d(train.tokens[:, :-1], targets)] = True
    moved = {t: row_rms(params[t] - initial[t]) / row_rms(initial[t]) for t in tables}
    return {
        "loss": float(by_task.sum() / held_out.real.sum()),
        "english": float(evaluate(config, params, english).sum() / english.real.sum()),
        "table_rms": float(rms(initial["head"])),
        "largest_row_step": max(largest_steps),  # relative to the row's size
        "moved_seen": {t: float(rms(x[seen])) for t, x in moved.items()},
        "moved_unseen": {t: float(rms(x[~seen])) for t, x in moved.items()},
        "rows_seen": int(seen.sum()),
        "train_losses": train_losses,
        "loss_by_task": [round(float(x), 4) for x in by_task],
        "seconds": round(time.perf_counter() - start, 1),
    }


def before(settings: Settings) -> Run:
    """Measures the model before any step."""
    config, initial, _, held_out, english = setup(
        settings["task"], settings["seed"], 1, True
    )
    sums = evaluate(config, initial, held_out), evaluate(config, initial, english)
    parts = zip(sums, (held_out, english), strict=True)
    loss, english_loss = (float(s.sum() / b.real.sum()) for s, b in parts)
    return {"loss": loss, "english": english_loss}


def rms(x: Any) -> Any:
    return jnp.sqrt(jnp.mean(jnp.square(x)))


def row_rms(x: Any) -> Any:
    return jnp.sqrt(jnp.mean(jnp.square(x), axis=1))
