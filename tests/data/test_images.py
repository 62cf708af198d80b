"""The decoder: every format means the same by every path, and what TensorFlow reads it as."""

import io
import os
import struct

import numpy as np
import pytest
from conftest import NEVER, data_config
from PIL import Image, ImageOps

from mobilenet_jax.data import BadExample, eval_batches, from_images, images, read_image
from mobilenet_jax.errors import UserError

RNG = np.random.default_rng(0)
SMOOTH = np.asarray(Image.fromarray(RNG.integers(0, 256, (5, 6, 3), np.uint8)).resize((49, 40), Image.Resampling.BICUBIC))
NOISE = RNG.integers(0, 256, (40, 49, 3), np.uint8)


def encoded(image, kind, **options):
  buffer = io.BytesIO()
  image.save(buffer, kind, **options)
  return buffer.getvalue()


def png16(pixels):
  """Encodes 16-bit RGB, which Pillow does not write."""
  import cv2
  return cv2.imencode('.png', pixels[..., ::-1])[1].tobytes()


RGB, GRAY = Image.fromarray(NOISE), Image.fromarray(NOISE[..., 0])
PALETTE = RGB.quantize(60)
SECOND = Image.fromarray(255 - NOISE)
FORMATS = {
    'jpeg': encoded(Image.fromarray(SMOOTH), 'jpeg'),
    'jpeg, progressive': encoded(Image.fromarray(SMOOTH), 'jpeg', progressive=True),
    'jpeg, 4:2:0, restarts': encoded(RGB, 'jpeg', quality=70, subsampling=2, restart_marker_rows=1),
    'jpeg, gray': encoded(GRAY, 'jpeg'),
    'jpeg, CMYK': encoded(Image.fromarray(np.dstack([NOISE, SMOOTH[..., :1]]), mode='CMYK'), 'jpeg'),
    'png': encoded(RGB, 'png'),
    'png, gray': encoded(GRAY, 'png'),
    'png, one bit': encoded(Image.fromarray(NOISE[..., 0] > 99), 'png'),
    'png, palette': encoded(PALETTE, 'png'),
    'png, palette, one transparent': encoded(PALETTE, 'png', transparency=3),
    'png, palette, alpha': encoded(PALETTE, 'png', transparency=bytes(range(60))),
    'png, alpha': encoded(Image.fromarray(np.dstack([NOISE, NOISE[..., :1]])), 'png'),
    'png, gray, alpha': encoded(GRAY.convert('LA'), 'png'),
    'png, gray, 16 bits': encoded(Image.fromarray(RNG.integers(0, 2**16, (40, 49)).astype(np.uint16)), 'png'),
    'png, 16 bits': png16(RNG.integers(0, 2**16, (40, 49, 3)).astype(np.uint16)),
    'png, animated': encoded(RGB, 'png', save_all=True, append_images=[SECOND]),
    'webp': encoded(Image.fromarray(SMOOTH), 'webp'),
    'webp, lossless': encoded(RGB, 'webp', lossless=True),
    'gif': encoded(PALETTE, 'gif'),
    'gif, animated': encoded(PALETTE, 'gif', save_all=True, append_images=[SECOND.quantize(60)]),
    'bmp': encoded(RGB, 'bmp'),
    # TensorFlow does not read these.
    'webp, alpha': encoded(Image.fromarray(np.dstack([NOISE, NOISE[..., :1]])), 'webp', lossless=True, exact=True),
    'webp, animated': encoded(RGB, 'webp', save_all=True, append_images=[SECOND], lossless=True),
    'tiff': encoded(RGB, 'tiff'),
    'tiff, LZW': encoded(RGB, 'tiff', compression='tiff_lzw'),
    'tiff, gray': encoded(GRAY, 'tiff'),
    'tiff, gray, 16 bits': encoded(Image.fromarray(NOISE[..., 0].astype(np.uint16) * 256 + 77), 'tiff'),
    'tiff, pages': encoded(RGB, 'tiff', save_all=True, append_images=[SECOND]),
}
ALL_GRAY = np.repeat(NOISE[..., :1], 3, axis=2)
NOT_TENSORFLOWS = {'webp, alpha': NOISE, 'webp, animated': NOISE, 'tiff': NOISE, 'tiff, LZW': NOISE, 'tiff, gray': ALL_GRAY,
                   'tiff, gray, 16 bits': ALL_GRAY, 'tiff, pages': NOISE}


