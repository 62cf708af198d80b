"""The embedded dataset for classification."""

import numpy as np

from mobilenet_jax.data.drawn import fabrics


def test_fabrics_have_the_attributes_of_their_classes():
  """Independent of the drawing code: the strongest wave, the share of pixels that a motif covers, and the mean colour."""
  first, again = (fabrics.draw(7, np.random.default_rng(3)) for _ in range(2))
  np.testing.assert_array_equal(first, again)
  size = fabrics.SIZE
  assert first.shape == (size, size, 3) and first.dtype == np.uint8 and len(set(fabrics.CLASSES)) == fabrics.NUM_CLASSES
  frequency = np.fft.fftfreq(size)
  for label in (0, 5, 10, 15, 20):
    cloth = fabrics.CLOTHS[label]
    images = np.stack([fabrics.draw(label, np.random.default_rng(i)) for i in range(60)]).astype(float)
    power = (np.abs(np.fft.fft2(images.mean(-1) - images.mean((1, 2, 3))[:, None, None])) ** 2).mean(0)
    expected = [1 / period * np.array((np.sin(angle), np.cos(angle))) for angle, period in zip(cloth.angles, cloth.periods)]
    row, column = np.unravel_index(power.argmax(), power.shape)
    found = np.array((frequency[row], frequency[column]))
    nearest = min(np.abs(sign * wave - found).max() / np.linalg.norm(wave) for wave in expected for sign in (1, -1))
    assert nearest < 0.35, fabrics.CLASSES[label]  # an attribute's own spread is 16 %, and the grid of frequencies is coarse
    covers = [fabrics._covered(cloth.motif, cloth.radius, 1, np.random.default_rng(i)).sum() for i in range(60)]
    assert 0.2 < np.median(covers) / (np.pi * cloth.radius**2) < 1  # a motif covers part of the disc around it
    shares = (images.mean((0, 1, 2)) - cloth.color) / cloth.contrast  # in each channel, about what the motif covers
    assert abs(np.median(shares) - cloth.cover) < 0.3


def test_the_colour_of_a_fabric_is_a_hint_and_no_answer():
  """A Gaussian classifier of the mean colour alone."""
  draw = lambda count, seed: (np.stack([fabrics.draw(i % 24, np.random.default_rng([seed, i])).mean((0, 1))
                                        for i in range(count)]), np.arange(count) % 24)
  (colors, labels), (others, expected) = draw(1200, 1), draw(600, 2)
  means = np.stack([colors[labels == c].mean(0) for c in range(24)])
  spreads = np.stack([colors[labels == c].std(0) for c in range(24)])
  distance = (((others[:, None] - means) / spreads) ** 2).sum(-1) + 2 * np.log(spreads).sum(-1)
  assert 4 / 24 < (distance.argmin(1) == expected).mean() < 0.5
