"""Files of NumPy arrays."""

import contextlib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mobilenet_jax.errors import UserError
from mobilenet_jax.storage.files import expanded


@contextlib.contextmanager
def opened(path: str | Path, field: str) -> Iterator[np.lib.npyio.NpzFile]:
  """Yields the arrays of a .npz file, which are read when they are asked for.

  Args:
    path: the file.
    field: what a message calls the file, such as 'data.recorded=teacher.npz'.

  Raises:
    UserError: if the file, or an array in it, cannot be read.
  """
  try:
    with np.load(expanded(path)) as arrays:
      yield arrays
  except (OSError, ValueError, EOFError, TypeError, MemoryError, zipfile.BadZipFile) as error:
    raise UserError(f'{field}: not a readable .npz file ({getattr(error, "strerror", None) or error})') from error
