"""What a compiled training step costs a device, before or without running it."""

import math
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

import ember_optax
from examples.lm import Config, hlo, topology
from examples.lm.mesh import batch_sharding, use_mesh
from examples.lm.optimizer import table_optimizer
from examples.lm.program import Program, cross_entropy, make_model, make_program
from examples.lm.progress import clock


def compile_for(config: Config) -> str:
    """Compiles a step for `config.compile_topology` and returns what it costs.

    The real TPU compiler runs, on any machine; no TPU is needed and nothing is trained.
    """
    name = config.compile_topology
    devices = topology.devices(name)
    with use_mesh(config, devices) as mesh:
        program = make_program(config, mesh)
        start = time.perf_counter()
        try:
            with clock(f"compiling for {name}"):
                step = program.train_step.lower(program.state, program.tokens).compile()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            reason = str(error).splitlines()[0]
            return (
                f"{name} DOES NOT FIT. {reason}\nUse more chips, a smaller"
                " --config.batch_size, --config.model.remat=full or more"
                " --config.loss_chunks."
            )
        seconds = time.perf_counter() - start
        collectives = collectives_of_step(config, program, step)
        adam = make_program(changed(config, tables={"optimizer": "adam"}), mesh)
        with clock("compiling a block for the estimate"):
            estimate = cost(step, repeated_parts(config, mesh), "optimal_seconds")

    memory = step.memory_analysis()
    parameters = bytes_per_device(program.state.params)
    state, adam_state = table_state(program), table_state(adam)
    body_state = bytes_per_device(program.state.opt_state) - state
    peak = memory.peak_memory_in_bytes
    hbm = topology.hbm_bytes(name)
    fits = "fits" if peak <= hbm else "DOES NOT FIT"
    tokens = config.batch_size * config.sequence_length
    count = sum(math.prod(x.shape) for x in jax.tree.leaves(program.state.params))
    axes = ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    rows = [
        ("parameters", _readable(parameters)),
        ("state of the body's optimizer", _readable(body_state)),
        ("state of the tables' optimizer", _readable(state)),
        ("  with AdamW instead", _readable(adam_state)),
        ("temporaries, not all at once", _readable(memory.temp_size_in_bytes)),
        ("  of which gradients, at least", _readable(parameters)),
        ("peak of all", f"{_readable(peak)} of {hbm / 1e9:.0f} GB: {fits}"),
    ]
    lines = [
        f"{name}: {mesh.size} chips, {axes}",
        f"{count / 1e6:,.0f} million parameters, {tokens:,} tokens a step\n",
        "On each chip",
        *(f"  {label:<34}{value:>14}" for label, value in rows),
        f"\n{collectives}",
        "Estimated by the compiler: "
        + ("nothing" if math.isnan(estimate) else f"{1e3 * estimate:,.2f} ms a step"),
        f"Compiled in {seconds:.0f} s",
    ]
    return "\n".join(lines)


class Repeated(NamedTuple):
    """A part of a step that is a loop, whose body the compiler's counts hold once."""

    more: int  # times that it runs
    compiled: jax.stages.Compiled


