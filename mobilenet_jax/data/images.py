"""Reads images from files or arrays, for prediction. Whatever is not plain 8-bit RGB or gray is refused, not guessed."""

from pathlib import Path

import numpy as np
from PIL import Image

from mobilenet_jax.errors import UserError

SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.gif', '.webp')
_PLAIN_MODES = ('RGB', 'L', 'P', '1', 'LA', 'PA', 'RGBA')  # alpha is dropped, as in TensorFlow's decoder


def read(image) -> np.ndarray:
  """Reads a path, a PIL image or a uint8 array (h, w, 3) as a uint8 array (h, w, 3).

  Raises:
    UserError: if the image is missing, not an image, truncated, animated, CMYK, of more than 8 bits, or a single pixel.
      The error names the file and what is wrong with it.
  """
  if isinstance(image, (str, Path)):
    return _read_file(Path(image).expanduser())
  if isinstance(image, Image.Image):
    return _to_rgb(image, 'the image')
  array = np.asarray(image)
  if array.dtype != np.uint8 or array.ndim != 3 or array.shape[-1] != 3:
    raise UserError(f'an image is {array.dtype} {array.shape}; expected uint8 (height, width, 3), RGB')
  return array


def find(paths) -> list[Path]:
  """Returns the paths of images in order. A folder stands for all images in it and below it, sorted.

  Raises:
    UserError: if a folder has no images, or a path does not exist.
  """
  found = []
  for path in map(Path, paths):
    if path.is_dir():
      inside = sorted(p for p in path.rglob('*') if p.suffix.lower() in SUFFIXES)
      if not inside:
        raise UserError(f'{path}: no image in this folder ({" ".join(SUFFIXES)})')
      found += inside
    elif path.exists():
      found.append(path)
    else:
      raise UserError(f'{path}: there is no such file or folder')
  return found


def _read_file(path: Path) -> np.ndarray:
  if not path.is_file():
    raise UserError(f'{path}: there is no such file')
  try:
    with Image.open(path) as image:
      return _to_rgb(image, path)
  except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
    raise UserError(f'{path}: not an image, or truncated ({" ".join(str(error).split())})') from error


def _to_rgb(image: Image.Image, name) -> np.ndarray:
  if getattr(image, 'n_frames', 1) > 1:
    raise UserError(f'{name}: animated, with {image.n_frames} frames; expected a single one; extract the frame you need')
  if image.mode not in _PLAIN_MODES:
    raise UserError(f'{name}: the mode is {image.mode}; expected 8-bit RGB or gray; convert the image with the right '
                    'colour profile or scaling')
  if image.size == (1, 1):
    raise UserError(f'{name}: a single pixel; expected an image')
  return np.asarray(image.convert('RGB'))
