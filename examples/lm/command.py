"""Starting a program: its flags, and a line instead of a traceback for its user."""

import contextlib
import sys
from collections.abc import Callable, Iterator

import jax
from absl import app, logging

from examples.lm.errors import UserError


def start(main: Callable[[], None]) -> None:
    """Parses the flags and runs a program; a mistake of its user ends it with 1."""

    def checked(argv: list[str]) -> None:
        if len(argv) > 1:
            sys.exit(f"Unknown argument {argv[1]!r}: flags begin with --.")
        logging.set_verbosity(logging.WARNING)  # Orbax reports every checkpoint
        with one_line_errors():
            main()

    app.run(checked, flags_parser=_parse)


def explanation(error: Exception) -> str | None:
    """Returns what to tell the user, None if the error is a fault of the program."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}."
    out_of_memory = isinstance(error, jax.errors.JaxRuntimeError) and (
        "RESOURCE_EXHAUSTED" in str(error)
    )
    if out_of_memory or isinstance(error, MemoryError):
        return (
            f"Out of memory: {str(error).splitlines()[0]:.200} Lower"
            " --config.batch_size or the size of the model, raise --config.loss_chunks,"
            " or set --config.model.remat=full."
        )
    return None


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if (text := explanation(error)) is None:
            raise
        sys.exit(f"\n{text}")


def _parse(argv: list[str]) -> list[str]:
    try:
        return app.parse_flags_with_usage(argv)
    except AttributeError as error:  # ml_collections names the field, and a near one
        sys.exit(f"The config has no field {' '.join(str(error.args[0]).split())}")
    except Exception as error:  # anything: a config file is a program
        first = error
        while cause := first.__cause__ or first.__context__:
            first = cause
        sys.exit(f"The config file cannot be read: {type(first).__name__}: {first}")
