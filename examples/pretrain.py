r"""Pretrains a language model: token tables on Ember, the body on AdamW.

    python -m examples.pretrain --config=configs/pretrain_small.py \
        --config.data.path='tokens/train/*.bin' \
        --config.data.validation_path='tokens/validation/*.bin' \
        --config.data.tokenizer=tokens/tokenizer.json \
        --config.workdir=runs/mine --compare

examples.tools.tokenize_shards makes token files of text. The most important flags;
configs/pretrain_small.py has all of them:

    --config.tables.optimizer=ember     or adam, adafactor, sgd
    --config.tables.embed_learning_rate=None  default of the optimizer
    --config.tables.head_learning_rate=None   the same; also for a tied table
    --config.body.optimizer=adamw       or muon
    --config.steps=256
    --config.accumulate_steps=1         parts of a batch, one at a time in memory
    --config.model.tie_embeddings=False one table for embedding and head
    --config.workdir=runs/pretrain_small  or gs://my-bucket/runs/mine
    --config.resume=False               continue from the last checkpoint in workdir
    --config.overwrite=False            delete the run that is in workdir
    --config.tensorboard=False          write metrics for TensorBoard, also those of
                                        the token tables: docs/monitoring.md
    --config.mesh.tensor=1              devices to shard over; fsdp uses the rest
    --config.cost_report_topology=None  compile one step for this TPU slice, such as
                                        v5p:4x4x4, and print its cost

The same program runs on one device, on one host with several and on a pod: start it
once on every host. See docs/pods.md.

Ctrl-C or SIGTERM saves a checkpoint and ends the run; a second one ends it at once.
"""

import os
import sys

from absl import flags
from etils import epath
from flax import nnx
from ml_collections import config_flags

import ember_optax
from examples.lm import (
    Config,
    checkpoints,
    command,
    cost,
    distributed,
    metrics,
    train,
)
from examples.lm.config import resolve
from examples.lm.errors import UserError
from examples.lm.optimizer import label_roles, table_state_bytes, with_table_optimizer
from examples.lm.program import make_model, table_rows

NEXT = """
The same with your own text, and all flags:

  {python} -m examples.tools.tokenize_shards --train_vocab=4096 --validation=0.05 \\
    --out=tokens 'texts/*.txt'
  {python} -m examples.pretrain --help

What to set for a model of another size: docs/choosing.md
"""

_CONFIG = config_flags.DEFINE_config_file(
    "config", help_string="File with the configuration.", default=None
)
flags.mark_flag_as_required("config")
_COMPARE = flags.DEFINE_bool(
    "compare", False, "Run a second arm with AdamW on the token tables."
)
_COMPARE_WITH = flags.DEFINE_string(
    "compare_with", None, "Directory of an earlier run to show next to this one."
)


def main() -> None:
    config = _CONFIG.value
    resolve(config)
    if config.cost_report_topology:
        print(cost.report(config))
        return
    distributed.initialize()
    results = run(config, _COMPARE.value, _COMPARE_WITH.value)
    if all(result.step >= config.steps for result in results.values()):
        distributed.log(NEXT.format(python=os.path.relpath(sys.executable)))


def run(
    config: Config, compare: bool = False, compare_with: str | None = None
) -> dict[str, train.Result]:
    """Trains one or two arms, prints their results and returns them by arm.

    Raises:
      UserError: something is wrong with the config, the text, the directories or the
        earlier run, or training has diverged.
    """
    resolve(config)
    log = distributed.log
    arms = {config.tables.optimizer: config}
    if compare:
        if config.tables.optimizer == "adam":
            raise UserError("--compare adds an arm with adam, which this run is.")
        arms["adam"] = with_table_optimizer(config, "adam")
    earlier = {}
    if compare_with is not None:
        earlier[compare_with] = metrics.read(epath.Path(compare_with) / "metrics.jsonl")
        if not earlier[compare_with]:
            raise UserError(f"{compare_with}/metrics.jsonl has no records.")
    directories = {
        name: checkpoints.open_directory(arm, name) for name, arm in arms.items()
    }
    text = train.open_text(config)

    params = nnx.state(nnx.eval_shape(lambda: make_model(config)), nnx.Param)
    rows = table_rows(config)
    log(f"{ember_optax.summarize(params, label_roles(rows))}\n")
    n_tokens = sum(file.n_tokens for source in text.train for file in source.files)
    log(f"{n_tokens:,} tokens to train on\n")

    results = {}
    for name, arm in arms.items():
        results[name] = result = train.train(arm, directories[name], text)
        if result.step < config.steps:
            log(
                f"\nInterrupted at step {result.step}; a checkpoint is saved. To"
                " continue, repeat the command with --config.resume"
            )
            return results

    runs = {name: result.records for name, result in results.items()} | earlier
    plot = directories[config.tables.optimizer].parent / "loss.png"
    if distributed.is_primary():
        metrics.plot(plot, runs)
    width = max(len(name) for name in ("adafactor", *runs)) + 2
    log(f"\n{'tables':<{width}}{'validation loss':>16}{'table state':>20}{'time':>9}")
    for name, records in runs.items():
        loss, cells = metrics.last(records, "validation_loss"), ""
        if name in results:
            state = table_state_bytes(arms[name], params, rows)
            cells = f"{f'{state:,} bytes':>20}{results[name].seconds:>7.0f} s"
        log(f"{name:<{width}}{'-' if loss is None else f'{loss:.4f}':>16}{cells}")
    for name, result in results.items():
        if result.sample:
            prompt, continuation = result.sample
            if name == config.tables.optimizer:  # all arms continue the same text
                log(f"\n--- A text ---\n{prompt}")
            log(f"\n--- {name} continues ---\n{continuation}")
    log(f"\nLoss plot: {plot}")
    return results


if __name__ == "__main__":
    command.start(main)
