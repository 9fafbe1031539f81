r"""Converts a run of examples/pretrain.py from AdamW to Ember on its tables, or back.

    python -m examples.tools.convert_checkpoint --config=configs/pretrain_small.py \
        --config.workdir=runs/mine --to=ember

The last checkpoint of WORKDIR/adam becomes the first one of WORKDIR/ember, with its
metrics; --to=adam does the reverse. Give the flags of the new run, and continue it with
the same flags and --config.resume.

Nothing is trained: one device is enough, and on a machine without an accelerator
JAX_PLATFORMS=cpu.
"""

from absl import flags
from ml_collections import config_flags

import ember_optax
from examples.lm import Config, checkpoints, command, data, train
from examples.lm.config import resolve
from examples.lm.errors import UserError
from examples.lm.mesh import use_mesh
from examples.lm.optimizer import with_table_optimizer
from examples.lm.program import State, make_optimizer, make_program, table_rows

_OTHER = {"adam": "ember", "ember": "adam"}


def convert(config: Config, to: str) -> int:
    """Writes the last checkpoint of one run as one of another, and returns its step.

    Raises:
      UserError: there is no checkpoint to convert, or the new run has one.
    """
    resolve(config)
    config.mesh.update(data=1, fsdp=1, tensor=1)
    config.resume = True
    old_config = with_table_optimizer(config, _OTHER[to])
    config.tables.optimizer = to
    src, dst = (checkpoints.open_directory(config, name) for name in (_OTHER[to], to))
    run = checkpoints.identity(config, data.fingerprint(train.open_text(config).train))
    with (
        use_mesh(config) as mesh,
        checkpoints.locked(dst, overwrite=False),
        checkpoints.Checkpoints(src / "checkpoints", 100) as old,
        checkpoints.Checkpoints(dst / "checkpoints", 1) as new,
    ):
        if new.latest_step is not None:
            raise UserError(f"{dst} has checkpoints already: delete it.")
        restored = old.restore(make_program(old_config, mesh).state, None)
        if restored is None:
            raise UserError(f"{src} has no checkpoint: give the --config.workdir.")
        tables = config.tables if to == "adam" else old_config.tables
        b2 = tables.defaults.adam.b2 if tables.b2 is None else tables.b2
        move = ember_optax.from_adam if to == "ember" else ember_optax.to_adam
        tx = make_optimizer(config, table_rows(config))
        params, opt_state = restored.state
        state = State(params, move(opt_state, tx, params, adam_b2=b2))
        new.save(restored.step, state, restored.position, run)
    if (src / "metrics.jsonl").exists():
        (src / "metrics.jsonl").copy(dst / "metrics.jsonl", overwrite=True)
    return restored.step


def main() -> None:
    config, to = flags.FLAGS.config, flags.FLAGS.to
    print(f"{config.workdir}/{to} continues from step {convert(config, to)}.")


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", help_string="File with the config.")
    flags.mark_flag_as_required("config")
    flags.DEFINE_enum("to", "ember", list(_OTHER), "Optimizer of the tables.")
    command.start(main)
