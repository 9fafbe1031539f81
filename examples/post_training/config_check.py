"""Checks of configs of the programs on tunix, and of their directories."""

from pathlib import Path

from etils import epath

from examples.lm import Config
from examples.lm.errors import UserError
from examples.lm.optimizer import BODIES


def validate(config: Config, phases: tuple[str, ...], compare: bool = False) -> None:
    """Raises UserError, with a line for each mistake."""
    mistakes = []
    for name in phases:
        phase = config[name]
        if phase.tables.optimizer not in phase.tables.defaults:
            mistakes.append(
                f"config.{name}.tables.optimizer is {phase.tables.optimizer!r}, but"
                f" must be one of {', '.join(phase.tables.defaults)}."
            )
        if phase.body.optimizer not in BODIES:
            mistakes.append(
                f"config.{name}.body.optimizer is {phase.body.optimizer!r}, but must be"
                f" one of {', '.join(BODIES)}."
            )
        if phase.steps < 1 or phase.batch_size < 1:
            mistakes.append(f"config.{name}.steps and batch_size must be positive.")
    if compare and config[phases[-1]].tables.optimizer == "adam":
        mistakes.append("--compare adds an arm with adam, which this run is already.")
    if config.get("resume") and config.overwrite:
        mistakes.append("Give only one of config.resume and config.overwrite.")
    if mistakes:
        raise UserError("\n".join(mistakes))


def claim(config: Config, names: list[str]) -> None:
    """Deletes the results of an earlier run if `config.overwrite` is set.

    Raises:
      UserError: there is one, and the config does not say to resume or overwrite it.
    """
    workdir = Path(config.workdir)
    found = [path for name in names for path in workdir.glob(name)]
    if config.get("resume") or not found:
        return
    if not config.overwrite:
        raise UserError(
            f"{workdir} contains a run: add --config.overwrite to delete it, or give"
            " another --config.workdir."
        )
    for path in map(epath.Path, found):
        path.rmtree() if path.is_dir() else path.unlink()
