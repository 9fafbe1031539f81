"""Collectives of a step on sharded token tables, on CPU devices and on TPU pods.

    python -m benchmarks.collectives.run

Compiles one step (update and apply) on an embedding and a head and reads the HLO; the
real TPU compiler needs no TPU (`pip install 'jax[tpu]'`). Nothing is run or
timed, so the numbers are exact. Muon, whose products of matrices take the compiler
minutes, is compiled for one mesh only. Writes benchmarks/collectives/results.json.
"""

import itertools
from collections import Counter
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from optax import contrib
from tqdm import tqdm

import ember_optax
from benchmarks.collectives.report import RESULTS, SHOWN
from benchmarks.common import store
from benchmarks.common.command import make_parser
from examples.lm.cost import bytes_per_device
from tests.compiling import compile_on_mesh, sharded_state, tpu_devices
from tests.hlo import collectives

MESHES = {"CPU": (4, 2), "v5e:8x8": (8, 8), "v5p:4x4x4": (16, 4), "v6e:4x4": (4, 4)}
# Mesh axes of the tokens and of the features.
LAYOUTS = {
    "rows": (("x", "y"), None),
    "columns": (None, ("x", "y")),
    "both": ("x", "y"),
}
OPTIMIZERS: dict[str, Callable[[Any], optax.GradientTransformation]] = {
    "Ember": lambda s: ember_optax.ember(1e-2, param_shardings=s),
    "Ember, no shardings given": lambda _: ember_optax.ember(1e-2),
    "Adafactor": lambda _: optax.adafactor(1e-2),
    "Adam": lambda _: optax.adam(1e-3),
    "Muon": lambda _: contrib.muon(1e-2),
}


def measure(
    mesh: jax.sharding.Mesh, layout: str, optimizer: str, shape: tuple[int, int]
) -> dict[str, Any]:
    """Compiles a step on an embedding and a head and returns its costs.

    Returns:
      `collectives`, for each kind its number and the bytes of their results on one
      device, and on one device `state_bytes` and `temp_bytes`.
    """
    tokens, features = LAYOUTS[layout]
    shardings = {
        "embed": NamedSharding(mesh, P(tokens, features)),
        "head": NamedSharding(mesh, P(features, tokens)),
    }
    params = {
        "embed": jax.ShapeDtypeStruct(shape, jnp.float32, sharding=shardings["embed"]),
        "head": jax.ShapeDtypeStruct(
            shape[::-1], jnp.float32, sharding=shardings["head"]
        ),
    }
    tx = OPTIMIZERS[optimizer](shardings)
    compiled = compile_on_mesh(tx, params)
    found = collectives(compiled.as_text())
    numbers = Counter(c.op for c in found)
    return {
        "collectives": {
            op: {"number": n, "bytes": sum(c.bytes for c in found if c.op == op)}
            for op, n in sorted(numbers.items())
        },
        "state_bytes": bytes_per_device(sharded_state(tx, params)),
        "temp_bytes": compiled.memory_analysis().temp_size_in_bytes,
    }


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--rows", type=int, default=131072, help="tokens in a table")
    parser.add_argument("--columns", type=int, default=4096, help="width of a table")
    args = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", 8)
    shape = (args.rows, args.columns)
    measured: dict[str, Any] = {mesh: {x: {} for x in OPTIMIZERS} for mesh in MESHES}
    cases = [
        case
        for case in itertools.product(MESHES, OPTIMIZERS, LAYOUTS)
        if case[1] != "Muon" or case[0] == SHOWN
    ]
    for name, optimizer, layout in (progress := tqdm(cases)):
        progress.set_description(f"{name}, {optimizer}, {layout}")
        devices = jax.devices("cpu")[:8] if name == "CPU" else tpu_devices(name)
        auto = (AxisType.Auto,) * 2
        mesh = jax.make_mesh(MESHES[name], ("x", "y"), auto, devices=devices)
        measured[name][optimizer][layout] = measure(mesh, layout, optimizer, shape)
    content = {"tables": [shape, shape[::-1]], "measured": measured}
    store.write_object(RESULTS, content, "libtpu")
    print(f"Wrote {RESULTS}")


if __name__ == "__main__":
    main()
