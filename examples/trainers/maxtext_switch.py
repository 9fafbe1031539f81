"""Goes on with Ember where a run of MaxText's AdamW has stopped.

    python maxtext_switch.py NEW_RUN path/to/config.yml run_name=old learning_rate=3e-4
    python ember_maxtext.py path/to/config.yml run_name=NEW_RUN learning_rate=3e-4

Copy two files into one folder: this one, and `maxtext.py` as `ember_maxtext.py`.

Reads the last checkpoint of the old run, folds the second moments of the token tables
into Ember's and writes a checkpoint of the new run. All else is kept to the bit.
"""

import sys
from functools import partial
from typing import Any

import jax
from flax import nnx
from maxtext.common import checkpointing  # pyright: ignore[reportMissingImports]
from maxtext.common.train_state_nnx import (  # pyright: ignore[reportMissingImports]
    TrainStateNNX,
)
from maxtext.optimizers import optimizers  # pyright: ignore[reportMissingImports]
from maxtext.trainers.pre_train import train  # pyright: ignore[reportMissingImports]
from maxtext.utils import train_utils  # pyright: ignore[reportMissingImports]

import ember_optax


def switch(launcher: Any, new_run: str, argv: list[str]) -> None:
    """Converts the last checkpoint of the run that `argv` describes.

    Args:
      launcher: the module `ember_maxtext`.
      new_run: name of the run that goes on with Ember.
      argv: arguments of the old run, as MaxText takes them.
    """
    optimizers.get_optimizer = launcher.get_builtin
    config, recorder = train.initialize(argv)
    _, _, _, _, mesh, _, data, *_, old = train_utils.setup_train_loop(config, recorder)

    optimizers.get_optimizer = launcher.get_optimizer
    new_config, _ = train.initialize([*argv, f"run_name={new_run}"])
    _, tx = train_utils.create_training_optimizer(new_config, old.model, mesh)
    with jax.set_mesh(mesh):
        optimizer = nnx.Optimizer(old.model, tx, wrt=nnx.Param)
        params, adam = nnx.as_pure(
            (nnx.state(old.model, nnx.Param), old.optimizer.opt_state)
        )
        convert = partial(
            ember_optax.from_adam,
            tx=tx,
            adam_b2=config.adam_b2,
            ember_b2=ember_optax.adafactor_decay(),
        )
        state = jax.jit(lambda adam, params: convert(adam, params=params))(adam, params)
    nnx.update(optimizer.opt_state, nnx.state(state))
    optimizer.step = old.optimizer.step

    manager = train_utils.create_checkpoint_manager(new_config, mesh, None)
    done = int(old.optimizer.step.get_value()) - 1  # MaxText's name of the checkpoint
    new = TrainStateNNX(old.model, optimizer)
    checkpointing.save_checkpoint(manager, done, new, new_config, data, force=True)
    checkpointing.wait_until_finished(manager)


if __name__ == "__main__":
    import ember_maxtext  # pyright: ignore[reportMissingImports]

    switch(ember_maxtext, sys.argv[1], ["", *sys.argv[2:]])
