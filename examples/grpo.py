r"""Reinforcement learning with tunix's GRPOLearner: token tables on Ember or AdamW.

    python -m examples.grpo --config=configs/grpo_small.py \
        --config.rl.batch_size=64 --config.workdir=runs/mine

The task is to sort numbers; the reward is the share of places that are right. A short
supervised phase comes first.

Flags that matter, as they are in configs/grpo_small.py, which has all of them:

    --config.batch_sizes=(4, 16, 64)  prompts in a step, one run each, with --compare
    --config.rl.batch_size=16         prompts in a step, without --compare
    --config.rl.steps=300
    --config.rl.tables.optimizer=ember  or adam
    --config.rl.tables.embed_learning_rate=None  the tuned one; likewise
    --config.rl.tables.head_learning_rate=None   of the head
    --config.numbers=100
    --config.length=3
    --config.model.embed_dim=64       or any field of tunix's ModelConfig of Qwen3
    --config.seed=0
    --config.workdir=runs/grpo_small
    --config.overwrite=False          delete the run that is in workdir
    --config.tensorboard=False        metrics for TensorBoard too

Needs tunix: pip install --editable . --group post-training
"""

# pyright: reportMissingImports=false

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags, logging
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict, config_flags

try:
    from tunix.rl.grpo.grpo_learner import GRPOConfig, GRPOLearner
    from tunix.rl.rl_cluster import ClusterConfig, RLCluster, RLTrainingConfig, Role
    from tunix.rl.rollout.base_rollout import RolloutConfig
except ModuleNotFoundError as error:
    raise SystemExit(
        f"{error}: pip install --editable . --group post-training"
    ) from error

import ember_optax
from examples.lm import Config, command
from examples.lm.metrics import plt, smooth
from examples.lm.optimizer import (
    TABLES,
    make_optimizer,
    table_state_bytes,
    with_table_optimizer,
)
from examples.post_training import config_check, generation, sorting, supervised
from examples.post_training.model import make_model

SHOWN = 3  # prompts with the answers of each arm


class Result(NamedTuple):
    """What came out of a run."""

    rewards: list[float]  # of each step, mean over its answers
    held_out: float  # mean reward on other prompts at the end, with likeliest tokens
    solved: float  # share of these prompts with all numbers in place
    seconds: float
    answers: list[str]  # to these prompts


def main() -> None:
    logging.set_verbosity(logging.ERROR)  # tunix warns of every device that is no TPU
    run(flags.FLAGS.config, flags.FLAGS.compare)


def run(config: Config, compare: bool = False) -> dict[tuple[str, int], Result]:
    """Trains one or several arms, prints what came out and returns it.

    Results are by table optimizer and batch size.

    Raises:
      UserError: something is wrong with the config or the directory.
    """
    config_check.validate(config, ("supervised", "rl"))
    names = ["supervised", *(f"{name}_*" for name in TABLES), "reward.png"]
    config_check.claim(config, names)
    workdir = Path(config.workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    return _run(config, compare, workdir)


def _run(config: Config, compare: bool, workdir: Path) -> dict[tuple[str, int], Result]:
    model = supervise(config)
    params = nnx.state(model, nnx.Param)
    print(ember_optax.summarize(params), end="\n\n", flush=True)
    answers_before = answers(config, model)
    before, solved_before = score(config, answers_before)

    arms = [(config.rl.tables.optimizer, config.rl.batch_size)]
    if compare:
        arms = [(name, n) for n in config.batch_sizes for name in ("ember", "adam")]
    results = {}
    for name, batch_size in arms:
        arm = with_arm(config, name, batch_size) if compare else config
        directory = workdir / f"{name}_{batch_size}"
        results[name, batch_size] = reinforce(arm, model, directory)

    figure = workdir / "reward.png"
    plot(figure, {arm: result.rewards for arm, result in results.items()})
    line = "{:<8}{:>6}{:>15}{:>17}{:>18}{:>16}{:>8}".format
    head = "tables", "batch", "train reward", "held-out reward", "held-out solved"
    print("\n" + line(*head, "table state", "time"))
    print(line("(before)", "", "", f"{before:.3f}", f"{solved_before:.0%}", "", ""))
    for (name, batch_size), result in results.items():
        state = table_state_bytes(with_arm(config, name, batch_size).rl, params)
        cells = f"{final(result.rewards):.3f}", f"{result.held_out:.3f}"
        cells += f"{result.solved:.0%}", f"{state:,} bytes", f"{result.seconds:.0f} s"
        print(line(name, batch_size, *cells))
    written = {("(before)", ""): answers_before}
    written |= {(name, str(n)): result.answers for (name, n), result in results.items()}
    print(f"\n{_table(held_out_prompts(config)[:SHOWN], written)}")
    print(f"\nReward plot: {figure}")
    return results


def _table(prompts: list[str], written: dict[tuple[str, str], list[str]]) -> str:
    """Returns prompts as text, with their answers and those of each arm."""
    right = [" ".join(sorting.answer(prompt)) for prompt in prompts]
    rows = {("tables", "batch"): prompts, ("(right)", ""): right} | written
    width = max(map(len, prompts)) + 4
    return "\n".join(
        f"{name:<8}{n:>6}" + "".join(f"{text:>{width}}" for text in texts[:SHOWN])
        for (name, n), texts in rows.items()
    )


def supervise(config: Config) -> nnx.Module:
    """Returns a model that sorts some of the prompts."""
    tokenizer = sorting.Tokenizer(config.numbers)
    model = make_model(config.model, len(tokenizer), config.seed)
    prompts = _prompts(config, config.supervised, stream=0)
    batches = (sorting.supervised_batch(tokenizer, p) for p in prompts)
    trainer = supervised.make_trainer(
        model, config.supervised, config.supervised.steps, description="supervised"
    )
    held_out = [sorting.supervised_batch(tokenizer, held_out_prompts(config))]
    board = Path(config.workdir, "supervised") if config.tensorboard else None
    supervised.fit(trainer, batches, held_out, board)
    return model


def reinforce(
    config: Config, model: nnx.Module, directory: Path | None = None
) -> Result:
    """Trains a copy of a model with GRPO."""
    phase, tokenizer = config.rl, sorting.Tokenizer(config.numbers)
    prompt_tokens = config.length + 1
    rollout = RolloutConfig(
        max_prompt_length=prompt_tokens,
        max_tokens_to_generate=config.length,
        kv_cache_size=prompt_tokens + config.length,
        temperature=phase.temperature,
    )
    mesh = Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("fsdp", "tp"))
    cluster = RLCluster(
        actor=nnx.clone(model),
        reference=model,
        tokenizer=tokenizer,
        cluster_config=ClusterConfig(
            role_to_mesh=dict.fromkeys(
                (Role.ACTOR, Role.REFERENCE, Role.ROLLOUT), mesh
            ),
            rollout_config=rollout,
            training_config=RLTrainingConfig(
                actor_optimizer=make_optimizer(phase),
                max_steps=phase.steps,
                eval_every_n_steps=phase.steps,
                checkpoint_root_directory=directory and str(directory.absolute()),
            ),
        ),
    )
    learner = GRPOLearner(
        cluster,
        GRPOConfig(num_generations=phase.generations, beta=phase.beta),
        sorting.reward,
    )

    def batches() -> Iterator[dict]:
        for step, prompts in enumerate(_prompts(config, phase, stream=1)):
            # tunix draws the same random numbers at every step otherwise.
            rollout.seed = config.seed * phase.steps + step
            yield {"prompts": np.array(prompts)}

    start = time.perf_counter()
    with supervised.tensorboard(
        directory if config.tensorboard else None, step=0
    ) as show:

        def show_reward(step: Any) -> None:
            if found := step.metrics.get("rewards/score/mean"):  # none after the last
                reward = float(np.mean(found[0]))
                show({"step": step.global_steps + 1, "reward": reward})

        cluster.with_external_metrics_logger(show_reward)
        learner.train(batches())
    seconds = time.perf_counter() - start
    rewards = supervised.history(cluster.actor_trainer, "rewards", "score/mean")
    found = answers(config, cluster.actor_trainer.model)
    return Result(rewards, *score(config, found), seconds, found[:SHOWN])


