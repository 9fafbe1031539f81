"""Mistakes that a user can correct: programs show them as a line, not a traceback."""


class UserError(ValueError):
    """Says what was found, what is needed and how to get there."""
