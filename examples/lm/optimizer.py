"""From a config to an optimizer: one for the token tables, one for the body."""

import functools
from typing import Any

import jax
import optax
from ml_collections import ConfigDict

import ember_optax
from examples.lm import Config

TUNED_WIDTH = 96
POWERS = {"embed": 0.0, "head": -1.0, "body": -1.0}
"""The rule of docs/choosing.md: how default learning rates change with the width."""


def make_optimizer(
    config: Config,
    vocab_size: int | None = None,
    param_shardings: Any = None,
    body: optax.GradientTransformation | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Returns the optimizer of the whole model.

    All table optimizers have decoupled weight decay and the same schedule. They differ
    only in how they scale a gradient.

    Args:
      config: what to build.
      vocab_size: rows of the token tables, by which they are recognized.
      param_shardings: shardings of the parameters on a mesh.
      body: optimizer of everything else, by default `config.body`.
    """
    tables = config.tables
    body = body_optimizer(config) if body is None else body
    defaults = tables.defaults[tables.optimizer]
    embed, head = tables.embed_learning_rate, tables.head_learning_rate
    embed_rate = rate_of(config, "embed", embed, defaults.embed)
    head_rate = rate_of(config, "head", head, defaults.head)
    if tables.optimizer == "ember":
        return ember_optax.with_ember(
            body,
            embed_learning_rate=embed_rate,
            head_learning_rate=head_rate,
            b2=table_b2(config),
            weight_decay=tables.weight_decay,
            max_norm=config.clip_norm,
            vocab_size=vocab_size,
            param_shardings=param_shardings,
        )

    scale = {
        "adam": lambda: optax.scale_by_adam(defaults.b1, table_b2(config)),
        "adafactor": lambda: optax.chain(
            optax.scale_by_factored_rms(),
            optax.clip_by_block_rms(1.0),
            optax.scale_by_param_block_rms(),
        ),
        "sgd": optax.identity,
    }[tables.optimizer]

    def table(rate: optax.Schedule) -> optax.GradientTransformation:
        decay = optax.add_decayed_weights(tables.weight_decay)
        return optax.chain(scale(), decay, optax.scale_by_learning_rate(rate))

    embed, head = table(embed_rate), table(head_rate)
    parts: dict[Any, Any] = {"embed": embed, "head": head, "body": body}
    split = optax.multi_transform(parts, label_roles(vocab_size))
    if config.clip_norm is None:
        return split
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), split)


def table_b2(config: Config) -> Any:
    """Returns the b2 of the token tables, by default Adafactor's decay."""
    tables = config.tables
    default = tables.defaults[tables.optimizer].get("b2")
    chosen = default if tables.b2 is None else tables.b2
    return ember_optax.adafactor_decay() if chosen is None else chosen


def label_roles(vocab_size: int | None) -> Any:
    """Returns a function that labels each parameter "embed", "head" or "body"."""
    return functools.partial(
        ember_optax.label_token_tables,
        vocab_size=vocab_size,
        embed="embed",
        head="head",
    )


def body_optimizer(config: Config) -> optax.GradientTransformation:
    """Returns `config.body.optimizer`. Only matrices have weight decay."""
    body = config.body
    decay, default = body.weight_decay, body.defaults[body.optimizer]
    rate = rate_of(config, "body", body.learning_rate, default)
    if body.optimizer == "adamw":
        return optax.adamw(rate, b2=0.95, weight_decay=decay, mask=_is_matrix)
    # Muon handles matrices, and its own Adam the norms. With consistent_rms the updates
    # are as large as those of AdamW.
    return optax.contrib.muon(
        rate, weight_decay=decay, adam_b2=0.95, consistent_rms=0.2
    )


def rate_of(
    config: Config, part: str, chosen: float | None, tuned: float
) -> optax.Schedule:
    """Returns the schedule of a part of the model.

    Args:
      config: what to build.
      part: "embed", "head" or "body".
      chosen: the user's peak, if any.
      tuned: the best peak at `TUNED_WIDTH`.
    """
    relative_width = config.model.width / TUNED_WIDTH
    by_rule = tuned * relative_width ** POWERS[part]
    return schedule(config, by_rule if chosen is None else chosen)


def schedule(config: Config, peak: float) -> optax.Schedule:
    """Linear warmup to `peak`, then a cosine down to a fraction of it."""
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=peak,
        warmup_steps=round(config.warmup_ratio * config.steps),
        decay_steps=config.steps,
        end_value=peak * config.final_lr_ratio,
    )


def with_table_optimizer(config: Config, name: str) -> Config:
    """Returns a copy of a config with another table optimizer at its defaults."""
    config = ConfigDict(config.to_dict())
    chosen = dict.fromkeys(("embed_learning_rate", "head_learning_rate", "b2"))
    config.tables.update(optimizer=name, **chosen)
    return config


def table_state_bytes(
    config: Config, params: Any, vocab_size: int | None = None
) -> int:
    """Returns the bytes of optimizer state of the token tables, also if abstract."""
    tx = make_optimizer(config, vocab_size, body=optax.set_to_zero())
    state = jax.tree.leaves(jax.eval_shape(tx.init, params))
    return sum(x.size * x.dtype.itemsize for x in state)


def _is_matrix(params: Any) -> Any:
    """Labels kernels, stacked or not, as opposed to scales of norms."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: path[-1] == jax.tree_util.DictKey("kernel"), params
    )
