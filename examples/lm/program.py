"""A training run as pure functions: initial state, a step, an evaluation, a sample."""

import math
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
from examples.lm.optimizer import make_optimizer, table_b2

TEMPERATURE = 0.8


class State(NamedTuple):
    """All that a step changes."""

    params: Any  # nested dict of arrays
    opt_state: Any


class Program(NamedTuple):
    """The functions of a run on a mesh. Nothing is allocated or compiled yet."""

    state: State  # of jax.ShapeDtypeStruct with shardings
    tokens: jax.ShapeDtypeStruct  # int32[batch_size, sequence_length + 1]
    init: Callable[[], State]
    train_step: Any  # jitted: state, tokens -> state, loss before the step
    eval_step: Any  # jitted: params, tokens -> loss
    sample: Any  # jitted: params, tokens -> tokens with the second half drawn
    monitor: Any  # jitted: state -> scalars of the token tables on Ember


def make_model(config: Config) -> Decoder:
    return Decoder(config.data.vocab_size, **config.model, rngs=nnx.Rngs(config.seed))


def table_rows(config: Config) -> int:
    """Returns the number of rows of the token tables, with padding."""
    multiple = config.model.pad_vocab_to_multiple_of
    return math.ceil(config.data.vocab_size / multiple) * multiple


def make_program(config: Config, mesh: Mesh) -> Program:
    """Returns the functions of a run on a mesh, which `use_mesh` has put in context.

    Raises:
      UserError: a parameter cannot be divided into equal shards.
    """
    abstract = nnx.eval_shape(lambda: make_model(config))
    graph, abstract = nnx.split(abstract, nnx.Param)
    shardings = nnx.to_pure_dict(nnx.get_named_sharding(abstract, mesh))
    params = nnx.to_pure_dict(abstract)
    _check_shards(params, shardings)
    tx = make_optimizer(config, table_rows(config), shardings)
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
        value, grads = accumulate(loss, config.accumulate_steps)(state.params, tokens)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        return State(optax.apply_updates(state.params, updates), opt_state), value

    def monitor(state: State) -> dict[str, jax.Array]:
        return ember_optax.monitor(
            state.opt_state, params=state.params, b2=table_b2(config)
        )

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
        monitor=jax.jit(monitor, out_shardings=replicated),
    )


def accumulate(loss: Callable[..., jax.Array], steps: int) -> Callable[..., Any]:
    """Returns value_and_grad of a mean over rows, in `steps` parts of the rows."""
    value_and_grad = jax.value_and_grad(loss)
    if steps == 1:
        return value_and_grad

    def accumulated(params: Any, tokens: jax.Array) -> Any:
        # Each part has rows of every device, so that rows need not move.
        parts = tokens.reshape(-1, steps, tokens.shape[1]).swapaxes(0, 1)
        zeros = jax.tree.map(jnp.zeros_like, (jnp.zeros(()), params))

        def add(total: Any, part: jax.Array) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, value_and_grad(params, part)), None

        total, _ = jax.lax.scan(add, zeros, parts)
        return jax.tree.map(lambda x: x / steps, total)

    return accumulated


def loss_fn(model: Decoder, tokens: jax.Array, chunks: int = 1) -> jax.Array:
    """Returns the mean cross-entropy of the tokens after the first of each window.

    Args:
      model: the language model.
      tokens: int32[batch, time + 1].
      chunks: parts of the time axis. The logits of one part at a time are in memory,
        and the backward pass computes them again.
    """
    hidden, targets = model.hidden(tokens[:, :-1]), tokens[:, 1:]
    if chunks == 1:
        return cross_entropy(model, hidden, targets)

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


def make_sampler(graph: Any, seed: int) -> Callable[..., jax.Array]:
    """Returns a function that replaces the second half of int32[batch, time].

    It computes all positions again for each token: simple, and enough for a few.
    """

    def sample(params: Any, tokens: jax.Array) -> jax.Array:
        def draw(place: jax.Array, tokens: jax.Array) -> jax.Array:
            model = nnx.merge(graph, params)
            before = jax.lax.dynamic_slice_in_dim(
                model.hidden(tokens), place - 1, 1, axis=1
            )
            logits = model.logits(before)[:, 0] / TEMPERATURE
            key = jax.random.fold_in(jax.random.key(seed), place)
            drawn = jax.random.categorical(key, logits)
            return tokens.at[:, place].set(drawn.astype(tokens.dtype))

        time = tokens.shape[1]
        return jax.lax.fori_loop(time - time // 2, time, draw, tokens)

    return sample


def _check_shards(params: Any, shardings: Any) -> None:
    named = jax.tree_util.tree_leaves_with_path(params)
    for (path, x), sharding in zip(named, jax.tree.leaves(shardings), strict=True):
        try:
            sharding.shard_shape(x.shape)
        except ValueError as error:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise UserError(
                f"{name} is {x.shape} and cannot be divided into equal shards by"
                f" {sharding.spec} on the mesh {dict(sharding.mesh.shape)}: change"
                " --config.mesh, --config.axis_rules, the widths of the model or"
                " --config.model.pad_vocab_to_multiple_of."
            ) from error
