"""Settings of every test and doctest, made before JAX is imported.

This file is in the root so that `pytest ember_optax` and `pytest README.md` run under
the same settings.
"""

import os

DEVICES = "--xla_force_host_platform_device_count=8"
if DEVICES not in os.environ.get("XLA_FLAGS", ""):  # workers of pytest-xdist inherit it
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {DEVICES}".strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from collections.abc import Iterator  # noqa: E402

import hypothesis  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402
from jax.experimental.compilation_cache import compilation_cache  # noqa: E402

# A forgotten axis or a silent cast is an error: statistics have one axis less than
# tables, and the state is wider than parameters in bfloat16.
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

# The same examples on every machine; the first one compiles and breaks any deadline.
hypothesis.settings.register_profile("ember", deadline=None, derandomize=True)
hypothesis.settings.load_profile("ember")


@pytest.fixture
def standard_promotion() -> Iterator[None]:
    """For tests that run optax.adam, which raises a float to its integer count."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="module")
def cheap_compilation() -> Iterator[None]:
    """Compiles with little effort, where compiling takes longer than running."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture
def no_cache() -> Iterator[None]:
    """For tests that compile with libtpu, which cannot load that without TPUs."""
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # JAX remembers that it is in use
    yield
    jax.config.update("jax_enable_compilation_cache", True)
    compilation_cache.reset_cache()


@pytest.fixture(autouse=True)
def users_settings(request: pytest.FixtureRequest) -> Iterator[None]:
    """Runs doctests as a user runs them, under JAX's own settings."""
    if not isinstance(request.node, pytest.DoctestItem):
        yield
        return
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield
