"""Fabrics, the embedded dataset for classification: printed cloth drawn by code, so that a sweep needs no download.

A class is a cloth with many attributes: its colour, two weaves, and a printed motif with its colour, size and cover. In each
image every attribute is drawn from a distribution that overlaps with those of other classes, so that none is an answer and
each is a hint. A network learns the easy ones first, such as colour, and the fine ones as far as its width and the
resolution of its input allow. Accuracy therefore follows the cost, as on photographs, and no run waits for a sudden
insight.
"""

from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds

SIZE = 63  # pixels, height and width
MOTIFS = ('disc', 'triangle', 'ring', 'cross', 'star', 'square')
NUM_CLASSES = 24
NUM_EXAMPLES = {'train': 5000, 'test': 2000}

SEED = 0  # of the images
COLOR_SPREAD = 23  # the standard deviation of a colour within a class, of 255; that between classes is 38
WEAVE_SPREAD = 0.16  # of a weave's angle within a class, in radians, and of the logarithm of its period
_DESIGN_SEED = 5  # of the classes
_TINT = np.float32([1, 0.9, 0.8])  # of the weaves' light
_Y, _X = np.mgrid[:SIZE, :SIZE].astype(np.float32) + np.float32(0.5)


class Cloth(NamedTuple):
  """The mean attributes of a class. Lengths are in pixels, colours are RGB from 0 to 255, angles in radians."""
  color: np.ndarray
  contrast: np.ndarray  # the motif's colour less the cloth's
  angles: tuple[float, float]  # of the two weaves
  periods: tuple[float, float]
  motif: str
  radius: float
  cover: float  # the share of the image that motifs would cover if none overlapped


def _designs() -> list[Cloth]:
  """Returns the classes. Periods and radii go down to what only a high resolution resolves: 2.4 and 1.8 of 64 pixels."""
  rng = np.random.default_rng(_DESIGN_SEED)
  lengths = lambda low, high: np.exp(rng.uniform(np.log(low), np.log(high), NUM_CLASSES)) * SIZE / 64
  colors, contrasts = 128 + rng.normal(0, 38, (NUM_CLASSES, 3)), rng.normal(0, 38, (NUM_CLASSES, 3))
  angles, periods = rng.permutation(NUM_CLASSES) * np.pi / NUM_CLASSES, lengths(2.4, 14)
  others, other_periods = rng.uniform(0, np.pi, NUM_CLASSES), lengths(2.4, 14)
  motifs = rng.integers(0, len(MOTIFS), NUM_CLASSES)
  radii, covers = lengths(1.8, 9), rng.uniform(0.15, 0.5, NUM_CLASSES)
  return [Cloth(colors[i], contrasts[i], (angles[i], others[i]), (periods[i], other_periods[i]), MOTIFS[motifs[i]], radii[i],
                covers[i]) for i in range(NUM_CLASSES)]


CLOTHS = _designs()
CLASSES = tuple(f'cloth_{i:02}_{cloth.motif}' for i, cloth in enumerate(CLOTHS))


