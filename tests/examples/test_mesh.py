"""Training of the language model on meshes of eight devices, in one process."""

import functools
import json

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from examples.lm import Config
from examples.lm.errors import UserError
from examples.lm.mesh import batch_sharding, local_rows, use_mesh
from examples.lm.program import make_program

MESHES = {
    "rows and columns": ({"data": 2, "fsdp": 2, "tensor": 2}, {}),
    "rows": ({"data": 1, "fsdp": 1, "tensor": 8}, {}),
    "columns": ({"data": 1, "fsdp": 8, "tensor": 1}, {}),
    "copies": ({"data": 8, "fsdp": 1, "tensor": 1}, {}),
    "rows over two axes": (
        {"data": 1, "fsdp": 4, "tensor": 2},
        {"vocab": "fsdp,tensor", "table_width": ""},
    ),
}


@pytest.fixture
def config(config: Config) -> Config:
    config.update(batch_size=8, steps=4)
    config.data.vocab_size = 400
    config.model.update(pad_vocab_to_multiple_of=128, layers=2, width=32)
    return config


def global_batch(mesh, rows: np.ndarray) -> jax.Array:
    return jax.make_array_from_process_local_data(batch_sharding(mesh), rows)


def windows(n_steps: int) -> list[np.ndarray]:
    """Batches without the upper half of the vocabulary."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, 200, (8, 17), dtype=np.int32) for _ in range(n_steps)]


def run(config: Config) -> tuple[list[float], jax.Array, jax.Array]:
    """Returns the losses, and the embedding at first and at last."""
    with use_mesh(config) as mesh:
        program = make_program(config, mesh)
        state = program.init()
        assert_placed(state, program.state)
        first = jax.device_get(state.params["embed"]["embedding"])
        losses = []
        for batch in windows(4):
            tokens = global_batch(mesh, batch[local_rows(mesh, 8)])
            state, loss = program.train_step(state, tokens)
            losses.append(float(loss))
        assert_placed(state, program.state)
        for moments in jax.tree.leaves(state.opt_state.ember.tables):
            assert moments.sharding.is_fully_replicated
        return losses, first, jax.device_get(state.params["embed"]["embedding"])


def config_json(config: Config) -> str:
    """Returns all but the paths, which differ from test to test."""
    settings = config.to_dict()
    del settings["workdir"]
    return json.dumps(settings)


@functools.cache
def run_on_one_device(config: str) -> list[float]:
    """Returns the losses of a config, given as JSON."""
    return run(ConfigDict(json.loads(config)))[0]


def assert_placed(state: object, target: object) -> None:
    """Everything is where the program says, before and after steps."""

    def check(x: jax.Array, s: jax.ShapeDtypeStruct) -> None:
        assert x.sharding.is_equivalent_to(s.sharding, x.ndim)

    jax.tree.map(check, state, target)


@pytest.mark.parametrize(
    ("name", "tied", "scan"),
    [
        pytest.param("rows and columns", False, False, marks=pytest.mark.nightly),
        ("rows and columns", True, True),
        pytest.param("rows over two axes", True, False, marks=pytest.mark.nightly),
        *(
            pytest.param(name, False, False, marks=pytest.mark.nightly)
            for name in ("rows", "columns", "copies", "rows over two axes")
        ),
    ],
)
def test_losses_on_a_mesh_are_those_of_one_device(
    config: Config, name: str, tied: bool, scan: bool
) -> None:
    config.model.update(
        tie_embeddings=tied, scan_layers=scan, remat="full" if scan else "none"
    )
    expected = run_on_one_device(config_json(config))
    sizes, rules = MESHES[name]
    config.mesh.update(sizes)
    config.axis_rules.update(rules)
    config.loss_chunks = 4
    losses, first, last = run(config)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    if not tied:  # tokens that are in no batch
        np.testing.assert_array_equal(first[200:], last[200:])
        assert np.any(first[:200] != last[:200])


def test_parameters_are_sharded_by_the_rules(config: Config) -> None:
    config.mesh.update(data=1, fsdp=4, tensor=2)
    config.model.scan_layers = True
    with use_mesh(config) as mesh:
        params = make_program(config, mesh).state.params
    attention, mlp = params["layers"]["attention"], params["layers"]["mlp"]
    for param, spec in [
        (params["embed"]["embedding"], P("tensor", "fsdp")),
        (params["lm_head"]["kernel"], P("fsdp", "tensor")),
        (attention["q_proj"]["kernel"], P(None, "fsdp", "tensor")),
        (attention["o_proj"]["kernel"], P(None, "tensor", "fsdp")),
        (mlp["up_proj"]["kernel"], P(None, "fsdp", "tensor")),
        (mlp["down_proj"]["kernel"], P(None, "tensor", "fsdp")),
        (params["norm"]["scale"], P()),
    ]:
        expected = jax.NamedSharding(mesh, spec)
        assert param.sharding.is_equivalent_to(expected, param.ndim)


def test_norms_have_no_weight_decay(config: Config) -> None:
    config.model.scan_layers = True
    config.body.weight_decay = 0.5
    config.clip_norm = 1e-12  # the gradients are gone, the decay is left
    with use_mesh(config) as mesh:
        program = make_program(config, mesh)
        state = program.init()
        first = jax.device_get(state.params)
        for batch in windows(4):
            state, _ = program.train_step(state, global_batch(mesh, batch))
    for path, old in jax.tree_util.tree_leaves_with_path(first["layers"]):
        new = dict(jax.tree_util.tree_leaves_with_path(state.params["layers"]))[path]
        shrunk = np.abs(new).sum() < np.abs(old).sum() * (1 - 1e-4)
        assert shrunk == ("kernel" in jax.tree_util.keystr(path)), path


@pytest.mark.parametrize(
    ("sizes", "batch_size", "message"),
    [
        ({"fsdp": 3, "tensor": 3}, 9, "does not fit 8 devices"),
        ({"fsdp": -1, "tensor": 3}, 9, "does not fit 8 devices"),
        ({"fsdp": -1, "tensor": -1}, 8, "does not fit 8 devices"),
        ({"fsdp": 0}, 8, "does not fit 8 devices"),
        ({"fsdp": -1}, 12, "batch_size is 12, but 8 shards"),
    ],
)
def test_meshes_that_do_not_fit_are_an_error(
    config: Config, sizes: dict[str, int], batch_size: int, message: str
) -> None:
    config.mesh.update(sizes)
    config.batch_size = batch_size
    with pytest.raises(ValueError, match=message), use_mesh(config):
        pass


def test_accumulated_gradients_are_those_of_the_batch(config: Config) -> None:
    expected = run_on_one_device(config_json(config))
    config.mesh.update(fsdp=2)
    config.accumulate_steps = 2
    losses, *_ = run(config)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


def test_tables_that_cannot_be_divided_are_named(config: Config) -> None:
    config.mesh.update(tensor=8)
    config.model.pad_vocab_to_multiple_of = 1
    config.data.vocab_size = 401
    with (
        pytest.raises(UserError, match="cannot be divided into equal shards"),
        use_mesh(config) as mesh,
    ):
        make_program(config, mesh)
