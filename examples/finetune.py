r"""Full finetuning of a pretrained model: its token tables on Ember, the rest on AdamW.

    python -m examples.finetune --config.model=DIR --config.data=chats.jsonl --compare

DIR is in Hugging Face's layout (Llama, Qwen 2 and 3, Gemma 3), as is the result, in
workdir/ARM/model. Conversations have `messages`, or `prompt` and `completion`, in JSON
Lines or Parquet. The model's chat template writes them; only the assistant's tokens
have a loss.

The most important flags; configs/finetune_smollm2.py has all of them:

    --config.model=.cache/smollm2-135m-instruct
    --config.data=None                by default, signatures of Python's functions
    --config.sequence_length=224      tokens of a row of packed conversations
    --config.batch_size=2             rows in a step
    --config.optimizer.steps=40
    --config.optimizer.learning_rate=0.0001  of the body
    --config.optimizer.head_learning_rate=None  by default, what is safe
    --config.plain_text=None          a file, to measure forgetting on
    --config.checkpoint_every=0       steps
    --config.tensorboard=False        losses and scalars of the token tables
    --config.workdir=runs/finetune
    --config.resume=False             continue from the last checkpoints in workdir
    --config.overwrite=False          delete the run in workdir

Needs tunix: pip install --editable . --group post-training
"""

# pyright: reportMissingImports=false

import json
import time
from pathlib import Path
from typing import NamedTuple

from flax import nnx

try:
    import tunix  # noqa: F401
except ModuleNotFoundError as error:
    raise SystemExit(
        f"{error}: pip install --editable . --group post-training"
    ) from error

import ember_optax
from examples.lm import Config
from examples.lm.errors import UserError
from examples.post_training import chats, models, tasks, training
from examples.post_training.chats import Batch, Example
from examples.post_training.optimizer import find_tables, make_optimizer, table_rates


class Data(NamedTuple):
    """Conversations to train on, and data to evaluate on."""

    train: list[Example]
    held_out: list[Batch]
    plain_text: list[Batch]
    questions: list[str]


class Result(NamedTuple):
    """Losses in nats per token, and answers to the questions."""

    held_out: float
    plain_text: float
    answers: list[str]


def run(config: Config, compare: bool = False) -> dict[str, Result]:
    """Finetunes in one or two arms, prints and returns the results.

    Raises:
      UserError: something is wrong with the config, the model, the data or workdir.
    """
    training.check_numbers(config)
    pretrained = models.load(Path(config.model))
    data = load_data(config, pretrained.tokenizer)
    tables = find_tables(pretrained.model)
    rates = table_rates(config.optimizer, tables)
    names = ("ember", "adamw") if compare else (config.optimizer.tables,)
    optimizers = {name: make_optimizer(config.optimizer, rates, name) for name in names}
    if config.resume and not config.checkpoint_every:
        raise UserError("--config.resume needs --config.checkpoint_every as well.")
    workdir = training.prepare_workdir(config, names)
    print(ember_optax.summarize(nnx.state(pretrained.model, nnx.Param)))
    for path, role, rms in tables:
        print(
            f"{path} learns at {rates[role]:.2g}, {rates[role] / rms:.2g} of its size"
        )

    results = {"before": evaluate(config, pretrained, data)}
    seconds = {"before": ""}
    for name, optimizer in optimizers.items():
        model = nnx.clone(pretrained.model)
        start = time.perf_counter()
        losses = training.train(
            model,
            optimizer,
            training.batches(
                data.train, config.sequence_length, config.batch_size, config.seed
            ),
            config.optimizer.steps,
            workdir / name / "checkpoints" if config.checkpoint_every else None,
            config.checkpoint_every,
            workdir / name / "tensorboard" if config.tensorboard else None,
        )
        seconds[name] = f"{time.perf_counter() - start:.0f} s"
        directory = workdir / name / "model"
        models.save(pretrained, model, directory)
        del model
        # Evaluate the saved model, which other programs will read.
        results[name] = evaluate(config, models.load(directory), data)
        metrics = {"train_losses": losses, **results[name]._asdict()}
        (workdir / name / "metrics.json").write_text(json.dumps(metrics, indent=2))

    print(f"\n{'':<8}{'loss on answers':>18}{'on plain text':>16}{'time':>10}")
    for name, result in results.items():
        losses = f"{result.held_out:>18.3f}{result.plain_text:>16.3f}"
        print(f"{name:<8}{losses}{seconds[name]:>10}")
    for i, question in enumerate(data.questions):
        print(f"\n{'asked':<8}{question}")
        for name, result in results.items():
            print(f"{name:<8}{result.answers[i].strip()}")
    print(f"\nModels: {', '.join(str(workdir / name / 'model') for name in names)}")
    return results


def load_data(config: Config, tokenizer: chats.ChatTokenizer) -> Data:
    if config.data:
        found = chats.read(Path(config.data))
        if not 0 < config.held_out < len(found):
            raise UserError(
                f"{config.data} has {len(found)} conversations, and the last"
                f" {config.held_out} are held out: change --config.held_out."
            )
        train, held_out = found[: -config.held_out], found[-config.held_out :]
    else:
        train, held_out = tasks.signatures()
        held_out = held_out[: config.held_out]
    length, rows = config.sequence_length, config.batch_size
    if rows < 1:
        raise UserError(f"--config.batch_size is {rows}, but it must be at least 1.")
    examples, counts = chats.encode_all(tokenizer, train, length)
    print(f"To train on: {counts}.")
    held_out_examples, counts = chats.encode_all(tokenizer, held_out, length)
    print(f"Held out: {counts}.")
    text = tasks.python_prose()
    if config.plain_text:
        text = Path(config.plain_text).read_text("utf-8", errors="replace")
    users = (m["content"] for x in held_out for m in x if m["role"] == "user")
    return Data(
        examples,
        [*training.in_batches(chats.pack(held_out_examples, length), rows)],
        training.plain_text(tokenizer, text, length, rows),
        [next(users, config.question), config.question],
    )


def evaluate(config: Config, pretrained: models.Pretrained, data: Data) -> Result:
    model, tokenizer, _ = pretrained
    return Result(
        training.evaluate(model, data.held_out),
        training.evaluate(model, data.plain_text),
        training.answers(model, tokenizer, data.questions, config.answer_tokens),
    )


if __name__ == "__main__":
    training.start(run, "configs/finetune_smollm2.py")
