r"""Full finetuning of a pretrained model: its token tables on Ember, the rest on AdamW.

    python -m examples.finetune --config.model=DIR --config.data=chats.jsonl --compare

DIR is in Hugging Face's layout (Llama, Qwen 2 and 3, Gemma 3), as is the result, in
workdir/ARM/model. Conversations have `messages`, or `prompt` and `completion`, in JSON
Lines or Parquet. The model's chat template writes them; only the assistant's tokens
have a loss.

Flags that matter, as they are in configs/finetune_smollm2.py, which has all of them:

    --config.model=.cache/smollm2-135m-instruct
    --config.data=None                by default, signatures of Python's functions
    --config.sequence_length=224      tokens of a row of packed conversations
    --config.batch_size=2             rows in a step
    --config.optimizer.steps=40
    --config.optimizer.learning_rate=0.0001  of the body
    --config.optimizer.head_learning_rate=None  by default, what is safe
    --config.plain_text=None          a file, to measure forgetting on
    --config.checkpoint_every=0       steps
    --config.workdir=runs/finetune
    --config.resume=False             continue from the last checkpoints in workdir
    --config.overwrite=False          delete the run in workdir

Needs tunix: pip install --editable . --group post-training
"""

# pyright: reportMissingImports=false

import json
import time
from pathlib import Path
from typing import Any, NamedTuple

from flax import nnx
from ml_collections import ConfigDict

try:
    import tunix  # noqa: F401
except ModuleNotFoundError as error:
    raise SystemExit(
        f"{error}: pip install --editable . --group post-training"
    ) from error

import ember_optax
from examples.post_training import Config, chats, command, models, tasks, training
from examples.post_training.chats import Batch, Example, Messages
from examples.post_training.errors import UserError
from examples.post_training.optimizer import find_tables, make_optimizer, table_rates


class Data(NamedTuple):
    """Conversations to train on, and what to evaluate on."""

    train: list[Example]
    held_out: list[Batch]
    plain_text: list[Batch]
    questions: list[str]  # to be answered before and after


class Result(NamedTuple):
    """Losses in nats per token, and answers to the questions."""

    held_out: float
    plain_text: float
    answers: list[str]


def run(config: Config, compare: bool = False) -> dict[str, Result]:
    """Finetunes in one or two arms, prints what came out and returns it.

    Raises:
      UserError: something is wrong with the config, the model, the data or workdir.
    """
    pretrained = models.load(Path(config.model))
    data = load_data(config, pretrained.tokenizer)
    tables = find_tables(pretrained.model)
    rates = table_rates(config.optimizer, tables)
    workdir = command.prepare_workdir(config)
    print(ember_optax.summarize(nnx.state(pretrained.model, nnx.Param)))
    for table in tables:
        rate = rates[table.role]
        print(f"{table.path} learns at {rate:.2g}, {rate / table.rms:.2g} of its size")

    arms = {config.optimizer.tables: config}
    if compare:
        arms |= {name: with_tables(config, name) for name in ("ember", "adamw")}
    results = {"before": evaluate(config, pretrained, pretrained.model, data)}
    seconds = {}
    for name, arm in arms.items():
        model = nnx.clone(pretrained.model)
        start = time.perf_counter()
        losses = training.train(
            model,
            make_optimizer(arm.optimizer, rates),
            training.batches(
                data.train, config.sequence_length, config.batch_size, config.seed
            ),
            config.optimizer.steps,
            workdir / name / "checkpoints" if config.checkpoint_every else None,
            config.checkpoint_every,
        )
        seconds[name] = time.perf_counter() - start
        directory = workdir / name / "model"
        models.save(pretrained, model, directory)
        del model
        # What other programs will read is evaluated.
        saved = models.load(directory)
        results[name] = evaluate(config, saved, saved.model, data)
        metrics = {"train_losses": losses, **results[name]._asdict()}
        (workdir / name / "metrics.json").write_text(json.dumps(metrics, indent=2))

    print(f"\n{'':<8}{'loss on answers':>18}{'on plain text':>16}{'time':>10}")
    for name, result in results.items():
        time_spent = f"{seconds[name]:.0f} s" if name in seconds else ""
        losses = f"{result.held_out:>18.3f}{result.plain_text:>16.3f}"
        print(f"{name:<8}{losses}{time_spent:>10}")
    for i, question in enumerate(data.questions):
        print(f"\n{'asked':<8}{question}")
        for name, result in results.items():
            print(f"{name:<8}{result.answers[i].strip()}")
    print(f"\nModels: {', '.join(str(workdir / name / 'model') for name in arms)}")
    return results


def load_data(config: Config, tokenizer: chats.ChatTokenizer) -> Data:
    """Loads conversations, held-out ones and plain text, as tokens."""
    if config.data:
        found = chats.read(Path(config.data))
        if len(found) <= config.held_out:
            raise UserError(
                f"{config.data} has {len(found)} conversations, and the last"
                f" {config.held_out} are held out: lower --config.held_out."
            )
        train, held_out = found[: -config.held_out], found[-config.held_out :]
    else:
        train, held_out = tasks.signatures()
        held_out = held_out[: config.held_out]
    length, rows = config.sequence_length, config.batch_size
    encoded = [chats.encode_all(tokenizer, x, length) for x in (train, held_out)]
    print(f"To train on: {encoded[0]}. Held out: {encoded[1]}.")
    text = Path(config.plain_text).read_text() if config.plain_text else None
    return Data(
        encoded[0].examples,
        [*training.in_batches(chats.pack(encoded[1].examples, length), rows)],
        training.plain_text(tokenizer, text or tasks.python_prose(), length, rows),
        [first_question(held_out), config.question],
    )


def first_question(conversations: list[Messages]) -> str:
    users = (m["content"] for x in conversations for m in x if m["role"] == "user")
    return next(users)


def evaluate(
    config: Config, pretrained: models.Pretrained, model: Any, data: Data
) -> Result:
    return Result(
        training.evaluate(model, data.held_out),
        training.evaluate(model, data.plain_text),
        training.answers(
            model, pretrained.tokenizer, data.questions, config.answer_tokens
        ),
    )


def with_tables(config: Config, name: str) -> Config:
    """Copies a config, with another optimizer of the tables."""
    config = ConfigDict(config.to_dict())
    config.optimizer.tables = name
    return config


if __name__ == "__main__":
    command.start(
        run,
        "configs/finetune_smollm2.py",
        "Run two arms: Ember on the token tables, and AdamW on everything.",
    )
