"""The preprocessing of images between the decoder and the network.

Training (section 3.2: "less ... distortions", "limiting the size of small crops"): a random crop with a limited smallest
area and aspect, resized; a horizontal flip; optionally a colour distortion. Evaluation: the central part (87.5 % of each
side in TF-slim), resized. Images are resized bilinearly without antialiasing or keeping the aspect, as in TF-slim.

A task chooses what is done to an example, a `Transform`. All of them crop and resize with the functions of this module.
"""

from collections.abc import Callable

import cv2
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from mobilenet_jax.data.examples import Targets

cv2.setNumThreads(1)  # the pipeline has threads of its own, one per core

Window = tuple[int, int, int, int]  # top, left, height and width of a crop, in pixels
# (image, targets, rng) -> (image, targets): uint8 (h, w, 3) -> (*stream_size, 3). In evaluation, rng is None.
Transform = Callable[[np.ndarray, Targets, np.random.Generator | None], tuple[np.ndarray, Targets]]
# (targets of one example, window, flip) -> the targets of the cropped example. The window is (top, left, height, width) in
# fractions of the image; the crop is mirrored if `flip`.
CropTargets = Callable[[Targets, np.ndarray, bool], Targets]
CROP_ATTEMPTS = 100  # as in TensorFlow


def crop_and_flip(config: ml_collections.ConfigDict, crop_targets: CropTargets | None = None) -> Transform:
  """Returns the transform of most tasks: a random crop and flip in training, the central crop in evaluation.

  Args:
    config: the `data` section of a config.
    crop_targets: how a crop or flip changes the targets of an example; None if they do not change, as with a class.
  """
  size = stream_size(config)

  def transform(image, targets, rng):
    shape = image.shape[:2]
    window = central_window(*shape, config.eval_crop) if rng is None else random_window(*shape, config, rng)
    flip = rng is not None and config.flip and bool(rng.random() < 0.5)
    if crop_targets is not None and targets:
      targets = crop_targets(targets, np.array(window) / (*shape, *shape), flip)
    return crop(image, window, flip, size), targets

  return transform


def random_window(height: int, width: int, config: ml_collections.ConfigDict, rng: np.random.Generator) -> Window:
  """Returns a random crop, distributed as that of TensorFlow's sample_distorted_bounding_box, which Inception uses.

  The aspect (width / height) is uniform in [1 / crop_max_aspect, crop_max_aspect]. The height is then uniform among those
  for which the area is in [crop_min_area, 1] of the image's and the crop fits. A crop that does not fit is drawn again,
  CROP_ATTEMPTS times; after that the whole image is taken.

  Args:
    height, width: size of the image in pixels.
    config: the `data` section of a config.
    rng: a generator.
  """
  least, most = config.crop_min_area * height * width, config.crop_max_aspect
  for _ in range(CROP_ATTEMPTS):
    shape, size, down, right = rng.random(4)
    aspect = 1 / most + shape * (most - 1 / most)
    highest = min(round((height * width / aspect) ** 0.5), height)
    if round(highest * aspect) > width:
      highest = int((width + 0.5 - 1e-7) / aspect)
    lowest = min(round((least / aspect) ** 0.5), highest)
    rows = lowest + int(size * (highest + 1 - lowest))
    columns = round(rows * aspect)
    if rows * columns < least:  # by rounding
      rows += 1
      columns = round(rows * aspect)
    if least <= rows * columns and 0 < rows <= height and 0 < columns <= width:
      # TensorFlow never draws the last position.
      return int(down * (height - rows)), int(right * (width - columns)), rows, columns
  return 0, 0, height, width


def central_window(height: int, width: int, fraction: float) -> Window:
  """Returns the same central crop as tf.image.central_crop on an image of known size; in a graph it rounds `fraction`."""
  top, left = (int((size - size * fraction) / 2) for size in (height, width))
  return top, left, height - 2 * top, width - 2 * left


def crop(image: np.ndarray, window: Window, flip: bool, size: tuple[int, int]) -> np.ndarray:
  """Crops and resizes an image, and mirrors it if `flip`: uint8 (h, w, 3) -> (*size, 3).

  It is the only resize on the host, and that of tf.image.resize, rounded. In 8 bits, OpenCV would round in between.
  """
  top, left, height, width = window
  part = image[top:top + height, left:left + width]
  if part.shape[:2] != tuple(size):
    part = cv2.convertScaleAbs(cv2.resize(part.astype(np.float32), size[::-1], interpolation=cv2.INTER_LINEAR))
  return cv2.flip(part, 1) if flip else part


def stream_size(config: ml_collections.ConfigDict) -> tuple[int, int]:
  """Returns the height and width of the images in the batches of the pipeline; `config` is the `data` section."""
  return tuple(config.stream_size if any(config.stream_size) else config.image_size)


def normalize(images: jax.Array, size: tuple[int, int]) -> jax.Array:
  """Scales and resizes images on the device, bilinearly without antialiasing.

  uint8 (b, h, w, 3) -> float32 (b, *size, 3) in [-1, 1].
  """
  images = images.astype(float) / 127.5 - 1.0  # float32, or float64 if JAX computes in it
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
          'resize_first_to': list(stream_size(config)), 'range': [-1.0, 1.0], 'channels': 'RGB',
          'exif_orientation': config.exif_orientation}
