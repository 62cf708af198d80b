"""The images in a folder: which files count, and what is left out. All commands walk a folder in this way."""

import collections
import dataclasses
import os
from pathlib import Path

from mobilenet_jax.data.images import SUFFIXES
from mobilenet_jax.errors import UserError, counted


@dataclasses.dataclass(frozen=True)
class Walk:
  """The files in a folder and below it.

  Attributes:
    images: the images, as sorted paths relative to the folder, with '/' between the parts.
    folders: the names of the folders in the folder, sorted.
    others: how many files of other types there are, by suffix.
    hidden: how many hidden files and folders there are; they are not entered. A name that begins with a dot is hidden.
  """

  images: tuple[str, ...]
  folders: tuple[str, ...]
  others: dict[str, int]
  hidden: int

  def left_out(self, beside: int = 0, below: int = 0, unlisted: int = 0) -> str:
    """Returns what is left out, as text; '' if nothing is.

    Args:
      beside: the number of images beside the folders of the classes.
      below: the number of images in folders below those of the classes.
      unlisted: the number of images without a line in a file of labels.
    """
    kinds = ', '.join(f'{count:,} {suffix or "without a suffix"}' for suffix, count in sorted(self.others.items()))
    parts = ((sum(self.others.values()), 'file', f' of another type ({kinds})'), (self.hidden, 'hidden name', ''),
             (beside, 'image', ' beside the class folders'), (below, 'image', ' in folders below the class folders'),
             (unlisted, 'image', ' without a line in labels.csv'))
    return ', '.join(f'{counted(count, what)}{where}' for count, what, where in parts if count)


def walk(root: Path, ignored: tuple[str, ...] = (), depth: int = 99) -> Walk:
  """Returns the files in a folder and in the folders below it. Links to folders are followed.

  Args:
    root: the folder.
    ignored: names of files that are not counted, as they are no images by intention.
    depth: how many folders deep to go; 0 for the folder itself.

  Raises:
    UserError: if a folder cannot be read, or contains itself.
  """
  images, folders, others, hidden = [], [], collections.Counter(), 0
  todo = [(os.fspath(root), '', frozenset())]
  while todo:
    folder, inside, above = todo.pop()
    try:
      above = above | {os.path.realpath(folder)}
      with os.scandir(folder) as entries:
        for entry in entries:
          name = inside + entry.name
          if entry.name.startswith('.'):
            hidden += 1
          elif entry.is_dir():
            if entry.is_symlink() and os.path.realpath(entry.path) in above:
              raise UserError(f'{entry.path}: a link to a folder that contains it; remove the link')
            if len(above) <= depth:
              todo.append((entry.path, f'{name}/', above))
            if not inside:
              folders.append(name)
          elif entry.name.lower().endswith(SUFFIXES):
            images.append(name)
          elif entry.name not in ignored:
            others[os.path.splitext(entry.name)[1].lower()] += 1
    except OSError as error:
      raise UserError(f'{error.filename or folder}: {error.strerror}; expected a folder that can be read') from error
  return Walk(tuple(sorted(images)), tuple(sorted(folders)), dict(others), hidden)
