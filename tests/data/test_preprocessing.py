"""Crops, the resize and what the device does, compared with TensorFlow's."""

import numpy as np
import pytest
from conftest import data_config

from mobilenet_jax.data import preprocessing

SIZES = ((375, 500), (500, 375), (227, 227), (33, 64), (64, 64), (5, 7), (200, 2000), (1, 40))


@pytest.mark.parametrize('target', ((224, 224), (128, 128), (75, 131), (32, 32)))
def test_the_resize_is_tensorflows(target):
  """To at most one level on at most one per cent of the values; mirrored, too."""
  tf = pytest.importorskip('tensorflow')
  rng, different, count = np.random.default_rng(0), 0, 0
  for height, width in SIZES:
    image = rng.integers(0, 256, (height, width, 3), np.uint8)
    expected = np.round(tf.image.resize(image, target).numpy()).astype(int)
    for flip in (False, True):
      ours = preprocessing.crop(image, (0, 0, height, width), flip, target).astype(int)
      assert ours.shape == (*target, 3)
      difference = np.abs(ours - (expected[:, ::-1] if flip else expected))
      assert difference.max() <= 1
      different, count = different + (difference > 0).sum(), count + difference.size
  assert different <= 0.01 * count


def test_a_crop_of_the_size_of_the_network_is_not_resized():
  image = np.random.default_rng(0).integers(0, 256, (64, 70, 3), np.uint8)
  np.testing.assert_array_equal(preprocessing.crop(image, (3, 5, 32, 40), False, (32, 40)), image[3:35, 5:45])
  np.testing.assert_array_equal(preprocessing.crop(image, (3, 5, 32, 40), True, (32, 40)), image[3:35, 5:45][:, ::-1])


@pytest.mark.parametrize('fraction', (0.875, 0.8, 1 / 3))
def test_the_central_crop_is_tensorflows_at_every_size(fraction):
  tf = pytest.importorskip('tensorflow')
  column = np.arange(1000, dtype=np.int32)
  for size in range(8, 1000):
    top, left, height, width = preprocessing.central_window(size, 8, fraction)
    expected = tf.image.central_crop(np.broadcast_to(column[:size, None, None], (size, 8, 1)), fraction).numpy()
    assert expected.shape == (height, width, 1), size
    assert expected[0, 0, 0] == top and expected[-1, 0, 0] == top + height - 1


def windows(height, width, count, seed=0, **changes):
  """Returns random windows of ours and of TensorFlow's, (count, 4) each."""
  tf = pytest.importorskip('tensorflow')
  config, rng = data_config(**changes), np.random.default_rng(seed)
  ours = np.array([preprocessing.random_window(height, width, config, rng) for _ in range(count)])

  @tf.function
  def draw(key):
    begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
        (height, width, 3), tf.zeros((1, 0, 4)), seed=[7, key], min_object_covered=0.0,
        aspect_ratio_range=(1 / config.crop_max_aspect, config.crop_max_aspect), area_range=(config.crop_min_area, 1.0),
        max_attempts=preprocessing.CROP_ATTEMPTS, use_image_if_no_bounding_boxes=True)
    return tf.concat([begin[:2], size[:2]], 0)

  return ours, tf.map_fn(draw, tf.range(count), fn_output_signature=tf.int32).numpy()


@pytest.mark.parametrize('height, width, changes', (
    (375, 500, {'crop_min_area': 0.35}), (64, 64, {'crop_min_area': 0.6}),
    (32, 32, {'crop_min_area': 0.9, 'crop_max_aspect': 1.1}), (20, 31, {'crop_min_area': 0.05}),
    (200, 600, {'crop_min_area': 0.35, 'crop_max_aspect': 2.0})))
def test_random_crops_are_distributed_as_tensorflows(height, width, changes):
  """Compares the distribution functions of everything about a crop (a test of Kolmogorov and Smirnov at 1e-4)."""
  count = 2000
  ours, theirs = windows(height, width, count, **changes)
  measures = lambda w: {'top': w[:, 0], 'left': w[:, 1], 'height': w[:, 2], 'width': w[:, 3], 'area': w[:, 2] * w[:, 3],
                        'aspect': w[:, 3] / w[:, 2], 'bottom': w[:, 0] + w[:, 2], 'right': w[:, 1] + w[:, 3]}
  for name, ours, theirs in ((name, a, b) for (name, a), b in zip(measures(ours).items(), measures(theirs).values())):
    points = np.union1d(ours, theirs)
    at = lambda values: np.searchsorted(np.sort(values), points, 'right') / count
    assert np.abs(at(ours) - at(theirs)).max() < 2.23 * np.sqrt(2 / count), name


def test_where_no_crop_fits_the_whole_image_is_taken():
  ours, theirs = windows(200, 2000, 50, crop_min_area=0.35)
  assert (ours == (0, 0, 200, 2000)).all() and (theirs == (0, 0, 200, 2000)).all()


def test_few_crops_have_the_full_height():
  """Where crops are clipped instead of drawn again, 37 % of those of a photograph have."""
  ours, theirs = windows(375, 500, 500, crop_min_area=0.35)
  assert (ours[:, 2] == 375).mean() < 0.03 and (theirs[:, 2] == 375).mean() < 0.03


def test_random_windows_are_inside_and_large_enough():
  rng = np.random.default_rng(0)
  config = data_config(crop_min_area=0.5)
  for _ in range(500):
    height, width = (int(n) for n in rng.integers(1, 200, 2))
    top, left, h, w = preprocessing.random_window(height, width, config, rng)
    assert 0 <= top and top + h <= height and 0 <= left and left + w <= width
    assert h * w >= 0.5 * height * width


def test_normalize_and_distort_stay_in_range():
  import jax
  images = preprocessing.normalize(np.array([[[[0, 127, 255]]]], np.uint8), (1, 1))
  np.testing.assert_allclose(images, [[[[-1, -1 / 255, 1]]]], atol=1e-6)
  images = jax.random.uniform(jax.random.key(0), (8, 6, 6, 3), minval=-1, maxval=1)
  np.testing.assert_allclose(preprocessing.distort_colors(images, jax.random.key(1), 0.0), images, atol=1e-6)
  distorted = preprocessing.distort_colors(images, jax.random.key(1), 1.0)
  assert np.abs(distorted).max() <= 1 and np.abs(distorted - images).mean() > 0.05


@pytest.mark.parametrize('size', ((24, 24), (20, 28), (13, 32)))
def test_device_resizes_as_tensorflow_and_as_the_host(size):
  """The host rounds to a level, which is at most half a level away."""
  tf = pytest.importorskip('tensorflow')
  images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
  device = (np.asarray(preprocessing.normalize(images, size)) + 1) * 127.5
  np.testing.assert_allclose(device, tf.image.resize(images, size, 'bilinear').numpy(), atol=1e-3)
  host = np.stack([preprocessing.crop(image, (0, 0, 32, 32), False, size) for image in images])
  np.testing.assert_allclose(device, host, atol=0.501)
