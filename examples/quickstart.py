"""Trains a small language model: Ember for its token tables, AdamW for the body.

    python -m examples.quickstart

Copy this file: it needs ember_optax and flax, but no other file of this repository.
"""

import re
import sysconfig
from argparse import ArgumentParser, RawTextHelpFormatter
from array import array
from collections import Counter
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax.training.train_state import TrainState

import ember_optax

VOCAB_SIZE, WIDTH, BATCH, TIME = 4096, 64, 16, 64


class LanguageModel(nn.Module):
    """One transformer block between two token tables."""

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        # The learning rates below are for an embedding of this size with a norm behind
        # it, and a head that starts at zero.
        init = nn.initializers.normal(1.0)
        x = nn.Embed(VOCAB_SIZE, WIDTH, embedding_init=init, name="embed")(tokens)
        x = nn.RMSNorm()(x)
        mask = nn.make_causal_mask(tokens)
        attention = nn.MultiHeadDotProductAttention(num_heads=4)
        x = x + attention(nn.RMSNorm()(x), mask=mask)
        x = x + nn.Dense(WIDTH)(nn.gelu(nn.Dense(4 * WIDTH)(nn.RMSNorm()(x))))
        zeros = nn.initializers.zeros
        head = nn.Dense(VOCAB_SIZE, use_bias=False, kernel_init=zeros, name="lm_head")
        return head(nn.RMSNorm()(x))


def read_tokens() -> jax.Array:
    """Reads the source of Python's standard library as word ids; rare words are 0."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    text = "".join(file.read_text("utf-8") for file in files)
    words = re.findall(r"\w+|\s+|[^\w\s]", text)
    frequent = Counter(words).most_common(VOCAB_SIZE - 1)
    ids = {word: i for i, (word, _) in enumerate(frequent, start=1)}
    return jnp.array(array("i", [ids.get(word, 0) for word in words]))


def sample(tokens: jax.Array, seed: int) -> jax.Array:
    """Cuts out random windows, int32[BATCH, TIME + 1]."""
    last = len(tokens) - TIME
    starts = jax.random.randint(jax.random.key(seed), (BATCH, 1), 0, last)
    return tokens[starts + jnp.arange(TIME + 1)]


def make_optimizer(steps: int) -> optax.GradientTransformation:
    def schedule(peak: float) -> optax.Schedule:
        return optax.warmup_cosine_decay_schedule(0.0, peak, steps // 10, steps)

    return ember_optax.with_ember(
        optax.adamw(schedule(5e-3)),
        embed_learning_rate=schedule(1.0),
        head_learning_rate=schedule(0.032 * 96 / WIDTH),
        vocab_size=VOCAB_SIZE,
        max_norm=1.0,
    )


def loss_fn(params: optax.Params, state: TrainState, tokens: jax.Array) -> jax.Array:
    logits = state.apply_fn({"params": params}, tokens[:, :-1])
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])
    return losses.mean()


@jax.jit
def train_step(state: TrainState, tokens: jax.Array) -> tuple[TrainState, jax.Array]:
    loss, grads = jax.value_and_grad(loss_fn)(state.params, state, tokens)
    return state.apply_gradients(grads=grads), loss


def main(steps: int = 200) -> tuple[float, float]:
    """Trains. Returns the loss on held-out text before and after."""
    tokens, model = read_tokens(), LanguageModel()
    train, held_out = jnp.split(tokens, [len(tokens) * 9 // 10])
    init = jax.jit(model.init)  # one program compiles faster than many
    params = init(jax.random.key(0), sample(train, seed=0))["params"]
    print(ember_optax.summarize(params), end="\n\n")
    tx = make_optimizer(steps)
    state = TrainState.create(apply_fn=model.apply, params=params, tx=tx)

    evaluate, validation = jax.jit(loss_fn), sample(held_out, seed=0)
    before = float(evaluate(state.params, state, validation))
    for step in range(1, steps + 1):
        state, loss = train_step(state, sample(train, seed=step))
        bar = "#" * (30 * step // steps)
        print(f"\r[{bar:30}] step {step}  loss {loss:.2f}", end="", flush=True)
    after = float(evaluate(state.params, state, validation))
    print(f"\nLoss on held-out text: {before:.2f} before, {after:.2f} after")
    return before, after


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__, formatter_class=RawTextHelpFormatter)
    parser.add_argument("--steps", type=int, default=200, help="training steps (200)")
    main(parser.parse_args().steps)
