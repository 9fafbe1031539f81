"""`with_ember`: its updates, its bodies, its trees, and its messages."""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import ember_optax
from tests.oracle import Oracle
from tests.unit.common import NnxModel

# optax.adam raises a float to its integer count.
pytestmark = pytest.mark.usefixtures("standard_promotion")

V, D = 24, 6
EMBED, HEAD, BODY = 0.3, 0.02, 1e-2
MAX_NORM = 0.5  # below the norm of every gradient here

labels = functools.partial(ember_optax.label_token_tables, embed="embed", head="head")
with_ember = functools.partial(
    ember_optax.with_ember, embed_learning_rate=EMBED, head_learning_rate=HEAD
)


def make_params(dtype: Any = jnp.float32) -> Any:
    keys = jax.random.split(jax.random.key(0), 4)
    return {
        "embed": {"embedding": jax.random.normal(keys[0], (V, D)).astype(dtype)},
        "mlp": {"kernel": jax.random.normal(keys[1], (D, D)).astype(dtype)},
        "norm": {"scale": jax.random.normal(keys[2], (D,)).astype(dtype)},
        "lm_head": {"kernel": jax.random.normal(keys[3], (D, V)).astype(dtype)},
    }


def make_grads(params: Any, step: int) -> Any:
    """Gradients whose size changes from step to step; some rows have none."""
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(step + 1), len(leaves))
    grads = [
        ((1 + step) * jax.random.normal(key, x.shape)).astype(x.dtype)
        for key, x in zip(keys, leaves, strict=True)
    ]
    grads = structure.unflatten(grads)
    seen = jnp.arange(V) % (step + 2) != 1
    embedding = grads["embed"]["embedding"]
    grads["embed"]["embedding"] = jnp.where(seen[:, None], embedding, 0)
    return grads


def by_hand(body: Any, max_norm: float | None = MAX_NORM, **options: Any) -> Any:
    """The composition that `with_ember` promises to equal."""
    options = {"b2": ember_optax.adafactor_decay()} | options
    routed = optax.multi_transform(
        {
            "embed": ember_optax.ember(EMBED, **options),
            "head": ember_optax.ember(HEAD, **options),
            "body": body,
        },
        labels,
    )
    clip = optax.clip_by_global_norm(max_norm) if max_norm else optax.identity()
    return optax.chain(clip, routed)


def run(tx: Any, params: Any, steps: int = 4, **extra_args: Any) -> list[Any]:
    """Parameters after each step."""
    state, history, update = tx.init(params), [], jax.jit(tx.update)
    for step in range(steps):
        grads = make_grads(params, step)
        updates, state = update(grads, state, params, **extra_args)
        chex.assert_trees_all_equal_shapes_and_dtypes(updates, params)
        params = optax.apply_updates(params, updates)
        history.append(params)
    return history


def strict() -> optax.GradientTransformationExtraArgs:
    """A body that accepts one extra argument and no other."""

    def update(
        updates: Any, state: Any, params: Any = None, *, value: Any = 1.0
    ) -> Any:
        del params
        return jax.tree.map(lambda x: -BODY * value * x, updates), state

    return optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), update)


def jitted() -> optax.GradientTransformation:
    tx = optax.adam(BODY)
    return optax.GradientTransformation(tx.init, jax.jit(tx.update))


BODIES = {
    "adamw": lambda: optax.adamw(BODY),
    "muon": lambda: optax.contrib.muon(BODY),
    "strict": strict,
    "jitted": jitted,
    "masked": lambda: optax.masked(
        optax.adam(BODY), lambda tree: jax.tree.map(lambda x: x.ndim > 1, tree)
    ),
    "injected": lambda: optax.inject_hyperparams(optax.adamw)(BODY),
    "sam": lambda: optax.contrib.sam(
        optax.adam(BODY), optax.chain(optax.contrib.normalize(), optax.sgd(0.1))
    ),
    "sgd": lambda: optax.sgd(BODY, momentum=0.9),
}


