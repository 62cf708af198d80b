"""Threads that work ahead."""

import queue
import threading
import time
import weakref
from collections.abc import Callable
from concurrent import futures

END_SECONDS = 1.0  # that the end of a process waits for threads to finish what they are doing


class Workers:
  """Threads that call functions in the order in which they are submitted.

  A read that never returns cannot keep the process from ending, as it does in a thread of concurrent.futures, or of a library
  that uses them, such as Grain: the end waits END_SECONDS for these threads. It does wait, because C++ code in a thread that is
  cut off aborts the process.

  Attributes:
    closed: is set once the results are not wanted any more. A long function should then return.
    close: drops what has not begun, and ends the threads. Called at the latest at the end of the process.
  """

  def __init__(self, threads: int):
    self.closed = threading.Event()
    self._jobs: queue.SimpleQueue = queue.SimpleQueue()
    running = [threading.Thread(target=_work, args=(self._jobs, self.closed), daemon=True) for _ in range(threads)]
    for thread in running:
      thread.start()
    self.close = weakref.finalize(self, _close, self._jobs, self.closed, running)

  def submit(self, function: Callable, *args) -> futures.Future:
    """Returns the future result of function(*args)."""
    future: futures.Future = futures.Future()
    self._jobs.put((future, function, args))
    return future


def _work(jobs, closed):
  while (job := jobs.get()) is not None and not closed.is_set():
    future, function, args = job
    try:
      future.set_result(function(*args))
    except BaseException as error:  # raised again by future.result()
      future.set_exception(error)


def _close(jobs, closed, threads):
  closed.set()
  for _ in threads:
    jobs.put(None)
  end = time.monotonic() + END_SECONDS
  for thread in threads:
    if thread is not threading.current_thread():
      thread.join(max(end - time.monotonic(), 0))
