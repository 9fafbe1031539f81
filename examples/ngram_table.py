"""A language model with a hashed table of 10 million bigrams, on two cores.

    make pretrain  # makes the tokens
    python -m examples.ngram_table

Every token is looked up together with the one before it, in a table of 10,000,000 x 32
(1.28 GB) that `ember_optax.lazy` trains: a step reads and writes the few rows of its
batch, and no gradient of the size of the table is ever made. The same model without the
table is trained first, with the same seed on the same batches.
"""

import argparse
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

COLUMNS = 32
VOCAB_SIZE = 4096
SEQUENCE_LENGTH = 64
BATCH_SIZE = 16

TableStep = Callable[..., tuple[jax.Array, lazy.LazyState]]
ember_step: TableStep = partial(lazy.update, learning_rate=1e-2)


class LanguageModel(nn.Module):
    """One block of causal attention, with what the table says of each bigram."""

    width: int = 64

    @nn.compact
    def __call__(self, tokens: jax.Array, bigrams: jax.Array | None) -> jax.Array:
        x = nn.Embed(VOCAB_SIZE, self.width, name="embed")(tokens)
        if bigrams is not None:
            x = x + nn.Dense(self.width, use_bias=False, name="bigrams")(bigrams)
        mask = nn.make_causal_mask(tokens)
        attention = nn.MultiHeadDotProductAttention(num_heads=4)
        x = x + attention(nn.RMSNorm()(x), mask=mask)
        x = x + nn.Dense(self.width)(nn.gelu(nn.Dense(4 * self.width)(nn.RMSNorm()(x))))
        return nn.Dense(VOCAB_SIZE, use_bias=False, name="lm_head")(nn.RMSNorm()(x))


class Bigrams(NamedTuple):
    """The table and its optimizer state, which are only ever used together."""

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


def read(bigrams: Bigrams | None, tokens: jax.Array) -> tuple[Any, Any]:
    """Returns the ids and the rows of all bigrams in a batch."""
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
    ids, rows = read(bigrams, tokens[:, :-1])
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
    _, rows = read(bigrams, tokens[:, :-1])
    return loss_fn(state.params, rows, state.apply_fn, tokens)


def create_state(with_bigrams: bool, seed: int) -> TrainState:
    model = LanguageModel()
    tokens = jnp.zeros((1, 8), "int32")
    rows = jnp.zeros((1, 8, COLUMNS)) if with_bigrams else None
    params = model.init(jax.random.key(seed), tokens, rows)["params"]
    tx = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.multi_transform(
            {"table": ember_optax.ember(1e-2), "body": optax.adamw(3e-3)},
            partial(ember_optax.label_token_tables, vocab_size=VOCAB_SIZE),
        ),
    )
    return TrainState.create(apply_fn=model.apply, params=params, tx=tx)


def create_bigrams(rows: int) -> Bigrams:
    """Returns a table of zeros: it says nothing before it has learnt something."""
    table = jnp.zeros((rows, COLUMNS))
    return Bigrams(table, lazy.init(table))


def train(
    rows: int,
    steps: int,
    seed: int,
    path: str = ".cache/stdlib",
    table_step: TableStep = ember_step,
) -> dict[str, Any]:
    """Trains with a table of that many rows, or without one if there are none.

    Args:
      rows: of the table.
      steps: of a batch each.
      seed: of initial values and of the order of the batches.
      path: directory that examples.tools.tokenize_shards has written, with validation
        text.
      table_step: `lazy.update` with its learning rate, and other options.

    Returns:
      `validation_loss` in nats per token, `seconds_per_step`, and of the table
      `parameters`, `state_bytes` and `rows_touched`.
    """
    source, validation = (
        data.open_source(f"{path}/{side}/*.bin", SEQUENCE_LENGTH, VOCAB_SIZE)
        for side in ("train", "validation")
    )
    batches = data.train_batches([source], BATCH_SIZE, seed)
    held_out = data.validation_batches(validation, BATCH_SIZE, n_batches=50)
    state = create_state(rows > 0, seed)
    bigrams = create_bigrams(rows) if rows else None
    start = 0.0
    progress = tqdm(range(steps), desc=f"{rows:,} bigrams" if rows else "no table")
    for step in progress:
        state, bigrams, loss = train_step(state, bigrams, next(batches), table_step)
        if step % 10 == 0:
            progress.set_postfix(loss=f"{loss:.3f}")
        if step == 0:  # which has compiled
            start = time.perf_counter()
    seconds = (time.perf_counter() - start) / max(steps - 1, 1)
    losses = [eval_step(state, bigrams, batch) for batch in held_out]
    numbers = {
        "validation_loss": float(jnp.mean(jnp.stack(losses))),
        "seconds_per_step": seconds,
        "parameters": 0,
        "state_bytes": 0,
        "rows_touched": 0,
    }
    if bigrams is not None:
        numbers["parameters"] = bigrams.table.size
        numbers["state_bytes"] = sum(x.nbytes for x in jax.tree.leaves(bigrams.state))
        numbers["rows_touched"] = int(jnp.count_nonzero(bigrams.state.last_step))
    return numbers


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flag = parser.add_argument
    flag("--rows", type=int, default=10**7, help="of the table (%(default)s)")
    flag("--steps", type=int, default=1000, help="of 1024 tokens each (%(default)s)")
    flag("--seed", type=int, default=0, help="of values and batches (%(default)s)")
    flag("--path", default=".cache/stdlib", help="directory of tokens (%(default)s)")
    args = parser.parse_args(argv)
    arms = [train(rows, args.steps, args.seed, args.path) for rows in (0, args.rows)]
    print(f"\n{'':16}{'validation loss':>16}{'time of a step':>16}{'rows touched':>16}")
    for name, arm in zip(("no table", "bigram table"), arms, strict=True):
        milliseconds = 1e3 * arm["seconds_per_step"]
        print(
            f"{name:16}{arm['validation_loss']:16.3f}{milliseconds:13.1f} ms"
            f"{arm['rows_touched']:16,}"
        )
    gained = arms[0]["validation_loss"] - arms[1]["validation_loss"]
    print(
        f"\nThe table of {args.rows:,} x {COLUMNS} lowers the loss by {gained:.3f}; its"
        f" optimizer state takes {arms[1]['state_bytes'] / 1e6:,.1f} MB."
    )


if __name__ == "__main__":
    main()
