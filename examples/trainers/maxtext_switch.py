"""Converts the last checkpoint of a MaxText run with AdamW, to continue with Ember.

    python maxtext_switch.py NEW_RUN path/to/config.yml run_name=old learning_rate=3e-4
    python ember_maxtext.py path/to/config.yml run_name=NEW_RUN learning_rate=3e-4

Save two files in one folder: this one, and `maxtext.py` as `ember_maxtext.py`.

AdamW's second moments of the token tables become Ember's statistics. All other values
are copied unchanged.
"""

import sys
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
    """Writes the first checkpoint of a new run.

    Args:
      launcher: the module `ember_maxtext`.
      new_run: name of the run that continues with Ember.
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

        @jax.jit
        def convert(adam: Any, params: Any) -> Any:
            return ember_optax.from_adam(adam, tx, params, adam_b2=config.adam_b2)

        state = convert(adam, params)
    nnx.update(optimizer.opt_state, nnx.state(state))
    optimizer.step = old.optimizer.step

    manager = train_utils.create_checkpoint_manager(new_config, mesh, None)
    # MaxText numbers checkpoints by the last finished step, counted from 0.
    last_step = int(old.optimizer.step.get_value()) - 1
    new = TrainStateNNX(old.model, optimizer)
    checkpointing.save_checkpoint(manager, last_step, new, new_config, data, force=True)
    checkpointing.wait_until_finished(manager)


if __name__ == "__main__":
    import ember_maxtext  # pyright: ignore[reportMissingImports]

    switch(ember_maxtext, sys.argv[1], ["", *sys.argv[2:]])
