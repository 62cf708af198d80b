"""SIGTERM, SIGINT and SIGUSR2 as a wish to stop, which is granted between two steps."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

ENDING = (signal.SIGTERM, signal.SIGINT)  # a second one of these ends the process
SIGNALS = (*ENDING, signal.SIGUSR2)  # the last: a Slurm job's time is nearly over, as SIGTERM will say once more
SAME_SECONDS = 1  # between signals that are one: who stops a group of processes, or preempts a job, may send several


@contextlib.contextmanager
def stop_wanted() -> Iterator[Callable[[], str]]:
  """A function that gives the name of the signal that came, '' before one has; a second one ends the process at once.

  In a thread other than the main one, where Python lets nobody handle signals, it gives ''. A signal that is ignored
  stays ignored.
  """
  came, moments = [], []

  def note(number, frame):
    del frame
    came.append(signal.Signals(number).name)
    if number in ENDING:
      moments.append(time.monotonic())
      if moments[-1] - moments[0] > SAME_SECONDS:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

  handled = []
  if threading.current_thread() is threading.main_thread():
    handled = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
  before = {number: signal.signal(number, note) for number in handled}
  try:
    yield lambda: came[0] if came else ''
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
