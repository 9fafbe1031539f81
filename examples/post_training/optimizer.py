"""Optimizers for a trained model: AdamW on the body, Ember or AdamW on its tables."""

import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import ember_optax
from examples.lm import Config
from examples.lm.errors import UserError

# Rates of a table relative to its root mean square, by the measurements of
# docs/post_training.md.
ADVISED, DOUBTFUL, HARMFUL = 0.001, 0.002, 0.01
EMBER_B2 = 0.999


class Table(NamedTuple):
    """A token table of a loaded model."""

    path: str
    role: str  # "embed" or "head"; a tied table is a head
    rms: float


def find_tables(model: nnx.Module) -> list[Table]:
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    roles = ember_optax.label_token_tables(params, embed="embed", head="head")
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return [
        Table(
            jax.tree_util.keystr(path, simple=True, separator="/"),
            role,
            float(jnp.sqrt(jnp.mean(jnp.square(x.astype(jnp.float32))))),
        )
        for (path, x), role in zip(leaves, jax.tree.leaves(roles), strict=True)
        if role != "body"
    ]


def table_rates(config: Config, tables: list[Table]) -> dict[str, float]:
    """Chooses the learning rates of the tables, by role.

    By default a table has the body's rate, and at most 0.001 of its root mean square.

    Raises:
      UserError: the user's rate would destroy the table of a trained model.
    """
    is_tied = "embed" not in (table.role for table in tables)
    if is_tied and config.embed_learning_rate is not None:
        raise UserError(
            "The model has one table for embedding and head, a head: give it"
            " optimizer.head_learning_rate instead of embed_learning_rate."
        )
    rates = {}
    for path, role, rms in tables:
        name = f"{role}_learning_rate"
        advised = min(config.learning_rate, ADVISED * rms)
        rate = rates[role] = advised if config[name] is None else config[name]
        relative = f"{name} {rate:g} is {rate / rms:.2g} of the size of {path}"
        if rate > HARMFUL * rms:
            raise UserError(
                f"{relative}, whose root mean square is {rms:.3g}: every step would"
                " move all rows by that share, and the model forgets what it knows."
                f" Use {advised:.2g}."
            )
        if rate > DOUBTFUL * rms:
            print(
                f"{relative}: expect forgetting; {advised:.2g} is safe.",
                file=sys.stderr,
            )
    return rates


def make_optimizer(
    config: Config, rates: dict[str, float], tables: str
) -> optax.GradientTransformationExtraArgs:
    """Makes the optimizer.

    Args:
      config: the field `optimizer` of a program's config.
      rates: learning rates of the tables on Ember, by role.
      tables: "ember", or "adamw" to train the tables like the body.
    """
    if tables not in ("ember", "adamw"):
        raise UserError(
            f"optimizer.tables is {tables!r}, but it must be 'ember' or 'adamw'."
        )
    if config.warmup_steps >= config.steps:
        raise UserError(
            f"optimizer.warmup_steps is {config.warmup_steps}, but it must be less than"
            f" optimizer.steps, which is {config.steps}."
        )

    def schedule(peak: float) -> optax.Schedule:
        shape = optax.warmup_cosine_decay_schedule(
            0, peak, config.warmup_steps, config.steps, peak * config.final_fraction
        )
        return lambda count: shape(count + 1)  # no step with a rate of 0

    def is_matrix(params: Any) -> Any:
        return jax.tree.map(lambda x: x.ndim > 1, params)

    adamw = optax.adamw(
        schedule(config.learning_rate),
        weight_decay=config.weight_decay,
        mask=is_matrix,
    )
    if tables == "adamw":
        return optax.chain(optax.clip_by_global_norm(config.max_norm), adamw)
    schedules: Any = {
        f"{role}_learning_rate": schedule(rate) for role, rate in rates.items()
    }
    return ember_optax.with_ember(
        adamw, b2=EMBER_B2, max_norm=config.max_norm, **schedules
    )
