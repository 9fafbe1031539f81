"""Runs of the study, on tiny shapes."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from benchmarks.common import store, text
from benchmarks.study import loss, rules, settings
from benchmarks.study import run as program
from benchmarks.study import training as run
from examples.lm.model import Decoder
from examples.lm.program import loss_fn
from tests.benchmarks.fakes import record_of, tiny

VOCAB = 64
# One arm for each path through the rules; the others have other constants.
RULES = (
    "ember_adafactor ember_centered row_only adam80 adam_adafactor amsgrad"
    " factored_rms adafactor sm3 muon balanced95 balanced0"
).split()

pytestmark = pytest.mark.usefixtures("standard_promotion", "cheap_compilation")


@pytest.fixture
def tokens():
    rng = np.random.default_rng(0)
    return text.Tokens(*(rng.integers(0, VOCAB, n) for n in (4000, 2000)))


@pytest.fixture(autouse=True)
def few_validation_tokens(monkeypatch, tmp_path):
    monkeypatch.setattr(run, "VALIDATION_TOKENS", 256)
    monkeypatch.chdir(tmp_path)  # the locks of runs are in .cache


@pytest.mark.parametrize("arm", RULES)
def test_every_rule_lowers_a_loss(arm):
    table = {"embed": {"embedding": jax.random.normal(jax.random.key(0), (12, 4))}}
    config = run.make_config(tiny(tokens=32 * 50))
    lr = 0.3 if arm == "muon" else 0.1
    tx = run.table_optimizer(tiny(), config, arm, jnp.float32(lr))

    def value(table):
        return jnp.mean(table["embed"]["embedding"] ** 2)

    @jax.jit
    def step(carry, _):
        table, state = carry
        updates, state = tx.update(jax.grad(value)(table), state, table)
        return (optax.apply_updates(table, updates), state), None

    (after, _), _ = jax.lax.scan(step, (table, tx.init(table)), length=50)
    assert value(after) < 0.95 * value(table)


def test_adam_with_a_schedule_is_adam_where_its_corrections_are_one():
    grads = {"t": jnp.array([[1.0, -2.0], [0.5, 3.0], [0.0, 1.0]])}
    ours = rules.adam_with_schedule(0.0, lambda _: 0.0)
    expected = optax.scale_by_adam(0.0, 0.0)
    updates, _ = ours.update(grads, ours.init(grads))
    plain, _ = expected.update(grads, expected.init(grads))
    np.testing.assert_allclose(updates["t"], plain["t"], rtol=1e-6)
    ours = rules.adam_with_schedule(0.8, lambda count: 1 - (count + 1.0) ** -0.8)
    state = ours.init(grads)
    for _ in range(3):  # of equal gradients, means are what they are of
        updates, state = ours.update(grads, state)
        np.testing.assert_allclose(updates["t"], jnp.sign(grads["t"]), atol=1e-6)


def test_balanced_momentum_has_rows_and_columns_of_equal_size():
    x = jax.random.normal(jax.random.key(0), (32, 4)) * jnp.arange(1.0, 33)[:, None]
    x = x.at[5].set(1e-6)  # is left out
    for table in (x, x.T):
        tx = rules.balanced_momentum(0.95)
        updates, _ = tx.update({"t": table}, tx.init({"t": table}))
        update = updates["t"] if table is x else updates["t"].T
        assert not update[5].any()
        live = np.delete(np.asarray(update), 5, axis=0)
        np.testing.assert_allclose(np.sqrt((live**2).mean(0)), 1, rtol=1e-5)
        np.testing.assert_allclose(np.sqrt((live**2).mean(1)), 1, rtol=0.02)


def test_a_centered_update_moves_no_mean_logit():
    update = {"t": jax.random.normal(jax.random.key(0), (4, 32))}
    centered, _ = rules.centered().update(update, optax.EmptyState())
    np.testing.assert_allclose(centered["t"].mean(axis=1), 0, atol=1e-6)


def test_row_only_is_rms_where_all_columns_have_the_same_size():
    grads = {"t": jnp.outer(jnp.arange(1.0, 7.0), jnp.array([1.0, -1.0]))}
    rms = optax.scale_by_rms(0.9, eps_in_sqrt=False, bias_correction=True)
    rows = rules.row_only(0.9)
    assert jax.tree.map(jnp.shape, rows.init(grads).row) == {"t": (6, 1)}
    expected, _ = rms.update(grads, rms.init(grads))
    updates, _ = rows.update(grads, rows.init(grads))
    np.testing.assert_allclose(updates["t"], expected["t"], rtol=1e-6)


@pytest.mark.parametrize("tied", [False, True])
def test_the_fast_loss_is_the_loss_of_the_other_programs(tied):
    tokens = jax.random.randint(jax.random.key(0), (2, 9), 0, VOCAB)
    config = run.make_config(tiny(tied=tied)).model
    graph, params = nnx.split(Decoder(VOCAB, **config, rngs=nnx.Rngs(0)))

    @jax.jit
    def both(params):
        def value_and_grad(f):
            return jax.value_and_grad(lambda p: f(nnx.merge(graph, p), tokens))(params)

        return value_and_grad(loss_fn), value_and_grad(loss.loss_fn)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), *both(params)
    )


def test_both_tables_have_rates_and_optimizers_of_their_own(tokens):
    changes = [{}, {"lr": 1e-9}, {"head_lr": 1e-9}, {"head_arm": "adam"}]
    changes += [{"weight_decay": 0.5}]  # of the tables
    runs = [run.execute(tiny(**{"head_lr": 0.1} | c), tokens, VOCAB) for c in changes]
    losses = [result["validation_loss"] for result in runs]
    assert len({round(loss, 4) for loss in losses}) == 5
    assert losses[4] != pytest.approx(losses[0], abs=1e-4)
    one_rate = run.execute(tiny(), tokens, VOCAB)
    assert one_rate["validation_loss"] == pytest.approx(losses[0], abs=1e-5)
    assert runs[3]["table_state_bytes"] > 2 * runs[0]["table_state_bytes"]


def test_frequencies_are_measured_along_a_run(tokens):
    one_run = tiny(frequencies=True, tokens=512)
    result = run.execute(one_run, tokens, VOCAB)
    measured = result["frequency_errors"]
    assert len(measured) == run.MEASUREMENTS
    assert all(len(row) == 2 + len(run.EDGES) for row in measured)
    assert measured[-1][0] == result["validation_loss"]


def test_a_diverged_run_has_no_loss_but_is_finished(tokens, tmp_path):
    record = run.execute(tiny(arm="muon", lr=1e30), tokens, VOCAB)
    assert record["validation_loss"] is None
    store.append(tmp_path / "runs.jsonl", record)
    losses = settings.losses_of(settings.read(tmp_path / "runs.jsonl"))
    assert list(losses.values()) == [math.inf]


def test_wrong_settings_are_explained():
    with pytest.raises(ValueError, match="got 'embers'"):
        tiny(arm="embers")
    with pytest.raises(ValueError, match="only one rate"):
        tiny(tied=True, head_lr=0.1)


def test_finished_runs_are_skipped_and_others_done_once(tokens, tmp_path, monkeypatch):
    path = tmp_path / "runs.jsonl"
    todo = [tiny(seed=seed) for seed in range(3)]
    monkeypatch.setattr(
        program, "missing", lambda _, losses: [r for r in todo if r not in losses]
    )
    done = []

    def execute(one_run, *_):
        done.append(one_run.seed)
        return record_of(one_run, 1.0)

    monkeypatch.setattr(program, "execute", execute)
    store.append(path, record_of(todo[1], 1.0))
    program.work(["body"], path, lambda _: (tokens, VOCAB))
    program.work(["body"], path, lambda _: (tokens, VOCAB))
    assert done == [0, 2]
    assert len(path.read_text().splitlines()) == 3


def test_a_run_is_claimed_once(tmp_path):
    path = tmp_path / "runs.jsonl"
    key, other_key = (dataclasses.asdict(tiny(seed=seed)) for seed in (0, 1))
    with store.claim(path, key) as mine, store.claim(path, key) as again:
        assert (mine, again) == (True, False)
        with store.claim(path, other_key) as other:
            assert other
    with store.claim(path, key) as mine:  # the first has ended without a result
        assert mine
        store.append(path, record_of(tiny(), 1.0))
    with store.claim(path, key) as mine:
        assert not mine
