"""Tables that are sharded over several processes equal those on one device."""

from pathlib import Path

import numpy as np
import pytest

from examples.tools.launch import launch, wait
from tests.hundred_steps import one_device, present
from tests.mesh.process_worker import LAYOUTS, MODES

pytestmark = pytest.mark.usefixtures("standard_promotion")

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module", params=[(2, 4), (4, 2)], ids=str)
def trained(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, np.ndarray]:
    """The tables trained in as many processes, with as many devices each."""
    path = tmp_path_factory.mktemp("processes") / "tables.npz"
    worker = ["-m", "tests.mesh.process_worker", str(path)]
    with launch(worker, *request.param, cwd=ROOT) as started:
        assert wait(started) == 0
    with np.load(path) as tables:
        return dict(tables)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_hundred_steps_in_several_processes_equal_those_on_one_device(
    trained: dict[str, np.ndarray], mode: str, layout: str
) -> None:
    expected = one_device("all")
    for name in expected:
        result = trained[f"{mode}/{layout}/{name}"]
        np.testing.assert_allclose(result, expected[name], rtol=1e-6, atol=1e-6)
        # jax.random may round the last bit differently in this process.
        table = trained[f"first/{name}"]
        absent = np.asarray(present(table) == 0)
        np.testing.assert_array_equal(result[absent], table[absent])
