"""What the TPU compiler makes of a step: traffic, estimated time and peak memory.

    python -m benchmarks.tpu_step

Compiles for one chip of each family, without a TPU (`pip install 'ember-optax[tpu]'`);
nothing is run, so the numbers are exact, and times are the compiler's own estimates.
Writes `benchmarks/results/tpu_step.json` and prints the tables of docs/performance.md.
"""

import argparse
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import SingleDeviceSharding
from tqdm import tqdm

import ember_optax
from benchmarks import results
from benchmarks.step import OPTIMIZERS, Optimizer, compile_step, sizes
from examples.lm import topology

CHIPS = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}
TABLES = [(50304, 768), (256128, 2048)]
DTYPES = ("float32", "bfloat16")
# A step of Muon is its matrix products; the compiler takes minutes over them.
COMPARED = {name: make for name, make in OPTIMIZERS.items() if name != "Muon"}
IN_TRAINING = ("SGD", "Ember", "Adam")
# Smaller tables are kept on the chip in part, where memory says little.
TRAINED = (131072, 2048)


def chip(family: str) -> SingleDeviceSharding:
    """Returns the sharding of arrays on one chip, to compile for."""
    return SingleDeviceSharding(topology.devices(CHIPS[family])[0])


def compile_training_step(
    table_optimizer: Optimizer,
    *,
    sharding: jax.sharding.Sharding | None = None,
    shape: tuple[int, int] = TRAINED,
    dtype: Any = jnp.float32,
    tied: bool = False,
    clip: bool = True,
) -> Any:
    """Compiles a training step with gradients of both kinds of token table.

    That of the embedding comes from a scatter-add, that of the head from a matrix
    product; if tied, their sum. They are clipped by their global norm.

    Args:
      table_optimizer: of the token tables.
      sharding: of all arrays; by default that of this machine's device.
      shape: of the embedding; the head has its transpose.
      dtype: of the parameters.
      tied: one table for both.
      clip: by the global norm.
    """
    v, d = shape
    shapes = {"embed": (v, d), "mlp": (d, d)} | ({} if tied else {"lm_head": (d, v)})

    def abstract(tree: Any) -> Any:
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
        )

    def loss_fn(params: Any, tokens: jax.Array) -> jax.Array:
        x = params["embed"][tokens[:, :-1]]
        x = x + jnp.tanh(x @ params["mlp"])
        logits = x @ (params["embed"].T if tied else params["lm_head"])
        return optax.softmax_cross_entropy_with_integer_labels(
            logits.astype(jnp.float32), tokens[:, 1:]
        ).mean()

    tx = optax.chain(
        optax.clip_by_global_norm(1.0) if clip else optax.identity(),
        optax.multi_transform(
            {"table": table_optimizer(), "body": optax.adamw(1e-3)},
            ember_optax.label_token_tables,
        ),
    )

    def step(params: Any, state: Any, tokens: jax.Array) -> tuple[Any, Any, jax.Array]:
        loss, grads = jax.value_and_grad(loss_fn)(params, tokens)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss

    params = abstract({k: jax.ShapeDtypeStruct(s, dtype) for k, s in shapes.items()})
    state = abstract(jax.eval_shape(tx.init, params))
    tokens = abstract(jax.ShapeDtypeStruct((2, 65), jnp.int32))
    return jax.jit(step, donate_argnums=(0, 1)).lower(params, state, tokens).compile()


def measure_tables(family: str) -> dict[str, dict[str, dict[str, Any]]]:
    """Returns what a step on one table takes: by table, dtype and optimizer."""
    measured: dict[str, Any] = {}
    for v, d in TABLES:
        by_dtype = measured[f"{v}x{d}"] = {}
        for dtype in DTYPES:
            table = jax.ShapeDtypeStruct((v, d), dtype, sharding=chip(family))
            by_dtype[dtype] = {}
            for name, make in COMPARED.items():
                step = compile_step(make(), table)
                seconds = step.cost_analysis().get("optimal_seconds", -1)
                by_dtype[dtype][name] = sizes(step, make(), table) | {
                    # Negative where the compiler gives no estimate.
                    "seconds": seconds if seconds > 0 else None
                }
    return measured


