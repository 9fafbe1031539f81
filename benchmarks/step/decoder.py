"""Memory and time of a whole training step by the optimizer of its token tables.

    python -m benchmarks.step.decoder

compiles the training step of `examples/pretrain.py` for TPUs that are not present
(`pip install 'jax[tpu]'`): 12 layers of width 768 with a vocabulary of 50,304 on one
device, and configs/pretrain_1b_pod.py on 64.
Nothing is run. Writes benchmarks/step/decoder.json. `make bench-gpu-compiler` does the
same for one H100 and writes benchmarks/step/decoder_gpu.json.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.common import store
from benchmarks.common.command import make_parser
from benchmarks.step import parts as parts_of
from benchmarks.step.loops import compile_repeated, count
from benchmarks.step.report import DECODER, DECODER_GPU
from configs import pretrain_1b_pod, pretrain_124m
from examples.lm import Config
from examples.lm.mesh import use_mesh
from examples.lm.program import make_program
from tests.compiling import h100, tpu_devices

ON_ONE, ON_PODS = "12 x 768", "1b"
TABLES = ("sgd", "ember", "adam", "adafactor")
SLICES = {
    ON_ONE: ["v5p:2x2x1", "v6e:2x2", "tpu7x:2x2x1"],
    ON_PODS: ["v5p:4x4x4", "v6e:8x8", "tpu7x:4x4x2"],  # 64 devices of each
}


def make_config(model: str) -> Config:
    """Returns the config of a step, for one device or for 64."""
    if model == ON_PODS:
        config: Config = pretrain_1b_pod.get_config()
    else:
        config = pretrain_124m.get_config()
        config.batch_size = 16
        config.model.tie_embeddings = False
    config.model.attention = "plain"  # the compiler counts no work in a kernel
    return config


def measure(config: Config, devices: Sequence[Any]) -> dict[str, dict[str, Any]]:
    """Returns the costs of a step on a device, by optimizer of the tables.

    Returns:
      `peak_bytes`, the `state_bytes` of the tables' optimizer, the bytes that it
      accesses with the tables (`table_bytes`) and those of the whole step (`bytes`),
      and estimated `seconds`; None where the compiler gives no number.
    """
    measured = {}
    with use_mesh(config, devices) as mesh:
        parts = []
        if devices[0].platform == "tpu":
            parts = compile_repeated(config, make_program(config, mesh))
        for name in TABLES:
            arm = parts_of.with_overrides(config, tables={"optimizer": name})
            program = make_program(arm, mesh)
            step = program.train_step.lower(program.state, program.tokens).compile()
            tables = parts_of.compile_tables(arm, program)
            memory: Any = step.memory_analysis()
            measured[name] = {
                "peak_bytes": memory.peak_memory_in_bytes,
                "state_bytes": tables.state_bytes,
                "table_bytes": count("bytes accessed", tables.compiled),
                "bytes": count("bytes accessed", step, parts),
                "seconds": count("optimal_seconds", step, parts),
            }
    return measured


def write(path: Path, slices: dict[str, list[Any]], *packages: str) -> None:
    """Measures models on devices, given by model and name, and writes a file."""
    measured: dict[str, Any] = {}
    cases = [(model, case) for model, named in slices.items() for case in named]
    for model, (name, devices) in (progress := tqdm(cases)):
        progress.set_description(f"{model}, {name}")
        measured.setdefault(model, {})[name] = measure(make_config(model), devices)
    store.write_object(path, {"measured": measured}, *packages)
    print(f"Wrote {path}")


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--gpu", action="store_true", help="for an H100 instead")
    if parser.parse_args().gpu:
        device = list(h100().device_set)
        write(DECODER_GPU, {ON_ONE: [("h100", device)]}, "jax-cuda12-plugin")
        return
    slices = {
        model: [(name, tpu_devices(name)) for name in names]
        for model, names in SLICES.items()
    }
    slices[ON_ONE] = [(name, devices[:1]) for name, devices in slices[ON_ONE]]
    write(DECODER, slices, "libtpu")


if __name__ == "__main__":
    main()
