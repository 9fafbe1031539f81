"""What a language model's loss does when its optimizer or its vocabulary changes."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import ember_optax
from configs.pretrain_small import get_config
from ember_optax import EmberState
from examples.lm import Config, data
from examples.lm.mesh import use_mesh
from examples.lm.optimizer import make_optimizer, table_b2
from examples.lm.program import Program, State, make_model, make_program

pytestmark = pytest.mark.usefixtures("standard_promotion", "cheap_compilation")

VOCAB, BATCH, LENGTH = 512, 8, 32
SWITCH, AFTER = 60, 20  # steps


def make_config(optimizer: str, vocab_size: int = VOCAB, seed: int = 0) -> Config:
    config: Config = get_config()
    config.update(steps=120, batch_size=BATCH, sequence_length=LENGTH, seed=seed)
    config.data.vocab_size = vocab_size
    config.model.update(width=32, layers=1, heads=2, mlp_width=64, vocab_multiple=1)
    config.tables.update(optimizer=optimizer, embed_learning_rate=0.3)
    config.tables.head_learning_rate = 0.03
    config.mesh.fsdp = 1
    return config


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> data.Tokens:
    """The source of a package of the standard library, tokens of 512 kinds."""
    cache = str(tmp_path_factory.mktemp("cache"))
    return data.load(str(Path(asyncio.__file__).parent), VOCAB, cache_dir=cache)


@pytest.fixture(scope="module")
def mesh() -> Iterator[Any]:
    with use_mesh(make_config("ember")) as mesh:
        yield mesh


def batches(tokens: data.Tokens, seed: int, first: int = 0) -> Iterator[jax.Array]:
    rows = data.train_batches(tokens.train, LENGTH, BATCH, seed)
    for i, batch in enumerate(rows):
        if i >= first:
            yield jnp.asarray(batch)


def validation_loss(program: Program, state: State, tokens: data.Tokens) -> float:
    rows = data.validation_batches(tokens.validation, LENGTH, BATCH, 8)
    losses = [program.eval_step(state.params, jnp.asarray(b)) for b in rows]
    return float(np.mean(losses))


def losses_after(program: Program, state: State, tokens: Any, seed: int) -> list[float]:
    """Validation losses at the switch and every four steps after it."""
    state = jax.tree.map(jnp.copy, state)  # the steps donate it
    losses = [validation_loss(program, state, tokens)]
    for step, batch in zip(
        range(1, AFTER + 1), batches(tokens, seed, SWITCH), strict=False
    ):
        state, _ = program.train_step(state, batch)
        if step % 4 == 0:
            losses.append(validation_loss(program, state, tokens))
    return losses


def with_cold_rows(opt_state: Any, first: int = 0) -> Any:
    """The state of Ember without anything in the rows from the first on."""

    def chill(part: Any) -> Any:
        if not isinstance(part, EmberState):
            return part
        tables = {
            path: moments._replace(row=moments.row.at[first:].set(0))
            for path, moments in part.tables.items()
        }
        return part._replace(tables=tables)

    return jax.tree.map(chill, opt_state, is_leaf=lambda x: isinstance(x, EmberState))


def test_from_adam_to_ember_without_a_bump(tokens: data.Tokens, mesh: Any) -> None:
    adam = make_program(make_config("adam"), mesh)
    ember = make_program(make_config("ember"), mesh)
    tx = make_optimizer(make_config("ember"))
    unswitched, switched = [], []
    for seed in range(3):
        state = make_program(make_config("adam", seed=seed), mesh).init()
        for _, batch in zip(range(SWITCH), batches(tokens, seed), strict=False):
            state, _ = adam.train_step(state, batch)
        unswitched.append(losses_after(adam, state, tokens, seed))
        opt_state = ember_optax.from_adam(
            state.opt_state,
            tx,
            state.params,
            adam_b2=table_b2(make_config("adam")),
            ember_b2=table_b2(make_config("ember")),
        )
        state = State(state.params, opt_state)
        switched.append(losses_after(ember, state, tokens, seed))
    cold = State(state.params, with_cold_rows(state.opt_state))
    bump = np.array(losses_after(ember, cold, tokens, seed)) - switched[-1]
    noise = np.std(unswitched, axis=0, ddof=1)
    excess = np.mean(switched, axis=0) - np.mean(unswitched, axis=0)
    # All learning rates are equal, so that only the switch can make a difference.
    assert excess.max() < noise.mean()
    rise = np.max(switched, axis=1) - np.array(switched)[:, 0]  # of each seed
    assert rise.max() < noise.mean()
    assert bump.max() > 3 * noise.mean()  # what a wrong state would have done


NEW = 4  # tokens


def with_new_tokens(batch: jax.Array, seed: int) -> jax.Array:
    """Puts new tokens, which the token before tells, in the place of one in twenty."""
    rng = np.random.default_rng(seed)
    new = VOCAB + jnp.roll(batch, 1, axis=1) % NEW
    return jnp.where(rng.random(batch.shape) < 0.05, new, batch)


def with_new_rows(params: Any) -> Any:
    """Parameters with tokens at the end that are the mean of all others."""

    def extend(table: jax.Array, axis: int) -> jax.Array:
        mean = jnp.mean(table, axis, keepdims=True)
        return jnp.concatenate([table, jnp.repeat(mean, NEW, axis)], axis)

    embedding, kernel = params["embed"]["embedding"], params["lm_head"]["kernel"]
    tables = {
        "embed": {"embedding": extend(embedding, 0)},
        "lm_head": {"kernel": extend(kernel, 1)},
    }
    return params | tables


def loss_of_new_tokens(config: Config, params: Any, tokens: data.Tokens) -> float:
    graph, _ = nnx.split(nnx.eval_shape(lambda: make_model(config)), nnx.Param)
    rows = data.validation_batches(tokens.validation, LENGTH, 8 * BATCH, 1)
    batch = with_new_tokens(jnp.asarray(rows[0]), 0)
    logits, targets = nnx.merge(graph, params)(batch[:, :-1]), batch[:, 1:]
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    return float(losses[targets >= VOCAB].mean())


def test_new_tokens_are_learned_and_old_ones_not_disturbed(
    tokens: data.Tokens, mesh: Any
) -> None:
    config = make_config("ember", VOCAB + NEW)
    small, large = make_program(make_config("ember"), mesh), make_program(config, mesh)
    state = small.init()
    for _, batch in zip(range(SWITCH), batches(tokens, 0), strict=False):
        state, _ = small.train_step(state, batch)
    params = with_new_rows(state.params)
    opt_state = ember_optax.resize_vocab(state.opt_state, state.params, params)

    def finetune(new: bool) -> tuple[float, float]:
        """Returns the loss on the old text, and that of new tokens."""
        state = jax.tree.map(jnp.copy, State(params, opt_state))
        steps = batches(tokens, 0, SWITCH)
        for i, batch in zip(range(AFTER), steps, strict=False):
            batch = with_new_tokens(batch, i) if new else batch
            state, _ = large.train_step(state, batch)
        new_loss = loss_of_new_tokens(config, state.params, tokens)
        return validation_loss(large, state, tokens), new_loss

    new_loss_before = loss_of_new_tokens(config, params, tokens)
    old_loss, new_loss = finetune(new=True)
    old_loss_without, _ = finetune(new=False)
    assert new_loss < new_loss_before - 3
    # Of which -log(0.95) = 0.05 is that one token in twenty is a new one, and the noise
    # of seeds is 0.1.
    assert old_loss < old_loss_without + 0.1
    assert old_loss < validation_loss(small, state, tokens)