def measure_training(family: str) -> dict[str, dict[str, Any]]:
    """Returns the peak memory of a training step in bytes: by case and optimizer."""
    measured: dict[str, Any] = {}
    for tied in (False, True):
        for dtype in DTYPES:
            case = f"{'tied' if tied else 'untied'}, {dtype}"
            measured[case] = {}
            for name in IN_TRAINING:
                step = compile_training_step(
                    OPTIMIZERS[name], sharding=chip(family), dtype=dtype, tied=tied
                )
                peak = step.memory_analysis().peak_memory_in_bytes
                measured[case][name] = peak
    return measured


def markdown_of_tables(measured: dict[str, Any], table: str, dtype: str) -> str:
    """Returns the table of docs/performance.md for one table: traffic and time."""
    head = ["", "temporaries, v5p"]
    for family in CHIPS:
        head += [f"{family}: traffic", "time / Adam"]
    rows = []
    for name in COMPARED:
        temporaries = measured["v5p"]["tables"][table][dtype][name]["temp_bytes"]
        cells = [name, f"{temporaries / 1e6:,.1f} MB"]
        for family in CHIPS:
            by_name = measured[family]["tables"][table][dtype]
            ours, adams = by_name[name]["seconds"], by_name["Adam"]["seconds"]
            ratio = f"{ours / adams:.2f}" if ours and adams else "no estimate"
            cells += [f"{by_name[name]['traffic']:.2f}", ratio]
        rows.append(cells)
    return results.markdown(head, rows, left=1)


def markdown_of_summary(on_cpu: dict[str, Any], on_tpu: dict[str, Any]) -> str:
    """Returns the table of README.md: one table of 50304 x 768."""
    cpu, tpu = on_cpu["50304x768"], on_tpu["v5p"]["tables"]["50304x768"]["float32"]
    head = ["tables", "state, float32", "TPU v5p: bytes read and written"]
    head += ["estimated time", "2 CPU cores: time, float32", "bfloat16"]
    rows = []
    for name in ("SGD", "Ember", "Lion", "Adam", "Adafactor"):
        state = cpu["float32"][name]["state_bytes"] / 1e6
        times = [cpu[dtype][name]["over_adam"] for dtype in DTYPES]
        times.insert(0, tpu[name]["seconds"] / tpu["Adam"]["seconds"])
        cells = [name, f"{state:.2f} MB", f"{tpu[name]['traffic']:.2f} tables"]
        rows.append([*cells, *(f"{time:.2f}" for time in times)])
    return results.markdown(head, rows, left=1)


def markdown_of_training(measured: dict[str, Any]) -> str:
    """Returns the table of docs/performance.md of peak memory over that with SGD."""
    head = [
        "tables",
        *(f"{f}: {name} / SGD" for f in CHIPS for name in IN_TRAINING[1:]),
    ]
    rows = []
    for case in measured["v5p"]["training"]:
        peaks = [measured[family]["training"][case] for family in CHIPS]
        ratios = [p[name] / p["SGD"] for p in peaks for name in IN_TRAINING[1:]]
        rows.append([case, *(f"{ratio:.3f}" for ratio in ratios)])
    return results.markdown(head, rows, left=1)


def main() -> None:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    measured: dict[str, Any] = {}
    for family in (progress := tqdm(CHIPS)):
        progress.set_description(family)
        tables, training = measure_tables(family), measure_training(family)
        measured[family] = {"tables": tables, "training": training}
    content = {"libtpu": version("libtpu"), "measured": measured}
    path = results.write("tpu_step", content)
    for table in measured["v5p"]["tables"]:
        for dtype in DTYPES:
            print(f"\n{table}, {dtype}\n")
            print(markdown_of_tables(measured, table, dtype))
    print(f"\nPeak memory of a training step\n\n{markdown_of_training(measured)}")
    print(f"\nWrote {path}")


if __name__ == "__main__":
    main()
