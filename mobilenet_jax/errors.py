"""Errors that a user can correct, which are reported in one line, and interruptions, which are not errors."""

import errno
import os
from collections.abc import Sequence

REQUEUE = 75  # the exit status of a command that can be started again as it is: EX_TEMPFAIL of sysexits.h


class UserError(Exception):
  """Bad input: what was given, what was expected and how to correct it. The command line prints it and exits with 1."""


class InUse(UserError):
  """Another process holds the lock. It may be about to end."""


class Interrupted(Exception):
  """The process was asked to stop, and the work can be continued. The command line exits with REQUEUE."""


def few(names: Sequence[str]) -> str:
  """Returns the first three names, for a message, followed by dots if there are more."""
  return ', '.join(names[:3]) + (', ...' if len(names) > 3 else '')


def counted(number: int, noun: str) -> str:
  """Returns a number of things, for a message: '1 run' or '7,200 images'."""
  return f'{number:,} {noun}{"" if number == 1 else "s"}'


def is_of_the_user(error: Exception) -> bool:
  """Returns whether one line describes the error completely, so that a traceback would not help."""
  return isinstance(error, UserError) or isinstance(error, OSError) and error.errno in (
      errno.ENOSPC, errno.EACCES, errno.EROFS)


def describe(error: Exception) -> str:
  """Returns one line that describes an error to a person."""
  if not is_of_the_user(error):
    return ' '.join(f'{type(error).__name__}: {error}'.split())
  if isinstance(error, OSError):
    advice = 'free some space' if error.errno == errno.ENOSPC else 'choose a folder you may write to'
    return f'{error.filename or "writing"}: {os.strerror(error.errno)}; {advice} and start the same command again'
  return ' '.join(str(error).split())
