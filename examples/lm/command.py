"""Starting a program: its flags, and a line instead of a traceback for its user."""

import logging as standard_logging
import os
import sys
import traceback
from collections.abc import Callable

import jax
from absl import app, flags, logging

from examples.lm.errors import UserError, reason


def start(main: Callable[[], None]) -> None:
    """Parses the flags, `--config` among them, and runs a program.

    A mistake of its user ends it with a line and exit code 1.
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
            text = _explain(error) or traceback.format_exc()
            print(f"\n{text}", file=sys.stderr, flush=True)
            if jax.distributed.is_initialized():
                # At a regular exit this process would wait for the others, which wait
                # for its part of a step. The launcher or the cluster ends them.
                os._exit(1)
            sys.exit(1)

    app.run(checked, flags_parser=_parse)


def _explain(error: Exception) -> str | None:
    """Makes the message for the user; None if the error is a fault of the program."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError):
        return f"{error.filename or 'The storage'}: {error.strerror or error}."
    words = "RESOURCE_EXHAUSTED", "Out of memory"
    if isinstance(error, MemoryError) or (
        isinstance(error, jax.errors.JaxRuntimeError)
        and any(word in str(error) for word in words)
    ):
        return (
            f"Out of memory: {reason(error)}. Lower --config.batch_size or the length"
            " of the sequences. Pretraining also has --config.accumulate_steps,"
            " --config.loss_chunks and --config.model.remat=full."
        )
    return None


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
        while cause := error.__cause__ or error.__context__:
            error = cause
        why = str(error).splitlines()[-1].strip()
        sys.exit(f"The config file cannot be read: {type(error).__name__}: {why}")
