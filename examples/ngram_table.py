"""A language model with a hashed table of 10 million bigrams, on two cores.

    make pretrain  # makes the tokens
    python -m examples.ngram_table

Every token is looked up together with the one before it, in a table of 10,000,000 x 32
(1.28 GB) that `ember_optax.lazy` trains: a step reads and writes the few rows of its
batch, and no gradient of the size of the table is ever made. The same model without the
table is trained first, with the same seed on the same batches.
"""

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax.training.train_state import TrainState
from tqdm import tqdm

import ember_optax
from ember_optax import lazy
from examples.lm import data
from examples.lm.errors import UserError

COLUMNS = 32  # of the table
WIDTH = 64
VOCAB_SIZE = 4096
SEQUENCE_LENGTH = 64
BATCH_SIZE = 16

TableStep = Callable[..., tuple[jax.Array, lazy.LazyState]]
ember_step: TableStep = partial(lazy.update, learning_rate=1e-2)


class LanguageModel(nn.Module):
    """One block of causal attention, which adds the table's rows to its embeddings."""

    @nn.compact
    def __call__(self, tokens: jax.Array, bigrams: jax.Array | None) -> jax.Array:
        x = nn.Embed(VOCAB_SIZE, WIDTH, name="embed")(tokens)
        if bigrams is not None:
            x = x + nn.Dense(WIDTH, use_bias=False, name="bigrams")(bigrams)
        mask = nn.make_causal_mask(tokens)
        attention = nn.MultiHeadDotProductAttention(num_heads=4)
        x = x + attention(nn.RMSNorm()(x), mask=mask)
        x = x + nn.Dense(WIDTH)(nn.gelu(nn.Dense(4 * WIDTH)(nn.RMSNorm()(x))))
        return nn.Dense(VOCAB_SIZE, use_bias=False, name="lm_head")(nn.RMSNorm()(x))


class Bigrams(NamedTuple):
    """The table and its optimizer state."""

    table: jax.Array  # [rows, COLUMNS]
    state: lazy.LazyState


def bigram_ids(tokens: jax.Array, rows: int) -> jax.Array:
    """Returns the row of each token and the one before it: int32, like the tokens.

    The first token of a window has none before it and gets -1, which is padding.
    """
    before, token = tokens[:, :-1].astype("uint32"), tokens[:, 1:].astype("uint32")
    mixed = before * jnp.uint32(0x9E3779B1) + token * jnp.uint32(0x85EBCA77)
    ids = (mixed % rows).astype("int32")
    return jnp.pad(ids, ((0, 0), (1, 0)), constant_values=-1)


def lookup(bigrams: Bigrams | None, tokens: jax.Array) -> tuple[Any, Any]:
    if bigrams is None:
        return None, None
    ids = bigram_ids(tokens, len(bigrams.table))
    return ids, lazy.lookup(*bigrams, ids)


def loss_fn(params: Any, rows: Any, apply_fn: Any, tokens: jax.Array) -> jax.Array:
    logits = apply_fn({"params": params}, tokens[:, :-1], rows)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])
    return loss.mean()


@partial(jax.jit, donate_argnums=(0, 1), static_argnames="table_step")
def train_step(
    state: TrainState,
    bigrams: Bigrams | None,
    tokens: jax.Array,
    table_step: TableStep = ember_step,
) -> tuple[TrainState, Bigrams | None, jax.Array]:
    ids, rows = lookup(bigrams, tokens[:, :-1])
    loss, (grads, row_grads) = jax.value_and_grad(loss_fn, argnums=(0, 1))(
        state.params, rows, state.apply_fn, tokens
    )
    if bigrams is not None:
        bigrams = Bigrams(*table_step(*bigrams, ids, row_grads))
    return state.apply_gradients(grads=grads), bigrams, loss


@jax.jit
def eval_step(
    state: TrainState, bigrams: Bigrams | None, tokens: jax.Array
) -> jax.Array:
    _, rows = lookup(bigrams, tokens[:, :-1])
    return loss_fn(state.params, rows, state.apply_fn, tokens)


def create_state(with_bigrams: bool, seed: int) -> TrainState:
    model = LanguageModel()
    tokens = jnp.zeros((1, 8), "int32")
    rows = jnp.zeros((1, 8, COLUMNS)) if with_bigrams else None
    params = model.init(jax.random.key(seed), tokens, rows)["params"]
    tx = ember_optax.with_ember(
        optax.adamw(3e-3),
        embed_learning_rate=1e-2,
        head_learning_rate=1e-2,
        b2=0.999,
        vocab_size=VOCAB_SIZE,
        max_norm=1.0,
    )
    return TrainState.create(apply_fn=model.apply, params=params, tx=tx)


def create_bigrams(rows: int) -> Bigrams:
    table = jnp.zeros((rows, COLUMNS))
    return Bigrams(table, lazy.init(table))


def train(
    rows: int,
    steps: int,
    seed: int,
    path: str = ".cache/stdlib",
    table_step: TableStep = ember_step,
) -> dict[str, float]:
    """Trains with a table of that many rows, or without one if `rows` is 0.

    Args:
      rows: number of rows.
      steps: number of batches.
      seed: for the initial values and the order of the batches.
      path: directory that examples.tools.tokenize_shards has written.
      table_step: `lazy.update` with its learning rate and other options.
    """
    source, validation = (
        data.open_source(f"{path}/{side}/*.bin", SEQUENCE_LENGTH, VOCAB_SIZE)
        for side in ("train", "validation")
    )
    batches = data.train_batches([source], BATCH_SIZE, seed)
    state = create_state(rows > 0, seed)
    bigrams = create_bigrams(rows) if rows else None
    start = 0.0
    for step in tqdm(range(steps), f"{rows:,} bigrams"):
        state, bigrams, loss = train_step(state, bigrams, next(batches), table_step)
        if step == 0:  # the first step compiles
            loss.block_until_ready()
            start = time.perf_counter()
    jax.block_until_ready(bigrams)
    seconds = (time.perf_counter() - start) / max(steps - 1, 1)
    held_out = data.validation_batches(validation, BATCH_SIZE, n_batches=50)
    losses = [eval_step(state, bigrams, batch) for batch in held_out]
    touched = jnp.count_nonzero(bigrams.state.last_step) if bigrams else 0
    return {
        "validation_loss": float(jnp.mean(jnp.stack(losses))),
        "seconds_per_step": seconds,
        "rows_touched": int(touched),
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=10**7)
    parser.add_argument("--steps", type=int, default=1000, help="of 1024 tokens each")
    parser.add_argument("--path", default=".cache/stdlib", help="directory of tokens")
    args = parser.parse_args(argv)
    print("        rows  validation loss  time of a step  rows touched")
    for rows in (0, args.rows):
        try:
            arm = train(rows, args.steps, 0, args.path)
        except UserError as error:
            sys.exit(f"{error} `make pretrain` makes .cache/stdlib.")
        time_per_step = f"{1e3 * arm['seconds_per_step']:.1f} ms"
        loss, touched = arm["validation_loss"], arm["rows_touched"]
        print(f"{rows:12,}{loss:17.3f}{time_per_step:>16}{touched:14,}")


if __name__ == "__main__":
    main()
