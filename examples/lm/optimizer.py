"""From a config to an optimizer: one for the token tables, one for the body."""

from collections.abc import Mapping
from typing import Any

import jax
import optax

import ember_optax
from examples.lm import Config


def make_optimizer(
    config: Config, param_shardings: Any = None
) -> optax.GradientTransformationExtraArgs:
    """Returns the optimizer of the whole model.

    Args:
      config: which one.
      param_shardings: shardings of the parameters on a mesh; Ember then adds up the
        statistics of all tables in one collective.
    """
    return optax.chain(
        # Outside multi_transform, so that the norm is that of the whole gradient.
        optax.clip_by_global_norm(config.clip_norm),
        optax.multi_transform(
            {
                "table": table_optimizer(config, param_shardings),
                "body": body_optimizer(config),
            },
            ember_optax.label_token_tables,
        ),
    )


def table_optimizer(
    config: Config, param_shardings: Any = None
) -> optax.GradientTransformationExtraArgs:
    """Returns `config.tables.optimizer`, at its tuned settings unless told otherwise.

    All have decoupled weight decay and the same schedule, so that they differ in how
    they scale a gradient and in nothing else. `ember` is `ember_optax.ember`, and
    likewise for the others.
    """
    name = config.tables.optimizer
    scale_by = _choice(TABLES, name, "tables.optimizer")
    tuned = config.tables.tuned[name]
    learning_rate = _first(config.tables.learning_rate, tuned.learning_rate)
    return optax.chain(
        scale_by(table_b2(config), param_shardings),
        optax.add_decayed_weights(config.tables.weight_decay),
        optax.scale_by_learning_rate(schedule(config, learning_rate)),
    )


def table_b2(config: Config) -> Any:
    """Returns the decay of the second moment of the tables, None without one."""
    return _first(config.tables.b2, config.tables.tuned[config.tables.optimizer].b2)


TABLES = {
    "ember": lambda b2, shardings: ember_optax.scale_by_ember(
        b2, param_shardings=shardings
    ),
    "adam": lambda b2, _: optax.scale_by_adam(b2=b2),
    # scale_by_adam(b1=0) would keep a first moment that it does not need.
    "adam_no_momentum": lambda b2, _: optax.scale_by_rms(
        b2, eps_in_sqrt=False, bias_correction=True
    ),
    "adafactor": lambda *_: optax.chain(
        optax.scale_by_factored_rms(),
        optax.clip_by_block_rms(1.0),
        optax.scale_by_param_block_rms(),
    ),
    "sm3": lambda *_: optax.scale_by_sm3(),
    "sgd": lambda *_: optax.identity(),
}


def body_optimizer(config: Config) -> optax.GradientTransformation:
    """Returns `config.body.optimizer`; only matrices have weight decay."""
    name = config.body.optimizer
    optimizer = _choice(BODIES, name, "body.optimizer")
    learning_rate = _first(config.body.learning_rate, config.body.tuned[name])
    return optimizer(schedule(config, learning_rate), config.body.weight_decay)


BODIES = {
    "adamw": lambda rate, decay: optax.adamw(
        rate, b2=0.95, weight_decay=decay, mask=_is_matrix
    ),
    # Of the body, matrices go to Muon and norms to its Adam. With consistent_rms the
    # updates are as large as those of AdamW.
    "muon": lambda rate, decay: optax.contrib.muon(
        rate, weight_decay=decay, adam_b2=0.95, consistent_rms=0.2
    ),
}


def schedule(config: Config, peak: float) -> optax.Schedule:
    """Linear warmup to `peak`, then a cosine down to a fraction of it."""
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=peak,
        warmup_steps=round(config.warmup_fraction * config.steps),
        decay_steps=config.steps,
        end_value=peak * config.final_fraction,
    )


def table_state_bytes(config: Config, params: Any) -> int:
    """Returns the bytes of optimizer state that the token tables need.

    Args:
      config: which optimizer.
      params: parameters of the model, as arrays or `jax.ShapeDtypeStruct`.
    """
    labels = jax.tree.leaves(ember_optax.label_token_tables(params))
    leaves = jax.tree.leaves(params)
    tables = [x for x, k in zip(leaves, labels, strict=True) if k == "table"]
    state = jax.eval_shape(table_optimizer(config).init, tables)
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))


def _is_matrix(params: Any) -> Any:
    """Which parameters are kernels, stacked or not, and no scales of norms."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: path[-1] == jax.tree_util.DictKey("kernel"), params
    )


def _choice(options: Mapping[str, Any], name: str, where: str) -> Any:
    if name not in options:
        known = ", ".join(options)
        raise ValueError(f"{where} is {name!r}, but it must be one of {known}.")
    return options[name]


def _first(chosen: float | None, tuned: Any) -> Any:
    return tuned if chosen is None else chosen
