"""Starting a program: its flags, and a line instead of a traceback for its user."""

import logging as standard_logging
import os
import sys
from collections.abc import Callable

import jax
from absl import app, flags, logging

from examples.lm.errors import UserError


def start(main: Callable[[], None]) -> None:
    """Parses the flags, `--config` among them, and runs a program.

    A mistake of its user ends it with exit code 1.
    """

    def checked(argv: list[str]) -> None:
        if len(argv) > 1:
            sys.exit(f"Unknown argument {argv[1]!r}: flags begin with --.")
        logging.set_verbosity(logging.ERROR)  # Orbax reports every checkpoint
        # Each retry would print a traceback. The last error is raised.
        standard_logging.getLogger("gcsfs").setLevel("CRITICAL")
        try:
            main()
        except Exception as error:
            if (text := explain(error)) is None:
                raise
            sys.exit(f"\n{text}")

    app.run(checked, flags_parser=_parse)


def explain(error: Exception) -> str | None:
    """Makes the message for the user; None if the error is a fault of the program."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError):
        return f"{error.filename or 'The storage'}: {error.strerror or error}."
    out_of_memory = isinstance(error, jax.errors.JaxRuntimeError) and any(
        words in str(error) for words in ("RESOURCE_EXHAUSTED", "Out of memory")
    )
    if out_of_memory or isinstance(error, MemoryError):
        return (
            f"Out of memory: {str(error).splitlines()[0]:.200} Lower"
            " --config.batch_size or the size of the model, raise"
            " --config.accumulate_steps or --config.loss_chunks, or set"
            " --config.model.remat=full."
        )
    return None


def python() -> str:
    """Returns this Python, as short as a shell needs it here."""
    relative = os.path.relpath(sys.executable)
    return sys.executable if relative.startswith("..") else relative


def _parse(argv: list[str]) -> list[str]:
    try:
        rest = flags.FLAGS(argv)
        flags.FLAGS.config.to_dict()  # raises what loading the file has raised
        return rest
    except flags.Error as error:
        sys.exit(f"{error}. See --help.")
    except Exception as error:  # anything: a config file is a program
        if isinstance(error, AttributeError) and isinstance(error.args[0], Exception):
            # ml_collections gives the unknown field and a similar one.
            field, _, hint = error.args[0].args[0].partition("\n")
            sys.exit(f"The config has no field {field}. {hint}".strip())
        first = error
        while cause := first.__cause__ or first.__context__:
            first = cause
        reason = str(first).splitlines()[-1].strip()
        sys.exit(f"The config file cannot be read: {type(first).__name__}: {reason}")
