"""Mistakes of a user, which end a program with one line."""


class UserError(ValueError):
    """Something that the user can put right; its message says how."""
