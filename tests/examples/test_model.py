import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from examples.lm.model import Decoder, rotate
from examples.lm.program import loss_fn

SIZES = {"vocab_size": 64, "width": 16, "layers": 2, "heads": 2, "mlp_width": 32}
SIZES |= {"embed_norm": False, "head_init": 0.02}  # a head of zeros would hide all


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
    untied, tied = shapes(make()), shapes(make(tie_embeddings=True))
    del untied["lm_head"]
    assert tied == untied


@pytest.mark.parametrize("tied", [False, True])
def test_logits_are_products_of_the_last_norm_and_the_head(tied):
    model, tokens = make(tie_embeddings=tied), jnp.arange(16).reshape(2, 8)
    head = model.embed.embedding[...].T if tied else model.lm_head.kernel[...]
    expected = model.hidden(tokens) @ head
    np.testing.assert_allclose(forward(model, tokens), expected, atol=1e-5)


def test_a_token_changes_no_earlier_logits():
    model, changed = make(), 4
    tokens = jax.random.randint(jax.random.key(0), (2, 8), 0, 64)
    other = tokens.at[0, changed].add(1)
    same = jnp.all(forward(model, tokens) == forward(model, other % 64), axis=-1)[0]
    assert same[:changed].all()
    assert not same[changed:].any()


def test_attention_scores_depend_on_distance_alone():
    x, y = jax.random.normal(jax.random.key(0), (2, 8))
    queries = rotate(jnp.broadcast_to(x, (1, 10, 1, 8)))[0, :, 0]
    keys = rotate(jnp.broadcast_to(y, (1, 10, 1, 8)))[0, :, 0]
    scores = np.array(queries @ keys.T)
    for distance in range(10):
        diagonal = np.diagonal(scores, -distance)
        np.testing.assert_allclose(diagonal, diagonal[0], rtol=1e-4, atol=1e-5)
    assert abs(scores[0, 0] - scores[5, 0]) > 1e-3
    np.testing.assert_allclose(queries[0], x, rtol=1e-6)


def test_loss_leaves_out_the_first_token():
    model = make()
    tokens = jax.random.randint(jax.random.key(0), (2, 8), 0, 64)
    log_probs = np.array(jax.nn.log_softmax(forward(model, tokens)))
    expected = -np.mean(
        [log_probs[b, t, tokens[b, t + 1]] for b in range(2) for t in range(7)]
    )
    np.testing.assert_allclose(loss_fn(model, tokens), expected, rtol=1e-6)


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
    grads = nnx.jit(nnx.grad(loss_fn))(model, tokens)
    assert {x.dtype for x in jax.tree.leaves(grads)} == {jnp.dtype("float32")}


def test_loss_in_chunks_is_the_same():
    model = make()
    tokens = jax.random.randint(jax.random.key(0), (2, 9), 0, 64)
    whole = nnx.jit(nnx.value_and_grad(loss_fn))(model, tokens)
    parts = nnx.jit(nnx.value_and_grad(lambda *a: loss_fn(*a, chunks=4)))(model, tokens)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
        nnx.to_pure_dict(parts[1]),
        nnx.to_pure_dict(whole[1]),
    )
    np.testing.assert_allclose(parts[0], whole[0], rtol=1e-6)


def test_padding_is_never_predicted_and_gets_no_gradient():
    model = make(vocab_size=60, pad_vocab_to_multiple_of=32)
    tokens = jax.random.randint(jax.random.key(0), (2, 9), 0, 60)
    logits = forward(model, tokens)
    assert logits.shape == (2, 9, 64)
    assert np.all(np.isneginf(logits[..., 60:]))
    assert np.all(np.isfinite(logits[..., :60]))
    loss, grads = nnx.jit(nnx.value_and_grad(loss_fn))(model, tokens)
    assert np.isfinite(loss)
    np.testing.assert_array_equal(grads.lm_head.kernel[:, 60:], 0)
    assert np.all(grads.lm_head.kernel[:, :60] != 0)


@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_scan_and_remat_change_memory_and_not_the_model(remat):
    model, scanned = make(), make(scan_layers=True, remat=remat)
    # Of the same parameters: those of the blocks are stacked.
    stacked = jax.tree.map(
        lambda *layers: jnp.stack(layers),
        *(nnx.to_pure_dict(nnx.state(layer)) for layer in model.layers),
    )
    nnx.update(scanned, nnx.to_pure_dict(nnx.state(model)) | {"layers": stacked})
    tokens = jax.random.randint(jax.random.key(0), (2, 9), 0, 64)
    expected, grads = nnx.jit(nnx.value_and_grad(loss_fn))(model, tokens)
    found, scanned_grads = nnx.jit(nnx.value_and_grad(loss_fn))(scanned, tokens)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_allclose(
        scanned_grads.layers.mlp.up_proj.kernel[1],
        grads.layers[1].mlp.up_proj.kernel,
        atol=1e-6,
    )


def test_grouped_queries_share_keys_and_values():
    attention = make(kv_heads=1).layers[0].attention
    assert attention.k_proj.kernel.shape == attention.v_proj.kernel.shape == (16, 8)


def test_initial_scales():
    model = make(vocab_size=4096, embed_init=0.5, head_init=0)
    assert abs(model.embed.embedding[...].std() / 0.5 - 1) < 0.02
    np.testing.assert_array_equal(model.lm_head.kernel, 0)


@pytest.mark.parametrize("scan_layers", [False, True])
def test_norms_of_embedding_queries_and_keys(scan_layers):
    """With them, the scales of what they normalize do not matter."""
    model = make(qk_norm=True, embed_norm=True, scan_layers=scan_layers)
    tokens = jax.random.randint(jax.random.key(0), (2, 8), 0, 64)
    expected = forward(model, tokens)
    layers = [model.layers] if scan_layers else model.layers
    attentions = [layer.attention for layer in layers]
    projections = [x for a in attentions for x in (a.q_proj, a.k_proj)]
    for weight in (model.embed.embedding, *(x.kernel for x in projections)):
        weight[...] *= 30
    np.testing.assert_allclose(forward(model, tokens), expected, atol=1e-3)
    assert attentions[0].q_norm.scale.shape[-1] == 8


@pytest.mark.parametrize("scan_layers", [False, True])
def test_packed_documents_have_the_logits_of_each_alone(scan_layers):
    model = make(scan_layers=scan_layers, remat="full")
    tokens = jax.random.randint(jax.random.key(0), (2, 16), 0, 64)
    ids = jnp.broadcast_to(jnp.arange(16) // 8, (2, 16))
    packed = nnx.jit(lambda model, *args: model(*args))(model, tokens, ids)
    for part in (slice(0, 8), slice(8, 16)):
        alone = forward(model, tokens[:, part])
        np.testing.assert_allclose(packed[:, part], alone, atol=1e-5)
