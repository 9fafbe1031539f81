"""Statistics of geometry against NumPy in float64, and where their value is known."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import ember_optax
from benchmarks.geometry import instrument as geometry

V, D = 40, 16
KEY = jax.random.key(0)
EVERY_ROW = jnp.arange(V)
B2 = 0.999


# Read as users may read them, compiled.
autocorrelation = jax.jit(geometry.autocorrelation)
autocorrelation_null = jax.jit(geometry.autocorrelation_null)
factorization_error = jax.jit(geometry.factorization_error, static_argnames="quantiles")
factored_null = jax.jit(geometry.factored_null)
frequency_error = jax.jit(geometry.frequency_error)
random_walk = jax.jit(geometry.random_walk)
ray_cosine = jax.jit(geometry.ray_cosine)
ray_share = jax.jit(geometry.ray_share)


def sparse_gradients(steps: int, shape: Any = (V, D), seed: int = 0) -> np.ndarray:
    """Gradients [steps, V, *D] of rows that are touched more or less often."""
    rng = np.random.default_rng(seed)
    grads = rng.standard_normal((steps, *shape)) * np.exp(rng.standard_normal(shape))
    rare = np.linspace(0.02, 1, shape[0])
    grads[rng.random((steps, shape[0])) > rare] = 0
    return np.float32(grads)


def fold(update: Any, state: Any, *batches: Any) -> Any:
    """Updates a state with one batch after the other, in one compiled loop."""

    def loop(state: Any, batches: Any) -> Any:
        step = lambda state, batch: (update(state, *batch), None)  # noqa: E731
        return jax.lax.scan(step, state, batches)[0]

    return jax.jit(loop)(state, batches)


# Autocorrelation


def history_of(grads: Any, rows: Any = EVERY_ROW, lags: int = 3) -> Any:
    init = geometry.history_init(grads[0], rows, lags)
    return fold(geometry.history_update, init, grads)


def autocorrelation_of(touched: np.ndarray, lags: int) -> list[float]:
    """Of the gradients [n, D] of one row."""
    found = []
    for k in range(1, lags + 1):
        if len(touched) <= k:
            found.append(np.nan)
            continue
        after, before = touched[k:], touched[:-k]
        found.append(
            np.sum(after * before) / np.sqrt(np.sum(after**2) * np.sum(before**2))
        )
    return found


def touched_gradients(grads: np.ndarray, row: int) -> np.ndarray:
    of_row = np.float64(grads)[:, row].reshape(len(grads), -1)
    return of_row[of_row.any(axis=1)]


@pytest.mark.parametrize("shape", [(V, D), (V, 2, D // 2)])
def test_autocorrelation_is_that_of_the_touches(shape: Any) -> None:
    grads = sparse_gradients(60, shape)
    rows = jnp.array([0, 1, 7, V - 1])
    history = history_of(grads, rows)
    expected = [
        autocorrelation_of(touched_gradients(grads, row), 3) for row in rows.tolist()
    ]
    assert np.isnan(expected).any()
    actual = autocorrelation(history)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-6)


def ar1(phi: float, steps: int) -> np.ndarray:
    rng = np.random.default_rng(1)
    noise = rng.standard_normal((steps, V, D))
    grads = noise.copy()
    for t in range(1, steps):
        grads[t] = phi * grads[t - 1] + np.sqrt(1 - phi**2) * noise[t]
    return grads


def test_autocorrelation_of_an_ar1_process() -> None:
    touched = ar1(0.6, 500)
    # Rows wait while they are not touched: lags count touches.
    grads = np.zeros((2 * len(touched), V, D), np.float32)
    grads[::2] = touched
    history = history_of(grads)
    expected = [0.6, 0.36, 0.216]
    measured = autocorrelation(history).mean(axis=0)
    np.testing.assert_allclose(measured, expected, atol=0.01)
    assert abs(autocorrelation_null(history).mean()) < 0.01


def test_null_of_the_autocorrelation_is_a_random_order() -> None:
    rng = np.random.default_rng(2)
    grads = np.float32(ar1(0.9, 12) + rng.standard_normal((V, D)))
    actual = autocorrelation_null(history_of(grads))
    # All orders at once: the mean over all pairs.
    gram = np.einsum("tvd,svd->vts", *[np.float64(grads)] * 2)
    squares = np.trace(gram, axis1=1, axis2=2)
    expected = (gram.sum(axis=(1, 2)) - squares) / (11 * squares)
    np.testing.assert_allclose(actual, expected, rtol=1e-4)
    shuffled = [
        autocorrelation_of(rng.permutation(np.float64(grads[:, 3])), 1)
        for _ in range(2000)
    ]
    assert np.mean(shuffled) == pytest.approx(float(actual[3]), abs=0.02)


def test_drift_is_not_memory() -> None:
    rng = np.random.default_rng(3)
    drift = rng.standard_normal((V, D))
    grads = np.float32(drift + rng.standard_normal((200, V, D)))
    history = history_of(grads)
    measured = autocorrelation(history).mean(axis=0)
    null = autocorrelation_null(history).mean()
    assert null > 0.4
    np.testing.assert_allclose(measured, null, atol=0.01)


def test_rows_without_a_pair_have_no_autocorrelation() -> None:
    grads = np.zeros((5, V, D), np.float32)
    grads[2, 1] = 1
    history = history_of(grads)
    assert history.touches[1] == 1
    assert np.isnan(autocorrelation(history)).all()
    assert np.isnan(autocorrelation_null(history)).all()


# Factorisation


def moment_of(grads: Any, rows: Any = EVERY_ROW, b2: float = B2) -> Any:
    init = geometry.second_moment_init(grads[0], rows)
    update = functools.partial(geometry.second_moment_update, b2=b2)
    return fold(update, init, grads)


def dense_moment(grads: np.ndarray, b2: float = B2) -> np.ndarray:
    weights = (1 - b2) * b2 ** np.arange(len(grads))[::-1]
    return np.tensordot(
        weights, np.float64(grads).reshape(*grads.shape[:2], -1) ** 2, 1
    )


@pytest.mark.parametrize("shape", [(V, D), (V, 2, D // 2)])
def test_second_moment_of_a_sample(shape: Any) -> None:
    grads = sparse_gradients(60, shape)
    rows = jnp.array([3, 5, V - 1])
    moment = moment_of(grads, rows)
    dense = dense_moment(grads)
    np.testing.assert_allclose(moment.dense, dense[rows], rtol=1e-5)
    np.testing.assert_allclose(moment.col, dense.mean(axis=0), rtol=1e-5)


def test_columns_are_those_of_ember() -> None:
    grads = sparse_gradients(30)
    tx = ember_optax.scale_by_ember(vocab_axis=0)
    update = lambda state, grad: tx.update(grad, state)[1]  # noqa: E731
    state = fold(update, tx.init(jnp.zeros((V, D))), grads)
    moments = optax.tree.get(state, "tables")[""]
    moment = moment_of(grads)
    np.testing.assert_allclose(moment.col, moments.col, rtol=1e-5)
    np.testing.assert_allclose(moment.dense.mean(axis=1), moments.row, rtol=1e-5)


def test_error_of_a_factorisation() -> None:
    dense = dense_moment(sparse_gradients(60))
    dense[0] = 0
    row, col = dense.mean(axis=1), dense.mean(axis=0)
    factored = np.outer(row, col) / col.mean()
    seen = dense > 0
    quantiles = (0.1, 0.5, 0.9)
    expected = np.quantile(np.log(factored[seen] / dense[seen]), quantiles)
    divergence = np.sum(dense[seen] * np.log(dense[seen] / factored[seen]))
    divergence = (divergence - dense.sum() + factored.sum()) / dense.sum()

    error = factorization_error(
        jnp.float32(dense), jnp.float32(col), quantiles=quantiles
    )
    np.testing.assert_allclose(error.log_ratio, expected, rtol=1e-4)
    np.testing.assert_allclose(error.divergence, divergence, rtol=1e-4)


def test_an_exact_factorisation_has_no_error() -> None:
    rng = np.random.default_rng(4)
    row, col = np.exp(3 * rng.standard_normal(V)), np.exp(rng.standard_normal(D))
    for size in (1.0, 1e-16):
        dense = jnp.float32(size * np.outer(row, col))
        error = factorization_error(dense, dense.mean(axis=0))
        np.testing.assert_allclose(error.log_ratio, 0, atol=5e-6)
        np.testing.assert_allclose(error.divergence, 0, atol=1e-6)


def test_no_other_product_of_row_and_column_is_nearer() -> None:
    dense = jnp.float32(dense_moment(sparse_gradients(60)))
    col = dense.mean(axis=0)
    best = factorization_error(dense, col).divergence
    for seed in range(5):
        noise = jax.random.normal(jax.random.key(seed), col.shape)
        other = factorization_error(dense, col * jnp.exp(0.1 * noise))
        assert other.divergence > best


@pytest.mark.parametrize("touches", [3, 100])
def test_the_null_is_what_factored_gradients_leave(touches: int) -> None:
    rng = np.random.default_rng(5)
    row, col = np.exp(rng.standard_normal(1000)), np.exp(rng.standard_normal(D))
    noise = rng.standard_normal((touches, 1000, D))
    moment = moment_of(np.float32(np.outer(row, col) * noise), jnp.arange(1000))
    actual = factorization_error(moment.dense, moment.col)
    null = factored_null(KEY, moment)
    drawn = factorization_error(null, moment.col)
    np.testing.assert_allclose(actual.log_ratio, drawn.log_ratio, atol=0.12)
    np.testing.assert_allclose(actual.divergence, drawn.divergence, rtol=0.15)
    assert actual.log_ratio[-1] - actual.log_ratio[0] > 2 / np.sqrt(touches)


def test_touches_count_by_their_weights() -> None:
    b2, sizes = 0.9, np.array([1.0, 0.0, 3.0, 1.0])
    grads = np.float32(np.sqrt(sizes))[:, None, None] * np.ones((1, V, D), np.float32)
    moment = moment_of(grads, b2=b2)
    weights = (1 - b2) * b2 ** np.arange(4)[::-1] * sizes
    expected = np.sum(weights**2) / np.sum(weights) ** 2
    np.testing.assert_allclose(moment.repeats, expected, rtol=1e-5)


def test_shuffled_cells_are_the_same_cells() -> None:
    dense = jnp.arange(12.0).reshape(3, 4)
    shuffled = geometry.shuffled_null(KEY, dense)
    assert shuffled.shape == dense.shape
    assert not np.array_equal(shuffled, dense)
    assert sorted(shuffled.ravel().tolist()) == sorted(dense.ravel().tolist())
    assert (shuffled.sum(axis=1) != dense.sum(axis=1)).any()


# Steps


def test_sizes_of_steps() -> None:
    grads = sparse_gradients(20)
    grads[:, 1] = 0  # never touched
    updates = np.float32(np.random.default_rng(6).standard_normal(grads.shape))
    steps = geometry.steps_init(jnp.zeros((V, D)))
    steps = fold(geometry.steps_update, steps, updates, grads)
    size = np.sqrt(np.mean(np.float64(updates) ** 2, axis=2))
    touched = np.any(grads != 0, axis=2)
    assert (steps.touches == touched.sum(axis=0)).all()
    with np.errstate(invalid="ignore", divide="ignore"):
        at_touch = (size * touched).sum(axis=0) / touched.sum(axis=0)
        path = size.sum(axis=0) / touched.sum(axis=0)
    mean = geometry.mean_steps(steps)
    np.testing.assert_allclose(mean.touched, at_touch, rtol=1e-5)
    assert np.isnan(at_touch).any()
    seen = touched.any(axis=0)
    np.testing.assert_allclose(mean.per_touch[seen], path[seen], rtol=1e-5)
    assert np.isnan(mean.per_touch[~seen]).all()
    np.testing.assert_allclose(steps.largest, size.max(axis=0), rtol=1e-5)


OPTIMIZERS = {
    "ember": (ember_optax.scale_by_ember(B2, vocab_axis=0), 0.0),
    "adam": (optax.scale_by_adam(0.9, B2), 0.9),
    "adam without a first moment": (optax.scale_by_adam(0.0, B2), 0.0),
}
every_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)


def steps_of(tx: Any, grads: Any) -> Any:
    def update(carry: Any, grad: Any) -> Any:
        steps, state = carry
        updates, state = tx.update(grad, state)
        return geometry.steps_update(steps, updates, grad), state

    table = jnp.zeros(grads[0].shape)
    return fold(update, (geometry.steps_init(table), tx.init(table)), grads)[0]


@every_optimizer
@pytest.mark.usefixtures("standard_promotion")
def test_a_cold_row_takes_the_longest_step(name: str) -> None:
    tx, b1 = OPTIMIZERS[name]
    signs = np.random.default_rng(7).choice([-1.0, 1.0], (6000, V, 1))
    grads = np.float32(signs) * np.ones((1, 1, 4), np.float32)
    grads[:5900, 0] = grads[5901:, 0] = 0  # touched once, when bias is long gone
    steps = steps_of(tx, grads)
    longest = 1 / np.sqrt(1 - B2)
    assert steps.largest[0] == pytest.approx((1 - b1) * longest, rel=3e-3)
    assert steps.largest.max() <= geometry.step_bound(B2, b1) * (1 + 1e-5)
    # With a first moment the rest comes later.
    assert geometry.mean_steps(steps).per_touch[0] == pytest.approx(longest, rel=0.01)


def test_bound_of_a_step() -> None:
    assert geometry.step_bound(0.99) == pytest.approx(10)
    assert geometry.step_bound(0.999) == pytest.approx(1000**0.5, rel=1e-6)
    # Gradients that grow as fast as Cauchy and Schwarz allow.
    b1, b2 = 0.9, 0.99
    grads = (b2 / b1) ** np.arange(400.0)
    ages = np.arange(400)[::-1]
    m = (1 - b1) * np.sum(b1**ages * grads)
    v = (1 - b2) * np.sum(b2**ages * grads**2)
    assert geometry.step_bound(b2, b1) == pytest.approx(m / np.sqrt(v), rel=1e-3)


@pytest.mark.parametrize("period", [1, 10, 500])
def test_expected_step_of_a_row(period: int) -> None:
    # Touched by chance before the last step, of which it takes the mean of the moment.
    touches = np.random.default_rng(8).random((2000, 3000)) < 1 / period
    touches[-1] = True
    row = (1 - B2) * (B2 ** np.arange(2000)[::-1] @ touches)
    step = np.sqrt((1 - B2**2000) / np.mean(row))
    expected = geometry.expected_step(jnp.array(1 / period), jnp.array(2000), B2)
    assert expected == pytest.approx(step, rel=0.01)
    first = geometry.expected_step(jnp.array([0.0, 1.0]), jnp.array([1, 1]), B2)
    np.testing.assert_allclose(first, 1, rtol=1e-6)


# Trajectories


def walk(times: int, rows: int, columns: int, seed: int = 9) -> np.ndarray:
    steps = np.random.default_rng(seed).standard_normal((times, rows, columns))
    return np.cumsum(steps, axis=0)


@pytest.mark.parametrize("times", [5, 20])  # fewer and more than columns
def test_share_of_the_first_component(times: int) -> None:
    points = walk(times, V, D)
    centred = points - points.mean(axis=0)
    variances = [np.linalg.svd(centred[:, i], compute_uv=False) ** 2 for i in range(V)]
    expected = [v[0] / v.sum() for v in variances]
    actual = ray_share(jnp.float32(points))
    np.testing.assert_allclose(actual, expected, rtol=1e-4)


def test_cosine_to_the_displacement() -> None:
    points = walk(20, V, D)
    steps, displacement = np.diff(points, axis=0), points[-1] - points[0]
    lengths = np.linalg.norm(steps, axis=2) * np.linalg.norm(displacement, axis=1)
    expected = np.sum(steps * displacement, axis=2) / lengths
    actual = ray_cosine(jnp.float32(points))
    np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-5)


def test_a_line_is_a_line() -> None:
    rng = np.random.default_rng(10)
    along = np.cumsum(rng.random((20, 1, 1, 1)), axis=0)
    start, direction = rng.standard_normal((2, V, 2, D // 2))
    points = jnp.float32(start + along * direction)
    np.testing.assert_allclose(ray_share(points), 1, rtol=1e-5)
    np.testing.assert_allclose(ray_cosine(points), 1, rtol=1e-4)


def test_a_random_walk_is_nearly_two_thirds_a_line() -> None:
    still = jnp.ones((120, 20, 1))
    points = jnp.cumsum(jnp.pad(still, ((0, 0), (0, 0), (0, 255))), axis=0)
    null = random_walk(KEY, points)
    share = ray_share(null)
    np.testing.assert_allclose(share.mean(), 6 / np.pi**2, atol=0.02)
    cosine = jnp.mean(ray_cosine(null))
    np.testing.assert_allclose(cosine, 119**-0.5, rtol=0.05)


def test_the_random_walk_has_the_same_steps() -> None:
    points = walk(20, V, D)
    points[5:10, 3] = points[4, 3]  # stands still
    points[:, 4] = 1  # and this one never moves
    null = random_walk(KEY, jnp.float32(points))
    assert null.shape == points.shape
    lengths = [np.linalg.norm(np.diff(x, axis=0), axis=2) for x in (null, points)]
    np.testing.assert_allclose(*lengths, rtol=1e-4, atol=1e-5)
    directions = np.diff(null, axis=0)[:, 0] / lengths[0][:, 0, None]
    assert np.abs(directions.sum(axis=0)).max() < 5 * np.sqrt(19 / D)
    for statistic in (ray_share, ray_cosine):
        for x in (null, jnp.float32(points)):
            assert np.isnan(statistic(x)[..., 4]).all()
    assert np.isnan(ray_cosine(null)[4:9, 3]).all()


# Frequencies


def text(places: int, seed: int = 11) -> tuple[np.ndarray, np.ndarray]:
    """Logits with rare tokens, and targets of which some are padding."""
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal((4, places, V)) - np.linspace(0, 5, V)
    targets = rng.choice(V, (4, places))
    targets[:, ::7] = -1
    return np.float32(logits), np.int32(targets)


def frequencies_of(logits: Any, targets: Any) -> Any:
    init = geometry.frequencies_init(V)
    return fold(geometry.frequencies_update, init, logits, targets)


def test_predicted_against_actual_frequency() -> None:
    logits, targets = text(50)
    frequencies = frequencies_of(logits, targets)
    exp = np.exp(np.float64(logits))
    probabilities = (exp / exp.sum(axis=-1, keepdims=True))[targets >= 0]
    predicted = probabilities.sum(axis=0)
    actual = np.bincount(targets[targets >= 0], minlength=V)
    np.testing.assert_allclose(frequencies.predicted, predicted, rtol=1e-5)
    np.testing.assert_allclose(frequencies.actual, actual)

    counts, edges = np.arange(V), np.array([1, 20])
    error = frequency_error(frequencies, jnp.asarray(counts), jnp.asarray(edges))
    bins = [counts < 1, (counts >= 1) & (counts < 20), counts >= 20]
    expected = [np.log(predicted[b].sum() / actual[b].sum()) for b in bins]
    np.testing.assert_allclose(error, expected, rtol=1e-4)


def test_calibrated_targets_have_no_error_but_chance() -> None:
    logits, _ = text(4000)
    keys = jax.random.split(KEY, len(logits))
    targets = jax.vmap(geometry.calibrated_targets)(keys, jnp.asarray(logits))
    frequencies = frequencies_of(logits, targets)
    assert frequencies.actual.sum() == targets.size
    edges = jnp.arange(1, V)
    error = frequency_error(frequencies, jnp.arange(V), edges)
    deviations = error * jnp.sqrt(frequencies.actual)  # in standard deviations
    assert jnp.abs(deviations).max() < 4
    assert 0.5 < jnp.std(deviations) < 1.5


# All of them


def everything(grads: Any, updates: Any, logits: Any, targets: Any) -> Any:
    """All states after some steps."""
    rows = jnp.array([1, 7, V - 1])
    table = grads[0]
    init = (
        geometry.history_init(table, rows, 3),
        geometry.second_moment_init(table, rows),
        geometry.steps_init(table),
        geometry.frequencies_init(V),
    )

    def step(states: Any, batch: Any) -> Any:
        history, moment, steps, frequencies = states
        grad, update, logits, targets = batch
        states = (
            geometry.history_update(history, grad),
            geometry.second_moment_update(moment, grad),
            geometry.steps_update(steps, update, grad),
            geometry.frequencies_update(frequencies, logits, targets),
        )
        return states, None

    return jax.lax.scan(step, init, (grads, updates, logits, targets))[0]


def batches(dtype: Any) -> Any:
    """Arguments of `everything`, with numbers that bfloat16 has."""
    grads, (logits, targets) = sparse_gradients(4), text(48)
    exact = (jnp.asarray(x, jnp.bfloat16) for x in (grads, -grads, logits))
    return *(x.astype(dtype) for x in exact), jnp.asarray(targets)


@functools.cache
def everything_in_float32() -> Any:
    return jax.device_get(jax.jit(everything)(*batches(jnp.float32)))


def assert_same(actual: Any, rtol: float) -> None:
    expected = jax.tree.leaves(everything_in_float32())
    for a, e in zip(jax.tree.leaves(actual), expected, strict=True):
        np.testing.assert_allclose(a, e, rtol=rtol, atol=1e-6)


@pytest.mark.parametrize("mode", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_on_a_mesh(mode: AxisType) -> None:
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(mode, mode))
    table = P(None, "x", "y")
    specs = table, table, P(None, "y", "x"), P(None, "y")
    with jax.set_mesh(mesh):
        shardings = tuple(NamedSharding(mesh, spec) for spec in specs)
        args = jax.device_put(batches(jnp.float32), shardings)
        actual = jax.jit(everything)(*args)
    assert_same(actual, rtol=2e-5)
    assert all(x.sharding.is_fully_replicated for x in jax.tree.leaves(actual))


def test_statistics_are_float32() -> None:
    args = batches(jnp.bfloat16)
    states = jax.jit(everything)(*args)
    types = {x.dtype for x in jax.tree.leaves(states)}
    assert types == {jnp.dtype("float32"), jnp.dtype("int32")}
    assert_same(states, rtol=1e-5)
    points, dense = args[0], jnp.square(args[0][0])
    read = (
        ray_share(points),
        ray_cosine(points),
        random_walk(KEY, points),
        *factorization_error(dense, dense[0]),
    )
    assert {x.dtype for x in read} == {jnp.dtype("float32")}


def test_states_can_be_donated() -> None:
    rows = jnp.arange(3)
    states = (
        geometry.history_init(TABLE, rows, 2),
        geometry.second_moment_init(TABLE, rows),
        geometry.steps_init(TABLE),
        geometry.frequencies_init(V),
    )
    shapes = jax.tree.map(jnp.shape, states)
    step = jax.jit(lambda x: jax.tree.map(jnp.negative, x), donate_argnums=0)
    assert jax.tree.map(jnp.shape, step(states)) == shapes
    assert not rows.is_deleted()


TABLE = jnp.zeros((V, D))
BAD = {
    "no columns": (lambda: geometry.history_init(TABLE[0], EVERY_ROW, 1), "rows and"),
    "rows of floats": (
        lambda: geometry.second_moment_init(TABLE, TABLE[:, 0]),
        r"float32\[40\].*integers",
    ),
    "no lags": (lambda: geometry.history_init(TABLE, EVERY_ROW, 0), "at least 1"),
    "transposed gradients": (
        lambda: geometry.history_update(
            geometry.history_init(TABLE, EVERY_ROW, 1), TABLE.T
        ),
        r"\(40,\).*\(16,\).*transpose",
    ),
    "transposed steps": (
        lambda: geometry.steps_update(geometry.steps_init(TABLE), TABLE.T, TABLE.T),
        r"\(16,\).*\(40,\).*transpose",
    ),
    "columns": (lambda: geometry.factorization_error(TABLE, TABLE[:, 0]), "col has"),
    "one point": (lambda: geometry.ray_share(TABLE[None]), "two times"),
    "one row": (lambda: geometry.ray_cosine(TABLE), "two times"),
    "another vocabulary": (
        lambda: geometry.frequencies_update(
            geometry.frequencies_init(V), TABLE, jnp.zeros(V, jnp.int32)
        ),
        r"\(40, 16\).*\(40, 40\)",
    ),
    "other counts": (
        lambda: geometry.frequency_error(
            geometry.frequencies_init(V), jnp.zeros(D), jnp.array([1])
        ),
        r"\(16,\).*\(40,\)",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused(case: str) -> None:
    call, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        call()