@pytest.mark.parametrize('kind', FORMATS)
def test_a_format_means_the_same_by_every_path_and_in_tensorflow(kind, tmp_path):
  content = FORMATS[kind]
  path = tmp_path / f'image.{kind.partition(",")[0]}'
  path.write_bytes(content)
  config = data_config(image_size=(40, 49), eval_crop=1.0)
  batch, = eval_batches(from_images([str(path)], np.zeros(1, np.int32), 0, upright=True), config, 1, NEVER)
  found = {'folder': batch['image'][0], 'path': read_image(path, True), 'bytes': read_image(content, True),
           'PIL image': read_image(Image.open(path), True), 'array': read_image(read_image(path, True), True)}
  expected = NOT_TENSORFLOWS.get(kind)
  if expected is None:
    tf = pytest.importorskip('tensorflow')
    if kind.startswith('jpeg'):
      expected = tf.io.decode_jpeg(content, channels=3, dct_method='INTEGER_ACCURATE').numpy()
    else:
      expected = tf.io.decode_image(content, channels=3, expand_animations=False).numpy()
  for name, pixels in found.items():
    assert pixels.shape == (40, 49, 3) and pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, expected, name)


@pytest.mark.parametrize('kind', ('jpeg', 'png', 'webp'))
@pytest.mark.parametrize('orientation', range(1, 9))
def test_an_image_is_turned_as_its_exif_says_unless_told_not_to(orientation, kind, tmp_path):
  exif = Image.Exif()
  exif[0x0112] = orientation
  content = encoded(Image.fromarray(SMOOTH), kind, exif=exif)
  upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert('RGB'))
  np.testing.assert_array_equal(read_image(content, True), upright)
  np.testing.assert_array_equal(read_image(Image.open(io.BytesIO(content)), True), upright)
  np.testing.assert_array_equal(read_image(content, False), np.asarray(Image.open(io.BytesIO(content)).convert('RGB')))
  assert upright.shape == ((40, 49, 3) if orientation < 5 else (49, 40, 3))


@pytest.mark.filterwarnings('ignore:.*:UserWarning:PIL')
def test_damaged_exif_says_nothing():
  exif = Image.Exif()
  exif[0x0112] = 6
  content = encoded(Image.fromarray(SMOOTH), 'jpeg', exif=exif)
  for _ in range(200):
    damaged = bytearray(content)
    at = content.index(b'Exif') + 6
    for i in RNG.integers(at, at + 20, 3):
      damaged[i] = RNG.integers(256)
    assert read_image(bytes(damaged), True).shape in ((40, 49, 3), (49, 40, 3))


@pytest.mark.parametrize('content, message', (
    (b'', 'an empty file'), (b'not an image', 'not a JPEG, PNG, BMP, GIF, WebP or TIFF image'), (FORMATS['jpeg'][:300], 'damaged'),
    (FORMATS['jpeg'][:-2], 'Premature end of JPEG file'), (FORMATS['png'][:2000], 'damaged'), (FORMATS['gif'][:300], 'damaged'),
    (FORMATS['webp'][:100], 'damaged|not a'), (FORMATS['jpeg'][:3], 'damaged|not a'),
    (encoded(Image.new('RGB', (1, 1)), 'png'), 'a single pixel'),
    (FORMATS['tiff'][:2000], 'damaged|not a'), (FORMATS['tiff, LZW'][:2000], 'damaged|not a'),
    (encoded(Image.fromarray(NOISE), 'ppm'), 'not a JPEG, PNG, BMP, GIF, WebP or TIFF image')))
def test_what_is_no_image_is_said_in_one_line(content, message, tmp_path, capfd):
  path = tmp_path / 'bad.jpg'
  path.write_bytes(content)
  with pytest.raises(UserError, match=rf'^{path}: .*({message})') as found:
    read_image(path, True)
  assert '\n' not in str(found.value) and '0x' not in str(found.value)
  with pytest.raises(BadExample, match=message) as bad:
    from_images([str(path)], np.zeros(1, np.int32), 0, upright=True)[0]
  assert bad.value.name == str(path) and str(found.value) == f'{path}: {bad.value.reason}'
  assert capfd.readouterr() == ('', '')  # nor do the C libraries say anything


