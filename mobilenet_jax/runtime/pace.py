"""Says when a person should hear again from something that takes long."""

import functools
import sys
import time
from collections.abc import Callable


class Pace:
  """Is due some seconds after it was last due, or reset.

  Args:
    first: the seconds until it is due for the first time.
    then: the seconds until each further time.
  """

  def __init__(self, first: float, then: float):
    self._seconds, self._then, self._since = first, then, time.monotonic()

  def due(self) -> bool:
    """Returns whether the seconds have passed. If so, the next ones begin."""
    if time.monotonic() - self._since < self._seconds:
      return False
    self.reset()
    return True

  def reset(self) -> None:
    """Begins the seconds of a further time, because something else was said."""
    self._seconds, self._since = self._then, time.monotonic()


def progress(what: str, total: int, seconds: float = 10,
             say: Callable[[str], None] = functools.partial(print, file=sys.stderr, flush=True),
             first: int = 0) -> Callable[[int], None]:
  """Returns a function that takes how many of `total` are done, and says so every so many seconds, with the time that is left.

  Args:
    what: what is done, such as 'evaluating'.
    total: how many there are to do.
    seconds: how often to say something.
    say: takes each line; by default it is printed on standard error.
    first: how many were done before.
  """
  pace, started = Pace(seconds, seconds), time.monotonic()

  def done(count: int) -> None:
    if pace.due() and first < count < total:
      left = (time.monotonic() - started) * (total - count) / (count - first)
      say(f'{what}: {count:,} of {total:,}, {duration(left)} left')

  return done


def duration(seconds: float) -> str:
  """Returns seconds as text, like 4:05 or 1:02:03."""
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f'{hours}:{minutes:02}:{seconds:02}' if hours else f'{minutes}:{seconds:02}'