@pytest.mark.parametrize(
    ("name", "max_norm"), [*((name, MAX_NORM) for name in BODIES), ("adamw", None)]
)
def test_equals_the_composition_by_hand(name: str, max_norm: float | None) -> None:
    params = make_params()
    ours = run(with_ember(BODIES[name](), max_norm=max_norm), params)
    theirs = run(by_hand(BODIES[name](), max_norm), params)
    chex.assert_trees_all_close(ours, theirs, rtol=2e-5, atol=2e-6)


def test_equals_the_composition_with_other_options() -> None:
    params = make_params()
    options = {"b2": 0.9, "eps": 1e-3, "weight_decay": 0.1}
    ours = run(with_ember(optax.adam(BODY), max_norm=MAX_NORM, **options), params)
    theirs = run(by_hand(optax.adam(BODY), **options), params)
    chex.assert_trees_all_close(ours, theirs, rtol=2e-5, atol=2e-6)


def test_extra_arguments_reach_the_body() -> None:
    params = make_params()
    one = run(with_ember(strict()), params, steps=1, value=1.0)[0]
    two = run(with_ember(strict()), params, steps=1, value=2.0)[0]
    chex.assert_trees_all_equal(one["embed"], two["embed"])
    moved = [tree["mlp"]["kernel"] - params["mlp"]["kernel"] for tree in (one, two)]
    np.testing.assert_allclose(2 * moved[0], moved[1], rtol=1e-4, atol=1e-6)


def test_whole_step_against_the_oracle() -> None:
    """Clipping and rule in NumPy float64, for tables; plain SGD on the body."""
    params = make_params()
    tx = with_ember(optax.sgd(BODY), max_norm=MAX_NORM, weight_decay=0.01)
    b2 = lambda count: min(1 - (count + 1.0) ** -0.8, 0.999)  # noqa: E731
    tables = {
        path: Oracle(params[path][leaf], rate, b2=b2, weight_decay=0.01)
        for path, leaf, rate in (
            ("embed", "embedding", EMBED),
            ("lm_head", "kernel", HEAD),
        )
    }
    kernel, scale = (np.float64(params[k][n]) for k, n in BODY_LEAVES)
    for step, tree in enumerate(run(tx, params, steps=5)):
        grads = jax.tree.map(np.float64, make_grads(params, step))
        norm = np.sqrt(sum(np.sum(x**2) for x in jax.tree.leaves(grads)))
        factor = min(1.0, MAX_NORM / norm)
        tables["embed"].step(factor * grads["embed"]["embedding"])
        tables["lm_head"].step(factor * grads["lm_head"]["kernel"])
        kernel -= BODY * factor * grads["mlp"]["kernel"]
        scale -= BODY * factor * grads["norm"]["scale"]
        close = functools.partial(np.testing.assert_allclose, rtol=3e-5, atol=3e-6)
        close(tree["embed"]["embedding"], tables["embed"].theta)
        close(tree["lm_head"]["kernel"], tables["lm_head"].theta)
        close(tree["mlp"]["kernel"], kernel)
        close(tree["norm"]["scale"], scale)


BODY_LEAVES = (("mlp", "kernel"), ("norm", "scale"))


def test_recipe_equals_factored_rms_of_optax() -> None:
    """The recommended recipe is Optax's factored RMS, clipped, with two rates."""
    params = make_params()

    def factored(rate: float) -> optax.GradientTransformation:
        rms = optax.scale_by_factored_rms(
            min_dim_size_to_factor=1,
            decay_rate=0.8,
            decay_rate_fn=lambda i, exponent: jnp.minimum(
                1 - (i + 1.0) ** -exponent, 0.999
            ),
            epsilon=1e-30,
        )
        return optax.chain(rms, optax.scale_by_learning_rate(rate))

    theirs = optax.chain(
        optax.clip_by_global_norm(MAX_NORM),
        optax.multi_transform(
            {
                "embed": factored(EMBED),
                "head": factored(HEAD),
                "body": optax.adamw(BODY),
            },
            labels,
        ),
    )
    ours = with_ember(optax.adamw(BODY), max_norm=MAX_NORM, eps=1e-30)
    trees = run(ours, params, steps=30), run(theirs, params, steps=30)
    chex.assert_trees_all_close(*trees, rtol=1e-5, atol=1e-5)


