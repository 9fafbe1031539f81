r"""Reinforcement learning of a pretrained model with tunix's GRPOLearner.

    python -m examples.grpo --config.model=DIR --compare

The task is to add two numbers and to answer with the number only. Token tables are on
Ember, the rest on AdamW; `--compare` has a second arm with AdamW on everything. The
comparison for an accelerator:

    python -m examples.grpo --config=configs/grpo_accelerator.py --compare

The most important flags; configs/grpo_smollm2.py has all of them:

    --config.model=.cache/smollm2-135m-instruct
    --config.prompts=4                in a step
    --config.answers=4                to each prompt
    --config.largest_number=50
    --config.optimizer.steps=15
    --config.optimizer.learning_rate=1e-05  of the body
    --config.workdir=runs/grpo
    --config.overwrite=False          delete the run in workdir

Needs tunix: pip install --editable . --group post-training
"""

# pyright: reportMissingImports=false

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

try:
    from tunix.rl.grpo.grpo_learner import GRPOConfig, GRPOLearner
    from tunix.rl.rl_cluster import ClusterConfig, RLCluster, RLTrainingConfig, Role
    from tunix.rl.rollout.base_rollout import RolloutConfig
except ModuleNotFoundError as error:
    raise SystemExit(
        f"{error}: pip install --editable . --group post-training"
    ) from error

from examples.lm import Config
from examples.lm.errors import UserError
from examples.post_training import models, tasks, training
from examples.post_training.optimizer import find_tables, make_optimizer, table_rates


class Result(NamedTuple):
    """Outcome of a run."""

    rewards: list[float]  # of each step, mean over its answers
    lengths: list[float]  # of its answers, in tokens
    held_out_before: float  # mean reward with the likeliest answers
    held_out: float  # after training
    answers: list[str]  # to the held-out questions
    seconds: float


def run(config: Config, compare: bool = False) -> dict[tuple[str, int], Result]:
    """Trains every arm with every seed, prints and returns the results.

    Raises:
      UserError: something is wrong with the config, the model or workdir.
    """
    training.check_numbers(config)
    if config.answers < 2 or config.prompts < 1:
        raise UserError("A step needs a prompt, and two --config.answers to compare.")
    pretrained = models.load(Path(config.model))
    rates = table_rates(config.optimizer, find_tables(pretrained.model))
    names = ("ember", "adamw") if compare else (config.optimizer.tables,)
    optimizers = {name: make_optimizer(config.optimizer, rates, name) for name in names}
    runs = [f"{name}_{seed}" for name in names for seed in config.seeds]
    workdir = training.prepare_workdir(config, runs)
    rng = np.random.default_rng(2**31)
    held_out = tasks.sums(rng, config.held_out, config.largest_number)

    def greedy(model: nnx.Module) -> tuple[float, list[str]]:
        found = training.answers(
            model, pretrained.tokenizer, held_out, config.answer_tokens
        )
        return float(np.mean(tasks.reward(held_out, found))), found

    before, answers = greedy(pretrained.model)
    shown, results = {"before": answers}, {}
    for name, optimizer in optimizers.items():
        for seed in config.seeds:
            model = nnx.clone(pretrained.model)
            start = time.perf_counter()
            rewards, lengths = reinforce(config, pretrained, model, optimizer, seed)
            seconds = time.perf_counter() - start
            result = Result(rewards, lengths, before, *greedy(model), seconds)
            results[name, seed], shown[f"{name} {seed}"] = result, result.answers
            directory = workdir / f"{name}_{seed}"
            models.save(pretrained, model, directory / "model")
            text = json.dumps(result._asdict(), indent=2)
            (directory / "metrics.json").write_text(text)

    line = "{:<8}{:>6}{:>15}{:>8}{:>10}{:>8}".format
    print("\n" + line("", "seed", "reward: first", "last", "held out", "time"))
    print(line("before", "", "", "", f"{before:.3f}", ""))
    for (name, seed), result in results.items():
        n = max(1, len(result.rewards) // 4)  # a quarter of the steps
        first, last = np.mean(result.rewards[:n]), np.mean(result.rewards[-n:])
        cells = (f"{x:.3f}" for x in (first, last, result.held_out))
        print(line(name, seed, *cells, f"{result.seconds:.0f} s"))
    for i, question in enumerate(held_out[:3]):
        print(f"\n{'asked':<10}{question}")
        for name, answers in shown.items():
            print(f"{name:<10}{answers[i].strip()!r}")
    return results


def reinforce(
    config: Config,
    pretrained: models.Pretrained,
    model: nnx.Module,
    optimizer: optax.GradientTransformation,
    seed: int,
) -> tuple[list[float], list[float]]:
    """Trains a model in place; returns reward and length of the answers by step."""
    tokenizer, steps = pretrained.tokenizer, config.optimizer.steps
    largest = tasks.SUM.format(a=config.largest_number, b=config.largest_number)
    prompt_tokens = len(tokenizer.encode(tokenizer.prompt(largest)))
    rollout = RolloutConfig(
        max_prompt_length=prompt_tokens,
        max_tokens_to_generate=config.answer_tokens,
        kv_cache_size=prompt_tokens + config.answer_tokens,
        temperature=config.temperature,
    )
    mesh = Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("fsdp", "tp"))
    roles = Role.ACTOR, Role.REFERENCE, Role.ROLLOUT
    cluster = RLCluster(
        actor=model,
        reference=pretrained.model if config.beta else None,
        tokenizer=tokenizer,
        cluster_config=ClusterConfig(
            role_to_mesh=dict.fromkeys(roles, mesh),
            rollout_config=rollout,
            training_config=RLTrainingConfig(
                actor_optimizer=optimizer, max_steps=steps, eval_every_n_steps=steps
            ),
        ),
    )
    algorithm = GRPOConfig(num_generations=config.answers, beta=config.beta)
    learner = GRPOLearner(cluster, algorithm, tasks.reward)

    def batches() -> Iterator[dict[str, np.ndarray]]:
        rng = np.random.default_rng(seed)
        for step in range(steps):
            # tunix draws the same random numbers at every step otherwise.
            rollout.seed = seed * steps + step
            questions = tasks.sums(rng, config.prompts, config.largest_number)
            # An array, because tunix treats a list as a tree.
            yield {"prompts": np.array([tokenizer.prompt(q) for q in questions])}

    learner.train(batches())
    nnx.update(model, nnx.state(cluster.actor_trainer.model))
    logger = cluster.actor_trainer.metrics_logger
    rewards = logger.get_metric_history("rewards", "score/mean", "train")
    lengths = logger.get_metric_history("completions", "mean_length", "train")
    return rewards.tolist(), lengths.tolist()


if __name__ == "__main__":
    training.start(run, "configs/grpo_smollm2.py")
