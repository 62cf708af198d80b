"""Files that are there whole or not at all, and folders that one process has to itself."""

import contextlib
import fcntl
import os
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple, TextIO

from mobilenet_jax.errors import InUse

LOCK_FILE = 'lock'


class Owner(NamedTuple):
  """A process, and the host it runs on."""
  pid: int
  host: str


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
  """A file to write to, beside `path` and renamed at the end, so that neither a kill nor a full disk leaves half of it."""
  temporary = path.with_name(f'{path.name}.{socket.gethostname()}.{os.getpid()}.tmp')  # several may write one at a time
  with temporary.open('wb') as file:
    yield file
  temporary.replace(path)


def write_whole(path: Path, text: str) -> None:
  """Writes text as `whole_file` does."""
  with whole_file(path) as file:
    file.write(text.encode())


def lock(folder: Path, name: str = LOCK_FILE, seconds: float = 1) -> TextIO:
  """Has the folder for this process, until the file that it returns is closed or the process ends, however it does.

  Args:
    folder: what to have.
    name: of the file in it that stands for what it is had for.
    seconds: to wait for another process to let go of it.

  Raises:
    InUse: where another process has it, naming that.
  """
  file = (folder / name).open('a+')
  end = time.monotonic() + seconds
  try:
    while True:
      try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # on a network file system too, where that passes locks on
        break
      except BlockingIOError:
        if time.monotonic() > end:
          owner = lock_owner(folder, name) or Owner(0, 'an unknown host')
          file.close()
          raise InUse(f'{folder}: another process works in it (process {owner.pid} on {owner.host}); wait for its end, or '
                      'give another --workdir') from None
        time.sleep(0.05)
  except OSError:
    pass  # a file system without locks: who starts two, has two
  file.truncate(0)
  file.write(f'process {os.getpid()} on {socket.gethostname()}')
  file.flush()
  return file


def lock_owner(folder: Path, name: str = LOCK_FILE) -> Owner | None:
  """The process that has the folder; None where none has, or the file system has no locks."""
  try:
    file = (folder / name).open('r+')
  except OSError:
    return None
  with file:
    try:
      fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # for a moment, which is why lock() waits for one
    except BlockingIOError:
      found = re.fullmatch(r'process (\d+) on (.*)', file.read())
      return Owner(int(found[1]), found[2]) if found else Owner(0, 'an unknown host')  # it is about to write it
    except OSError:
      pass
  return None
