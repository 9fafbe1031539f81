"""A training run as pure functions: what is to be created, a step, an evaluation."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

import ember_optax
from examples.lm import Config
from examples.lm.errors import UserError
from examples.lm.mesh import batch_sharding
from examples.lm.model import Decoder
from examples.lm.optimizer import make_optimizer
from examples.lm.sampling import make_sampler


class State(NamedTuple):
    """All that a step changes."""

    params: Any  # nested dict of arrays
    opt_state: Any


class Program(NamedTuple):
    """What a config makes of a mesh; nothing is allocated and nothing compiled yet."""

    state: State  # of jax.ShapeDtypeStruct with shardings
    tokens: jax.ShapeDtypeStruct  # int32[batch_size, sequence_length + 1]
    init: Callable[[], State]
    train_step: Any  # jitted: state, tokens -> state, loss before the step
    eval_step: Any  # jitted: params, tokens -> loss
    sample: Any  # jitted: params, tokens -> tokens with the second half drawn


def make_model(config: Config) -> Decoder:
    return Decoder(config.data.vocab_size, **config.model, rngs=nnx.Rngs(config.seed))


def check_shards(config: Config, mesh: Mesh) -> None:
    """Raises UserError where a parameter cannot be cut into equal shards."""
    abstract = nnx.eval_shape(lambda: nnx.state(make_model(config), nnx.Param))
    params = nnx.to_pure_dict(abstract)
    shardings = nnx.to_pure_dict(nnx.get_named_sharding(abstract, mesh))
    for (path, x), sharding in zip(
        jax.tree_util.tree_leaves_with_path(params),
        jax.tree.leaves(shardings),
        strict=True,
    ):
        try:
            sharding.shard_shape(x.shape)
        except ValueError as error:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise UserError(
                f"{name} is {x.shape} and cannot be cut into equal shards by"
                f" {sharding.spec} on the mesh {dict(mesh.shape)}: change"
                " --config.mesh, --config.axis_rules, --config.model.vocab_multiple or"
                " the widths of the model."
            ) from error


def make_program(config: Config, mesh: Mesh) -> Program:
    """Returns the functions of a run on a mesh, which `use_mesh` has put in context."""
    graph, abstract = nnx.split(nnx.eval_shape(lambda: make_model(config)), nnx.Param)
    shardings = nnx.to_pure_dict(nnx.get_named_sharding(abstract, mesh))
    params = nnx.to_pure_dict(abstract)
    tx = make_optimizer(config, shardings)
    state_shardings = State(
        shardings, ember_optax.opt_state_shardings(tx, params, shardings)
    )
    replicated = jax.NamedSharding(mesh, jax.P())

    def init() -> State:
        params = nnx.to_pure_dict(nnx.state(make_model(config), nnx.Param))
        return State(params, tx.init(params))

    def loss(params: Any, tokens: jax.Array) -> jax.Array:
        return loss_fn(nnx.merge(graph, params), tokens, config.loss_chunks)

    def train_step(state: State, tokens: jax.Array) -> tuple[State, jax.Array]:
        value, grads = jax.value_and_grad(loss)(state.params, tokens)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        return State(optax.apply_updates(state.params, updates), opt_state), value

    shape = config.batch_size, config.sequence_length + 1
    return Program(
        state=jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
            jax.eval_shape(init),
            state_shardings,
        ),
        tokens=jax.ShapeDtypeStruct(shape, jnp.int32, sharding=batch_sharding(mesh)),
        init=jax.jit(init, out_shardings=state_shardings),
        train_step=jax.jit(
            train_step, donate_argnums=0, out_shardings=(state_shardings, replicated)
        ),
        eval_step=jax.jit(loss, out_shardings=replicated),
        sample=jax.jit(make_sampler(graph, config.seed), out_shardings=replicated),
    )


def loss_fn(model: Decoder, tokens: jax.Array, chunks: int = 1) -> jax.Array:
    """Returns the mean cross-entropy of the tokens after the first of each window.

    Args:
      model: the language model.
      tokens: int32[batch, time + 1].
      chunks: into how many parts to cut the time axis for the head. The logits of one
        part at a time are in memory, and the backward pass computes them again.
    """
    hidden, targets = model.hidden(tokens[:, :-1]), tokens[:, 1:]
    if chunks == 1:
        return cross_entropy(model, hidden, targets)
    if targets.shape[1] % chunks:
        raise ValueError(
            f"loss_chunks is {chunks}, but it must divide sequence_length, which is"
            f" {targets.shape[1]}."
        )

    def cut(x: jax.Array) -> jax.Array:
        parts = x.reshape(x.shape[0], chunks, -1, *x.shape[2:])
        return jnp.moveaxis(parts, 1, 0)

    losses = jax.lax.map(
        jax.checkpoint(lambda part: cross_entropy(model, *part)),
        (cut(hidden), cut(targets)),
    )
    return losses.mean()


def cross_entropy(model: Decoder, hidden: jax.Array, targets: jax.Array) -> jax.Array:
    """Returns the mean cross-entropy of int32[batch, time] given [..., width]."""
    logits = model.logits(hidden)
    return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()
