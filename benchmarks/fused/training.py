"""A small model trained in step by the exact rule and by the fused variant of it.

A third arm shows what a small change makes of any run: the exact rule, from an
embedding in which every number has been moved by a hundredth of itself.
"""

from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from tqdm import tqdm

import ember_optax
from benchmarks.geometry.run import LEARNING_RATES, get_config
from ember_optax.experimental import fused
from examples.lm import Config, data
from examples.lm.optimizer import body_optimizer, schedule
from examples.lm.program import loss_fn, make_model

Tables = dict[str, jax.Array]
VOCAB_AXES = {"embedding": 0, "head": 1}
ARMS = ("exact", "fused", "nudged")
NUDGE = 1e-2
LOGGED = (1, 2, 3, 5, 10, 20, 50, 100, 200, 300)  # steps


def tables_of(tree: Any) -> Tables:
    """Returns the token tables of parameters or gradients."""
    tables = tree["embed"]["embedding"], tree["lm_head"]["kernel"]
    return dict(zip(VOCAB_AXES, tables, strict=True))


def fused_ember(learning_rate: optax.Schedule) -> optax.GradientTransformation:
    """Wraps the fused step as an Optax transformation, which gives up its savings."""

    def axis(table: jax.Array) -> int:
        return int(np.argmax(table.shape))

    def init(params: Any) -> Any:
        leaves = jax.tree.leaves(params)
        return [fused.init(x, vocab_axis=axis(x)) for x in leaves]

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        leaves, structure = jax.tree.flatten(params)
        steps = [
            fused.apply(x, s, g, learning_rate=learning_rate, vocab_axis=axis(x))
            for x, s, g in zip(leaves, state, jax.tree.leaves(updates), strict=True)
        ]
        moved = [new - x for (new, _), x in zip(steps, leaves, strict=True)]
        return jax.tree.unflatten(structure, moved), [state for _, state in steps]

    return optax.GradientTransformation(init, update)


def make_optimizer(config: Config, arm: str) -> optax.GradientTransformation:
    rate = schedule(config, LEARNING_RATES["ember"])
    tables = fused_ember(rate) if arm == "fused" else ember_optax.ember(rate)
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.multi_transform(
            {"table": tables, "body": body_optimizer(config)},
            ember_optax.label_token_tables,
        ),
    )


def norm(x: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.sum(jnp.square(x)))


def watch_updates(state: Any, grads: Tables) -> tuple[Any, dict[str, jax.Array]]:
    """Returns by how much the next updates of the two rules differ, relative in norm.

    Both have seen the same gradients, so that their statistics are the same.
    """
    exact, variants = state
    updates, exact = ember_optax.scale_by_ember().update(grads, exact)
    updates = cast(Tables, updates)
    distances = {}
    for name, grad in grads.items():
        moved, variants[name] = fused.apply(
            jnp.zeros_like(grad),
            variants[name],
            grad,
            learning_rate=1.0,
            vocab_axis=VOCAB_AXES[name],
        )
        distances[name] = norm(moved + updates[name]) / norm(updates[name])
    return (exact, variants), distances


def make_step(config: Config) -> tuple[Any, Any, Any]:
    """Returns what the arms start from, a step of them all, and the loss."""
    graph, initial = nnx.split(make_model(config), nnx.Param)
    params = nnx.to_pure_dict(initial)
    optimizers = {arm: make_optimizer(config, arm) for arm in ARMS}
    clip = optax.clip_by_global_norm(config.clip_norm)

    def loss(params: Any, tokens: jax.Array) -> jax.Array:
        return loss_fn(nnx.merge(graph, params), tokens)

    def start(arm: str) -> tuple[Any, Any]:
        mine = jax.tree.map(jnp.copy, params)
        if arm == "nudged":
            signs = jax.random.rademacher(
                jax.random.key(config.seed), params["embed"]["embedding"].shape
            )
            mine["embed"]["embedding"] *= 1 + NUDGE * signs
        return mine, optimizers[arm].init(mine)

    def step(carry: Any, tokens: jax.Array) -> Any:
        arms, watched = carry
        losses, stepped = {}, {}
        for arm, (params, state) in arms.items():
            losses[arm], grads = jax.value_and_grad(loss)(params, tokens)
            if arm == "exact":
                clipped, _ = clip.update(grads, clip.init(params))
                watched, of_updates = watch_updates(watched, tables_of(clipped))
            updates, state = optimizers[arm].update(grads, state, params)
            stepped[arm] = optax.apply_updates(params, updates), state
        return (stepped, watched), (losses, of_updates)

    tables = tables_of(params)
    watched = (
        ember_optax.scale_by_ember().init(tables),
        {k: fused.init(x, vocab_axis=VOCAB_AXES[k]) for k, x in tables.items()},
    )
    carry = {arm: start(arm) for arm in ARMS}, watched
    return carry, jax.jit(step, donate_argnums=0), jax.jit(loss)


def table_distances(arms: Any, start: Tables) -> dict[str, dict[str, float]]:
    """Returns how far tables are from those of the exact rule, in ways gone by it."""
    exact = tables_of(arms["exact"][0])
    return {
        arm: {
            name: float(norm(x - exact[name]) / norm(exact[name] - start[name]))
            for name, x in tables_of(arms[arm][0]).items()
        }
        for arm in ARMS[1:]
    }


def train(tokens: data.Tokens, seed: int, steps: int) -> dict[str, Any]:
    """Trains all arms on the same batches.

    Returns:
      `validation_loss` and `train_loss` (mean of the last 20 steps) by arm; for each
      logged step the distance `of_updates` by table, and `of_tables` by arm and table.
    """
    config = get_config("ember", seed, steps)
    config.batch_size = 8
    carry, step, loss = make_step(config)
    start = jax.tree.map(jnp.copy, tables_of(carry[0]["exact"][0]))
    sizes = config.sequence_length, config.batch_size
    batches = data.train_batches(tokens.train, *sizes, seed)
    losses: dict[str, list[float]] = {arm: [] for arm in ARMS}
    logged = {}
    for count in tqdm(range(1, steps + 1), desc=f"seed {seed}"):
        carry, (values, of_updates) = step(carry, next(batches))
        for arm in ARMS:
            losses[arm].append(float(values[arm]))
        if count in LOGGED:
            logged[str(count)] = {
                "of_updates": {name: float(x) for name, x in of_updates.items()},
                # The learning rate of the first step is 0.
                "of_tables": table_distances(carry[0], start) if count > 1 else None,
            }
    held_out = data.validation_batches(tokens.validation, *sizes, n_batches=64)
    return {
        "validation_loss": {
            arm: float(np.mean([loss(carry[0][arm][0], b) for b in held_out]))
            for arm in ARMS
        },
        "train_loss": {arm: float(np.mean(x[-20:])) for arm, x in losses.items()},
        "logged": logged,
    }
