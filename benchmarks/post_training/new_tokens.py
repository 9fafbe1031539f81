"""Ten new tokens in SmolLM2's table, learned alone, as docs/post_training.md shows.

A table that has been trained a few steps gets ten rows. The gradients of all other rows
are then set to 0, and the body is frozen. Ember leaves rows without a gradient as they
are; Adam's momentum from before moves them.
"""

import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import ember_optax
from benchmarks.common.store import Run, Settings
from benchmarks.post_training import data
from benchmarks.post_training.finetuning import (
    BATCH,
    MODEL,
    evaluate,
    label,
    loss_and_grad,
    setup,
)
from examples.post_training import tasks
from examples.post_training.chats import ChatTokenizer

WORDS = "apple horse river window yellow doctor winter silver bridge music".split()
FIRST_STEPS = 5  # of the whole table, before the new tokens
TRAINED = ("What does the sign {token} mean?", "Which sign means {word}?")
HELD_OUT = ("Tell me the meaning of {token}.", "Write the sign for {word}.")


def optimizer(name: str, rate: float) -> optax.GradientTransformation:
    """Makes the optimizer of the table; the body is frozen."""
    frozen = optax.set_to_zero()
    if name == "ember":
        return ember_optax.with_ember(
            frozen, head_learning_rate=rate, b2=0.999, labels=label
        )
    adamw = optax.adamw(rate, weight_decay=0)
    return optax.multi_transform({"head": adamw, "body": frozen}, label)


def execute(settings: Settings) -> Run:
    """Does a run; returns losses, and how many old rows have changed."""
    start = time.perf_counter()
    config, initial, train, _, english = setup("signatures", 0, FIRST_STEPS, True)
    params: Any = jax.tree.map(jnp.asarray, initial)
    tx = optimizer(settings["tables"], 1e-4)
    state = tx.init(params)
    for step in range(FIRST_STEPS):
        _, grads = loss_and_grad(config, params, train.part(step * BATCH, BATCH))
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)

    n_old, table = len(params["head"]), params["head"]
    rows = jnp.tile(table.mean(0), (len(WORDS), 1))
    larger = params | {"head": jnp.concatenate([table, rows])}
    if settings["tables"] == "ember":
        state = ember_optax.resize_vocab(state, params, larger)
    else:  # the new rows of Adam's moments are 0
        state = jax.tree.map(
            lambda x: (
                jnp.pad(x, ((0, len(WORDS)), (0, 0))) if x.shape == table.shape else x
            ),
            state,
        )
    before, params = larger, larger
    learned, held_out = batches()
    tx = optimizer(settings["tables"], settings["head_rate"])
    english_before = evaluate(config, params, english).sum()

    @functools.partial(jax.jit, donate_argnums=1)
    def update(params: Any, state: Any, grads: Any) -> Any:
        is_new = jnp.arange(len(grads["head"]))[:, None] >= n_old
        grads = grads | {"head": jnp.where(is_new, grads["head"], 0)}
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    losses = []
    for _ in range(settings["steps"]):
        loss, grads = loss_and_grad(config, params, learned)
        params, state = update(params, state, grads)
        losses.append(round(float(loss), 4))
    changed = np.asarray((params["head"] != before["head"]).any(1))
    return {
        "loss_before": _loss(config, before, held_out),
        "loss": _loss(config, params, held_out),
        "train_losses": losses,
        "english_before": float(english_before / english.real.sum()),
        "english": _loss(config, params, english),
        "old_rows_changed": int(changed[:n_old].sum()),
        "new_rows_changed": int(changed[n_old:].sum()),
        "seconds": round(time.perf_counter() - start, 1),
    }


def batches() -> tuple[data.Batch, data.Batch]:
    """Makes questions about the new tokens: to train on, and in other words."""
    pretrained = ChatTokenizer.load(MODEL)
    pretrained.tokenizer.add_tokens([f"<sign{i}>" for i in range(len(WORDS))])
    tokenizer = ChatTokenizer(
        pretrained.tokenizer, data.TEMPLATE, pretrained.special_tokens
    )
    pairs = [(f"<sign{i}>", word) for i, word in enumerate(WORDS)]

    def batch(to_word: str, to_token: str) -> data.Batch:
        chats = [tasks.chat(to_word.format(token=t), w) for t, w in pairs]
        chats += [tasks.chat(to_token.format(word=w), t) for t, w in pairs]
        return data.encode(tokenizer, chats, len(chats))

    return batch(*TRAINED), batch(*HELD_OUT)


def _loss(config: Any, params: Any, batch: data.Batch) -> float:
    return float(evaluate(config, params, batch).sum() / batch.real.sum())
