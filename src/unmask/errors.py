"""Errors that are shown to a user as one line."""


class UserError(Exception):
    """A mistake of the user: shown as one line, exit code 2."""


class RunError(Exception):
    """Something went wrong while running (a non-finite loss, a failing reward): shown as one line, exit code 1."""
