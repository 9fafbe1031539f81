r"""Pretrains a language model: token tables on Ember, the body on AdamW.

    python -m examples.pretrain --config=configs/pretrain_small.py \
        --config.data.path='texts/*.txt' --config.workdir=runs/mine --compare

Flags that matter, as they are in configs/pretrain_small.py, which has all of them:

    --config.tables.optimizer=ember     or adam, adam_no_momentum, adafactor, sm3, sgd
    --config.tables.embed_learning_rate=None  the tuned one of the optimizer; likewise
    --config.tables.head_learning_rate=None   of the head, and of a tied table
    --config.tables.b2=None             the tuned one; that of ember grows
    --config.body.optimizer=adamw       or muon
    --config.data.path=None             the source of Python's standard library
    --config.steps=256
    --config.model.width=96
    --config.model.tied=False           one table for embedding and head
    --config.workdir=runs/pretrain_small
    --config.resume=False               go on from the last checkpoint in workdir
    --config.overwrite=False            delete the run that is in workdir
    --config.tensorboard=False          metrics for TensorBoard too
    --config.mesh.tensor=1              shard over so many devices, fsdp over the rest
    --config.compile_topology=None      v5p:4x4x4 says what a step costs on that pod

The same program runs on one device, on one host with several and on a pod: start it
once on every host. See docs/pods.md.

Ctrl-C or SIGTERM saves a checkpoint and ends the run; a second one ends it at once.
"""

import math
from pathlib import Path

from absl import flags
from flax import nnx
from ml_collections import ConfigDict, config_flags

import ember_optax
from examples.lm import (
    Config,
    command,
    config_check,
    data,
    metrics,
    processes,
    report,
    run_dir,
    training,
)
from examples.lm.mesh import use_mesh
from examples.lm.optimizer import reset_tables, table_state_bytes
from examples.lm.program import check_shards, make_model

NEXT = """
The same with your own text, and all flags:

  {python} -m examples.pretrain --config={file} --compare \\
    --config.data.path='texts/*.txt' --config.workdir=runs/mine
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
_BESIDE = flags.DEFINE_string(
    "beside", None, "Directory of an earlier run to show beside this one."
)


def main() -> None:
    config = _CONFIG.value
    config_check.check(config, _COMPARE.value)
    if config.compile_topology:
        print(report.compile_for(config))
        return
    processes.initialize()
    with processes.end_at_once_on_error():
        results = run(config, _COMPARE.value, _BESIDE.value)
        finished = all(result.step >= config.steps for result in results.values())
        if finished and processes.is_primary():
            file = config_flags.get_config_filename(flags.FLAGS["config"])
            print(NEXT.format(python=command.python(), file=file))


def run(
    config: Config, compare: bool = False, beside: str | None = None
) -> dict[str, training.Result]:
    """Trains one or two arms, prints what came out and returns it by arm.

    Raises:
      UserError: something is wrong with the config, the text, the directories or the
        earlier run, or training has diverged.
    """
    config_check.check(config, compare)
    workdir = Path(config.workdir)
    arms = {config.tables.optimizer: config}
    if compare:
        arms["adam"] = with_adam_tables(config)
    runs, earlier_loss = {}, math.nan
    if beside is not None:
        log = Path(beside, "metrics.jsonl")
        runs[beside] = metrics.read(log)
        earlier_loss = metrics.final_loss(runs[beside], log)
    with use_mesh(config) as mesh:
        check_shards(config, mesh)
    if processes.is_primary():
        for name, arm in arms.items():
            run_dir.refuse_to_replace(workdir / name, arm)

    params = nnx.state(nnx.eval_shape(lambda: make_model(config)), nnx.Param)
    say = print if processes.is_primary() else lambda *_, **__: None
    say(ember_optax.summarize(params), end="\n\n", flush=True)
    tokens = load(config)
    say(
        f"{tokens.train.size:,} tokens to train on,"
        f" {tokens.validation.size:,} to validate on\n",
        flush=True,
    )

    results = {}
    for name, arm in arms.items():
        results[name] = training.train(arm, tokens, workdir / name, sample=True)
        if results[name].step < config.steps:
            say(
                f"\nInterrupted at step {results[name].step}; a checkpoint is saved."
                " To go on, repeat the command with --config.resume"
            )
            return results

    plot = workdir / "loss.png"
    runs = {name: result.records for name, result in results.items()} | runs
    if processes.is_primary():
        metrics.plot(plot, runs)
    width = max(len(name) for name in ("adam_no_momentum", *runs)) + 2
    say(f"\n{'tables':<{width}}{'validation loss':>16}{'table state':>20}{'time':>9}")
    for name, result in results.items():
        state = f"{table_state_bytes(arms[name], params):,} bytes"
        loss, seconds = result.validation_loss, result.seconds
        say(f"{name:<{width}}{loss:>16.4f}{state:>20}{seconds:>7.0f} s")
    if beside is not None:
        say(f"{beside:<{width}}{earlier_loss:>16.4f}")
    say(f"\n{_samples(results)}")
    say(f"Loss plot: {plot}")
    return results


def _samples(results: dict[str, training.Result]) -> str:
    """Returns a validation text, and how the model of each arm goes on from there."""
    samples = {name: r.sample for name, r in results.items() if r.sample}
    parts = [f"--- {name} goes on ---\n{s.continuation}" for name, s in samples.items()]
    for sample in [*samples.values()][:1]:  # the text is the same for all
        parts.insert(0, f"--- A validation text ---\n{sample.prompt}")
    return "\n\n".join(parts) + "\n"


def load(config: Config) -> data.Tokens:
    """Returns the tokens; the primary process fills the cache for the others."""
    if not processes.is_primary():
        processes.wait_for_all("the corpus is in the cache")
    tokens = data.load(**config.data)
    if processes.is_primary():
        processes.wait_for_all("the corpus is in the cache")
    return tokens


def with_adam_tables(config: Config) -> Config:
    """Returns the same config with AdamW on the tables, at its own tuned settings."""
    config = ConfigDict(config.to_dict())
    reset_tables(config, "adam")
    return config


if __name__ == "__main__":
    command.start(main)
