import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

import ember_optax
from examples.lm import training
from examples.lm.model import Decoder, rotate

SIZES = {"vocab_size": 64, "width": 16, "layers": 2, "heads": 2, "mlp_width": 32}


def make(**settings):
    return Decoder(**{**SIZES, **settings}, rngs=nnx.Rngs(0))


@nnx.jit
def forward(model, tokens):
    return model(tokens)


def shapes(model):
    return jax.tree.map(jnp.shape, nnx.to_pure_dict(nnx.state(model, nnx.Param)))


def test_parameters_have_the_usual_names_and_shapes():
    params = shapes(make(layers=1))
    assert params == {
        "embed": {"embedding": (64, 16)},
        "layers": {
            0: {
                "attention_norm": {"scale": (16,)},
                "attention": {
                    name: {"kernel": (16, 16)}
                    for name in ("q_proj", "k_proj", "v_proj", "o_proj")
                },
                "mlp_norm": {"scale": (16,)},
                "mlp": {
                    "gate_proj": {"kernel": (16, 32)},
                    "up_proj": {"kernel": (16, 32)},
                    "down_proj": {"kernel": (32, 16)},
                },
            }
        },
        "norm": {"scale": (16,)},
        "lm_head": {"kernel": (16, 64)},
    }


def test_tied_model_has_one_table():
    untied, tied = shapes(make()), shapes(make(tied=True))
    del untied["lm_head"]
    assert tied == untied


@pytest.mark.parametrize("tied", [False, True])
def test_logits_are_float32_and_nearly_uniform_at_first(tied):
    logits = forward(make(tied=tied), jnp.ones((2, 8), jnp.int32))
    assert logits.shape == (2, 8, 64)
    assert logits.dtype == jnp.float32
    assert jnp.ptp(logits) < 1.0


@pytest.mark.parametrize("changed", [0, 4, 7])
def test_a_token_changes_no_earlier_logits(changed):
    model = make()
    tokens = jax.random.randint(jax.random.key(0), (2, 8), 0, 64)
    other = tokens.at[0, changed].add(1)
    same = jnp.all(forward(model, tokens) == forward(model, other % 64), axis=-1)[0]
    assert same[:changed].all()
    assert not same[changed:].any()


def test_order_matters():
    model = make()
    logits = forward(model, jnp.array([[1, 2, *range(6)], [2, 1, *range(6)]]))
    assert not jnp.allclose(logits[0, -1], logits[1, -1])


def test_attention_scores_depend_on_distance_alone():
    x, y = jax.random.normal(jax.random.key(0), (2, 8))
    queries = rotate(jnp.broadcast_to(x, (1, 10, 1, 8)))[0, :, 0]
    keys = rotate(jnp.broadcast_to(y, (1, 10, 1, 8)))[0, :, 0]
    scores = np.array(queries @ keys.T)
    for distance in range(10):
        diagonal = np.diagonal(scores, -distance)
        np.testing.assert_allclose(diagonal, diagonal[0], rtol=1e-4, atol=1e-5)
    assert abs(scores[0, 0] - scores[5, 0]) > 1e-3


def test_rotation_keeps_lengths_and_the_first_position():
    x = jax.random.normal(jax.random.key(0), (2, 6, 3, 8))
    y = rotate(x)
    np.testing.assert_array_equal(y[:, 0], x[:, 0])
    np.testing.assert_allclose(
        jnp.linalg.norm(y, axis=-1), jnp.linalg.norm(x, axis=-1), rtol=1e-5
    )


def test_loss_leaves_out_the_first_token():
    model = make()
    tokens = jax.random.randint(jax.random.key(0), (2, 8), 0, 64)
    log_probs = np.array(jax.nn.log_softmax(forward(model, tokens)))
    expected = -np.mean(
        [log_probs[b, t, tokens[b, t + 1]] for b in range(2) for t in range(7)]
    )
    np.testing.assert_allclose(training.loss_fn(model, tokens), expected, rtol=1e-6)


def test_bfloat16_computes_in_bfloat16_and_keeps_float32_parameters(standard_promotion):
    tokens = jnp.arange(16).reshape(2, 8)
    model = make(dtype="bfloat16")
    assert {x.dtype for x in jax.tree.leaves(nnx.state(model, nnx.Param))} == {
        jnp.dtype("float32")
    }
    x = jax.ShapeDtypeStruct((2, 8, 16), jnp.bfloat16)
    assert nnx.eval_shape(model.layers[0], x).dtype == jnp.bfloat16
    logits = forward(model, tokens)
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, forward(make(), tokens), atol=0.05)
    grads = nnx.jit(nnx.grad(training.loss_fn))(model, tokens)
    assert {x.dtype for x in jax.tree.leaves(grads)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("heads", [3, 16])
def test_heads_that_do_not_fit_are_an_error(heads):
    with pytest.raises(ValueError, match=rf"{heads} heads do not divide a width of 16"):
        make(heads=heads)


def test_labels_find_the_tables_and_nothing_else():
    params = nnx.state(make(), nnx.Param)
    tables = [table.path for table in ember_optax.summarize(params).tables]
    assert tables == ["embed/embedding", "lm_head/kernel"]


def test_parameters_are_sharded_on_a_mesh():
    auto = (jax.sharding.AxisType.Auto,) * 2
    mesh = jax.make_mesh((4, 2), ("fsdp", "tensor"), axis_types=auto)
    with jax.set_mesh(mesh):
        model = make()
    attention, mlp = model.layers[0].attention, model.layers[0].mlp
    for param, spec in [
        (model.embed.embedding, P("tensor", "fsdp")),
        (model.lm_head.kernel, P("fsdp", "tensor")),
        (attention.q_proj.kernel, P("fsdp", "tensor")),
        (attention.o_proj.kernel, P("tensor", "fsdp")),
        (mlp.up_proj.kernel, P("fsdp", "tensor")),
        (mlp.down_proj.kernel, P("tensor", "fsdp")),
        (model.norm.scale, P()),
    ]:
        found = param.get_value().sharding
        assert found.is_equivalent_to(jax.NamedSharding(mesh, spec), param.ndim)


def test_step_on_a_mesh_equals_step_on_one_device(config, standard_promotion):
    tokens = jax.random.randint(jax.random.key(0), (2, 17), 0, 300)

    def two_losses():
        model = training.make_model(config)
        tx = training.make_optimizer(config)
        optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
        for _ in range(3):
            loss = training.train_step(model, optimizer, tokens)
        return loss, optimizer

    expected, _ = two_losses()
    auto = (jax.sharding.AxisType.Auto,) * 2
    mesh = jax.make_mesh((4, 2), ("fsdp", "tensor"), axis_types=auto)
    with jax.set_mesh(mesh):
        loss, optimizer = two_losses()
        np.testing.assert_allclose(loss, expected, rtol=1e-5)
        state = optimizer.opt_state[1].inner_states["table"].inner_state[0]
        for moments in jax.tree.leaves(nnx.to_pure_dict(nnx.state(state.tables))):
            assert moments.sharding.is_fully_replicated
