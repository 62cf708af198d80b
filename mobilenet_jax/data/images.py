"""The only decoder of images: in training, evaluation, prediction, recording and export alike.

JPEG is decoded by libjpeg-turbo with the accurate DCT, as TensorFlow does with dct_method='INTEGER_ACCURATE'. A JPEG file for
which libjpeg-turbo has a warning is refused, because its warnings are all that tells a damaged file; most flipped bits give
none. All other formats are decoded by Pillow. Every format becomes 8-bit RGB; docs/data.md says how.
"""

import io
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from mobilenet_jax.errors import UserError
from mobilenet_jax.storage.files import expanded, read_regular

SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.gif', '.webp', '.tif', '.tiff')
_FORMATS = ('PNG', 'BMP', 'GIF', 'WEBP', 'TIFF')  # besides JPEG; told by the content of a file, whatever its suffix
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
    pixels, exif = _from_pillow(image) if isinstance(image, Image.Image) else _from_bytes(image)
  except UnidentifiedImageError as error:
    raise ValueError('not a JPEG, PNG, BMP, GIF, WebP or TIFF image') from error
  except Exception as error:  # decoders raise errors of many types
    raise ValueError(f'not an image, or damaged ({" ".join(str(error).split())})') from error
  if pixels.size <= 3:
    raise ValueError('a single pixel, or none; expected an image')
  if not upright or (orientation := _orientation(exif)) not in _TURNS:
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
      image = read_regular(expanded(image))
    if isinstance(image, bytearray) or isinstance(image, memoryview) and image.ndim == 1:
      image = bytes(image)
    if not isinstance(image, (bytes, Image.Image)):
      image = np.asarray(image)
      if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3 or not image.size:
        raise ValueError(f'{image.dtype} {image.shape}; expected uint8 (height, width, 3), RGB, with pixels')
    return decode(image, upright)
  except (OSError, ValueError) as error:
    raise UserError(f'{name}: {getattr(error, "strerror", None) or error}') from error


def _from_bytes(encoded):
  """Returns the pixels, and the bytes of the EXIF or None."""
  if not encoded:
    raise ValueError('an empty file')
  if not encoded.startswith(b'\xff\xd8'):
    with Image.open(io.BytesIO(encoded), formats=_FORMATS) as image:
      return _from_pillow(image)
  try:
    height, width, colors, _ = simplejpeg.decode_jpeg_header(encoded)
    if height * width > _MOST_PIXELS:
      raise ValueError(f'{height} x {width} pixels')
    if colors in ('CMYK', 'YCCK'):
      return _from_inks(simplejpeg.decode_jpeg(encoded, 'CMYK')), _exif(encoded)
    return simplejpeg.decode_jpeg(encoded, 'RGB'), _exif(encoded)
  except ValueError as error:
    if 'unknown JFIF revision' not in str(error):  # which says nothing about the pixels
      raise
    at = encoded.index(b'JFIF') + 5
    return _from_bytes(encoded[:at] + b'\1\1' + encoded[at + 2:])


def _exif(jpeg):
  """Returns the EXIF of a JPEG file. It looks at the segments, as searching all bytes would take longer."""
  at = 2
  while jpeg[at:at + 1] == b'\xff' and jpeg[at + 1:at + 2] != b'\xda':  # the pixels come next
    if jpeg[at + 1:at + 2] == b'\xff':  # a byte that fills
      at += 1
      continue
    size = int.from_bytes(jpeg[at + 2:at + 4], 'big')
    if jpeg[at + 1:at + 2] == b'\xe1' and jpeg[at + 4:at + 8] == b'Exif':
      return jpeg[at + 4:at + 2 + size]
    at += 2 + size
  return None


def _from_pillow(image):
  image.load()  # EXIF may come after the pixels
  if image.mode.startswith('I;16'):
    pixels = np.repeat((np.asarray(image) >> 8).astype(np.uint8)[..., None], 3, axis=2)
  elif image.mode == 'CMYK':
    pixels = _from_inks(255 - np.asarray(image))
  elif image.mode in _EIGHT_BITS:
    # Straight from a palette to RGB, Pillow would warn of transparency.
    pixels = np.asarray((image.convert('RGBA') if image.mode in ('P', 'PA') else image).convert('RGB'))
  else:
    raise ValueError(f'the mode is {image.mode}; expected RGB or gray of 8 or 16 bits; convert it with the right scaling')
  return pixels, image.info.get('exif')


def _from_inks(let_through):
  """Returns RGB from how much of the light cyan, magenta, yellow and black let through, as TensorFlow does."""
  let_through = let_through.astype(np.uint16)
  return (let_through[..., :3] * let_through[..., 3:] // 255).astype(np.uint8)


def _orientation(exif):
  tags = Image.Exif()
  try:
    tags.load(exif or b'')
    return tags.get(_ORIENTATION, 1)
  except Exception:  # of damaged EXIF, of many types; then there is no orientation
    return 1
