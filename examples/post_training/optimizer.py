"""Optimizers for a trained model: AdamW on the body, Ember or AdamW on its tables."""

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import ember_optax
from examples.post_training import Config
from examples.post_training.errors import UserError

# Rates of a table relative to its root mean square, by the measurements of
# docs/post_training.md.
ADVISED, DOUBTFUL, HARMFUL = 0.001, 0.002, 0.01


class Table(NamedTuple):
    """A token table of a loaded model."""

    path: str
    role: str  # "embed" or "head"; a tied table is a head
    rms: float


def find_tables(model: nnx.Module) -> list[Table]:
    """Finds the token tables of a model."""
    params = nnx.state(model, nnx.Param)
    roles = ember_optax.label_token_tables(params, embed="embed", head="head")
    found = zip(
        jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(roles), strict=True
    )
    return [
        Table(
            jax.tree_util.keystr(path, simple=True, separator="/").removesuffix(
                "/value"
            ),
            role,
            float(jnp.sqrt(jnp.mean(jnp.square(x.astype(jnp.float32))))),
        )
        for (path, x), role in found
        if role != "body"
    ]


def table_rates(config: Config, tables: list[Table]) -> dict[str, float]:
    """Chooses the learning rates of the tables, by role.

    Without a rate of the user's, a table has the body's, and at most 0.001 of its root
    mean square.

    Raises:
      UserError: a rate destroys the table of a trained model.
    """
    rates = {}
    for table in tables:
        name = f"{table.role}_learning_rate"
        rate = config[name]
        advised = min(config.learning_rate, ADVISED * table.rms)
        rates[table.role] = advised if rate is None else rate
        if rate is None or rate <= DOUBTFUL * table.rms:
            continue
        relative = (
            f"{name} {rate:g} is {rate / table.rms:.2g} of the size of {table.path}"
        )
        if rate > HARMFUL * table.rms:
            raise UserError(
                f"{relative}, whose root mean square is {table.rms:.3g}: every step"
                " would move all rows by that share, and the model forgets what it"
                f" knows. Use {advised:.2g}."
            )
        print(f"{relative}: expect forgetting; {advised:.2g} is safe.", file=sys.stderr)
    return rates


def make_optimizer(
    config: Config, rates: dict[str, float]
) -> optax.GradientTransformation:
    """Makes the optimizer.

    Args:
      config: the field `optimizer` of a program's config.
      rates: of the tables, by role. AdamW needs none: it trains all parameters with
        the body's.
    """

    def schedule(peak: float) -> Callable[[Any], Any]:
        shape = optax.warmup_cosine_decay_schedule(
            0, peak, config.warmup_steps, config.steps, peak * config.final_fraction
        )
        return lambda count: shape(count + 1)  # no step with a rate of 0

    def is_matrix(params: Any) -> Any:
        return jax.tree.map(lambda x: x.ndim > 1, params)

    adamw = optax.adamw(
        schedule(config.learning_rate),
        b2=config.adam_b2,
        weight_decay=config.weight_decay,
        mask=is_matrix,
    )
    if config.tables == "adamw":
        return optax.chain(optax.clip_by_global_norm(config.max_norm), adamw)
    if config.tables != "ember":
        raise UserError(
            f"optimizer.tables is {config.tables!r}, but it must be 'ember' or 'adamw'."
        )
    return ember_optax.with_ember(
        adamw,
        embed_learning_rate=schedule(rates["embed"]) if "embed" in rates else None,
        head_learning_rate=schedule(rates["head"]) if "head" in rates else None,
        b2=0.999,
        max_norm=config.max_norm,
    )
