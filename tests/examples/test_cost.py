"""Costs of a step with loops on a TPU slice, against the same step without loops."""

import contextlib
import importlib.util
from collections import Counter
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from examples.lm import cost
from examples.lm.attention import attend
from examples.lm.model import Decoder
from tests import hlo

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu is not installed: pip install 'jax[tpu]'",
)
pytestmark = pytest.mark.usefixtures("standard_promotion")

RULES = dict.fromkeys(("vocab", "logits", "heads", "mlp"), ("tensor",))
RULES |= dict.fromkeys(("batch", "table_width", "embed"), ("fsdp",))
RULES |= dict.fromkeys(("layers", "norm"), ())
BATCH, TIME, CHUNKS = 8, 256, 4
VOCABULARY, WIDTH, LAYERS, MLP_WIDTH = 2048, 128, 3, 512


@pytest.fixture(autouse=True)
def no_cache() -> Iterator[None]:
    """libtpu cannot load what it has compiled without TPUs."""
    jax.config.update("jax_enable_compilation_cache", False)
    yield
    jax.config.update("jax_enable_compilation_cache", True)


@contextlib.contextmanager
def use_slice(name: str) -> Iterator[Mesh]:
    grid = np.reshape(cost.tpu_devices(name), (2, 2))
    mesh = Mesh(grid, ("fsdp", "tensor"), (AxisType.Auto,) * 2)
    with jax.set_mesh(mesh), nnx.logical_axis_rules(tuple(RULES.items())):
        yield mesh


def loss_fn(model: Any, x: jax.Array, targets: jax.Array) -> jax.Array:
    logits = model.logits(x)
    return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()


def make_step(mesh: Mesh) -> Any:
    """Returns a step of gradient descent and its arguments, and the model's graph."""

    def make_model() -> Decoder:
        return Decoder(
            VOCABULARY,
            WIDTH,
            LAYERS,
            heads=2,
            mlp_width=MLP_WIDTH,
            scan_layers=True,
            dtype="bfloat16",
            rngs=nnx.Rngs(0),
        )

    def cut(x: jax.Array) -> jax.Array:
        return jnp.stack(jnp.split(x, CHUNKS, axis=1))

    def loss(params: Any, tokens: jax.Array) -> jax.Array:
        model = nnx.merge(graph, params)
        parts = cut(model.hidden(tokens)), cut(tokens)
        return jax.lax.map(lambda part: loss_fn(model, *part), parts).mean()

    def step(params: Any, tokens: jax.Array) -> Any:
        grads = jax.grad(loss)(params, tokens)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)

    graph, abstract = nnx.split(nnx.eval_shape(make_model), nnx.Param)
    shardings = nnx.to_pure_dict(nnx.get_named_sharding(abstract, mesh))
    params = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        nnx.to_pure_dict(abstract),
        shardings,
    )
    by_batch = NamedSharding(mesh, P("fsdp"))
    tokens = jax.ShapeDtypeStruct((BATCH, TIME), jnp.int32, sharding=by_batch)
    jitted = jax.jit(step, donate_argnums=0, out_shardings=shardings)
    return jitted, (params, tokens), graph


@needs_libtpu
@pytest.mark.nightly
def test_loops_are_counted_as_often_as_they_run() -> None:
    with use_slice("v5p:2x2x1") as mesh:
        step, (params, tokens), graph = make_step(mesh)
        x = jax.ShapeDtypeStruct(
            (*tokens.shape, WIDTH), jnp.bfloat16, sharding=tokens.sharding
        )
        repeated = cost.compile_repeated(
            graph, params, x, loss_fn, scanned_layers=LAYERS, loss_chunks=CHUNKS
        )
        compiled = step.lower(params, tokens).compile()
    once, found = cost.measure(compiled), cost.measure(compiled, repeated)
    weights = LAYERS * (4 * WIDTH + 3 * MLP_WIDTH) * WIDTH + VOCABULARY * WIDTH
    # Each weight once forward and twice backward; plain attention has six products.
    scores = 6 * LAYERS * BATCH * TIME**2 * WIDTH
    by_hand = (6 * weights * BATCH * TIME + 2 * scores) / mesh.size
    assert found.flops == pytest.approx(by_hand, rel=0.02)
    assert once.flops < by_hand / 2
    assert found.bytes_accessed > once.bytes_accessed
    assert found.seconds > once.seconds
    ops = Counter(c.op for c in hlo.collectives(compiled.as_text()))
    assert found.collectives == ops


def report(name: str, implementation: Any, time: int) -> str:
    """Reports the cost of attention."""
    with use_slice(name) as mesh:
        sharding = NamedSharding(mesh, P("fsdp", None, "tensor"))
        x = jax.ShapeDtypeStruct((4, time, 2, 64), jnp.bfloat16, sharding=sharding)
        step = jax.jit(lambda x: attend(x, x, x, implementation=implementation))
        flops = 4 * 459e9  # a millisecond on four devices of v5p
        return cost.report(name, step, [x], state={"x": x}, kernel_flops=flops)


@needs_libtpu
def test_report() -> None:
    text = report("v5p:2x2x1", "splash", 128)
    assert text.startswith("v5p:2x2x1: 4 devices, fsdp 2, tensor 2\n")
    assert "  x                                     32.77 kB\n" in text
    assert " of 95 GB: fits\n" in text
    assert "Attention, not in the estimate: 0.46 TFLOP, at least 1.00 ms\n" in text
    assert "not in the estimate" not in report("v5p:2x2x1", "plain", 128)


@needs_libtpu
def test_a_step_that_does_not_fit_says_so() -> None:
    text = report("v5e:2x2", "plain", 2**17)
    assert text.startswith("v5e:2x2 DOES NOT FIT. RESOURCE_EXHAUSTED")


@needs_libtpu
@pytest.mark.parametrize("name", ["v9:4x4", "v5p", "v5p:3x3x3", "v5e:big"])
def test_unknown_slice(name: str) -> None:
    with pytest.raises(ValueError, match=f"The topology is '{name}'"):
        cost.tpu_devices(name)


def test_without_libtpu_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"jax\[tpu\]"):
        cost.tpu_devices("v6e:4x4")


def test_bytes_per_device() -> None:
    mesh = Mesh(np.reshape(jax.devices()[:4], (2, 2)), ("a", "b"))
    tree = [
        jax.ShapeDtypeStruct((8, 6), dtype, sharding=NamedSharding(mesh, spec))
        for dtype, spec in (("float32", P("a", "b")), ("bfloat16", P(None, "b")))
    ]
    assert cost.bytes_per_device(tree) == 4 * 3 * 4 + 8 * 3 * 2
