"""Mistakes that a user can correct: programs show them as a line, not a traceback."""

import contextlib
from collections.abc import Iterator


class UserError(ValueError):
    """Says what was found, what is needed and how to get there."""


@contextlib.contextmanager
def explained(what: str, advice: str = "") -> Iterator[None]:
    """Turns an error of a storage or a file format into one line: what, why, advice."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{what}: {reason(error)}. {advice}".strip()) from error


def reason(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError):
        return f"install {error.name} first"
    first_line = str(error).strip().partition("\n")[0].removesuffix(".")
    return f"{type(error).__name__}: {first_line:.300}"
