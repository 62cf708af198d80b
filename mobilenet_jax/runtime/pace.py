"""Says when a person should hear again from something that takes long."""

import time


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
