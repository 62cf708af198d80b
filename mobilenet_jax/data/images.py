"""One image from a file or an array, for prediction; nothing is guessed about what is not plainly 8-bit RGB or gray."""

from pathlib import Path

import numpy as np
from PIL import Image

from mobilenet_jax.errors import UserError

SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.gif', '.webp')
_PLAIN_MODES = ('RGB', 'L', 'P', '1', 'LA', 'PA', 'RGBA')  # alpha is dropped, as TensorFlow's decoder drops it


def read(image) -> np.ndarray:
  """A path, a PIL image or an array uint8 (h, w, 3) -> uint8 (h, w, 3).

  Raises:
    UserError: naming the file and what is wrong with it: not there, not an image, cut short, animated, CMYK, of more
      than 8 bits, or a single pixel.
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
  """Paths of images, in order, and for a folder all those in it and below it, sorted.

  Raises:
    UserError: where a folder has none, or a path does not exist.
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
    raise UserError(f'{path}: not an image, or cut short ({" ".join(str(error).split())})') from error


def _to_rgb(image: Image.Image, name) -> np.ndarray:
  if getattr(image, 'n_frames', 1) > 1:
    raise UserError(f'{name}: animated, {image.n_frames} frames; expected one: extract the one you mean')
  if image.mode not in _PLAIN_MODES:
    raise UserError(f'{name}: of mode {image.mode}; expected 8-bit RGB or gray: convert it, with the colour profile '
                    'or the scaling that is right for it')
  if image.size == (1, 1):
    raise UserError(f'{name}: a single pixel; expected an image')
  return np.asarray(image.convert('RGB'))
