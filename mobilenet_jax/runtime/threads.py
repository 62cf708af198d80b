"""Threads that work ahead."""

import queue
import threading
from collections.abc import Callable
from concurrent import futures


class Workers:
  """Threads that call functions in the order in which they are submitted.

  They are daemons: a read that never returns cannot keep the process from ending. The threads of concurrent.futures, and of
  libraries that use them, such as Grain, are waited for at the end of the process.
  """

  def __init__(self, threads: int):
    self._threads = threads
    self._jobs: queue.SimpleQueue = queue.SimpleQueue()
    for _ in range(threads):
      threading.Thread(target=self._work, daemon=True).start()

  def submit(self, function: Callable, *args) -> futures.Future:
    """Returns the future result of function(*args)."""
    future: futures.Future = futures.Future()
    self._jobs.put((future, function, args))
    return future

  def close(self) -> None:
    """Drops what has not begun, and lets each thread end after what it is doing. Does not wait."""
    while not self._jobs.empty():
      try:
        self._jobs.get_nowait()
      except queue.Empty:  # a thread was faster
        break
    for _ in range(self._threads):
      self._jobs.put(None)

  def _work(self):
    while (job := self._jobs.get()) is not None:
      future, function, args = job
      try:
        future.set_result(function(*args))
      except BaseException as error:  # raised again by future.result()
        future.set_exception(error)
