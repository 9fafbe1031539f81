"""From a config to an optimizer: one for the token tables, one for the body."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import optax

import ember_optax
from examples.lm import Config

# Tied, the one table is a head.
_label_roles = functools.partial(
    ember_optax.label_token_tables, embed="embed", head="head"
)


def make_optimizer(
    config: Config, param_shardings: Any = None
) -> optax.GradientTransformationExtraArgs:
    """Returns the optimizer of the whole model.

    Args:
      config: which one.
      param_shardings: shardings of the parameters on a mesh; Ember then adds up the
        statistics of all tables in one collective.
    """
    # Outside multi_transform, so that the norm is that of the whole gradient.
    return ember_optax.clipped(
        optax.multi_transform(
            {
                "table": table_optimizer(config, param_shardings),
                "body": body_optimizer(config),
            },
            ember_optax.label_token_tables,
        ),
        config.clip_norm,
    )


def table_optimizer(
    config: Config, param_shardings: Any = None
) -> optax.GradientTransformationExtraArgs:
    """Returns `config.tables.optimizer`, at its tuned settings unless told otherwise.

    All have decoupled weight decay and the same schedule, so that they differ in how
    they scale a gradient and in nothing else. `ember` is `ember_optax.ember`, and
    likewise for the others. Embedding and head have a learning rate each; a table that
    is both has that of the head.
    """
    tables = config.tables
    scale_by = _choice(TABLES, tables.optimizer, "tables.optimizer")
    tuned = tables.tuned[tables.optimizer]
    rates = {
        "embed": _first(tables.embed_learning_rate, tuned.embed),
        "head": _first(tables.head_learning_rate, tuned.head),
    }
    return optax.chain(
        # One for both tables, so that Ember adds up their statistics in one collective.
        scale_by(tuned, table_b2(config), param_shardings),
        optax.add_decayed_weights(tables.weight_decay),
        optax.multi_transform(
            {
                role: optax.scale_by_learning_rate(schedule(config, rate))
                for role, rate in rates.items()
            },
            _label_roles,
        ),
    )


def table_b2(config: Config) -> Any:
    """Returns the decay of the second moment of the tables, None without one."""
    name = config.tables.optimizer
    b2 = _first(config.tables.b2, config.tables.tuned[name].get("b2"))
    return ember_optax.adafactor_decay() if name == "ember" and b2 is None else b2


def reset_tables(config: Config, name: str) -> None:
    """Gives the tables another optimizer, at its own tuned settings."""
    chosen = dict.fromkeys(("embed_learning_rate", "head_learning_rate", "b2"))
    config.tables.update(optimizer=name, **chosen)


# From tuned settings, b2 and the shardings of the parameters.
TABLES = {
    "ember": lambda _, b2, shardings: ember_optax.scale_by_ember(
        b2, param_shardings=shardings
    ),
    "adam": lambda tuned, b2, _: optax.scale_by_adam(tuned.b1, b2),
    # scale_by_adam(b1=0) would keep a first moment that it does not need.
    "adam_no_momentum": lambda _, b2, __: optax.scale_by_rms(
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
    partition = jax.eval_shape(make_optimizer(config).init, params)
    state = jax.tree.leaves(partition.inner_states["table"])
    return sum(x.size * x.dtype.itemsize for x in state)


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
