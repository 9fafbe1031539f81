"""That tunix takes the transformation as it is: labels, state and checkpoints."""

import re
import warnings

import flax
import jax
import numpy as np
import pytest
from flax import nnx

pytest.importorskip("tunix")

SHARDS = "flax_always_shard_variable"  # tunix sets it, for every model in the process
shards = getattr(flax.config, SHARDS)
with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    from configs import finetune_small, grpo_small
    from examples import finetune, grpo
    from examples.post_training import sorting, supervised
    from examples.post_training.model import make_model
    from tests.examples.test_metrics import scalars

flax.config.update(SHARDS, shards)

# flax of `.value`, optax of `global_norm`: tunix still uses both.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

TABLES = {"embedder/input_embedding", "lm_head/w"}
MODEL = {"num_layers": 1, "embed_dim": 16, "hidden_dim": 32, "head_dim": 8}
MODEL |= {"num_heads": 2, "num_kv_heads": 1}


@pytest.fixture(autouse=True)
def tunix_settings():
    """What tunix needs; it works in threads, which do not see context managers."""
    settings = {"numpy_rank_promotion": "allow", "numpy_dtype_promotion": "standard"}
    before = {name: getattr(jax.config, f"jax_{name}") for name in settings}
    for name, value in settings.items():
        jax.config.update(f"jax_{name}", value)
    flax.config.update(SHARDS, False)
    yield
    flax.config.update(SHARDS, shards)
    for name, value in before.items():
        jax.config.update(f"jax_{name}", value)


@pytest.fixture
def finetuning(tmp_path, tokens):
    """The configuration of `make finetune`, tiny."""
    config = finetune_small.get_config()
    config.data.path = f"{tokens}/train/*.bin"
    config.data.validation_path = f"{tokens}/validation/*.bin"
    config.data.tokenizer = f"{tokens}/tokenizer.json"
    config.model.update(MODEL)
    config.update(sequence_length=48, eval_every=2, eval_batches=1)
    for phase in (config.pretraining, config.finetuning):
        phase.update(steps=4, batch_size=2)
    config.workdir = str(tmp_path / "run")
    return config


@pytest.fixture
def rl(tmp_path):
    """The configuration of `make grpo`, tiny."""
    config = grpo_small.get_config()
    config.model.update(MODEL)
    config.update(numbers=10, length=2, held_out=4, batch_sizes=(2,))
    config.supervised.update(steps=2, batch_size=2)
    config.rl.update(steps=3, batch_size=2, generations=2)
    config.workdir = str(tmp_path / "run")
    return config


def _functions(numbers):
    return "\n".join(
        f'def f{n}(x):\n    """Does {n} times as much."""\n' for n in numbers
    )


def state_of(trainer) -> dict[str, np.ndarray]:
    """Parameters and optimizer state of one of tunix's trainers, by path."""
    leaves = jax.tree_util.tree_leaves_with_path(
        (nnx.state(trainer.model), nnx.state(trainer.optimizer))
    )
    paths = (jax.tree_util.keystr(p, simple=True, separator="/") for p, _ in leaves)
    return dict(zip(paths, (np.asarray(x) for _, x in leaves), strict=True))


def sorting_batches(n):
    tokenizer, rng = sorting.Tokenizer(10), np.random.default_rng(0)
    prompts = [sorting.prompts(rng, 2, numbers=10, length=2) for _ in range(n)]
    return [sorting.supervised_batch(tokenizer, p) for p in prompts]


def sorting_trainer(config, directory=None):
    model = make_model(config.model, len(sorting.Tokenizer(10)), seed=0)
    phase = config.rl
    phase.update(steps=4)
    return supervised.make_trainer(model, phase, eval_every=2, directory=directory)


def test_tunix_keeps_the_state_of_both_tables_and_no_other(rl):
    state = state_of(sorting_trainer(rl))
    rows = {p: x.shape for p, x in state.items() if p.endswith("/row/value")}
    (prefix,) = {path.partition("/tables/")[0] for path in rows}
    keys = [name.replace("/", ":") for name in TABLES]
    assert rows == {f"{prefix}/tables/{key}/row/value": (16,) for key in keys}
    for moment in ("mu", "nu"):
        assert not any(
            f"/{moment}/{name}/" in path for path in state for name in TABLES
        )
        assert any(f"/{moment}/final_norm/" in path for path in state)


def test_every_parameter_learns(rl):
    trainer = sorting_trainer(rl)
    before = state_of(trainer)
    supervised.fit(trainer, sorting_batches(4), sorting_batches(1))
    after = state_of(trainer)
    still = [p for p, x in before.items() if np.array_equal(x, after[p])]
    # Of the product of all b2, what rounding has added: nothing so far.
    assert all(path.endswith("/remaining/error/value") for path in still)


def test_losses_are_those_of_the_right_steps(rl):
    records = supervised.fit(
        sorting_trainer(rl), sorting_batches(4), sorting_batches(1)
    )
    assert [r["step"] for r in records if "loss" in r] == [1, 2, 3, 4]
    assert [r["step"] for r in records if "validation_loss" in r] == [0, 2, 4]


