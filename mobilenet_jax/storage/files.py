"""Files that are written whole or not at all, locks that give a folder to one process, and paths that libraries understand."""

import contextlib
import errno
import fcntl
import os
import re
import socket
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple, TextIO

from mobilenet_jax.errors import InUse, UserError

LOCK_FILE = 'lock'
_NOT_PLAIN = re.compile('[][*?\\\\:\udc80-\udcff]')  # the last are bytes that are not UTF-8


class Owner(NamedTuple):
  """The process that holds a lock, and the host it runs on."""
  pid: int
  host: str


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
  """Yields a file to write to. It takes the place of `path` at the end.

  The file is written beside `path` and then renamed, so that neither a kill nor a full disk leaves half of it.
  """
  temporary = path.with_name(f'{path.name}.{socket.gethostname()}.{os.getpid()}.tmp')  # unique: several may write `path`
  try:
    with temporary.open('wb') as file:
      yield file
    temporary.replace(path)
  except BaseException:
    temporary.unlink(missing_ok=True)
    raise


def write_whole(path: Path, text: str) -> None:
  """Writes text to a file, whole or not at all."""
  with whole_file(path) as file:
    file.write(text.encode())


def expanded(path: str | Path) -> Path:
  """Returns a path that a person gave, with '~' replaced by the home folder.

  Raises:
    UserError: if there is no such home folder.
  """
  try:
    return Path(path).expanduser()
  except RuntimeError as error:
    raise UserError(f'{path}: there is no user with this home folder; give the path without ~') from error


def read_regular(path: str | Path) -> bytes:
  """Returns the content of a file. Other than Path.read_bytes, it does not wait for what is written to a pipe.

  Raises:
    OSError: if it cannot be read, or is a folder, a device or a pipe.
  """
  with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), 'rb', buffering=0) as file:
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
      raise OSError(errno.EINVAL, 'no regular file', str(path))
    return file.readall()


@contextlib.contextmanager
def plain_path(folder: Path) -> Iterator[Path]:
  """Yields an absolute path of a folder that no library takes for a pattern or an address, as Orbax does with 'w[lr=1e-3]'.

  If the folder's own path is not plain, it is that of a link in a temporary folder, which is removed at the end.

  Raises:
    UserError: if the path of the temporary folder is not plain either.
  """
  path = folder.resolve()
  if not _NOT_PLAIN.search(str(path)):
    yield path
    return
  with tempfile.TemporaryDirectory() as temporary:
    link = Path(temporary) / 'link'
    if _NOT_PLAIN.search(str(link)):
      raise UserError(f'{folder}: Orbax takes this path for a pattern, and that of the folder for temporary files, '
                      f'{temporary}, too; set TMPDIR to a folder without such characters')
    link.symlink_to(path, target_is_directory=True)
    yield link


def lock(folder: Path, name: str = LOCK_FILE, seconds: float = 1) -> TextIO:
  """Locks a folder for this process.

  The lock is held until the returned file is closed or the process ends, for whatever reason.

  Args:
    folder: the folder to lock.
    name: the name of the lock file in the folder. Each purpose has its own.
    seconds: how long to wait for another process to release the lock.

  Raises:
    InUse: if another process holds the lock. It names that process.
  """
  file = (folder / name).open('a+')
  end = time.monotonic() + seconds
  try:
    while True:
      try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # also works on network file systems that support locks
        break
      except BlockingIOError:
        if time.monotonic() > end:
          owner = lock_owner(folder, name) or Owner(0, 'an unknown host')
          file.close()
          raise InUse(f'{folder}: another process works in it (process {owner.pid} on {owner.host}); wait until it ends, '
                      'or give another folder') from None
        time.sleep(0.05)
  except OSError:
    pass  # a file system without locks, on which nothing keeps a second process out
  file.truncate(0)
  file.write(f'process {os.getpid()} on {socket.gethostname()}')
  file.flush()
  return file


def lock_owner(folder: Path, name: str = LOCK_FILE) -> Owner | None:
  """Returns the process that holds the lock; None if no process holds it, or if the file system has no locks."""
  try:
    file = (folder / name).open('r+')
  except OSError:
    return None
  with file:
    try:
      fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # held for a moment only; lock() waits for that
    except BlockingIOError:
      found = re.fullmatch(r'process (\d+) on (.*)', file.read())
      return Owner(int(found[1]), found[2]) if found else Owner(0, 'an unknown host')  # it has not written its name yet
    except OSError:
      pass
  return None
