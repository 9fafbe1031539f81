"""The optimizer study, on tiny shapes and with made-up losses."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from benchmarks.common import store
from benchmarks.common.intervals import Interval
from benchmarks.study import figures, loss, report, settings, stages
from benchmarks.study import run as program
from benchmarks.study import training as run
from benchmarks.study.arms import ARMS
from benchmarks.study.rows import Study, difference
from benchmarks.study.settings import Settings
from examples.lm import data
from examples.lm.model import Decoder
from examples.lm.program import loss_fn

pytestmark = pytest.mark.usefixtures("standard_promotion", "cheap_compilation")

VOCAB = 64


@pytest.fixture
def tokens():
    rng = np.random.default_rng(0)
    return data.Tokens(*(rng.integers(0, VOCAB, n) for n in (4000, 2000)))


@pytest.fixture(autouse=True)
def few_validation_tokens(monkeypatch, tmp_path):
    monkeypatch.setattr(run, "VALIDATION_TOKENS", 256)
    monkeypatch.chdir(tmp_path)  # claims lie in .cache


def tiny(**changes) -> Settings:
    size = {"width": 16, "layers": 0, "batch": 4, "window": 8, "tokens": 160}
    rates = {"arm": "ember", "lr": 0.1, "b2": 0.99, "body_lr": 1e-3}
    return Settings(**rates | size | changes)


def made_up_loss(one_run: Settings) -> float:
    """The best learning rate is a hundred times the center of an arm."""
    off = math.log10(one_run.lr / (100 * ARMS[one_run.arm].center))
    ember_is_better = 0.1 * one_run.arm.startswith("ember")
    return 4 + off**2 + one_run.body_lr - ember_is_better + 0.01 * one_run.seed


def finish_all(names: list[str]) -> settings.Losses:
    losses: settings.Losses = {}
    for name in names:
        while todo := list(stages.missing(name, losses)):
            losses |= {one_run: made_up_loss(one_run) for one_run in todo}
    return losses


def record_of(one_run: Settings, value: float) -> dict:
    return {
        "settings": dataclasses.asdict(one_run),
        "validation_loss": value,
        "table_state_bytes": 1000,
        "seconds": 1.0,
        "machine": {"processor": "a processor"},
        "versions": {"jax": "1", "optax": "2"},
    }


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_lowers_a_loss_of_two_tables(arm):
    key = jax.random.key(0)
    table = {"embed": {"embedding": jax.random.normal(key, (12, 4))}}
    config = run.make_config(tiny(tokens=32 * 50))
    lr = ARMS[arm].center * {"sgd": 0.003, "adafactor": 0.3}.get(arm, 3)
    tx = run.table_optimizer(config, arm, jnp.float32(lr), ARMS[arm].b2)

    def value(table):
        return jnp.mean(table["embed"]["embedding"] ** 2)

    @jax.jit
    def step(carry, _):
        table, state = carry
        updates, state = tx.update(jax.grad(value)(table), state, table)
        return (optax.apply_updates(table, updates), state), None

    (after, _), _ = jax.lax.scan(step, (table, tx.init(table)), length=50)
    assert value(after) < 0.95 * value(table)


def test_row_only_is_adam_without_momentum_where_columns_are_alike():
    grads = {"t": jnp.outer(jnp.arange(1.0, 7.0), jnp.array([1.0, -1.0]))}
    adam = ARMS["adam_no_momentum"].scale_by(0.9)
    rows = ARMS["row_only"].scale_by(0.9)
    assert jax.tree.map(jnp.shape, rows.init(grads).row) == {"t": (6, 1)}
    expected, _ = adam.update(grads, adam.init(grads))
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


def test_ember_and_debiased_factored_rms_coincide(tokens):
    one, other, adam = (
        run.execute(tiny(arm=arm), tokens, VOCAB)
        for arm in ("ember", "factored_rms", "adam")
    )
    assert one["validation_loss"] == pytest.approx(other["validation_loss"], abs=1e-4)
    assert adam["validation_loss"] != pytest.approx(one["validation_loss"], abs=1e-3)
    assert one["table_state_bytes"] == 2 * 4 * (1 + VOCAB + 16)
    assert adam["table_state_bytes"] == 2 * 4 * (1 + 2 * VOCAB * 16)


@pytest.mark.parametrize("table", ["embed", "lm_head"])
def test_one_table_can_have_another_optimizer(tokens, table):
    runs = [tiny(tables=table, other_lr=rate) for rate in (0.01, 1e-9)]
    trained, still = (run.execute(one_run, tokens, VOCAB) for one_run in runs)
    assert trained["table_state_bytes"] == 4 * (2 + VOCAB + 16 + 2 * VOCAB * 16)
    assert abs(trained["validation_loss"] - still["validation_loss"]) > 1e-4


def test_a_diverged_run_has_no_loss_but_is_finished(tokens, tmp_path):
    record = run.execute(tiny(arm="sgd", b2=None, lr=1e30), tokens, VOCAB)
    assert record["validation_loss"] is None
    store.append(tmp_path / "runs.jsonl", record)
    losses = settings.losses_of(settings.read(tmp_path / "runs.jsonl"))
    assert list(losses.values()) == [math.inf]


def test_wrong_settings_are_explained():
    with pytest.raises(ValueError, match="arm is 'embers'"):
        tiny(arm="embers")
    with pytest.raises(ValueError, match="give both or none"):
        tiny(tables="embed")
    with pytest.raises(ValueError, match="both, embed or lm_head"):
        tiny(tables="head", other_lr=0.1)


def test_a_search_goes_beyond_its_edges_and_looks_between():
    losses = finish_all(["body", "sweep"])
    best = stages.tuned({"arm": "ember"}, losses)
    assert best.lr == pytest.approx(100 * ARMS["ember"].center)
    rates = list(stages.sweep({"arm": "ember"}, losses))
    assert len(rates) >= 7
    assert min(rates) < best.lr < max(rates)
    assert {0.56, 1.8} <= set(rates)  # neighbors


def test_seeds_are_run_at_the_best_learning_rate_and_not_the_one_of_the_search():
    losses = finish_all(["body", "sweep"])
    case = {"arm": "adam"}
    runs = stages.seeded(case, losses)
    assert {r.seed for r in runs} == set(stages.SEEDS)
    assert 0 not in stages.SEEDS
    assert {r.lr for r in runs} == {stages.tuned(case, losses).lr}


def test_a_stage_asks_for_what_it_depends_on():
    rates = {r.body_lr for r in stages.missing("batch", {})}
    assert rates == set(stages.BODIES["adamw"].rates)


def test_the_stage_for_a_gpu_has_the_124_million_parameters_of_its_config():
    losses = finish_all(["body", "sweep"])
    waiting = list(stages.missing("scale", losses))
    assert {r.body_lr for r in waiting} == set(stages.BODIES["pretrain_124m"].rates)
    losses = finish_all(["body", "sweep", "scale"])
    one_run = stages.tuned({"arm": "ember", "config": "pretrain_124m"}, losses)
    assert one_run.body_lr in stages.BODIES["pretrain_124m"].rates
    assert one_run.steps == 2000
    functions = run.make_functions(one_run, 50_257)
    state = jax.eval_shape(functions.init, 0)
    n_parameters = sum(x.size for x in jax.tree.leaves(state.params))
    assert n_parameters == pytest.approx(124e6, rel=0.01)
    tokens = jax.ShapeDtypeStruct((64, 1025), jnp.int32)
    after, loss = jax.eval_shape(functions.step, state, tokens, 0.1, 0.0)
    assert (jax.tree.structure(after), loss.shape) == (jax.tree.structure(state), ())


def test_the_plan_has_all_stages_and_enough_runs():
    losses = finish_all(list(stages.STAGES))
    assert len(losses) > 400
    assert not any(list(stages.missing(name, losses)) for name in stages.STAGES)


def test_finished_runs_are_skipped_and_others_done_once(tokens, tmp_path, monkeypatch):
    path = tmp_path / "runs.jsonl"
    todo = [tiny(seed=seed) for seed in range(3)]
    monkeypatch.setattr(
        stages, "missing", lambda _, losses: (r for r in todo if r not in losses)
    )
    done = []

    def execute(one_run, *_):
        done.append(one_run.seed)
        return record_of(one_run, 1.0)

    monkeypatch.setattr(program, "execute", execute)
    store.append(path, record_of(todo[1], 1.0))
    program.work(["any"], path, lambda _: (tokens, VOCAB))
    program.work(["any"], path, lambda _: (tokens, VOCAB))
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


def test_differences_are_paired_by_seed():
    losses = finish_all(["body", "sweep", "seeds"])
    study = Study({r: record_of(r, x) for r, x in losses.items()})
    ember, adam = study.arm("ember"), study.arm("adam")
    found = difference(ember, adam)
    # Learning rates are rounded, so the best of the two are not equally good.
    assert found == pytest.approx((-0.1, -0.1, -0.1), abs=1e-3)
    assert found.verdict == "better"
    assert difference(adam, ember).verdict == "worse"
    assert Interval(0.0, -0.1, 0.009).verdict == "no worse"
    assert Interval(0.0, -0.02, 0.02).verdict == "undecided"


def test_the_interval_is_that_of_student():
    losses = finish_all(["body", "sweep", "seeds"])
    study = Study({r: record_of(r, x) for r, x in losses.items()})
    one = study.arm("ember")
    other = one._replace(losses={s: x - s for s, x in one.losses.items()})
    found = difference(one, other)  # of 1, 2, 3, 4, 5: mean 3, t = 2.776
    half = 2.776445 * math.sqrt(2.5 / 5)
    assert found == pytest.approx((3, 3 - half, 3 + half))


def test_the_page_is_made_from_any_finished_part(tmp_path):
    for names in (["body", "sweep"], ["body", "sweep", "seeds", "b2", "batch"]):
        losses = finish_all(names)
        path = tmp_path / "runs.jsonl"
        path.unlink(missing_ok=True)
        for one_run, value in losses.items():
            store.append(path, record_of(one_run, value))
        page = report.page(Study(settings.read(path)), {})
        assert f"{len(losses)} finished runs" in page
        assert "not finished" in page
    assert "reproduced at this scale with b2 0.999 for both" in page
    assert "`batch/ember/512/16`" in page
    assert "against Adam, b2 0.95 better at 8, 32, 128, 512" in page
    drawn = figures.draw_all(Study(settings.read(path)), tmp_path)
    assert [path.name for path in drawn] == [
        "learning_rates.png",
        "pareto.png",
        "ember_minus_adam.png",
        "b2.png",
    ]


def test_a_row_names_its_runs(tmp_path):
    path = tmp_path / "runs.jsonl"
    for one_run, value in finish_all(["body", "sweep"]).items():
        store.append(path, record_of(one_run, value))
    runs = program.runs_of_row("seeds/ember", path)
    assert {r.arm for r in runs} == {"ember"}
    with pytest.raises(SystemExit, match="is not tuned"):
        program.runs_of_row("muon/ember/muon", path)
    with pytest.raises(SystemExit, match="There is no row 'x'"):
        program.runs_of_row("x", path)
