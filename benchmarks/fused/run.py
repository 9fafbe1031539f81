"""The fused variant: what the TPU compiler counts, and how it trains a small model.

    python -m benchmarks.fused.run

Compiles a step for one chip of each TPU family, without a TPU, and trains a small
language model on Python's standard library by the exact rule and by the variant, on the
same batches. Takes a quarter of an hour on one core. Writes benchmarks/fused/steps.json
and a line for each seed to results.jsonl, where finished runs are not run again.
"""

import argparse
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from benchmarks.common import store
from benchmarks.fused import training
from benchmarks.fused.report import RESULTS, STEPS
from benchmarks.step.compiling import (
    DTYPES,
    OPTIMIZERS,
    bytes_of,
    clipped,
    compile_step,
)
from benchmarks.step.tpu import CHIPS, chip
from benchmarks.step.traffic import bytes_accessed
from configs import pretrain_small
from ember_optax.experimental import fused
from examples.lm import Config, data

TABLE = (256128, 2048)
OTHERS = ("SGD", "Ember", "Adam")


def compile_fused(
    shape: tuple[int, int],
    dtype: Any,
    sharding: jax.sharding.Sharding,
    vocab_axis: int = 0,
    clip: bool = False,
) -> Any:
    """Compiles a step with table and state donated."""

    def place(x: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    table = place(jax.ShapeDtypeStruct(shape, dtype))
    init = functools.partial(fused.init, vocab_axis=vocab_axis)
    state = jax.tree.map(place, jax.eval_shape(init, table))

    def step(table: Any, state: Any, grad: Any) -> Any:
        if clip:
            clipping = optax.clip_by_global_norm(1.0)
            grad, _ = clipping.update(grad, clipping.init(table))
        return fused.apply(
            table, state, grad, learning_rate=1e-2, vocab_axis=vocab_axis
        )

    return jax.jit(step, donate_argnums=(0, 1)).lower(table, state, table).compile()


def measure_steps() -> dict[str, dict[str, dict[str, Any]]]:
    """Returns `bytes_accessed_over_table`, estimated `seconds` and `temp_bytes`.

    By family, dtype and rule.
    """
    measured: dict[str, Any] = {}
    for family in CHIPS:
        for dtype in DTYPES:
            table = jax.ShapeDtypeStruct(TABLE, dtype, sharding=chip(family))
            found = measured.setdefault(family, {})[dtype] = {}
            for clip in (False, True):
                steps = {}
                for name in OTHERS:
                    tx = OPTIMIZERS[name]()
                    steps[name] = compile_step(clipped(name, tx) if clip else tx, table)
                steps["fused"] = compile_fused(
                    TABLE, jnp.dtype(dtype), chip(family), clip=clip
                )
                for name, step in steps.items():
                    accessed = bytes_accessed(step.as_text()) / bytes_of(table)
                    found[f"{name}, clipped" if clip else name] = {
                        "bytes_accessed_over_table": accessed,
                        "seconds": step.cost_analysis()["optimal_seconds"],
                        "temp_bytes": step.memory_analysis().temp_size_in_bytes,
                    }
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=300, help="of 512 tokens each")
    parser.add_argument("--seeds", type=int, default=5)
    args = parser.parse_args()
    store.write_object(STEPS, {"table": TABLE, "measured": measure_steps()}, "libtpu")
    config: Config = pretrain_small.get_config()
    tokens = data.load(**config.data)
    for seed in range(args.seeds):
        settings = {"seed": seed, "steps": args.steps}
        execute = functools.partial(training.train, tokens, **settings)
        store.run_once(RESULTS, settings, execute)
    print(f"Wrote {STEPS} and {RESULTS}")


if __name__ == "__main__":
    main()
