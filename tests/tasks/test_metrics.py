import jax.numpy as jnp
import numpy as np
import pytest

from mobilenet_jax.errors import UserError
from mobilenet_jax.tasks import losses, metrics


def test_top_k_equals_keras():
  keras = pytest.importorskip('keras')
  rng = np.random.default_rng(0)
  logits, labels = rng.normal(size=(50, 10)).astype(np.float32), rng.integers(0, 10, 50)
  for k in (1, 5):
    expected = np.asarray(keras.metrics.sparse_top_k_categorical_accuracy(labels, logits, k))
    np.testing.assert_array_equal(metrics.in_top_k(jnp.asarray(logits), jnp.asarray(labels), k), expected)


def test_a_constant_output_is_never_right():
  assert metrics.in_top_k(jnp.zeros((2, 10)), jnp.array([0, 3]), 5).sum() == 0


@pytest.mark.parametrize('at', range(4))
def test_a_row_with_a_nan_is_never_right(at):
  logits = np.array([[3.0, 2.0, 1.0, 0.0]] * 2)
  logits[0, at] = np.nan
  for k in (1, 3):
    np.testing.assert_array_equal(metrics.in_top_k(jnp.asarray(logits), jnp.array([0, 0]), k), [0, 1])


@pytest.mark.parametrize('value', (np.nan, np.inf, -np.inf))
def test_scores_that_are_not_finite_have_no_average_precision(value):
  with pytest.raises(UserError, match='2 of 4 scores are not finite'):
    metrics.average_precision(np.array([value, 1, value, 0]), np.array([1, 0, 1, 0]))


@pytest.mark.parametrize('smoothing', (0.0, 0.1))
def test_cross_entropy_equals_keras(smoothing):
  keras = pytest.importorskip('keras')
  rng = np.random.default_rng(0)
  logits, labels = rng.normal(size=(8, 5)).astype(np.float32), rng.integers(0, 5, 8)
  expected = keras.losses.categorical_crossentropy(
      np.eye(5, dtype=np.float32)[labels], logits, from_logits=True, label_smoothing=smoothing)
  actual = losses.softmax_cross_entropy(jnp.asarray(logits), jnp.asarray(labels), smoothing)
  np.testing.assert_allclose(actual, np.asarray(expected), rtol=1e-5)


def test_means_over_uneven_batches_are_exact():
  values, mean = np.arange(7.0), metrics.Mean()
  for part in (values[:4], values[4:]):
    padded = np.concatenate([part, np.full(4 - len(part), np.nan)])
    mask = np.arange(4) < len(part)
    mean.add(metrics.sums({'x': jnp.asarray(padded)}, jnp.asarray(mask, jnp.float32)))
  assert mean.count == 7 and mean.compute() == {'x': 3.0}