def test_transformations_of_jax() -> None:
    params = make_params()
    tx = with_ember(optax.adamw(BODY), max_norm=MAX_NORM)
    # vmap: two models at once, each with its own norm.
    two = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), params)
    grads = jax.tree.map(lambda x: jnp.stack([x, 3 * x]), make_grads(params, 0))
    state = jax.vmap(tx.init)(two)
    updates = jax.vmap(tx.update)(grads, state, two)[0]
    alone = tx.update(make_grads(params, 0), tx.init(params), params)[0]
    chex.assert_trees_all_close(
        jax.tree.map(lambda x: x[0], updates), alone, rtol=1e-5, atol=1e-6
    )

    def after(rate: jax.Array) -> jax.Array:  # a hypergradient
        tx = ember_optax.with_ember(
            optax.sgd(BODY), embed_learning_rate=rate, head_learning_rate=HEAD
        )
        updates, _ = tx.update(make_grads(params, 0), tx.init(params), params)
        return jnp.sum(updates["embed"]["embedding"])

    rate = jnp.float32(EMBED)
    np.testing.assert_allclose(jax.grad(after)(rate), after(rate) / rate, rtol=1e-5)


def test_multi_steps_around_it() -> None:
    params = make_params()
    ours, theirs = (
        run(optax.MultiSteps(tx, 2), params)
        for tx in (
            with_ember(optax.adam(BODY), max_norm=MAX_NORM),
            by_hand(optax.adam(BODY)),
        )
    )
    chex.assert_trees_all_close(ours, theirs, rtol=2e-5, atol=2e-6)


def test_large_updates_can_be_skipped() -> None:
    params = make_params()
    tx = optax.MultiSteps(
        with_ember(optax.adam(BODY), max_norm=1.0),
        1,
        should_skip_update_fn=functools.partial(
            optax.skip_large_updates, max_squared_norm=1e6
        ),
    )
    state = tx.init(params)
    grads = jax.tree.map(jnp.ones_like, params)
    grads["embed"]["embedding"] = grads["embed"]["embedding"].at[3].set(6e31)
    updates, after = tx.update(grads, state, params)
    chex.assert_trees_all_equal(updates, jax.tree.map(jnp.zeros_like, params))
    chex.assert_trees_all_equal(after.inner_opt_state, state.inner_opt_state)


def test_a_damaged_row_zeroes_the_clipped_step_as_in_optax() -> None:
    params = make_params()
    grads = make_grads(params, 0)
    grads["embed"]["embedding"] = grads["embed"]["embedding"].at[3].set(6e31)
    for tx in (
        with_ember(optax.sgd(BODY), max_norm=1.0),
        by_hand(optax.sgd(BODY), 1.0),
    ):
        updates, state = tx.update(grads, tx.init(params), params)
        chex.assert_trees_all_equal(updates, jax.tree.map(jnp.zeros_like, params))
        chex.assert_tree_all_finite(state)


def test_other_tables_have_their_own_rates() -> None:
    params = make_params()
    params["bigram_embed"] = {"weight": jnp.ones((50, D))}
    params["value"] = {"hash": jnp.ones((40, D))}
    tx = with_ember(
        optax.sgd(BODY), other_learning_rates={"bigram": 0.6, "^value": 0.1}
    )
    state = tx.init(params)
    assert sorted(state.ember.tables) == [
        "bigram_embed:weight",
        "embed:embedding",
        "lm_head:kernel",
        "value:hash",
    ]
    grads = jax.tree.map(jnp.ones_like, params)
    updates, _ = tx.update(grads, state, params)
    for name, rate in (("bigram_embed", 0.6), ("value", 0.1), ("embed", EMBED)):
        (update,) = jax.tree.leaves(updates[name])
        np.testing.assert_allclose(update, -rate, rtol=1e-5)


def test_a_pattern_may_be_called_like_a_role() -> None:
    params = make_params()
    tx = ember_optax.with_ember(
        optax.sgd(BODY), other_learning_rates={"embed": 0.6, "head": 0.5}
    )
    updates, _ = tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params))
    np.testing.assert_allclose(updates["embed"]["embedding"], -0.6, rtol=1e-5)
    np.testing.assert_allclose(updates["lm_head"]["kernel"], -0.5, rtol=1e-5)


