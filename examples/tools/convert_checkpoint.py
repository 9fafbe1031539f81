r"""Moves a run of examples/pretrain.py from AdamW to Ember on its tables, or back.

    python -m examples.tools.convert_checkpoint runs/mine/adam runs/mine/ember

SRC is the directory of a run and DST that of the run to be, which gets the last
checkpoint of SRC with another optimizer state, and its metrics. Which way to go follows
from SRC. Then go on with the flags of the old run and these:

    --config.tables.optimizer=ember --config.resume

Flags, instead of the tuned settings of the tables. They are needed again to go on, as
--config.tables.embed_learning_rate and so on:

    --embed_learning_rate=0.3
    --head_learning_rate=0.02
    --b2=0.99

Nothing is trained: one device will do, and on a machine without an accelerator
JAX_PLATFORMS=cpu.
"""

import shutil
from pathlib import Path

from absl import app, flags, logging
from ml_collections import ConfigDict

import ember_optax
from examples.lm import Config, checkpoints, run_dir
from examples.lm.command import one_line_errors
from examples.lm.errors import UserError
from examples.lm.mesh import use_mesh
from examples.lm.optimizer import make_optimizer, reset_tables, table_b2
from examples.lm.program import State, make_program

_SETTINGS = [
    flags.DEFINE_float(name, None, f"{meaning}, by default the tuned one.")
    for name, meaning in {
        "embed_learning_rate": "Learning rate of the embedding",
        "head_learning_rate": "Learning rate of the head, and of tied tables",
        "b2": "Decay of the second moment of the tables",
    }.items()
]

_OTHER = {"adam": "ember", "ember": "adam"}


def main(argv: list[str]) -> None:
    if len(argv) != 3:
        raise app.UsageError("give two directories of runs, SRC and DST")
    logging.set_verbosity(logging.WARNING)  # Orbax reports every checkpoint at length
    src, dst = map(Path, argv[1:])
    with one_line_errors():
        settings = {flag.name: flag.value for flag in _SETTINGS}
        step, config = convert(src, dst, **settings)
    print(f"{dst} can go on from step {step} with {config.tables.optimizer}.")


def convert(src: Path, dst: Path, **settings: float | None) -> tuple[int, Config]:
    """Writes the last checkpoint of one run as one of another, with its metrics.

    Args:
      src: directory of a run with Adam or Ember on the tables.
      dst: directory of the run to be, without checkpoints.
      **settings: of the tables in it, as in `config.tables`; by default the tuned ones.

    Returns:
      The step of the checkpoint and the config of the new run.

    Raises:
      UserError: `src` has no checkpoint or another optimizer, or `dst` has some.
    """
    steps = checkpoints.complete_steps(src / "checkpoints")
    if not steps:
        raise UserError(f"{src} has no checkpoint: give the directory of a run.")
    if checkpoints.complete_steps(dst / "checkpoints"):
        raise UserError(f"{dst} has checkpoints already: give another directory.")
    path = src / "checkpoints" / str(steps[-1])
    config = checkpoints.read_config(path)
    new_config = _with_other_optimizer(config, settings)
    old = _read(path, config)
    state = _convert(old.state, config, new_config)
    with (
        run_dir.locked(dst),
        checkpoints.open_manager(dst / "checkpoints", keep=1) as manager,
    ):
        checkpoints.save(manager, steps[-1], state, old.position, new_config, old.text)
    if (src / "metrics.jsonl").exists():
        shutil.copy(src / "metrics.jsonl", dst)
    return steps[-1], new_config


def _with_other_optimizer(config: Config, settings: dict[str, float | None]) -> Config:
    name = config.tables.optimizer
    if name not in _OTHER:
        raise UserError(
            f"The tables are trained with {name!r}, but only adam and ember can be"
            " converted into each other."
        )
    new: Config = ConfigDict(config.to_dict())
    reset_tables(new, _OTHER[name])
    new.tables.update(settings)
    return new


def _read(path: Path, config: Config) -> checkpoints.Checkpoint:
    """Reads a checkpoint of any mesh onto one device."""
    config = ConfigDict(config.to_dict())
    config.mesh = {"data": 1, "fsdp": 1, "tensor": 1}
    with use_mesh(config) as mesh:
        return checkpoints.read(path, make_program(config, mesh).state, config)


def _convert(state: State, config: Config, new_config: Config) -> State:
    decays = {c.tables.optimizer: table_b2(c) for c in (config, new_config)}
    to_ember = new_config.tables.optimizer == "ember"
    move = ember_optax.from_adam if to_ember else ember_optax.to_adam
    opt_state = move(
        state.opt_state,
        make_optimizer(new_config),
        state.params,
        adam_b2=decays["adam"],
        ember_b2=decays["ember"],
    )
    return State(state.params, opt_state)


if __name__ == "__main__":
    app.run(main)
