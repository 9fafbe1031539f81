"""Flags of the programs, their directories, and one line for a mistake of the user."""

import contextlib
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from examples.post_training import Config
from examples.post_training.errors import UserError


def start(run: Callable[[Config, bool], object], config: str, compare: str) -> None:
    """Parses `--config` and `--compare`, and runs a program.

    Args:
      run: the program, given its configuration and whether to compare.
      config: the default configuration file.
      compare: the help text of `--compare`.
    """
    config_flags.DEFINE_config_file("config", config, "File with the configuration.")
    flags.DEFINE_bool("compare", False, compare)

    def main(argv: list[str]) -> None:
        if len(argv) > 1:
            sys.exit(f"Unknown argument {argv[1]!r}: flags begin with --.")
        logging.set_verbosity(logging.ERROR)  # tunix warns of every device but a TPU
        with one_line_errors():
            run(flags.FLAGS.config, flags.FLAGS.compare)

    app.run(main)


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Ends the program with the message of a mistake, without a traceback."""
    try:
        yield
    except UserError as error:
        sys.exit(f"\n{error}")
    except OSError as error:
        if not error.filename:
            raise
        sys.exit(f"\n{error.filename}: {error.strerror}.")


def prepare_workdir(config: Config) -> Path:
    """Makes the run's directory, empty unless the run is resumed.

    Raises:
      UserError: it holds an earlier run, and the config neither resumes nor deletes it.
    """
    workdir = Path(config.workdir)
    if workdir.exists() and any(workdir.iterdir()) and not config.get("resume"):
        if not config.overwrite:
            raise UserError(
                f"{workdir} holds an earlier run: pass --config.overwrite to delete it,"
                " or another --config.workdir."
            )
        shutil.rmtree(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    return workdir
