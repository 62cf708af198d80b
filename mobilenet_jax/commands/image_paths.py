"""Images as arguments of a command."""

from pathlib import Path

from mobilenet_jax.data import IMAGE_SUFFIXES, Walk, walk
from mobilenet_jax.errors import UserError


def images_in(folder: Path, name: str) -> Walk:
  """Returns the files in a folder with at least one image. `name` is what a message calls the folder.

  Raises:
    UserError: if there is no such folder, it has no image, or it cannot be read.
  """
  if not folder.is_dir():
    raise UserError(f'{name}: {"is a file" if folder.exists() else "there is no such folder"}; expected a folder of images')
  walked = walk(folder)
  if not walked.images:
    left_out = f', but {walked.left_out()}' if walked.left_out() else ''
    raise UserError(f'{name}: no image in this folder ({" ".join(IMAGE_SUFFIXES)}){left_out}; expected a folder of images')
  return walked


def find_images(paths) -> list[Path]:
  """Returns the paths of images in order. A folder stands for all images in it and below it, sorted, but for hidden ones.

  Raises:
    UserError: if a folder has no images or cannot be read, or a path does not exist.
  """
  found = []
  for path in map(Path, paths):
    if path.is_dir():
      found += [path / image for image in images_in(path, str(path)).images]
    elif path.exists():
      found.append(path)
    else:
      raise UserError(f'{path}: there is no such file or folder')
  return found
