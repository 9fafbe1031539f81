r"""Reinforcement learning with tunix's GRPO: Ember against AdamW on the token tables."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from tunix.generate.sampler import CacheConfig, Sampler
from tunix.rl.grpo.grpo_learner import GRPOConfig, GRPOLearner
from tunix.rl.rl_cluster import ClusterConfig, RLCluster, Role, RLTrainingConfig
from tunix.rl.rollout.base_rollout import RolloutConfig

from examples.lm import Config
from examples.lm.optimizer import make_optimizer
from examples.post_training import sorting, supervised
from examples.post_training.model import make_model


class Result(NamedTuple):
    """What came out of a run."""

    rewards: list[float]  # of each step, mean over its answers
    held_out: float  # mean reward at the end, greedy
    solved: float  # share of held-out prompts with all numbers in place, greedy
    seconds: float


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
    supervised.fit(trainer, batches, held_out)
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

    def batches() -> Iterator[dict[str, np.ndarray]]:
        for step, prompts in enumerate(_prompts(config, phase, stream=1)):
            # tunix draws the same random numbers at every step otherwise.
            rollout.seed = config.seed * phase.steps + step
            yield {"prompts": np.array(prompts)}

    start = time.perf_counter()
    learner.train(batches())
    seconds = time.perf_counter() - start
    history = cluster.actor_trainer.metrics_logger.get_metric_history
    rewards = history("rewards", "score/mean", "train").tolist()
    held_out = evaluate(config, cluster.actor_trainer.model)
    return Result(rewards, *held_out, seconds)


def evaluate(config: Config, model: nnx.Module) -> tuple[float, float]:
    """Returns mean reward and share of prompts solved, with the likeliest tokens."""
    shape = {k: config.model[k] for k in ("num_layers", "num_kv_heads", "head_dim")}
    size = 2 * config.length + 1
    sampler = Sampler(
        model, sorting.Tokenizer(config.numbers), CacheConfig(cache_size=size, **shape)
    )
    prompts = held_out_prompts(config)
    output = sampler(prompts, config.length, max_prompt_length=config.length + 1)
    rewards = sorting.reward(prompts, output.text)
    return float(np.mean(rewards)), float(np.mean([r == 1 for r in rewards]))


def held_out_prompts(config: Config) -> list[str]:
    rng = np.random.default_rng([config.seed, 2])
    return sorting.prompts(rng, config.held_out, config.numbers, config.length)


def _prompts(config: Config, phase: Config, stream: int) -> Iterator[list[str]]:
    """Yields batches of prompts without end."""
    rng = np.random.default_rng([config.seed, stream])
    while True:
        yield sorting.prompts(rng, phase.batch_size, config.numbers, config.length)
