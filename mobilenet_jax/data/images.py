"""The only decoder of images: in training, evaluation, prediction, recording and export alike.

JPEG is decoded by libjpeg-turbo with the accurate DCT, as TensorFlow does with dct_method='INTEGER_ACCURATE'. A JPEG file for
which libjpeg-turbo has a warning is refused, because its warnings are all that tells a damaged file; most flipped bits give
none. All other formats are decoded by Pillow. Every format becomes 8-bit RGB; docs/data.md says how.
"""

import io
import struct
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from mobilenet_jax.errors import UserError

SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.gif', '.webp')
_EIGHT_BITS = ('RGB', 'L', 'P', '1', 'LA', 'PA', 'RGBA', 'RGBX', 'YCbCr', 'HSV')
_MOST_PIXELS = 2 * Image.MAX_IMAGE_PIXELS  # for which Pillow refuses an image of another format
_ORIENTATION = 0x0112  # the EXIF tag
# What makes an image upright, by its EXIF orientation: (whether rows and columns are exchanged, steps of rows and of columns).
_TURNS = {2: (False, 1, -1), 3: (False, -1, -1), 4: (False, -1, 1), 5: (True, 1, 1), 6: (True, 1, -1), 7: (True, -1, -1),
          8: (True, -1, 1)}


def decode(image: bytes | np.ndarray | Image.Image, upright: bool) -> np.ndarray:
  """Returns an image as uint8 (h, w, 3); an array is returned as it is.

  Args:
    image: the bytes of an image file, a PIL image, or an array.
    upright: whether to turn the image as its EXIF orientation says.

  Raises:
    ValueError: if the bytes are not an image, are damaged, or mean something else than RGB. It says what is wrong.
  """
  if isinstance(image, np.ndarray):
    return image
  try:
    pixels, orientation = _from_pillow(image, upright) if isinstance(image, Image.Image) else _from_bytes(image, upright)
  except UnidentifiedImageError as error:
    raise ValueError('not an image') from error
  except (OSError, SyntaxError, struct.error, MemoryError, EOFError, Image.DecompressionBombError) as error:
    raise ValueError(f'not an image, or damaged ({" ".join(str(error).split())})') from error
  if pixels.shape[:2] == (1, 1):
    raise ValueError('a single pixel; expected an image')
  if orientation not in _TURNS:
    return pixels
  exchanged, down, right = _TURNS[orientation]
  pixels = pixels.swapaxes(0, 1) if exchanged else pixels
  return np.ascontiguousarray(pixels[::down, ::right])


def read(image, upright: bool) -> np.ndarray:
  """Reads a path, the bytes of an image file, a PIL image or a uint8 array (h, w, 3) as a uint8 array (h, w, 3).

  Raises:
    UserError: if the image is missing, or as in `decode`. The error names the file.
  """
  name = str(image) if isinstance(image, (str, Path)) else 'the image'
  try:
    if isinstance(image, (str, Path)):
      image = Path(image).expanduser().read_bytes()
    if not isinstance(image, (bytes, Image.Image)):
      image = np.asarray(image)
      if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
        raise ValueError(f'{image.dtype} {image.shape}; expected uint8 (height, width, 3), RGB')
    return decode(image, upright)
  except (OSError, ValueError) as error:
    raise UserError(f'{name}: {getattr(error, "strerror", None) or error}') from error


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


def _from_bytes(encoded, upright):
  if not encoded:
    raise ValueError('an empty file; expected an image')
  pixels = _from_jpeg(encoded) if encoded.startswith(b'\xff\xd8') else None
  if pixels is not None and not (upright and _has_exif(encoded)):
    return pixels, 1
  with Image.open(io.BytesIO(encoded)) as image:
    return _from_pillow(image, upright) if pixels is None else (pixels, _orientation(image))


def _has_exif(jpeg):
  """Looks at the segments of a JPEG file; to search its bytes would take longer."""
  at = 2
  while jpeg[at:at + 1] == b'\xff' and jpeg[at + 1:at + 2] != b'\xda':  # the pixels come next
    if jpeg[at + 1:at + 2] == b'\xe1' and jpeg[at + 4:at + 8] == b'Exif':
      return True
    at += 2 + int.from_bytes(jpeg[at + 2:at + 4], 'big')
  return False


def _from_jpeg(encoded):
  """Returns the pixels of a JPEG file; None if they are left to Pillow."""
  try:
    height, width, colors, _ = simplejpeg.decode_jpeg_header(encoded)
    if height * width > _MOST_PIXELS:
      raise ValueError(f'{height} x {width} pixels')
    # libjpeg-turbo has an idea of its own of CMYK as RGB.
    return simplejpeg.decode_jpeg(encoded, 'RGB') if colors not in ('CMYK', 'YCCK') else None
  except (ValueError, KeyError) as error:
    if 'unknown JFIF revision' in str(error):  # which says nothing about the pixels
      return None
    raise ValueError(f'damaged ({" ".join(str(error).split())})') from error


def _from_pillow(image, upright):
  orientation = _orientation(image) if upright else 1
  if image.mode.startswith('I;16'):
    pixels = (np.asarray(image) >> 8).astype(np.uint8)
    return np.repeat(pixels[..., None], 3, axis=2), orientation
  if image.mode == 'CMYK':
    inks = 255 - np.asarray(image).astype(np.uint16)
    return (inks[..., :3] * inks[..., 3:] // 255).astype(np.uint8), orientation
  if image.mode not in _EIGHT_BITS:
    raise ValueError(f'the mode is {image.mode}; expected RGB or gray of 8 or 16 bits; convert it with the right scaling')
  if image.mode in ('P', 'PA'):
    image = image.convert('RGBA')  # straight to RGB, Pillow warns of transparency
  return np.asarray(image.convert('RGB')), orientation


def _orientation(image):
  try:
    return image.getexif().get(_ORIENTATION, 1)
  except (OSError, SyntaxError, ValueError, TypeError, KeyError, struct.error):  # damaged EXIF says nothing
    return 1
