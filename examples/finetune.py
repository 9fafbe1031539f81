r"""Full finetuning with tunix's PeftTrainer: token tables on Ember, the body on AdamW.

    python -m examples.finetune --config=configs/finetune_small.py \
        --config.tasks=tasks.jsonl --config.workdir=runs/mine --compare

Flags that matter, as they are in configs/finetune_small.py, which has all of them:

    --config.tasks=None              your own prompts and completions, in JSON Lines
    --config.checkpoint=None         a tunix checkpoint to start from, not pretraining
    --config.finetuning.steps=200
    --config.finetuning.tables.embed_learning_rate=None  the tuned one; likewise
    --config.finetuning.tables.head_learning_rate=None   of the head
    --config.model.embed_dim=64   or any field of tunix's ModelConfig of Qwen3
    --config.seed=0
    --config.workdir=runs/finetune_small
    --config.resume=False            go on from the last checkpoints in workdir
    --config.overwrite=False         delete the run that is in workdir
    --config.tensorboard=False       metrics for TensorBoard too

Needs tunix: pip install --editable . --group post-training
"""

# pyright: reportMissingImports=false

import itertools
from pathlib import Path
from typing import NamedTuple

from absl import flags, logging
from etils import epath
from flax import nnx
from ml_collections import ConfigDict, config_flags
from tokenizers import Tokenizer

try:
    from tunix.models.qwen3.model import Qwen3
    from tunix.sft.checkpoint_manager import CheckpointManager
except ModuleNotFoundError as error:
    raise SystemExit(
        f"{error}: pip install --editable . --group post-training"
    ) from error

import ember_optax
from examples.lm import Config, command, data, metrics
from examples.lm.errors import UserError
from examples.lm.optimizer import TABLES, table_state_bytes, with_table_optimizer
from examples.post_training import config_check, generation, instructions, supervised
from examples.post_training.instructions import Task
from examples.post_training.model import make_model

SHOWN = 3  # tasks with the answers of each arm


class Tasks(NamedTuple):
    """Instruction data as tokens."""

    train: supervised.Batch
    validation: supervised.Batch


def main() -> None:
    logging.set_verbosity(logging.ERROR)
    run(flags.FLAGS.config, flags.FLAGS.compare)