def test_an_interrupted_run_goes_on_from_tunix_checkpoint(rl, tmp_path):
    whole = sorting_trainer(rl)
    supervised.fit(whole, sorting_batches(4), sorting_batches(1))
    supervised.fit(
        sorting_trainer(rl, tmp_path), sorting_batches(3), sorting_batches(1)
    )
    resumed = sorting_trainer(rl, tmp_path)
    assert resumed.train_steps == 3
    records = supervised.fit(resumed, sorting_batches(4), sorting_batches(1))
    assert [r["step"] for r in records if "loss" in r] == [4]
    assert [r["step"] for r in records if "validation_loss" in r] == [3, 4]
    jax.tree.map(np.testing.assert_array_equal, state_of(resumed), state_of(whole))
    # There is nothing left to do.
    done = sorting_trainer(rl, tmp_path)
    (record,) = supervised.fit(done, sorting_batches(4), sorting_batches(1))
    assert record["step"] == 4


def test_finetuning_compares_both_arms(finetuning, capsys, tmp_path):
    finetuning.tensorboard = True
    runs = finetune.run(finetuning, compare=True)
    assert list(runs) == ["ember", "adam"]
    before = [records[4]["validation_loss"] for records in runs.values()]
    assert before[0] == before[1]  # they start from one model
    printed = capsys.readouterr().out
    assert "embedder/input_embedding  embed  300 x 16" in printed
    assert f"Loss plot: {tmp_path / 'run' / 'loss.png'}" in printed
    assert (tmp_path / "run" / "loss.png").stat().st_size
    sample = r"prompt  # Does \d+ times as much\.\nanswer  def f\d+\(x\):\nember   .*\n"
    assert len(re.findall(sample, printed)) == 3
    for name, records in {"pretrained": None, **runs}.items():
        (file,) = (tmp_path / "run" / name / "tensorboard").iterdir()
        shown = scalars(file)
        assert [step for tag, step, _ in shown if tag == "loss"] == [1, 2, 3, 4]
        assert [s for tag, s, _ in shown if tag == "validation_loss"] == [0, 2, 4]
        if records:
            logged = [(r["step"], r["loss"]) for r in records if "loss" in r]
            seen = [(step, loss) for tag, step, loss in shown if tag == "loss"]
            np.testing.assert_allclose(seen, logged, rtol=1e-6)


def test_finetuning_starts_from_the_checkpoint_of_the_user(finetuning, tmp_path):
    directory = tmp_path / "mine"
    model = finetune.pretrained(finetuning, directory)
    finetuning.checkpoint = str(directory)
    again = finetune.pretrained(finetuning, tmp_path / "unused")
    jax.tree.map(np.testing.assert_array_equal, nnx.state(again), nnx.state(model))
    assert not (tmp_path / "unused").exists()
    finetuning.checkpoint = str(tmp_path / "typo")
    with pytest.raises(FileNotFoundError, match="typo' holds no checkpoint of tunix"):
        finetune.pretrained(finetuning, tmp_path / "unused")


def test_grpo_compares_both_arms(rl, capsys, tmp_path):
    rl.tensorboard = True
    results = grpo.run(rl, compare=True)
    assert list(results) == [("ember", 2), ("adam", 2)]
    for result in results.values():
        assert len(result.rewards) == 3
        assert 0 <= result.held_out <= 1
    printed = capsys.readouterr().out
    assert f"Reward plot: {tmp_path / 'run' / 'reward.png'}" in printed
    assert (tmp_path / "run" / "reward.png").stat().st_size
    prompts = grpo.held_out_prompts(rl)[:3]
    lines = [line.split() for line in printed.splitlines()]
    assert ["tables", "batch", *" ".join(prompts).split()] in lines
    for (name, _), result in results.items():
        assert [name, "2", *" ".join(result.answers).split()] in lines
        (file,) = (tmp_path / "run" / f"{name}_2" / "tensorboard").iterdir()
        tags, steps, rewards = zip(*scalars(file), strict=True)
        assert (tags, steps) == (("reward",) * 3, (1, 2, 3))
        np.testing.assert_allclose(rewards, result.rewards, rtol=1e-6)
    # The state of Ember is in the learner's own checkpoint, and has moved.
    restored = sorting_trainer(rl, tmp_path / "run" / "ember_2" / "actor")
    assert restored.train_steps == 3
    rows = [x for p, x in state_of(restored).items() if p.endswith("/row/value")]
    assert len(rows) == 2
    assert all(row.any() for row in rows)


def test_every_step_of_grpo_draws_other_samples(rl, monkeypatch):
    seeds = []
    sample = jax.random.PRNGKey

    def record(seed):
        seeds.append(seed)
        return sample(seed)

    monkeypatch.setattr("tunix.generate.sampler.jax.random.PRNGKey", record)
    model = make_model(rl.model, len(sorting.Tokenizer(10)), seed=0)
    grpo.reinforce(rl, model)
    assert {0, 1, 2} <= set(seeds)
