"""Times of a step on this machine's accelerator: ten minutes.

    python -m benchmarks.step.device_timing           # on a GPU or TPU
    python -m benchmarks.step.device_timing --quick   # tiny, to try it on any device

Times one step on a token table by optimizer, with clipping, and the whole training step
of a decoder of 12 layers. Compares the updates of `ember_optax.with_ember` with those
of Ember behind `optax.clip_by_global_norm`, and the random bits of
`stochastic_rounding` with those of the CPU. Writes benchmarks/step/device_timing.json
after each part, with the name of the device.
"""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import ember_optax
from benchmarks.common import store
from benchmarks.common.command import make_parser
from benchmarks.step import decoder
from benchmarks.step.compiling import DTYPES, OPTIMIZERS, clipped, sizes
from benchmarks.step.parts import with_overrides
from benchmarks.step.run import time_in_turns
from examples.lm import Config
from examples.lm.mesh import use_mesh
from examples.lm.program import make_program
from tests.compiling import compile_step

RESULTS = Path(__file__).with_name("device_timing.json")
COMPARED = ("SGD", "Ember", "Lion", "Adam", "Adafactor")


def time_tables(shapes: list[tuple[int, int]], repeats: int) -> dict[str, Any]:
    """Returns medians of time and the compiler's sizes, by table, dtype, optimizer."""
    measured: dict[str, Any] = {}
    for v, d in shapes:
        for dtype in DTYPES:
            grad = 1e-3 * jax.random.normal(jax.random.key(0), (v, d), dtype)
            table = jax.ShapeDtypeStruct(grad.shape, grad.dtype)
            optimizers = {name: clipped(name) for name in COMPARED}
            steps = {name: compile_step(tx, table) for name, tx in optimizers.items()}
            found: dict[str, Any] = {}
            for name in COMPARED:  # pairs with Adam: all at once would not fit
                pair = {n: (optimizers[n], steps[n]) for n in ("Adam", name)}
                seconds = time_in_turns(pair, grad, repeats)
                ratios = zip(seconds[name], seconds["Adam"], strict=True)
                found[name] = {
                    "seconds": statistics.median(seconds[name]),
                    "over_adam": statistics.median(a / b for a, b in ratios),
                    "temp_bytes": steps[name].memory_analysis().temp_size_in_bytes,
                }
                if steps[name].cost_analysis():  # XLA:GPU has none
                    found[name] |= sizes(steps[name], table)
            measured.setdefault(f"{v}x{d}", {})[dtype] = found
            print(f"{v} x {d}, {dtype}", *_lines(found), sep="\n  ", flush=True)
    return measured


def time_decoder(config: Config, repeats: int) -> dict[str, Any]:
    """Returns the median time of a whole training step by optimizer of its tables."""
    tokens = np.random.default_rng(0).integers(
        0, 50_000, (config.batch_size, config.sequence_length + 1), dtype=np.int32
    )
    measured: dict[str, Any] = {}
    for name in decoder.TABLES:
        arm = with_overrides(config, tables={"optimizer": name})
        with use_mesh(arm, jax.devices()[:1]) as mesh:
            program = make_program(arm, mesh)
            state = program.init()
            batch = jax.device_put(tokens, program.tokens.sharding)
            step = program.train_step.lower(program.state, program.tokens).compile()
            seconds = []
            for _ in range(repeats + 1):
                start = time.perf_counter()
                state, loss = step(state, batch)
                jax.block_until_ready(loss)
                seconds.append(time.perf_counter() - start)
        memory = step.memory_analysis()
        measured[name] = {
            "seconds": statistics.median(seconds[1:]),  # the first warms up
            "temp_bytes": memory.temp_size_in_bytes,
            "peak_bytes": memory.peak_memory_in_bytes,
            "loss": float(loss),
        }
        del state, step
        print(f"whole step, {name} on the tables: {measured[name]}", flush=True)
    return measured


def largest_difference(shape: tuple[int, int]) -> float:
    """Returns the largest relative difference of updates by both ways of clipping."""
    grads = 0.1 * jax.random.normal(jax.random.key(1), shape)
    params = jnp.ones_like(grads)
    chained = optax.chain(optax.clip_by_global_norm(1.0), OPTIMIZERS["Ember"]())
    ours, theirs = (
        jax.jit(tx.update)(grads, tx.init(params), params)[0]
        for tx in (clipped("Ember"), chained)
    )
    return float(jnp.max(jnp.abs(ours - theirs)) / jnp.max(jnp.abs(theirs)))


def bits_agree(shape: tuple[int, int]) -> bool:
    """Returns True if a table is rounded here as on the CPU."""
    tx = ember_optax.stochastic_rounding(3)

    def rounded() -> np.ndarray:
        table = jnp.ones(shape, jnp.bfloat16)
        update = jnp.full(shape, 1e-3)
        updates, _ = tx.update(update, tx.init(table), table)
        return np.asarray(optax.apply_updates(table, updates), np.float32)

    with jax.default_device(jax.devices("cpu")[0]):
        expected = rounded()
    return np.array_equal(rounded(), expected)


def _lines(found: dict[str, Any]) -> list[str]:
    return [
        f"{name:<10}{1e3 * m['seconds']:9.3f} ms  {m['over_adam']:6.2f} of Adam's"
        f"{m['temp_bytes'] / 1e6:10.1f} MB of temporaries"
        for name, m in found.items()
    ]


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny; writes nothing")
    quick = parser.parse_args().quick
    config = decoder.make_config(decoder.ON_ONE)
    shapes, repeats = [(50304, 768), (131072, 4096)], 20
    if quick:
        shapes, repeats = [(512, 16)], 2
        config.update(batch_size=2, sequence_length=64)
        config.model.update(layers=1, width=24, mlp_width=48)
    parts: dict[str, Callable[[], Any]] = {
        "with_ember_minus_chain": lambda: largest_difference(shapes[0]),
        "bits_as_on_cpu": lambda: bits_agree(shapes[0]),
        "tables": lambda: time_tables(shapes, repeats),
        "decoder": lambda: time_decoder(config, repeats),
    }
    found: dict[str, Any] = {"device": jax.devices()[0].device_kind}
    for name, measure in parts.items():
        found[name] = measure()
        if name not in ("tables", "decoder"):  # which print their own lines
            print(f"{name}: {found[name]}", flush=True)
        if not quick:  # after each part, in case the device is lost
            store.write_object(RESULTS, found)
            print(f"Wrote {name} to {RESULTS}", flush=True)


if __name__ == "__main__":
    main()
