"""Files that are there whole or not at all."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


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
