"""The check of an exported file: its outputs beside those of the Flax model."""

import dataclasses

import numpy as np

from mobilenet_jax.data import crop, stream_size
from mobilenet_jax.errors import UserError
from mobilenet_jax.trained.export.network import Network

CHECK_IMAGES = 32  # the number of generated images, if none are given
MAX_DIFFERENCE = 1e-4  # of a float32 file, relative to the largest output if that is above 1
MAX_DISTANCE = {'float16': 0.05, 'dynamic': 0.35, 'int8': 0.35}  # of the other precisions, see Check
# A file beyond these is kept with a warning. Accuracy falls by at most 1 - agreement.
MIN_AGREEMENT, WARN_DISTANCE = 0.9, 0.1
_INSTEAD = {'float16': 'export tflite', 'dynamic': 'export tflite-float16',
            'int8': 'calibrate on more images like those that the model is for, or export tflite-float16'}


@dataclasses.dataclass(frozen=True)
class Check:
  """The comparison of a file's outputs with those of the Flax model.

  Attributes:
    images: the number of images.
    max_difference: the largest difference, relative to the largest output if that is above 1.
    agreement: the share of the images with the same most likely class, or of the attributes with the same decision; None if
      the outputs are no decisions.
    distance: the mean distance between the predictions, from 0, if they agree, to 1. It is the total variation distance of
      class probabilities, the difference of attribute probabilities, or half the distance of vectors of unit length.
  """

  images: int
  max_difference: float
  agreement: float | None
  distance: float


def compare(expected: np.ndarray, actual: np.ndarray, network: Network) -> Check:
  """Compares the expected with the actual outputs, both (n, outputs)."""
  scale = max(1.0, float(np.abs(expected).max()))
  max_difference, agreement = float(np.abs(expected - actual).max()) / scale, None
  expected, actual = (_predictions(outputs, network) for outputs in (expected, actual))
  differences = np.abs(expected - actual)
  kind = network.model.task.kind if network.model.num_classes else 'vector'
  if kind == 'classes':
    agreement, distance = (expected.argmax(-1) == actual.argmax(-1)).mean(), differences.sum(-1).mean() / 2
  elif kind == 'attributes':
    agreement, distance = ((expected > 0.5) == (actual > 0.5)).mean(), differences.mean()
  elif kind == 'vector':
    distance = np.linalg.norm(differences, axis=-1).mean() / 2
  else:
    distance = differences.mean() / scale
  return Check(len(expected), max_difference, None if agreement is None else float(agreement), float(distance))


def _predictions(outputs, network):
  if not network.model.num_classes:  # features
    return outputs / np.maximum(np.linalg.norm(outputs, axis=-1, keepdims=True), 1e-12)
  return outputs if network.predicts else np.asarray(network.model.task.prediction(outputs))


def raise_if_off(check: Check, precision: str, name: str) -> None:
  """Raises UserError if a file of the format `name` is not what it should be."""
  if precision == 'float32':
    if not check.max_difference <= MAX_DIFFERENCE:  # `not <=`, so that NaN fails too
      raise UserError(f'{name}: the file differs from the model by up to {check.max_difference:.2g} on {check.images} '
                      f'images, more than {MAX_DIFFERENCE:.0e}; it is not kept')
  elif not check.distance <= MAX_DISTANCE[precision]:
    agreement = '' if check.agreement is None else f' (they agree on {check.agreement:.1%})'
    raise UserError(f'{name}: the outputs of the file are {check.distance:.2f} away from those of the model on {check.images} '
                    f'images{agreement}, more than {MAX_DISTANCE[precision]} on a scale from 0 to 1; it is not kept; '
                    f'{_INSTEAD[precision]}')


def warning(check: Check, precision: str, name: str) -> str:
  """Returns one line that says how far a file is from its model, and what to try, or '' if it is near enough."""
  if precision == 'float32' or (check.distance <= WARN_DISTANCE if check.agreement is None else
                                check.agreement >= MIN_AGREEMENT):
    return ''
  if check.agreement is None:
    off = f'is {check.distance:.2f} away from the model on a scale from 0 to 1 (more than {WARN_DISTANCE})'
  else:
    off = f'agrees with the model on only {check.agreement:.1%} (less than {MIN_AGREEMENT:.0%})'
  return f'{name}: the file {off}, measured on {check.images} images; {_INSTEAD[precision]}'


def generated_images(network: Network, count: int = CHECK_IMAGES) -> np.ndarray:
  """Returns images of smooth colour fields with some noise, no two alike: uint8 (count, *stream_size, 3)."""
  rng = np.random.default_rng(0)
  size = stream_size(network.model.config.data)
  images = []
  for _ in range(count):
    coarse = rng.integers(0, 256, (*rng.integers(2, 12, 2), 3)).astype(np.uint8)
    image = crop(coarse, (0, 0, *coarse.shape[:2]), False, size)
    images.append(np.clip(image + rng.normal(0, 12, image.shape), 0, 255).astype(np.uint8))
  return np.stack(images)
