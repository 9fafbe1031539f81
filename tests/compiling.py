"""Compiled steps, on CPU and ahead of time for TPUs and an H100 that are not here."""

import functools
import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.experimental import topologies
from jax.sharding import AxisType, NamedSharding, SingleDeviceSharding

import ember_optax

# A slice of each TPU family. A device of tpu7x is half a chip.
CHIPS = {
    "v5e": "v5e:2x2",
    "v5p": "v5p:2x2x1",
    "v6e": "v6e:2x2",
    "tpu7x": "tpu7x:2x2x1",
}
# What libtpu looks up on a TPU machine. One type serves slices of all families.
_TPU_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5p-128",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # otherwise a second process is refused
}
SCHEDULE = optax.warmup_cosine_decay_schedule(0.0, 1e-2, 10, 100)
_H100 = Path(__file__).parent / "compiled" / "h100.txtpb"


@functools.cache
def tpu_devices(name: str) -> list[Any]:
    """Devices of a TPU slice, such as "v5p:4x4x4", to compile for."""
    for key, value in _TPU_ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    return list(topologies.get_topology_desc(name, platform="tpu").devices)


def chip(family: str) -> SingleDeviceSharding:
    """Sharding of arrays on one TPU device, to compile for."""
    return SingleDeviceSharding(tpu_devices(CHIPS[family])[0])


def has_gpu_compiler() -> bool:
    return importlib.util.find_spec("jax_cuda12_plugin") is not None


@functools.cache
def h100() -> SingleDeviceSharding:
    """Sharding of arrays on one H100, to compile for."""
    # Autotuning would run kernels, for which the compiler needs a GPU.
    os.environ.setdefault("XLA_FLAGS", "--xla_gpu_autotune_level=0")
    topology = topologies.get_topology_desc(
        "h100", platform="cuda", target_config=_H100.read_text(), topology="1x1x1"
    )
    return SingleDeviceSharding(topology.devices[0])


def clip(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    return optax.chain(optax.clip_by_global_norm(1.0), tx)


def bytes_of(tree: Any) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def placed(tree: Any, sharding: jax.sharding.Sharding | None) -> Any:
    """Shapes of a tree, all with one sharding."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
    )


def make_step(tx: optax.GradientTransformation, **jit: Any) -> Any:
    """Jits update and apply, with parameters and state donated."""

    def step(params: Any, state: Any, grads: Any) -> tuple[Any, Any]:
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return jax.jit(step, donate_argnums=(0, 1), **jit)


def compile_step(tx: optax.GradientTransformation, params: Any) -> Any:
    """Compiles update and apply for the one device where the parameters are."""
    sharding = jax.tree.leaves(params)[0].sharding
    state = placed(jax.eval_shape(tx.init, params), sharding)
    return make_step(tx).lower(params, state, params).compile()


def sharded_state(tx: optax.GradientTransformation, params: Any) -> Any:
    """Shapes of an optimizer state on a mesh, with `opt_state_shardings`."""
    shardings = jax.tree.map(lambda x: x.sharding, params)
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        jax.eval_shape(tx.init, params),
        ember_optax.opt_state_shardings(tx, params, shardings),
    )


def compile_on_mesh(tx: optax.GradientTransformation, params: Any) -> Any:
    """Compiles update and apply on the mesh of the parameters' shardings."""
    state = sharded_state(tx, params)
    out_shardings = jax.tree.map(lambda x: x.sharding, (params, state))
    with jax.set_mesh(jax.tree.leaves(params)[0].sharding.mesh):
        step = make_step(tx, out_shardings=out_shardings)
        return step.lower(params, state, params).compile()


def sharded_tables(
    shapes: Sequence[tuple[int, int]], sharding: NamedSharding
) -> dict[str, jax.ShapeDtypeStruct]:
    return {
        f"table_{i}": jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)
        for i, shape in enumerate(shapes)
    }


def compile_clipped_on_mesh(
    shapes: Sequence[tuple[int, int]], sharding: NamedSharding
) -> Any:
    """Compiles a clipped step of several tables, which all have one sharding."""
    params = sharded_tables(shapes, sharding)
    is_auto = AxisType.Auto in sharding.mesh.axis_types
    tx = ember_optax.with_ember(
        optax.adamw(1e-3),
        head_learning_rate=1e-2,
        max_norm=1.0,
        labels=dict.fromkeys(params, "head"),
        param_shardings=dict.fromkeys(params, sharding) if is_auto else None,
    )
    return compile_on_mesh(tx, params)


def compile_training_step(
    tx: optax.GradientTransformation,
    *,
    shape: tuple[int, int],
    sharding: jax.sharding.Sharding | None = None,
    dtype: Any = jnp.float32,
    tied: bool = False,
) -> Any:
    """Compiles a training step with gradients of both kinds of token table.

    The gradient of the embedding comes from a scatter-add, that of the head from a
    matrix product; a tied table has their sum.

    Args:
      tx: optimizer of the whole model.
      shape: shape of the embedding; the head has its transpose.
      sharding: sharding of all arrays; by default this machine's device.
      dtype: dtype of the parameters.
      tied: whether one table serves as both.
    """
    v, d = shape
    shapes = {"embed": (v, d), "mlp": (d, d)} | ({} if tied else {"lm_head": (d, v)})

    def loss_fn(params: Any, tokens: jax.Array) -> jax.Array:
        x = params["embed"][tokens[:, :-1]]
        x = x + jnp.tanh(x @ params["mlp"])
        logits = x @ (params["embed"].T if tied else params["lm_head"])
        return optax.softmax_cross_entropy_with_integer_labels(
            logits.astype(jnp.float32), tokens[:, 1:]
        ).mean()

    def step(params: Any, state: Any, tokens: jax.Array) -> tuple[Any, Any, jax.Array]:
        loss, grads = jax.value_and_grad(loss_fn)(params, tokens)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss

    params = {k: jax.ShapeDtypeStruct(s, dtype) for k, s in shapes.items()}
    params = placed(params, sharding)
    state = placed(jax.eval_shape(tx.init, params), sharding)
    tokens = placed(jax.ShapeDtypeStruct((2, 65), jnp.int32), sharding)
    return jax.jit(step, donate_argnums=(0, 1)).lower(params, state, tokens).compile()
