from collections.abc import Iterator

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from benchmarks.data import gcs


@pytest.fixture(scope="module", autouse=True)
def cheap_compilation(tmp_path_factory):
    """Compiles with little effort, and each program once, also in children."""
    settings = {
        "jax_disable_most_optimizations": True,
        "jax_compilation_cache_dir": str(tmp_path_factory.getbasetemp() / "jax"),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            jax.config.update(name, value)
            patch.setenv(name.upper(), str(value))
        yield
    jax.config.update("jax_disable_most_optimizations", False)
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    with gcs.serve() as url:
        yield url


@pytest.fixture
def bucket(server, request) -> str:
    """A directory that does not exist yet, in a bucket on loopback."""
    return f"{server}/{request.node.name.replace('[', '-').strip(']')}"
