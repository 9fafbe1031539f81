import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache
from ml_collections import ConfigDict

from configs.pretrain_small import get_config


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


@pytest.fixture
def corpus(tmp_path):
    """A directory of twenty documents, each with a word that no other has."""
    directory = tmp_path / "corpus"
    directory.mkdir()
    for i in range(20):
        lines = [f"word{i} counts {i * n} and {n} more" for n in range(20)]
        (directory / f"{i:02}.txt").write_text("\n".join(lines))
    return directory


@pytest.fixture
def config(tmp_path, corpus) -> ConfigDict:
    """The configuration of `make pretrain`, tiny."""
    config = get_config()
    config.update(steps=6, batch_size=2, sequence_length=16)
    config.update(eval_every=3, eval_batches=2, checkpoint_every=2)
    config.data.update(path=str(corpus), cache_dir=str(tmp_path / "cache"))
    config.data.vocab_size = 300
    config.model.update(width=16, layers=1, heads=2, mlp_width=32, vocab_multiple=1)
    config.mesh.fsdp = 1  # of the eight devices
    config.workdir = str(tmp_path / "run")
    return config


@pytest.fixture
def pretrain(tmp_path, config):
    """A function that returns the arguments of Python for the program with `config`."""
    file = tmp_path / "config.py"

    def arguments(*flags: str) -> list[str]:
        file.write_text(
            "from ml_collections import ConfigDict\n"
            f"def get_config(): return ConfigDict({config.to_dict()!r})\n"
        )
        return ["-m", "examples.pretrain", f"--config={file}", *flags]

    return arguments