def _distance(motif: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
  """Returns a field similar to a signed distance, negative inside a motif of unit radius."""
  radius, near, far = np.hypot(x, y), np.minimum(abs(x), abs(y)), np.maximum(abs(x), abs(y))
  if motif == 'disc':
    return radius - 0.85
  if motif == 'triangle':
    return np.maximum(abs(x) * 0.866 + y * 0.5, -y) - 0.5
  if motif == 'ring':
    return abs(radius - 0.72) - 0.24
  if motif == 'cross':
    return np.maximum(near - 0.3, far - 0.95)
  if motif == 'star':
    return radius - (0.72 + 0.26 * np.cos(5 * np.arctan2(y, x)))
  return far - 0.75  # square


def _weave(angle: float, period: float, rng: np.random.Generator) -> np.ndarray:
  """Returns the light and shade of a weave whose attributes are near the given ones, float32 (SIZE, SIZE)."""
  angle, period = angle + rng.normal(0, WEAVE_SPREAD), period * np.exp(rng.normal(0, WEAVE_SPREAD))
  wave, height = 2 * np.pi / period, 28 * np.exp(rng.normal(0, 0.3))
  phase = rng.uniform(0, 2 * np.pi)
  return np.float32(height) * np.sin(
      _X * np.float32(wave * np.cos(angle)) + _Y * np.float32(wave * np.sin(angle)) + np.float32(phase))


def _covered(motif: str, radius: float, count: int, rng: np.random.Generator) -> np.ndarray:
  """Returns how much of each pixel motifs cover, float32 (SIZE, SIZE) in [0, 1]: `count` of them, somewhere in the image.

  Each motif is drawn in a window of its own, just large enough, all windows at once.
  """
  size = np.float32(radius * np.exp(rng.normal(0, 0.15, (count, 1, 1))))
  turn = np.float32(rng.normal(0, 0.3, (count, 1, 1)))
  center = rng.uniform(0, SIZE, (2, count))  # x, y
  half = int(np.ceil(1.1 * size.max() + 1))
  side = 2 * half + 1
  corner = np.floor(center).astype(int) - half
  from_center = np.float32(corner[..., None] + np.arange(side) + 0.5 - center[..., None])  # (2, count, side)
  x, y = from_center[0][:, None, :] / size, from_center[1][:, :, None] / size
  x, y = x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn)  # (count, side, side)
  outside = 1 - np.clip(0.5 - _distance(motif, x, y) * size, 0, 1)
  free = np.ones((SIZE + 2 * side, SIZE + 2 * side), np.float32)  # with a margin for windows beyond the edge
  for (left, top), window in zip((corner + side).T, outside):
    free[top:top + side, left:left + side] *= window
  return 1 - free[side:-side, side:-side]


def draw(label: int, rng: np.random.Generator) -> np.ndarray:
  """Draws one example of class `label`: uint8 RGB, (SIZE, SIZE, 3)."""
  cloth = CLOTHS[label]
  color, contrast = cloth.color + rng.normal(0, COLOR_SPREAD, 3), cloth.contrast + rng.normal(0, COLOR_SPREAD, 3)
  weave = sum(_weave(angle, period, rng) for angle, period in zip(cloth.angles, cloth.periods))
  area = cloth.cover * np.exp(rng.normal(0, 0.25)) * SIZE**2
  count = int(np.clip(area / (np.pi * cloth.radius**2), 1, 60))
  covered = _covered(cloth.motif, cloth.radius, count, rng)[..., None]
  image = (np.float32(color) + weave[..., None] * _TINT) * (1 - covered) + np.float32(color + contrast) * covered
  noise = np.float32(8 * np.exp(rng.normal(0, 0.5)))
  return np.clip(image + noise * rng.standard_normal(image.shape, np.float32), 0, 255).astype(np.uint8)


class Fabrics(tfds.core.GeneratorBasedBuilder):
  """The TFDS builder of fabrics, with NUM_EXAMPLES examples per split and the classes in turn."""

  VERSION = tfds.core.Version('3.0.0')
  RELEASE_NOTES = {'2.0.0': 'Cloth of many overlapping attributes, in place of four weaves times five motifs.',
                   '3.0.0': 'The weaves of a class overlap more with those of others.'}

  def _info(self):
    return tfds.core.DatasetInfo(
        builder=self,
        description=__doc__,
        features=tfds.features.FeaturesDict({
            'image': tfds.features.Image(shape=(SIZE, SIZE, 3)),
            'label': tfds.features.ClassLabel(names=CLASSES),
        }),
        supervised_keys=('image', 'label'),
    )

  def _split_generators(self, dl_manager):
    return {split: self._generate_examples(split) for split in NUM_EXAMPLES}

  def _generate_examples(self, split):
    for i in range(NUM_EXAMPLES[split]):
      label = i % NUM_CLASSES
      rng = np.random.default_rng([SEED, list(NUM_EXAMPLES).index(split), i])
      yield i, {'image': draw(label, rng), 'label': label}
