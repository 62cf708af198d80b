"""Tests NN2 against the FaceNet paper's Table 2, row by row, and its L2 pooling against NumPy."""

import collections
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mobilenet_jax.models import measure
from mobilenet_jax.models import nn2
from mobilenet_jax.models.nn2 import NN2, l2_pool

TABLE_2 = {  # output size, params, FLOPS, as printed
    'conv1': ((112, 112, 64), '9K', '119M'),
    'inception_2': ((56, 56, 192), '115K', '360M'),
    'inception_3a': ((28, 28, 256), '164K', '128M'),
    'inception_3b': ((28, 28, 320), '228K', '179M'),
    'inception_3c': ((14, 14, 640), '398K', '108M'),
    # Printed as 545K, a misprint for 546K: 640 (256 + 96 + 32 + 128) + 9 x 96 x 192 + 25 x 32 x 64 weights and
    # 256 + 96 + 192 + 32 + 64 + 128 biases are 544,768 + 768 = 545,536.
    'inception_4a': ((14, 14, 640), '546K', '107M'),
    'inception_4b': ((14, 14, 640), '595K', '117M'),
    'inception_4c': ((14, 14, 640), '654K', '128M'),
    'inception_4d': ((14, 14, 640), '722K', '142M'),
    'inception_4e': ((7, 7, 1024), '717K', '56M'),
    'inception_5a': ((7, 7, 1024), '1.6M', '78M'),
    'inception_5b': ((7, 7, 1024), '1.6M', '78M'),
    'classifier': ((128,), '131K', '0.1M'),
}
UNITS = {'K': 1e3, 'M': 1e6, 'B': 1e9}


def as_printed(count: int, printed: str) -> str:
  """Returns `count` in the unit and with the decimals of `printed`."""
  unit = printed[-1]
  return f'{count / UNITS[unit]:.{len(printed[:-1].partition(".")[2])}f}{unit}'


@pytest.fixture(scope='module')
def measured():
  return measure(NN2(128), (224, 224, 3), train=False)


def test_params_and_flops_of_table_2(measured):
  """The table counts one bias per channel, and adds it at every position; `measure` does not.

  Without the biases, 3b for example would have 227K and 178M (227,328 and 178,225,152), and the total would be 7.4M.
  """
  params, flops = collections.Counter(), collections.Counter()
  for layer in measured.layers:
    block = next(part for part in layer.name.split('/') if part in TABLE_2)
    params[block] += layer.params + layer.output[-1]
    flops[block] += layer.mult_adds + math.prod(layer.output)
  for block, (_, *printed) in TABLE_2.items():
    assert [as_printed(count[block], p) for count, p in zip((params, flops), printed)] == printed, block
  assert (as_printed(params.total(), '7.5M'), as_printed(flops.total(), '1.6B')) == ('7.5M', '1.6B')


def test_exact_counts(measured):
  """The counts are summed from the formulas of the rows. Batch norm trains two numbers per channel and keeps two more."""
  channels = 64 + 256 + 368 + 448 + 480 + 768 + 784 + 800 + 816 + 608 + 1264 + 1264
  assert (measured.params, measured.mult_adds) == (7_448_256, 1_596_530_688)
  assert (measured.trainable, measured.batch_stats) == (7_448_256 + 2 * channels + 128, 2 * channels)


def test_output_sizes_of_table_2():
  def forward(images):
    features = {}
    outputs, _ = NN2(128).init_with_output(jax.random.key(0), images, train=False, features=features)
    return {**features, 'classifier': outputs}

  shapes = {name: x.shape[1:] for name, x in
            jax.eval_shape(forward, jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)).items()}
  assert shapes.pop('pooled') == (1024,)
  assert shapes == {name: row[0] for name, row in TABLE_2.items()}


@pytest.mark.parametrize('shape', ((64, 64), (96, 96), (65, 130)))
def test_other_sizes_and_pooled_features(shape):
  images = jax.ShapeDtypeStruct((2, *shape, 3), jnp.float32)
  for num_classes, width in ((128, 128), (0, 1024)):
    outputs, variables = jax.eval_shape(
        lambda x: NN2(num_classes, dtype=jnp.bfloat16).init_with_output(jax.random.key(0), x, train=False), images)
    assert (outputs.shape, outputs.dtype) == ((2, width), jnp.float32)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype('float32')}
    assert ('classifier' in variables['params']) == bool(num_classes)


def test_l2_pool_is_a_third_of_the_norm_of_each_window():
  x = np.random.default_rng(0).normal(size=(2, 5, 4, 3)).astype(np.float32)
  padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  expected = np.stack([np.stack([np.linalg.norm(padded[:, i:i + 3, j:j + 3].reshape(2, 9, 3), axis=1) / 3
                                 for j in range(4)], 1) for i in range(5)], 1)
  np.testing.assert_allclose(l2_pool(x), expected, rtol=1e-5)


def test_l2_pool_has_a_gradient_at_zero():
  np.testing.assert_array_equal(jax.grad(lambda x: l2_pool(x).sum())(jnp.zeros((1, 3, 3, 1))), 0)


@pytest.mark.parametrize('rows, freeze_batch_stats', (
    (4, True), *(pytest.param(11, freeze, marks=pytest.mark.slow) for freeze in (False, True))))
def test_a_black_image_has_finite_outputs_and_gradients(rows, freeze_batch_stats, monkeypatch):
  """Tests the first rows, which have every kind of pool and stride.

  With frozen statistics, an l2_pool without epsilon gives NaN here; otherwise the gradient of batch norm cuts that off.
  """
  monkeypatch.setattr(nn2, 'INCEPTIONS', dict(list(nn2.INCEPTIONS.items())[:rows]))
  model, black = NN2(8, freeze_batch_stats=freeze_batch_stats), jnp.full((1, 64, 64, 3), -1.0)
  shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), black, train=False))
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda leaf: rng.normal(0, 0.09, leaf.shape).astype(np.float32), shapes['params'])
  batch_stats = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), shapes['batch_stats'])

  @jax.jit
  @functools.partial(jax.value_and_grad, has_aux=True)
  def step(params):
    variables = {'params': params, 'batch_stats': batch_stats}
    outputs, updates = model.apply(variables, black, train=True, mutable=['batch_stats'])
    return (outputs ** 2).sum(), updates

  results = step(params)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(results))
  assert np.abs(results[1]['conv1']['kernel']).max() > 0