@pytest.mark.parametrize('image, message', (
    (Image.fromarray(np.ones((9, 9), np.float32)), 'the mode is F'), (Image.new('RGB', (0, 5)), 'a single pixel, or none'),
    (np.zeros((0, 5, 3), np.uint8), r'uint8 \(0, 5, 3\); expected'), (np.zeros((5, 5)), r'float64 \(5, 5\); expected uint8')))
def test_what_is_no_picture_in_a_notebook_is_said(image, message):
  with pytest.raises(UserError, match=f'the image: .*{message}'):
    read_image(image, True)


def test_whatever_the_bytes_they_are_an_image_or_refused():
  """No error of a decoder's own comes through, nor one of another format that Pillow knows."""
  for kind in ('ppm', 'avif', 'dds', 'ico'):
    with pytest.raises(ValueError, match='not a JPEG'):
      images.decode(encoded(RGB, kind), True)
  for content in FORMATS.values():
    for _ in range(20):
      damaged = bytearray(content)
      for i in RNG.integers(2, min(len(content), 1500), 4):
        damaged[i] = RNG.integers(256)
      try:
        assert images.decode(bytes(damaged), True).dtype == np.uint8
      except ValueError as error:
        assert '\n' not in str(error)


def test_orientation_is_read_past_bytes_that_fill_and_not_from_xmp():
  exif = Image.Exif()
  exif[0x0112] = 6
  content = encoded(Image.fromarray(SMOOTH), 'jpeg', exif=exif)
  at = content.index(b'\xff\xe1')
  filled = content[:at] + b'\xff\xff' + content[at:]
  xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF><rdf:Description tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'
  for data, upright in ((filled, True), (encoded(Image.fromarray(SMOOTH), 'jpeg', xmp=xmp), False)):
    for image in (data, Image.open(io.BytesIO(data))):
      assert read_image(image, True).shape == ((49, 40, 3) if upright else (40, 49, 3))


def test_files_that_cannot_be_read_are_named(tmp_path):
  (tmp_path / 'dangling.jpg').symlink_to(tmp_path / 'nowhere')
  (tmp_path / 'folder.jpg').mkdir()
  cases = {'dangling.jpg': 'No such file', 'gone.jpg': 'No such file', 'folder.jpg': 'Is a directory'}
  if os.geteuid():  # root may read everything
    (tmp_path / 'secret.jpg').write_bytes(FORMATS['jpeg'])
    (tmp_path / 'secret.jpg').chmod(0)
    cases['secret.jpg'] = 'Permission denied'
  for name, message in cases.items():
    with pytest.raises(BadExample, match=rf'{name}: {message}'):
      from_images([str(tmp_path / name)], np.zeros(1, np.int32), 0, upright=True)[0]


def test_flipped_bits_of_a_jpeg_are_detected_where_the_decoder_warns():
  """TensorFlow takes nearly all of them. A stray revision number of JFIF is no damage."""
  pixels = Image.fromarray(SMOOTH).resize((300, 200), Image.Resampling.BICUBIC)
  content, refused, other = encoded(pixels, 'jpeg', quality=95), 0, 0
  expected = read_image(content, True)
  start = content.index(b'\xff\xda') + 14
  for i in RNG.integers(start, len(content) - 2, 300):
    damaged = bytearray(content)
    damaged[i] ^= 1 << int(RNG.integers(8))
    try:
      other += not np.array_equal(images.decode(bytes(damaged), False), expected)
    except ValueError:
      refused += 1
  assert refused > 0.04 * (refused + other), (refused, other)
  revision = bytearray(content)
  revision[content.index(b'JFIF') + 5] = 9
  np.testing.assert_array_equal(read_image(bytes(revision), True), expected)
  for whole in (bytes(revision), FORMATS['jpeg, CMYK']):  # nor are other damages of these missed
    with pytest.raises(UserError, match='Premature end of JPEG file'):
      read_image(whole[:-2], True)


def test_a_jpeg_that_claims_to_be_huge_is_refused():
  content = bytearray(FORMATS['jpeg'])
  at = content.index(b'\xff\xc0') + 5
  content[at:at + 4] = struct.pack('>HH', 65000, 65000)
  with pytest.raises(UserError, match='damaged|not a'):
    read_image(bytes(content), True)
