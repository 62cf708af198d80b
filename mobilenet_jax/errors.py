"""Errors of a user: one line that says what was given, what was expected and how to mend it; and what is no error."""

REQUEUE = 75  # the exit status of what can be started again as it is: EX_TEMPFAIL of sysexits.h


class UserError(Exception):
  """Bad input. The command line prints it as one line and exits with status 1."""


class InUse(UserError):
  """Another process has what this one wants; perhaps it is about to end."""


class Interrupted(Exception):
  """Somebody asked to stop, and it can be continued. The command line says so and exits with status REQUEUE."""