def run(config: Config, compare: bool = False) -> dict[str, list[metrics.Record]]:
    """Finetunes in one or two arms, prints what came out and returns the losses.

    Raises:
      UserError: something is wrong with the config, the text, the tasks or the
        directories.
    """
    config_check.validate(config, ("pretraining", "finetuning"), compare)
    config_check.claim(config, ["pretrained", *TABLES, "loss.png"])
    workdir = Path(config.workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    return _run(config, compare, workdir)


def _run(
    config: Config, compare: bool, workdir: Path
) -> dict[str, list[metrics.Record]]:
    tasks = load_tasks(config)
    model = pretrained(config, workdir / "pretrained")
    params = nnx.state(model, nnx.Param)
    print(ember_optax.summarize(params), end="\n\n", flush=True)
    print(
        f"{len(tasks.train.tokens):,} tasks to train on,"
        f" {len(tasks.validation.tokens):,} to validate on\n",
        flush=True,
    )
    arms = {config.finetuning.tables.optimizer: config}
    if compare:
        arms["adam"] = with_adam_tables(config)
    tokenizer = Tokenizer.from_file(config.data.tokenizer)
    shown = instructions.some(tokenizer, tasks.validation, SHOWN)
    runs, written = {}, {}
    for name, arm in arms.items():
        finetuned = nnx.clone(model)
        runs[name] = finetune(arm, finetuned, tasks, workdir / name)
        if shown:
            written[name] = answers(config, finetuned, tokenizer, shown)
    plot = workdir / "loss.png"
    metrics.plot(epath.Path(plot), runs)
    print(f"\n{'tables':<12}{'first loss':>14}{'last loss':>14}{'table state':>20}")
    for name, records in runs.items():
        losses = [r["validation_loss"] for r in records if "validation_loss" in r]
        state = f"{table_state_bytes(arms[name].finetuning, params):,} bytes"
        print(f"{name:<12}{losses[0]:>14.4f}{losses[-1]:>14.4f}{state:>20}")
    if shown:
        print("\nValidation tasks, with the likeliest answers:\n")
        print(_table(shown, written))
    print(f"\nValidation loss on answers, in nats per token. Loss plot: {plot}")
    return runs


def answers(
    config: Config, model: Qwen3, tokenizer: Tokenizer, tasks: list[Task]
) -> list[str]:
    """Returns what a model writes for the prompts of some tasks."""
    return generation.answers(
        model,
        config.model,
        generation.TextTokenizer(tokenizer),
        [task.prompt for task in tasks],
        config.sequence_length,
    )


def _table(tasks: list[Task], written: dict[str, list[str]]) -> str:
    """Returns tasks as text: prompt, answer, and what each arm has written."""
    width = max(map(len, ("prompt", *written))) + 2
    blocks = []
    for i, task in enumerate(tasks):
        texts = {"prompt": task.prompt, "answer": task.answer}
        texts |= {name: found[i] for name, found in written.items()}
        indent = "\n" + " " * width
        lines = (
            f"{name:<{width}}{text.strip()}".replace("\n", indent)
            for name, text in texts.items()
        )
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def pretrained(config: Config, directory: Path) -> Qwen3:
    """Returns the model of the user's checkpoint, or one pretrained for a short time.

    Raises:
      UserError: there is no checkpoint where the user says.
    """
    vocab_size = Tokenizer.from_file(config.data.tokenizer).get_vocab_size()
    model = make_model(config.model, vocab_size, config.seed)
    if config.checkpoint:
        restore(model, Path(config.checkpoint))
        return model
    phase = config.pretraining
    train, validation = (
        data.open_source(path, config.sequence_length - 1, vocab_size)
        for path in (config.data.path, config.data.validation_path)
    )
    batches = data.train_batches([train], phase.batch_size, config.seed)
    sizes = phase.batch_size, config.eval_batches
    held_out = data.validation_batches(validation, *sizes)
    trainer = supervised.make_trainer(
        model, phase, config.eval_every, directory, "pretraining"
    )
    supervised.fit(
        trainer,
        map(supervised.all_of, batches),
        [supervised.all_of(tokens) for tokens in held_out],
        directory if config.tensorboard else None,
    )
    return model


def restore(model: Qwen3, directory: Path) -> None:
    """Gives a model the parameters of the last checkpoint in a directory of tunix's.

    Raises:
      UserError: there is none.
    """
    if not any(path.name.isdigit() for path in directory.glob("*")):
        raise UserError(
            f"checkpoint {str(directory)!r} holds no checkpoint of tunix. Give the"
            " directory whose subdirectories are named by their steps."
        )
    manager = CheckpointManager(str(directory.absolute()))
    manager.maybe_restore(model)
    manager.close()


def finetune(
    config: Config, model: Qwen3, tasks: Tasks, directory: Path
) -> list[metrics.Record]:
    """Trains all parameters of a model, in place, on the answers to the tasks."""
    phase = config.finetuning
    batches = instructions.batches(tasks.train, phase.batch_size, config.seed)
    held_out = instructions.batches(tasks.validation, phase.batch_size, seed=0)
    n = max(1, len(tasks.validation.tokens) // phase.batch_size)
    trainer = supervised.make_trainer(
        model, phase, config.eval_every, directory, phase.tables.optimizer
    )
    return supervised.fit(
        trainer,
        batches,
        list(itertools.islice(held_out, min(n, config.eval_batches))),
        directory if config.tensorboard else None,
    )


def load_tasks(config: Config) -> Tasks:
    """Returns the instruction data, split into two sides."""
    tokenizer = Tokenizer.from_file(config.data.tokenizer)
    if config.tasks:
        sides = instructions.split(instructions.read(config.tasks))
    else:
        documents = instructions.split(instructions.read_source())
        train, validation = map(instructions.from_source, documents)
        seen = set(train)
        sides = train, [task for task in validation if task not in seen]
    return Tasks(
        *(instructions.encode(tokenizer, s, config.sequence_length) for s in sides)
    )


def with_adam_tables(config: Config) -> Config:
    """Returns the same config with AdamW on the tables, at its own tuned settings."""
    config = ConfigDict(config.to_dict())
    config.finetuning = with_table_optimizer(config.finetuning, "adam")
    return config


if __name__ == "__main__":
    config_flags.DEFINE_config_file(
        "config", help_string="File with the configuration."
    )
    flags.mark_flag_as_required("config")
    flags.DEFINE_bool(
        "compare", False, "Run a second arm with AdamW on the token tables."
    )
    command.start(main)