def evaluate(config: Config, model: nnx.Module) -> tuple[float, float]:
    """Returns mean reward and share of prompts solved, with the likeliest tokens."""
    return score(config, answers(config, model))


def answers(config: Config, model: nnx.Module) -> list[str]:
    """Returns the answers to the held-out prompts."""
    tokenizer, prompts = sorting.Tokenizer(config.numbers), held_out_prompts(config)
    length = 2 * config.length + 1  # numbers, a sign, and the numbers in order
    return generation.answers(model, config.model, tokenizer, prompts, length)


def score(config: Config, answers: list[str]) -> tuple[float, float]:
    """Returns mean reward and share of prompts solved."""
    rewards = sorting.reward(held_out_prompts(config), answers)
    return float(np.mean(rewards)), float(np.mean([r == 1 for r in rewards]))


def held_out_prompts(config: Config) -> list[str]:
    rng = np.random.default_rng([config.seed, 2])
    return sorting.prompts(rng, config.held_out, config.numbers, config.length)


def with_arm(config: Config, tables: str, batch_size: int) -> Config:
    """Returns the same config with another arm, at its own tuned settings."""
    config = ConfigDict(config.to_dict())
    config.rl.batch_size = batch_size
    config.rl = with_table_optimizer(config.rl, tables)
    return config


def final(rewards: list[float]) -> float:
    """Returns the mean reward of the last tenth of the steps."""
    return float(np.mean(rewards[-max(1, len(rewards) // 10) :]))


def plot(path: Path, runs: dict[tuple[str, int], list[float]]) -> None:
    """Draws the smoothed reward of each step into a PNG, a panel for a batch size."""
    batch_sizes = sorted({batch_size for _, batch_size in runs})
    figure, panels = plt.subplots(
        ncols=len(batch_sizes),
        sharey=True,
        squeeze=False,
        figsize=(1.5 + 3.5 * len(batch_sizes), 3.5),
        layout="constrained",
    )
    for axes, batch_size in zip(panels[0], batch_sizes, strict=True):
        for name, rewards in ((k[0], v) for k, v in runs.items() if k[1] == batch_size):
            axes.plot(smooth(rewards, 0.95), label=name)
        axes.set(xlabel="step", title=f"{batch_size} prompts a step")
        axes.grid(alpha=0.3)
    panels[0, 0].set_ylabel("reward")
    panels[0, 0].legend(frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _prompts(config: Config, phase: Config, stream: int) -> Iterator[list[str]]:
    """Yields batches of prompts without end."""
    rng = np.random.default_rng([config.seed, stream])
    while True:
        yield sorting.prompts(rng, phase.batch_size, config.numbers, config.length)


if __name__ == "__main__":
    config_flags.DEFINE_config_file(
        "config", help_string="File with the configuration."
    )
    flags.mark_flag_as_required("config")
    flags.DEFINE_bool(
        "compare", False, "Run Ember and AdamW on the tables with several batch sizes."
    )
    command.start(main)
