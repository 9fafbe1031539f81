"""Tests for examples/lm/attention.py. The kernel runs in interpret mode."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from examples.lm import attention
from examples.lm.errors import UserError
from examples.lm.mesh import use_mesh

TIME, HEADS, KV_HEADS, SIZE = 128, 4, 2, 8


@pytest.fixture
def qkv():
    shapes = [(2, TIME, n, SIZE) for n in (HEADS, KV_HEADS, KV_HEADS)]
    keys = jax.random.split(jax.random.key(0), 3)
    return [jax.random.normal(k, s) for k, s in zip(keys, shapes, strict=True)]


def plain(q, k, v, segments):
    bias = jnp.where(segments[:, None, :, None] == segments[:, None, None, :], 0, -1e9)
    mask = jnp.broadcast_to(bias == 0, (2, HEADS, TIME, TIME))
    return jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=True)


@pytest.mark.parametrize("segmented", [False, True])
@pytest.mark.parametrize("sizes", [{"fsdp": 1}, {"fsdp": 2, "tensor": 2}])
def test_splash_is_plain_attention(config, qkv, segmented, sizes):
    config.mesh.update(sizes)
    ids = jnp.arange(TIME) // 50 if segmented else jnp.zeros(TIME, jnp.int32)
    segments = jnp.stack([ids, ids[::-1].max() - ids[::-1]])

    def splash(q, k, v):
        given = segments if segmented else None
        return attention.splash(q, k, v, given, block=128, interpret=True)

    def value_and_grads(f):
        def loss(qkv):
            y = f(*qkv)
            return (y**2).sum(), y

        (_, y), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(qkv)
        return y, grads

    with use_mesh(config):
        found, grads = value_and_grads(splash)
    expected, expected_grads = value_and_grads(lambda *x: plain(*x, segments))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    for a, b in zip(grads, expected_grads, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


class Devices:
    """A mesh of one device of some platform."""

    def __init__(self, platform):
        self.devices = np.array([self])
        self.platform = platform


@pytest.mark.parametrize(
    ("name", "platform", "time", "chosen"),
    [
        ("auto", "tpu", 1024, "splash"),
        ("auto", "tpu", 100, "plain"),
        ("auto", "gpu", 1024, "plain"),
        ("auto", "cpu", 1024, "plain"),
        ("plain", "tpu", 1024, "plain"),
        ("cudnn", "gpu", 100, "cudnn"),
    ],
)
def test_the_implementation_follows_the_devices(name, platform, time, chosen):
    found = attention.choose(name, Devices(platform), time, "bfloat16")
    assert found == chosen


@pytest.mark.parametrize(
    ("name", "platform", "time", "dtype"),
    [
        ("splash", "cpu", 1024, "bfloat16"),
        ("splash", "tpu", 100, "bfloat16"),
        ("cudnn", "tpu", 1024, "bfloat16"),
        ("cudnn", "gpu", 1024, "float32"),
    ],
)
def test_a_kernel_that_cannot_run_is_refused(name, platform, time, dtype):
    with pytest.raises(UserError, match=f"attention={name} needs"):
        attention.choose(name, Devices(platform), time, dtype)
