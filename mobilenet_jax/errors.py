"""Errors that a user can correct, which are reported in one line, and interruptions, which are not errors."""

import errno
import os
from collections.abc import Sequence

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
LONGEST = 1000  # characters of a message, which may quote what a person gave
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


def is_of_the_user(error: BaseException) -> bool:
  """Returns whether one line describes the error completely, so that a traceback would not help.

  That is so for a file that cannot be used, and if there is not enough memory.
  """
  return isinstance(error, UserError) or isinstance(error, OSError) and (
      error.filename is not None or error.errno in _NO_SPACE) or _is_out_of_memory(error)


def _is_out_of_memory(error):
  return isinstance(error, MemoryError) or (
      type(error).__name__ in ('JaxRuntimeError', 'XlaRuntimeError') and 'RESOURCE_EXHAUSTED' in str(error))


def describe(error: BaseException) -> str:
  """Returns one line that describes an error to a person."""
  if isinstance(error, OSError) and is_of_the_user(error):
    text = f'{error.filename or "writing"}: {os.strerror(error.errno) if error.errno else error}; {_advice(error.errno)}'
  elif _is_out_of_memory(error):
    text = f'out of memory ({str(error)[:150] or "MemoryError"}); try a smaller batch, smaller images or fewer jobs'
  else:
    text = str(error) if isinstance(error, UserError) else f'{type(error).__name__}: {error}'
  text = ''.join(c if c.isprintable() else ascii(c)[1:-1] for c in ' '.join(text.split()))
  return text if len(text) <= LONGEST else f'{text[:LONGEST]} ...'


def _advice(number):
  if number in _NO_SPACE:
    return 'free some space and start the same command again'
  if number in (errno.EACCES, errno.EPERM, errno.EROFS):
    return 'give a file or a folder that you may use, and start the same command again'
  return 'give the path of another file or folder'
