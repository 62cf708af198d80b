"""The preprocessing of images between the disk and the network.

Training (section 3.2: "less ... distortions", "limiting the size of small crops"): a random crop with a limited smallest
area and aspect, resized; a horizontal flip; optionally a colour distortion. Evaluation: the central part (87.5 % of each
side in TF-slim), resized. Images are resized bilinearly without antialiasing or keeping the aspect, as in TF-slim.

Crop and resize are implemented twice, with the same formula for the window: with TensorFlow, for encoded images in a
tf.data map, and with Pillow, for arrays where TensorFlow may not be installed.
"""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from PIL import Image

DRAWS = 5  # uniform random numbers for each training example: area, aspect, top, left, flip


def random_window(height, width, draws, config: ml_collections.ConfigDict, xp):
  """Returns a random crop (top, left, height, width) in whole pixels, as floats.

  Its area is uniform in [crop_min_area, 1] of the image's area, and the logarithm of its aspect is uniform up to
  crop_max_aspect in both directions. The crop is then clipped to the image. It is Inception's crop, except that Inception
  draws again instead of clipping.

  Args:
    height, width: size of the image in pixels, as floats.
    draws: DRAWS uniform random numbers in [0, 1).
    config: the `data` section of a config.
    xp: the module to compute with, numpy or tensorflow.
  """
  area = height * width * (config.crop_min_area + (1 - config.crop_min_area) * draws[0])
  aspect = config.crop_max_aspect ** (2 * draws[1] - 1)
  crop_height = xp.maximum(xp.minimum(xp.round(xp.sqrt(area / aspect)), height), 1.0)
  crop_width = xp.maximum(xp.minimum(xp.round(xp.sqrt(area * aspect)), width), 1.0)
  top = xp.floor(draws[2] * (height - crop_height + 1))
  left = xp.floor(draws[3] * (width - crop_width + 1))
  return top, left, crop_height, crop_width


def central_window(height, width, config: ml_collections.ConfigDict, xp):
  """Returns the same central crop as tf.image.central_crop, in the form of `random_window`."""
  top = xp.floor(height * (1 - config.eval_crop) / 2)
  left = xp.floor(width * (1 - config.eval_crop) / 2)
  return top, left, height - 2 * top, width - 2 * left


def crop_array(image: np.ndarray, window, flip: bool, size: tuple[int, int]) -> np.ndarray:
  """Crops and resizes an image, and mirrors it if `flip`: uint8 (h, w, 3) -> (*size, 3)."""
  top, left, height, width = (int(x) for x in window)
  crop = Image.fromarray(image[top:top + height, left:left + width])
  # EXTENT samples bilinearly at pixel centres without antialiasing, as tf.image.resize does; Image.resize would blur.
  resized = crop.transform(size[::-1], Image.Transform.EXTENT, (0, 0, width, height), Image.Resampling.BILINEAR)
  resized = np.asarray(resized)
  return resized[:, ::-1] if flip else resized


def crop_centrally(image: np.ndarray, config: ml_collections.ConfigDict) -> np.ndarray:
  """Crops and resizes an array as in evaluation: uint8 (h, w, 3) -> (*stream_size, 3)."""
  height, width = (float(n) for n in image.shape[:2])
  return crop_array(image, central_window(height, width, config, np), False, stream_size(config))


def crop_encoded(encoded, draws, config: ml_collections.ConfigDict):
  """Decodes, crops and resizes JPEG, PNG, GIF or BMP bytes in TensorFlow. Of a JPEG, only the crop is decoded.

  Args:
    encoded: a scalar string tensor.
    draws: DRAWS uniform random numbers for training, or None for evaluation.
    config: the `data` section of a config.

  Returns:
    The image, uint8 (*stream_size, 3); its window, float32 (4,), as top, left, height and width in fractions of the
    encoded image; and whether it is mirrored.
  """
  import tensorflow as tf

  def window(shape):
    height, width = tf.cast(shape[0], tf.float32), tf.cast(shape[1], tf.float32)
    if draws is None:
      crop = central_window(height, width, config, tf)
    else:
      crop = random_window(height, width, draws, config, tf)
    crop = tf.stack(crop)
    return tf.cast(crop, tf.int32), crop / tf.stack([height, width, height, width])

  def crop_jpeg():
    pixels, part = window(tf.image.extract_jpeg_shape(encoded))
    return tf.image.decode_and_crop_jpeg(encoded, pixels, channels=3), part

  def crop_other():
    image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
    pixels, part = window(tf.shape(image))
    top, left, height, width = tf.unstack(pixels)
    return image[top:top + height, left:left + width], part

  image, part = tf.cond(tf.io.is_jpeg(encoded), crop_jpeg, crop_other)
  image = tf.image.resize(image, stream_size(config), 'bilinear')
  flip = tf.constant(False)
  if draws is not None and config.flip:
    flip = draws[4] < 0.5
    image = tf.cond(flip, lambda: image[:, ::-1], lambda: image)
  image = tf.cast(tf.round(image), tf.uint8)
  return tf.ensure_shape(image, (*stream_size(config), 3)), part, flip


def stream_size(config: ml_collections.ConfigDict) -> tuple[int, int]:
  """Returns the height and width of the images in the batches of the pipeline; `config` is the `data` section."""
  return tuple(config.stream_size if any(config.stream_size) else config.image_size)


def normalize(images: jax.Array, size: tuple[int, int]) -> jax.Array:
  """Scales and resizes images on the device, bilinearly without antialiasing.

  uint8 (b, h, w, 3) -> float32 (b, *size, 3) in [-1, 1].
  """
  images = images.astype(jnp.float32) / 127.5 - 1.0
  if images.shape[1:3] == tuple(size):
    return images
  return jax.image.resize(images, (images.shape[0], *size, 3), 'linear', antialias=False)


def distort_colors(images: jax.Array, rng: jax.Array, strength: float) -> jax.Array:
  """Distorts brightness, saturation and contrast at random, for each image separately, on the device.

  At strength 1 the ranges are those of Inception's training: brightness +-32/255 of the range, saturation and contrast
  x 0.5 to 1.5. The hue is not changed.

  Args:
    images: float (b, h, w, 3) in [-1, 1]; the result has the same form.
    rng: a key.
    strength: scales the ranges; 0 changes nothing.
  """
  shape = (3, images.shape[0], 1, 1, 1)
  brightness, saturation, contrast = jax.random.uniform(rng, shape, minval=-strength, maxval=strength)
  images = images + brightness * (2 * 32 / 255)  # [-1, 1] is twice the range of [0, 1]
  gray = (images * jnp.array([0.299, 0.587, 0.114])).sum(-1, keepdims=True)
  images = gray + (images - gray) * (1 + 0.5 * saturation)
  mean = images.mean((1, 2), keepdims=True)
  images = mean + (images - mean) * (1 + 0.5 * contrast)
  return jnp.clip(images, -1.0, 1.0)


def description(config: ml_collections.ConfigDict) -> dict:
  """Returns the preprocessing that the user of a model must apply to an image. It is saved with every checkpoint."""
  return {'image_size': list(config.image_size), 'central_crop': config.eval_crop, 'resize': 'bilinear, no antialias',
          'resize_first_to': list(stream_size(config)), 'range': [-1.0, 1.0], 'channels': 'RGB'}