def test_labels_can_leave_a_table_to_the_body() -> None:
    params = make_params()

    def head_only(tree: Any) -> Any:
        return jax.tree.map(lambda x: "body" if x == "embed" else x, labels(tree))

    tx = ember_optax.with_ember(
        optax.adam(BODY), head_learning_rate=HEAD, labels=head_only
    )
    state = tx.init(params)
    assert list(state.ember.tables) == ["lm_head:kernel"]
    assert state.body[0].mu["embed"]["embedding"].shape == (V, D)
    tree = ember_optax.with_ember(
        optax.adam(BODY), head_learning_rate=HEAD, labels=head_only(params)
    )
    chex.assert_trees_all_equal(run(tx, params), run(tree, params))


def test_labels_may_be_a_prefix() -> None:
    params = make_params()
    prefix = {"embed": "embed", "mlp": "body", "norm": "body", "lm_head": "head"}
    for given in (prefix, lambda _: prefix):
        ours = run(with_ember(optax.adam(BODY), labels=given), params)
        chex.assert_trees_all_equal(ours, run(with_ember(optax.adam(BODY)), params))


def test_masked_and_routed() -> None:
    """Inside another transformation it trains what is left to it."""
    params = make_params()
    tx = with_ember(optax.adam(BODY), max_norm=MAX_NORM)
    frozen = optax.multi_transform(
        {"train": tx, "freeze": optax.set_to_zero()},
        {"embed": "freeze", "mlp": "train", "norm": "train", "lm_head": "train"},
    )
    after = run(frozen, params)[-1]
    chex.assert_trees_all_equal(after["embed"], params["embed"])
    assert not np.array_equal(after["lm_head"]["kernel"], params["lm_head"]["kernel"])
    # No table at all is left, as for LoRA factors.
    body_only = optax.masked(
        tx, {"embed": False, "mlp": True, "norm": True, "lm_head": False}
    )
    state = body_only.init(params)
    assert state.inner_state.ember.tables == {}
    updates, _ = body_only.update(make_grads(params, 0), state, params)
    chex.assert_tree_all_finite(updates)


def test_injected_learning_rates() -> None:
    params = make_params()
    schedule = optax.linear_schedule(0.0, EMBED, 4)
    tx = optax.inject_hyperparams(
        ember_optax.with_ember, static_args=("body", "vocab_size", "labels")
    )(
        optax.adam(BODY),
        embed_learning_rate=schedule,
        head_learning_rate=HEAD,
        vocab_size=V,
        max_norm=MAX_NORM,
    )
    state = tx.init(params)
    for step in range(3):
        _, state = tx.update(make_grads(params, step), state, params)
    np.testing.assert_allclose(
        state.hyperparams["embed_learning_rate"], schedule(2), rtol=1e-6
    )
    plain = ember_optax.with_ember(
        optax.adam(BODY),
        embed_learning_rate=schedule,
        head_learning_rate=HEAD,
        max_norm=MAX_NORM,
    )
    chex.assert_trees_all_close(run(tx, params), run(plain, params), rtol=1e-4)


def test_injection_without_static_arguments_is_an_error_with_their_name() -> None:
    inject = optax.inject_hyperparams(ember_optax.with_ember)
    rates = {"embed_learning_rate": EMBED, "head_learning_rate": HEAD}
    for name, value in (("vocab_size", V), ("vocab_axis", 0), ("labels", labels)):
        tx = inject(optax.sgd(BODY), **rates, **{name: value})
        with pytest.raises(ValueError, match=f"static_args.*'{name}'"):
            tx.init(make_params())


def test_optimizer_of_nnx_with_static_labels() -> None:
    model, tokens = NnxModel(V, D, is_tied=False), jnp.arange(8)[None]
    given = labels(nnx.state(model, nnx.Param))
    tx = with_ember(optax.adam(BODY), max_norm=MAX_NORM, labels=given)
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    @nnx.jit
    def step(model: NnxModel, optimizer: nnx.Optimizer) -> jax.Array:
        def loss_fn(model: NnxModel) -> jax.Array:
            logits = model.lm_head(model.mlp(model.embed(tokens)))
            return optax.softmax_cross_entropy_with_integer_labels(
                logits, tokens
            ).mean()

        loss, grads = nnx.value_and_grad(loss_fn)(model)
        optimizer.update(model, grads)
        return loss

    losses = [step(model, optimizer) for _ in range(10)]
    assert losses[-1] < losses[0]


