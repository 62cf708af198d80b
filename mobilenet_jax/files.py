"""Files that are there whole or not at all, and folders that one process has to itself."""

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, TextIO

from mobilenet_jax.errors import UserError

LOCK_FILE = 'lock'


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
  """A file to write to, beside `path` and renamed at the end, so that neither a kill nor a full disk leaves half of it."""
  temporary = path.with_suffix('.tmp')
  with temporary.open('wb') as file:
    yield file
  temporary.replace(path)


def write_whole(path: Path, text: str) -> None:
  """Writes text as `whole_file` does."""
  with whole_file(path) as file:
    file.write(text.encode())


def lock(folder: Path) -> TextIO:
  """Has the folder for this process, until the file that it returns is closed or the process ends, however it does.

  Raises:
    UserError: where another process has it, naming that.
  """
  file = (folder / LOCK_FILE).open('a+')
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # on a network file system too, where that passes locks on
  except BlockingIOError:
    file.seek(0)
    owner = file.read().strip()
    file.close()
    raise UserError(f'{folder}: another process trains in it ({owner or "unknown"}); wait for its end, or give another '
                    '--workdir') from None
  except OSError:
    pass  # a file system without locks: who starts two, has two
  file.truncate(0)
  file.write(f'process {os.getpid()} on {socket.gethostname()}')
  file.flush()
  return file
