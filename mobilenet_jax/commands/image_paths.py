"""Images as arguments of a command."""

from pathlib import Path

from mobilenet_jax.data import IMAGE_SUFFIXES, walk
from mobilenet_jax.errors import UserError


def find_images(paths) -> list[Path]:
  """Returns the paths of images in order. A folder stands for all images in it and below it, sorted, but for hidden ones.

  Raises:
    UserError: if a folder has no images or cannot be read, or a path does not exist.
  """
  found = []
  for path in map(Path, paths):
    if path.is_dir():
      inside = [path / image for image in walk(path).images]
      if not inside:
        raise UserError(f'{path}: no image in this folder ({" ".join(IMAGE_SUFFIXES)})')
      found += inside
    elif path.exists():
      found.append(path)
    else:
      raise UserError(f'{path}: there is no such file or folder')
  return found
