"""The splash kernel against XLA's attention, and the choice between them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from examples.lm import attention
from examples.lm.attention import attend
from tests.compiling import tpu_devices
from tests.marks import needs_libtpu

RULES = (("batch", ("fsdp",)), ("heads", ("tensor",)))
KERNEL = "tpu_custom_call"

pytestmark = pytest.mark.usefixtures("standard_promotion")


def make_mesh(devices: Any, tensor: int = 2) -> Mesh:
    types = (AxisType.Auto,) * 2
    return Mesh(np.reshape(devices, (-1, tensor)), ("fsdp", "tensor"), types)


def inputs(batch: int = 2, time: int = 256, heads: int = 4, kv_heads: int = 2) -> Any:
    keys = jax.random.split(jax.random.key(0), 3)
    return tuple(
        jax.random.normal(key, (batch, time, n, 64))
        for key, n in zip(keys, (heads, kv_heads, kv_heads), strict=True)
    )


def documents(batch: int, time: int) -> jax.Array:
    """Ids of three documents of different lengths in each sequence."""
    starts = jnp.array([time // 5, time // 2])
    ids = jnp.searchsorted(starts, jnp.arange(time), side="right")
    return jnp.broadcast_to(ids, (batch, time))


def lower(devices: Any, implementation: Any, time: int = 256, **sizes: Any) -> Any:
    """Lowers the forward pass for a mesh of devices."""
    mesh = make_mesh(devices)
    with jax.set_mesh(mesh), nnx.logical_axis_rules(RULES):
        sharding = NamedSharding(mesh, P("fsdp"))
        shapes = jax.eval_shape(lambda: inputs(4, time, **sizes))
        abstract = [
            jax.ShapeDtypeStruct(x.shape, "bfloat16", sharding=sharding) for x in shapes
        ]
        return jax.jit(lambda *a: attend(*a, implementation=implementation)).lower(
            *abstract
        )


@pytest.mark.parametrize(("packed", "sharded"), [(False, False), (True, True)])
def test_splash_has_the_values_and_gradients_of_plain(
    packed: bool, sharded: bool
) -> None:
    arrays = inputs()
    ids = documents(2, 256) if packed else None

    def passes(function: Any, *arrays: jax.Array) -> Any:
        y, vjp = jax.vjp(function, *arrays)
        return y, vjp(jnp.cos(y))

    def plain(*arrays: jax.Array) -> jax.Array:
        return attend(*arrays, implementation="plain", segment_ids=ids)

    def splash(*arrays: jax.Array) -> jax.Array:
        return attention.splash(*arrays, ids, interpret=True)

    expected = jax.jit(lambda *a: passes(plain, *a))(*arrays)
    jitted = jax.jit(lambda *a: passes(splash, *a))
    if sharded:
        mesh = make_mesh(jax.devices()[:4])
        with jax.set_mesh(mesh), nnx.logical_axis_rules(RULES):
            found = jitted(*arrays)
    else:
        found = jitted(*arrays)
    np.testing.assert_allclose(found[0], expected[0], atol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), found[1], expected[1]
    )


def test_a_batch_that_does_not_divide_is_replicated() -> None:
    arrays = inputs(batch=1, time=128)
    with jax.set_mesh(make_mesh(jax.devices()[:4])), nnx.logical_axis_rules(RULES):
        found = jax.jit(lambda *a: attention.splash(*a, interpret=True))(*arrays)
    expected = attend(*arrays, implementation="plain")
    np.testing.assert_allclose(found, expected, atol=1e-5)


@needs_libtpu
@pytest.mark.parametrize("sizes", [{"time": 200}, {"kv_heads": 1}])
def test_auto_chooses_splash_except_for_shapes_that_it_refuses(sizes: Any) -> None:
    devices = tpu_devices("v5p:2x2x1")
    assert KERNEL in lower(devices, "auto").as_text()
    assert KERNEL not in lower(devices, "auto", **sizes).as_text()
    with pytest.raises(ValueError, match=r"model\.attention is 'splash', but .*: use"):
        lower(devices, "splash", **sizes)


def test_auto_chooses_plain_elsewhere() -> None:
    devices = jax.devices()[:4]
    plain = lower(devices, "plain").as_text()
    assert lower(devices, "auto").as_text() == plain


@pytest.mark.parametrize("implementation", ["cudnn", "splash"])
def test_kernels_of_other_devices_are_an_error(implementation: Any) -> None:
    with pytest.raises(ValueError, match=rf"'{implementation}', but .* is a CPU: use"):
        lower(jax.devices()[:4], implementation)


@needs_libtpu
@pytest.mark.usefixtures("no_cache")
def test_splash_compiles_for_a_pod() -> None:
    """Forward and backward; each chip attends for its own sequences and heads."""
    mesh = make_mesh(tpu_devices("v5p:2x2x1"))
    sharding = NamedSharding(mesh, P("fsdp", None, "tensor"))
    q, kv = (
        jax.ShapeDtypeStruct((4, 1024, n, 128), "bfloat16", sharding=sharding)
        for n in (8, 4)
    )

    def passes(q, k, v, ids):
        y, vjp = jax.vjp(
            lambda *a: attend(*a, implementation="auto", segment_ids=ids), q, k, v
        )
        return vjp(y)

    with jax.set_mesh(mesh), nnx.logical_axis_rules(RULES):
        ids = jax.ShapeDtypeStruct(
            (4, 1024), "int32", sharding=NamedSharding(mesh, P("fsdp"))
        )
        compiled = jax.jit(passes).lower(q, kv, kv, ids).compile()
    text = compiled.as_text()
    assert KERNEL in text
    assert not any(
        f" {op}" in text for op in ("all-reduce", "all-gather", "all-to-all")
    )
    scores = 2 * 4 * 1024 * 1024 * 4  # of one chip in float32, which plain stores
    assert compiled.memory_analysis().temp_size_in_bytes < scores / 2