ERRORS = {
    "no rate for the embedding": (
        lambda: ember_optax.with_ember(optax.sgd(1.0), head_learning_rate=1.0),
        "'embed/embedding' is an input table.*embed_learning_rate",
    ),
    "no rate for the head": (
        lambda: ember_optax.with_ember(optax.sgd(1.0), embed_learning_rate=1.0),
        "'lm_head/kernel' is a head.*head_learning_rate",
    ),
    "pattern without a match": (
        lambda: with_ember(optax.sgd(1.0), other_learning_rates={"bigram": 1.0}),
        "other_learning_rates has 'bigram', which matches no parameter",
    ),
    "pattern of something else": (
        lambda: with_ember(optax.sgd(1.0), other_learning_rates={"norm": 1.0}),
        "'norm/scale' has the shape",
    ),
    "label of another function": (
        lambda: with_ember(optax.sgd(1.0), labels=ember_optax.label_token_tables),
        "the label 'table'",
    ),
    "label for a part": (
        lambda: with_ember(optax.sgd(1.0), labels={"embed": "embed"}),
        "labels has no label for",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_mistakes_found_in_init(name: str) -> None:
    make, message = ERRORS[name]
    with pytest.raises(ValueError, match=message):
        make().init(make_params())


BUILD_ERRORS = {
    "body": ({"body": None}, "body must be an Optax optimizer"),
    "rate": ({"embed_learning_rate": "0.1"}, "embed_learning_rate must be"),
    "other": ({"other_learning_rates": {"a": None}}, r"other_learning_rates\['a'\]"),
    "regular expression": ({"other_learning_rates": {"(": 1.0}}, "not a valid regular"),
    "b2": ({"b2": 1.0}, r"b2 must be in \[0, 1\)"),
    "eps": ({"eps": 0.0}, "eps must be positive"),
    "norm": ({"max_norm": 0.0}, "max_norm must be positive"),
    "negative": ({"head_learning_rate": -0.1}, "head_learning_rate must not be neg"),
    "decay": ({"weight_decay": -1.0}, "weight_decay must not be negative"),
    "vocab_size": ({"vocab_size": 8, "labels": labels}, "only serves the default"),
    "array": ({"vocab_size": jnp.asarray(8)}, "static_args"),
    "axis": ({"vocab_axis": 0.5}, "vocab_axis"),
}


@pytest.mark.parametrize("name", BUILD_ERRORS)
def test_mistakes_found_when_built(name: str) -> None:
    options, message = BUILD_ERRORS[name]
    with pytest.raises(ValueError, match=message):
        ember_optax.with_ember(**{"body": optax.sgd(1.0)} | options)


def test_mistakes_found_in_update() -> None:
    params = make_params()
    tx = with_ember(optax.sgd(1.0), weight_decay=0.1)
    state = tx.init(params)
    with pytest.raises(ValueError, match="weight_decay, which needs the parameters"):
        tx.update(params, state)
    with pytest.raises(ValueError, match="WithEmberState is needed"):
        tx.update(params, state.ember, params)


def test_model_without_a_table() -> None:
    params = {"mlp": {"kernel": jnp.ones((4, 4))}}
    with pytest.raises(ValueError, match="labels="):
        with_ember(optax.sgd(1.0)).init(params)
    tx = with_ember(
        optax.sgd(1.0), labels=lambda tree: jax.tree.map(lambda _: "body", tree)
    )
    assert tx.init(params).ember.tables == {}


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision(dtype: Any) -> None:
    params = make_params(dtype)
    ours = run(with_ember(optax.sgd(BODY), max_norm=MAX_NORM), params)[-1]
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), params)
    exact = run(with_ember(optax.sgd(BODY), max_norm=MAX_NORM), wide)[-1]
    chex.assert_trees_all_close(
        jax.tree.map(lambda x: x.astype(jnp.float32), ours), exact, rtol=0.1, atol=0.1
    )