def repeated_parts(config: Config, mesh: Mesh) -> list[Repeated]:
    """Compiles what a step repeats, forward and backward: a block, a part of the loss.

    The optimizers of the config do not matter.
    """
    one = changed(config, model={"layers": 1, "scan": False})
    graph, _ = nnx.split(nnx.eval_shape(lambda: make_model(one)), nnx.Param)
    params = make_program(one, mesh).state.params
    head = "embed" if config.model.tied else "lm_head"

    def block(layers: Any, params: Any, x: jax.Array, gradient: jax.Array) -> Any:
        def forward(layers: Any, x: jax.Array) -> jax.Array:
            return nnx.merge(graph, params | {"layers": layers}).blocks(x)

        return jax.vjp(forward, layers, x)[1](gradient)

    def loss(table: Any, params: Any, x: jax.Array, targets: jax.Array) -> jax.Array:
        model = nnx.merge(graph, params | {head: table})
        return cross_entropy(model, x, targets)

    def activations(time: int) -> jax.ShapeDtypeStruct:
        shape = config.batch_size, time, config.model.width
        dtype = jnp.dtype(config.model.dtype)
        return jax.ShapeDtypeStruct(shape, dtype, sharding=batch_sharding(mesh))

    parts = []
    if config.model.scan:
        x, layers = activations(config.sequence_length), params["layers"]
        shardings = jax.tree.map(lambda x: x.sharding, (layers, x))
        jitted = jax.jit(block, out_shardings=shardings)
        compiled = jitted.lower(layers, params, x, x).compile()
        parts.append(Repeated(config.model.layers - 1, compiled))
    if config.loss_chunks > 1:
        x, table = (
            activations(config.sequence_length // config.loss_chunks),
            params[head],
        )
        targets = jax.ShapeDtypeStruct(x.shape[:2], jnp.int32, sharding=x.sharding)
        shardings = jax.tree.map(lambda x: x.sharding, (table, x))
        jitted = jax.jit(jax.grad(loss, argnums=(0, 2)), out_shardings=shardings)
        compiled = jitted.lower(table, params, x, targets).compile()
        parts.append(Repeated(config.loss_chunks - 1, compiled))
    return parts


def cost(step: jax.stages.Compiled, parts: Sequence[Repeated], name: str) -> float:
    """Returns one of the compiler's counts of a whole step, NaN where it has none.

    Args:
      step: the compiled step.
      parts: what it repeats.
      name: such as "optimal_seconds" or "bytes accessed".
    """
    counts = [(1, step), *parts]
    return sum(times * _count(compiled, name) for times, compiled in counts)


def _count(compiled: jax.stages.Compiled, name: str) -> float:
    count = (compiled.cost_analysis() or {}).get(name, math.nan)
    return count if count > 0 else math.nan


def changed(config: Config, **changes: Any) -> Config:
    """Returns a copy of a config with other values in it."""
    config = ConfigDict(config.to_dict())
    config.update(changes)
    return config


def collectives_of_step(
    config: Config, program: Program, step: jax.stages.Compiled
) -> str:
    """Returns what a step communicates, and what of it is for the token tables."""
    return (
        "Collectives of a step (those in a loop counted once)\n"
        f"  {_listed(step)}\n"
        "Those of the token tables' optimizer\n"
        f"  {_listed(compile_tables(config, program))}\n"
    )


def compile_tables(config: Config, program: Program) -> jax.stages.Compiled:
    """Compiles what a step does to the token tables, once their gradients are there."""
    leaves, structure = jax.tree.flatten(program.state.params)
    labels = jax.tree.leaves(ember_optax.label_token_tables(program.state.params))
    tables = jax.tree.unflatten(
        structure,
        [
            x if label == "table" else None
            for x, label in zip(leaves, labels, strict=True)
        ],
    )
    shardings = jax.tree.map(lambda x: x.sharding, tables)
    tx = table_optimizer(config, shardings)
    state_shardings = ember_optax.opt_state_shardings(tx, tables, shardings)
    state = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        jax.eval_shape(tx.init, tables),
        state_shardings,
    )

    def step(tables: Any, state: Any, grads: Any) -> Any:
        updates, state = tx.update(grads, state, tables)
        return optax.apply_updates(tables, updates), state

    out = shardings, state_shardings
    jitted = jax.jit(step, donate_argnums=(0, 1), out_shardings=out)
    return jitted.lower(tables, state, tables).compile()


def _listed(compiled: jax.stages.Compiled) -> str:
    """Returns how many collectives of each kind there are, and their bytes."""
    found = hlo.collectives(compiled.as_text() or "")
    parts = [
        f"{n} {op} ({_readable(sum(c.bytes for c in found if c.op == op))})"
        for op, n in sorted(Counter(c.op for c in found).items())
    ]
    return ", ".join(parts) or "none"


def table_state(program: Program) -> int:
    """Returns the bytes on each device of the state of the tables' optimizer."""
    partition = program.state.opt_state
    return bytes_per_device(partition.inner_states["table"])


def bytes_per_device(tree: Any) -> int:
    """Returns the bytes of an abstract tree's part on each device."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * jnp.dtype(x.dtype).itemsize
        for x in jax.tree.leaves(tree)
    )


def _readable(n: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if n >= size:
            return f"{n / size:,.2f} {unit}"
    return f"{n / 1e3:,.2f} kB"
