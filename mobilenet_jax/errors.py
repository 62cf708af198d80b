"""Errors of a user: one line that says what was given, what was expected and how to mend it."""


class UserError(Exception):
  """Bad input. The command line prints it as one line and exits with status 1."""
