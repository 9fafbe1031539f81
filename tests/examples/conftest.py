import shutil
from collections.abc import Iterator

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache
from ml_collections import ConfigDict

from benchmarks.data import gcs
from configs.pretrain_small import get_config
from examples.tools import tokenize_shards


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
        with jax.numpy_dtype_promotion("standard"):  # for Adam's integer count
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


@pytest.fixture(scope="session")
def tokens(tmp_path_factory):
    """Shards of sentences that a small model learns quickly, and their tokenizer."""
    root = tmp_path_factory.mktemp("tokens")
    texts = [
        f"word{i} counts {i * n} and {n} more\n" for i in range(20) for n in range(40)
    ]
    (root / "text.txt").write_text("".join(texts))
    bpe = tokenize_shards.train_vocabulary(iter(texts), 300)
    (root / "tokenizer.json").write_text(bpe)
    shard = "0", [str(root / "text.txt")]
    tokenize_shards.convert(str(root / "tokenizer.json"), "text", 0, str(root), shard)
    shutil.copytree(root / "train", root / "validation")
    return root


@pytest.fixture
def config(tmp_path, tokens) -> ConfigDict:
    """The config of `make pretrain`, tiny."""
    config = get_config()
    config.update(steps=6, batch_size=2, sequence_length=16, log_every=2)
    config.update(eval_every=3, eval_batches=2, checkpoint_every=2)
    config.data.path = f"{tokens}/train/*.bin"
    config.data.validation_path = f"{tokens}/validation/*.bin"
    config.data.tokenizer = f"{tokens}/tokenizer.json"
    config.model.update(width=16, layers=1, heads=2, mlp_width=32)
    config.model.pad_vocab_to_multiple_of = 1
    config.mesh.fsdp = 1  # of the eight devices
    config.workdir = str(tmp_path / "run")
    return config


@pytest.fixture
def pretrain(tmp_path, config):
    """Returns the arguments of Python for the program with `config`."""
    file = tmp_path / "config.py"

    def arguments(*flags: str) -> list[str]:
        file.write_text(
            "from ml_collections import ConfigDict\n"
            f"def get_config(): return ConfigDict({config.to_dict()!r})\n"
        )
        return ["-m", "examples.pretrain", f"--config={file}", *flags]

    return arguments
