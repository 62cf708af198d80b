"""Fabrics, the embedded dataset for classification: printed cloth drawn by code, so that a sweep needs no download.

A class is a pair (weave, motif): cloth with one of four weaves, printed with one of several motifs. A weave has a period
of about five pixels, and a motif has a radius of six or seven. A low-resolution input cannot resolve them, so resolution
matters. The classes are combinations of the two, while colour, contrast, position, size, number, rotation and noise carry
no information, so width matters.
"""

import numpy as np
import tensorflow_datasets as tfds

SIZE = 64  # pixels, height and width
WEAVES = ('horizontal', 'vertical', 'diagonal', 'checker')  # distinct under a horizontal flip
MOTIFS = ('disc', 'triangle', 'ring', 'cross', 'star')
CLASSES = tuple(f'{weave}_{motif}' for motif in MOTIFS for weave in WEAVES)
NUM_EXAMPLES = {'train': 4000, 'test': 1000}

SEED = 0
PERIOD = (4.2, 5.8)  # of a weave, in pixels
RADIUS = (5.5, 7.5)  # of a motif, in pixels
_ROWS, _COLUMNS = np.mgrid[:SIZE, :SIZE].astype(np.float32) + 0.5


def _distance(motif: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
  """Returns a field similar to a signed distance, negative inside a motif of unit radius."""
  radius = np.hypot(x, y)
  if motif == 'disc':
    return radius - 0.85
  if motif == 'triangle':
    return np.maximum(np.abs(x) * 0.866 + y * 0.5, -y) - 0.5
  if motif == 'ring':
    return np.abs(radius - 0.72) - 0.24
  if motif == 'cross':
    near, far = np.minimum(np.abs(x), np.abs(y)), np.maximum(np.abs(x), np.abs(y))
    return np.maximum(near - 0.3, far - 0.95)
  angle = np.arctan2(y, x)
  return radius - (0.72 + 0.26 * np.cos(5 * angle))  # star


def _weave(weave: str, period: float, phase: np.ndarray) -> np.ndarray:
  """Returns a wave in [-1, 1] over the image, with the given period in pixels."""
  wave = 2 * np.pi / period
  vertical = np.sin(_COLUMNS * wave + phase[0])
  horizontal = np.sin(_ROWS * wave + phase[1])
  if weave == 'vertical':
    return vertical
  if weave == 'horizontal':
    return horizontal
  if weave == 'checker':
    return np.clip(2 * vertical * horizontal, -1, 1)
  sign = 1 if phase[2] < np.pi else -1
  return np.sin((_COLUMNS + sign * _ROWS) * wave / np.sqrt(2) + phase[0])


def _smooth_noise(rng: np.random.Generator, cells: int) -> np.ndarray:
  """Returns noise in [-1, 1] that varies over SIZE / cells pixels, by bilinear interpolation of a coarse grid."""
  grid = rng.uniform(-1, 1, (cells + 1, cells + 1, 3)).astype(np.float32)
  at = np.arange(SIZE, dtype=np.float32) * cells / SIZE
  low, part = at.astype(int), (at % 1)[:, None, None]
  rows = grid[low] * (1 - part) + grid[low + 1] * part
  part = part.reshape(1, SIZE, 1)
  return rows[:, low] * (1 - part) + rows[:, low + 1] * part


def draw(label: int, rng: np.random.Generator) -> np.ndarray:
  """Draws one example of class `label`: uint8 RGB, (SIZE, SIZE, 3)."""
  motif, weave = MOTIFS[label // len(WEAVES)], WEAVES[label % len(WEAVES)]
  dark, light = rng.uniform(40, 100, 3), rng.uniform(150, 230, 3)
  wave = _weave(weave, rng.uniform(*PERIOD), rng.uniform(0, 2 * np.pi, 3))[..., None]
  image = dark + 15 * _smooth_noise(rng, 4) + rng.uniform(30, 50) * wave

  place = rng.permutation(16)[:rng.integers(6, 11)]  # on a 4 x 4 grid, jittered
  for cell in place:
    row, column = (np.array(divmod(cell, 4)) + rng.uniform(0.3, 0.7, 2)) * SIZE / 4
    radius, turn = rng.uniform(*RADIUS), rng.uniform(-0.25, 0.25)
    x, y = (_COLUMNS - column) / radius, (_ROWS - row) / radius
    x, y = x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn)
    inside = np.clip(0.5 - _distance(motif, x, y) * radius, 0, 1)[..., None]
    image = image * (1 - inside) + light * inside
  return np.clip(image + rng.normal(0, 6, image.shape), 0, 255).astype(np.uint8)


class Fabrics(tfds.core.GeneratorBasedBuilder):
  """The TFDS builder of fabrics, with NUM_EXAMPLES examples per split and the classes in turn."""

  VERSION = tfds.core.Version('1.0.0')

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
      label = i % len(CLASSES)
      rng = np.random.default_rng([SEED, list(NUM_EXAMPLES).index(split), i])
      yield i, {'image': draw(label, rng), 'label': label}
