"""Mistakes that a user can put right: programs show them in a line, not a traceback."""


class UserError(ValueError):
    """Says what was found, what is needed and the way out."""


class MissingFile(UserError, FileNotFoundError):
    """A path names nothing."""


class MissingPackage(UserError, ModuleNotFoundError):
    """An optional package is not installed."""
