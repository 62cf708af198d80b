"""Handles SIGTERM, SIGINT and SIGUSR2 as requests to stop, which training grants between two steps."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

ENDING = (signal.SIGTERM, signal.SIGINT)  # a second one of these ends the process
SIGNALS = (*ENDING, signal.SIGUSR2)  # SIGUSR2: the time of a Slurm job is nearly over; a SIGTERM follows
SAME_SECONDS = 1  # signals this close together count as one: stopping a process group or preempting a job may send several


@contextlib.contextmanager
def kept_from_children() -> Iterator[None]:
  """Keeps Ctrl-C, which is meant for this process, and the end of the terminal from processes that are started meanwhile.

  This process receives these signals afterwards.
  """
  before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
  try:
    yield
  finally:
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def stop_wanted() -> Iterator[Callable[[], str]]:
  """Yields a function that returns the name of the signal that came, '' if none has come.

  A second signal ends the process at once. In threads other than the main one, where Python does not allow signal handlers,
  the function returns ''. A signal that is ignored stays ignored.
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
