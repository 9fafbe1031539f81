"""Ember in a Flax linen `TrainState`: what changes is the `tx`.

python -m examples.train_state
"""

from functools import partial

import flax.linen as nn
import jax
import optax
from flax.training.train_state import TrainState

import ember_optax
from examples.lm import data


class LanguageModel(nn.Module):
    """One block of causal attention between two token tables."""

    vocab_size: int
    width: int = 64

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = nn.Embed(self.vocab_size, self.width, name="embed")(tokens)
        mask = nn.make_causal_mask(tokens)
        attention = nn.MultiHeadDotProductAttention(num_heads=4)
        x = x + attention(nn.RMSNorm()(x), mask=mask)
        x = x + nn.Dense(self.width)(nn.gelu(nn.Dense(4 * self.width)(nn.RMSNorm()(x))))
        return nn.Dense(self.vocab_size, use_bias=False, name="lm_head")(
            nn.RMSNorm()(x)
        )


def create_state(vocab_size: int) -> TrainState:
    model = LanguageModel(vocab_size)
    params = model.init(jax.random.key(0), jax.numpy.zeros((1, 8), "int32"))["params"]
    print(ember_optax.summarize(params), end="\n\n")
    tx = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.multi_transform(
            {"table": ember_optax.ember(1e-2), "body": optax.adamw(3e-3)},
            ember_optax.label_token_tables,
        ),
    )
    return TrainState.create(apply_fn=model.apply, params=params, tx=tx)


@partial(jax.jit, donate_argnums=0)
def train_step(state: TrainState, tokens: jax.Array) -> tuple[TrainState, jax.Array]:
    def loss_fn(params):
        logits = state.apply_fn({"params": params}, tokens[:, :-1])
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])
        return loss.mean()

    loss, grads = jax.value_and_grad(loss_fn)(state.params)
    return state.apply_gradients(grads=grads), loss


def main(path: str | None = None, steps: int = 100) -> None:
    """Trains on files, or by default on the source of the standard library."""
    tokens = data.load(path, vocab_size=4096)
    batches = data.train_batches(tokens.train, 64, batch_size=16, seed=0)
    state = create_state(vocab_size=4096)
    for step in range(1, steps + 1):
        state, loss = train_step(state, next(batches))
        if step % 10 == 0:
            print(f"step {step:4}  loss {loss:.3f}", flush=True)


if __name__ == "__main__":
    main()
