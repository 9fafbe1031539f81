"""Whether configs of the programs on tunix make sense, before anything runs."""

from pathlib import Path
from typing import Any

from examples.lm import Config, corpus
from examples.lm.config_check import (
    BATCH,
    COUNT,
    DATA_FIELDS,
    FLAG,
    NOT_NEGATIVE,
    OPTIMIZER_FIELDS,
    POSITIVE,
    SEED,
    TEXT,
    Rule,
    check_writable,
    field_mistakes,
    integer,
    optimizer_mistakes,
    optional,
)
from examples.lm.errors import MissingFile, UserError


def _phase(name: str) -> dict[str, Rule]:
    fields = {**OPTIMIZER_FIELDS, "steps": COUNT, "batch_size": BATCH}
    return {f"{name}.{field}": rule for field, rule in fields.items()}


def _are_counts(value: Any) -> bool:
    return isinstance(value, tuple) and bool(value) and all(map(COUNT.holds, value))


_FINETUNING = {
    **DATA_FIELDS,
    **_phase("pretraining"),
    **_phase("finetuning"),
    "seed": SEED,
    "sequence_length": integer(2),
    "tasks": optional(TEXT),
    "checkpoint": optional(TEXT),
    "eval_every": COUNT,
    "eval_batches": COUNT,
    "tensorboard": FLAG,
    "workdir": TEXT,
    "resume": FLAG,
    "overwrite": FLAG,
}
_GRPO = {
    **_phase("supervised"),
    **_phase("rl"),
    "seed": SEED,
    "numbers": COUNT,
    "length": COUNT,
    "held_out": COUNT,
    "batch_sizes": Rule(_are_counts, "whole numbers from 1 up, such as (4, 16)"),
    "rl.generations": integer(2),
    "rl.temperature": POSITIVE,
    "rl.beta": NOT_NEGATIVE,
    "tensorboard": FLAG,
    "workdir": TEXT,
    "overwrite": FLAG,
}


def check_finetuning(config: Config, compare: bool = False) -> None:
    """Raises UserError, with a line for each mistake in a config of finetune.py."""
    _check(config, _FINETUNING, ("pretraining", "finetuning"))
    if compare and config.finetuning.tables.optimizer == "adam":
        raise UserError(
            "--compare adds a run with config.finetuning.tables.optimizer adam, which"
            " it is already: leave out one of the two."
        )
    if config.resume and config.overwrite:
        raise UserError(
            "config.resume goes on with a run and config.overwrite deletes it: give"
            " only one of them."
        )
    if config.tasks and not Path(config.tasks).is_file():
        raise MissingFile(
            f"tasks {config.tasks!r} names no file. Check the spelling, or leave it out"
            " for tasks made of the text."
        )
    corpus.find_files(config.data.path)
    check_writable("data.cache_dir", config.data.cache_dir)


def check_grpo(config: Config) -> None:
    """Raises UserError, with a line for each mistake in a config of grpo.py."""
    _check(config, _GRPO, ("supervised", "rl"))


def _check(config: Config, rules: dict[str, Rule], phases: tuple[str, ...]) -> None:
    # The fields of the model are those of tunix's ModelConfig.
    model = {f"model.{name}": Rule(lambda _: True, "") for name in config.model}
    mistakes = field_mistakes(config, rules | model)
    if not mistakes:
        for name in phases:
            tied = config.model.get("use_tied_embedding", False)
            mistakes += optimizer_mistakes(config[name], tied, f"config.{name}.")
    if mistakes:
        raise UserError("\n".join(mistakes))
    check_writable("workdir", config.workdir)
