"""Tests for examples/lm/optimizer.py."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ember_optax
from examples.lm import optimizer

V, D = 300, 16
ADAFACTOR_DECAY = ember_optax.adafactor_decay()


@pytest.fixture
def params():
    """A model of one layer."""
    layer = {"q_proj": {"kernel": jnp.ones((D, D))}, "norm": {"scale": jnp.ones(D)}}
    return {
        "embed": {"embedding": jnp.ones((V, D))},
        "layers": [layer],
        "lm_head": {"kernel": jnp.ones((D, V))},
    }


def random_like(tree, seed):
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    noise = [jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(structure, noise)


def table_optimizer(config):
    """Returns the optimizer without clipping and with a body that does not move."""
    config.clip_norm = None
    return optimizer.make_optimizer(config, V, body=optax.set_to_zero())


def updates_of(tx, params, steps=3):
    state, update = tx.init(params), jax.jit(tx.update)
    for step in range(steps):
        updates, state = update(random_like(params, step), state, params)
    return updates


def test_the_optimizer_of_the_tables_leaves_the_body_alone(config, params):
    config.clip_norm = None
    ember = updates_of(optimizer.make_optimizer(config), params)
    config.tables.optimizer = "adam"
    adam = updates_of(optimizer.make_optimizer(config), params)
    assert jnp.all(adam["embed"]["embedding"] != ember["embed"]["embedding"])
    jax.tree.map(np.testing.assert_array_equal, adam["layers"], ember["layers"])


@pytest.mark.parametrize(
    ("name", "b2", "alias"),
    [
        ("ember", 0.97, lambda rate: ember_optax.ember(rate, 0.97)),
        ("ember", None, lambda rate: ember_optax.ember(rate, ADAFACTOR_DECAY)),
        ("adam", 0.97, lambda rate: optax.adam(rate, b1=0.8, b2=0.97)),
        ("adam", None, lambda rate: optax.adam(rate, b1=0.8, b2=0.95)),
        ("adafactor", None, optax.adafactor),
        ("sgd", None, optax.sgd),
    ],
)
def test_table_optimizers_are_those_of_their_libraries(name, b2, alias, config):
    config.tables.update(optimizer=name, head_learning_rate=0.1, b2=b2)
    config.update(warmup_ratio=0.0, final_lr_ratio=1.0)  # a constant
    params = {"embedding": jax.random.normal(jax.random.key(0), (V, 128))}
    ours = updates_of(table_optimizer(config), params)
    theirs = updates_of(alias(0.1), params)
    np.testing.assert_allclose(ours["embedding"], theirs["embedding"], rtol=1e-5)


@pytest.mark.parametrize("name", ["ember", "adam"])
def test_weight_decay_of_the_tables_is_decoupled(name, config):
    config.tables.update(optimizer=name, head_learning_rate=0.1)
    params = {"embedding": jax.random.normal(jax.random.key(0), (V, D))}
    plain = updates_of(table_optimizer(config), params)["embedding"]
    config.tables.weight_decay = 0.5
    decayed = updates_of(table_optimizer(config), params)["embedding"]
    rate = optimizer.schedule(config, 0.1)(2)
    expected = plain - rate * 0.5 * params["embedding"]
    np.testing.assert_allclose(decayed, expected, rtol=1e-4, atol=1e-6)


# A count of each schedule and of Adam; Ember has the product of all b2.
@pytest.mark.parametrize(
    ("name", "numbers"), [("ember", 2 * (V + D) + 2), ("adam", 4 * V * D + 4)]
)
def test_state_bytes_of_the_tables(name, numbers, config, params):
    config.tables.optimizer = name
    abstract = jax.eval_shape(lambda: params)
    assert optimizer.table_state_bytes(config, abstract) == 4 * numbers


def table_updates(config, params):
    updates = updates_of(optimizer.make_optimizer(config), params)
    return updates["embed"]["embedding"], updates["lm_head"]["kernel"]


def test_default_rates_follow_the_width(config, params):
    config.model.width = optimizer.TUNED_WIDTH
    embed, head = table_updates(config, params)
    config.model.width = 4 * optimizer.TUNED_WIDTH
    wider = table_updates(config, params)
    powers = optimizer.POWERS["embed"], optimizer.POWERS["head"]
    for new, old, power in zip(wider, (embed, head), powers, strict=True):
        np.testing.assert_allclose(new, old * 4.0**power, rtol=1e-6)


def test_embedding_and_head_have_their_own_learning_rates(config, params):
    config.model.width = optimizer.TUNED_WIDTH
    tuned = config.tables.defaults.ember
    embed, head = table_updates(config, params)
    config.tables.head_learning_rate = 3 * tuned.head
    same, larger = table_updates(config, params)
    np.testing.assert_array_equal(same, embed)
    np.testing.assert_allclose(larger, 3 * head, rtol=1e-6)
    config.tables.update(embed_learning_rate=tuned.head, head_learning_rate=None)
    smaller, same = table_updates(config, params)
    np.testing.assert_array_equal(same, head)
    np.testing.assert_allclose(smaller, tuned.head / tuned.embed * embed, rtol=1e-6)


def test_a_tied_table_has_the_learning_rate_of_the_head(config, params):
    def update_of(**rates):
        config.tables.update(rates)
        updates = updates_of(optimizer.make_optimizer(config), params)
        return updates["embed"]["embedding"]

    del params["lm_head"]
    config.model.width = optimizer.TUNED_WIDTH
    tuned = update_of()
    np.testing.assert_array_equal(update_of(embed_learning_rate=9.0), tuned)
    tripled = update_of(head_learning_rate=3 * config.tables.defaults.ember.head)
    np.testing.assert_allclose(tripled, 3 * tuned, rtol=1e-6)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_body_decays_matrices_and_not_norms(name, config):
    config.body.update(optimizer=name, learning_rate=0.1)
    params = {"kernel": jnp.ones((D, D)), "scale": jnp.ones(D)}
    zeros = jax.tree.map(jnp.zeros_like, params)
    tx = optimizer.body_optimizer(config)
    state = tx.init(params)
    for _ in range(3):
        updates, state = jax.jit(tx.update)(zeros, state, params)
    rate = optimizer.schedule(config, 0.1)(2)
    expected = -rate * config.body.weight_decay
    np.testing.assert_allclose(updates["kernel"], expected, rtol=1e-6)
    np.testing.assert_array_equal(updates["scale"], 0)


def test_muon_orthogonalises_hidden_matrices_and_no_table(config, params):
    config.body.update(optimizer="muon", weight_decay=0.0)
    config.clip_norm = None
    updates = updates_of(optimizer.make_optimizer(config), params)
    q_proj = updates["layers"][0]["q_proj"]["kernel"]
    values = jnp.linalg.svd(q_proj, compute_uv=False)
    assert values[0] < 2 * values[-1]
    ember = updates_of(table_optimizer(config), params)
    np.testing.assert_array_equal(
        updates["embed"]["embedding"], ember["embed"]["embedding"]
    )


def test_clipping_is_by_the_norm_of_tables_and_body_together(config, params):
    config.tables.update(optimizer="sgd", embed_learning_rate=1.0)
    config.update(clip_norm=0.5, warmup_ratio=0.0)
    grads = random_like(params, 0)
    tx = optimizer.make_optimizer(config)
    updates, _ = tx.update(grads, tx.init(params), params)
    scale = 0.5 / optax.tree.norm(grads)
    expected = -scale * grads["embed"]["embedding"]
    np.testing.assert_allclose(updates["embed"]["embedding"], expected, rtol=1e-5)


def test_schedule_warms_up_and_falls_to_a_fraction(config):
    config.update(steps=100, warmup_ratio=0.1, final_lr_ratio=0.1)
    schedule = optimizer.schedule(config, 2.0)
    values = np.array([schedule(step) for step in range(101)])
    np.testing.assert_allclose(values[:11], np.linspace(0, 2, 11), atol=1e-6)
    assert (np.diff(values[10:]) < 0).all()
    np.testing.assert_allclose(values[55], (2 + 0.2) / 2, rtol=1e-5)
    np.testing.assert_allclose(values[100], 0.2, rtol=1e-5)
