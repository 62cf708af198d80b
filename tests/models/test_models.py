import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mobilenet_jax import config as config_lib
from mobilenet_jax import models
from mobilenet_jax.models import lowerings
from mobilenet_jax.models.layers import BatchNorm, Conv, DepthwiseConv, PointwiseConv
from mobilenet_jax.models.mobilenet import BODY, MobileNet, scale_channels
from mobilenet_jax.runtime import devices


def values_and_gradients(function, *args):
  def run(*args):
    y, vjp = jax.vjp(function, *args)
    return y, vjp(jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape))
  return jax.jit(run)(*args)  # compiled as a whole: a fifth of the time of op by op


def assert_trees_close(actual, expected, tolerance=1e-5):
  """Asserts that arrays agree within `tolerance` of the largest value of each."""
  for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * np.abs(b).max())


@pytest.mark.parametrize('stride', (1, 2))
@pytest.mark.parametrize('batch, height, width', (
    (3, 16, 16), (8, 8, 8), (1, 7, 7), (3, 5, 8), (3, 1, 1), (2, 2, 3), (2, 26, 9)))
def test_lowerings_agree(stride, batch, height, width):
  """The outputs and both gradients of the shifted lowering equal those of feature_group_count."""
  x = jax.random.normal(jax.random.key(0), (batch, height, width, 6))
  layers = {name: DepthwiseConv(stride, name) for name in ('grouped', 'shifted')}
  params = layers['grouped'].init(jax.random.key(1), x)
  grouped, shifted = (values_and_gradients(layer.apply, params, x) for layer in layers.values())
  assert_trees_close(shifted, grouped)


@pytest.mark.parametrize('stride', (1, 2))
@pytest.mark.parametrize('size, channels, window', (
    ((9, 9), 3, 3), ((32, 33), 3, 3), ((32, 32), 3, 7), ((4, 4), 6, 5), ((2, 3), 6, 3), ((1, 1), 6, 5), ((5, 4), 6, 3)))
def test_lowerings_of_full_convolutions_agree(stride, size, channels, window):
  """Tests the first layer, and others on small and larger images."""
  x = jax.random.normal(jax.random.key(0), (2, *size, channels))
  layers = {name: Conv(5, stride, window, name) for name in ('grouped', 'shifted')}
  params = layers['grouped'].init(jax.random.key(1), x)
  grouped, shifted = (values_and_gradients(layer.apply, params, x) for layer in layers.values())
  assert_trees_close(shifted, grouped)


@pytest.mark.parametrize('height, width', ((16, 16), (7, 6), (1, 2)))
def test_lowerings_of_pools_agree(height, width):
  """The inputs have no equal values, because XLA gives their gradient to the first one only."""
  x = jax.random.normal(jax.random.key(0), (2, height, width, 5))
  for pool in (lambda x, name: lowerings.max_pool(x, 1, name), lambda x, name: lowerings.max_pool(x, 2, name),
               lowerings.mean_pool):
    grouped, shifted = (values_and_gradients(lambda x: pool(x, name), x) for name in ('grouped', 'shifted'))
    assert_trees_close(shifted, grouped)


@pytest.mark.parametrize('activation', ('relu', 'relu6'))
def test_batch_norm_equals_flax(activation):
  """Compares outputs, gradients and statistics with flax.linen.BatchNorm and autodiff, also with running averages."""
  x = 4 * jax.random.normal(jax.random.key(0), (4, 5, 6, 7)) + jnp.arange(7) / 2
  keys = jax.random.split(jax.random.key(1), 4)
  params = {'scale': jax.random.uniform(keys[0], (7,)) + 1, 'bias': jax.random.normal(keys[1], (7,))}
  stats = {'mean': jax.random.normal(keys[2], (7,)), 'var': jax.random.uniform(keys[3], (7,)) + 1}
  activate = {'relu': nn.relu, 'relu6': nn.relu6}[activation]

  def run(params, x, ours, average):
    options = dict(use_running_average=average, momentum=0.9, epsilon=1e-3)
    layer = BatchNorm(activation, **options) if ours else nn.BatchNorm(**options)
    y, updates = layer.apply({'params': params, 'batch_stats': stats}, x, mutable=['batch_stats'])
    return y if ours else activate(y), updates

  for average in (False, True):
    def results(ours):
      y, vjp, updates = jax.vjp(lambda p, x: run(p, x, ours, average), params, x, has_aux=True)
      return y, vjp(jnp.sin(x)), updates

    assert_trees_close(*(jax.jit(lambda: results(ours))() for ours in (True, False)))


def test_batch_norm_over_an_axis_is_batch_norm_of_the_whole():
  """Synchronised over two devices, outputs, statistics and gradients are as on one device with both halves."""
  x = 4 * jax.random.normal(jax.random.key(0), (4, 5, 6, 7))
  layer = lambda axis: BatchNorm('relu6', use_running_average=False, momentum=0.9, epsilon=1e-3, axis_name=axis)
  variables = layer(None).init(jax.random.key(1), x)

  def loss(params, x, axis):
    y, updates = layer(axis).apply({**variables, 'params': params}, x, mutable=['batch_stats'])
    return (y * jnp.cos(x)).sum(), updates

  gradient = jax.grad(loss, (0, 1), has_aux=True)
  (whole_params, whole_x), whole_stats = jax.jit(lambda: gradient(variables['params'], x, None))()
  halves = jax.vmap(lambda x: gradient(variables['params'], x, 'devices'), axis_name='devices')
  (params, dx), stats = jax.jit(halves)(x.reshape(2, 2, *x.shape[1:]))
  assert_trees_close(jax.tree.map(lambda p: p.sum(0), params), whole_params)
  assert_trees_close(dx.reshape(x.shape), whole_x)
  assert_trees_close(jax.tree.map(lambda s: s[1], stats), whole_stats)


def test_depthwise_is_a_convolution_a_channel():
  """Compares with SciPy, one channel at a time."""
  from scipy.signal import correlate2d
  x = np.random.default_rng(0).normal(size=(1, 6, 5, 3)).astype(np.float32)
  layer = DepthwiseConv(1, 'shifted')
  params = layer.init(jax.random.key(0), x)
  kernel = np.asarray(params['params']['kernel'])
  expected = np.stack([correlate2d(x[0, :, :, c], kernel[:, :, 0, c], 'same') for c in range(3)], -1)
  np.testing.assert_allclose(layer.apply(params, x)[0], expected, rtol=1e-5, atol=1e-6)


def test_pointwise_is_a_1x1_convolution():
  x = jax.random.normal(jax.random.key(0), (2, 4, 5, 6))
  layer = PointwiseConv(7)
  params = layer.init(jax.random.key(1), x)
  kernel = params['params']['kernel']
  expected = jax.lax.conv_general_dilated(x, kernel, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
  np.testing.assert_allclose(layer.apply(params, x), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('channels, alpha, expected', (
    (32, 0.25, 8), (32, 0.1, 8), (32, 0.75, 24), (1024, 0.33, 337), (64, 1.5, 96)))
def test_channels_are_rounded_as_in_the_published_models(channels, alpha, expected):
  assert scale_channels(channels, alpha) == expected


def test_features_are_available_by_name_at_any_size():
  model = MobileNet(5, width_multiplier=0.25)
  image = jax.ShapeDtypeStruct((2, 75, 41, 3), jnp.float32)

  def forward(image):
    features = {}
    logits, _ = model.init_with_output(jax.random.key(0), image, train=False, features=features)
    return logits, features

  logits, features = jax.eval_shape(forward, image)
  assert logits.shape == (2, 5)
  assert len(features) == 2 + len(BODY)
  assert features['conv'].shape == (2, 38, 21, 8)
  assert features['block_11'].shape == (2, 5, 3, 128)
  assert features['block_13'].shape == (2, 3, 2, 256)
  assert features['pooled'].shape == (2, 256)


def test_bfloat16_keeps_float32_parameters():
  config = config_lib.base().model
  config.dtype = 'bfloat16'
  model = models.create(config, 3)
  image = jnp.zeros((1, 32, 32, 3))
  logits, variables = jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), image, train=False))
  assert logits.dtype == jnp.float32
  assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype('float32')}
  half = jax.eval_shape(lambda: model.init_with_output(
      jax.random.key(0), image, train=False, mutable=True, capture_intermediates=True)[1])['intermediates']
  assert half['conv_pw_1']['__call__'][0].dtype == jnp.bfloat16


def test_logits_in_bfloat16_have_no_ties(tiny_model):
  """Compares with the product of the network's own pooled features, and counts images whose two largest logits are equal."""
  config = config_lib.base().model
  config.dtype = 'bfloat16'
  model = models.create(config, 1000)
  images = jax.random.uniform(jax.random.key(0), (50, 32, 32, 3), minval=-1)
  variables = devices.run_once(lambda key: model.init(key, images[:1], train=False), jax.random.key(1))

  def run(variables, images):
    features = {}
    return model.apply(variables, images, train=False, features=features), features['pooled']

  logits, pooled = map(np.asarray, jax.jit(run)(variables, images))
  classifier = variables['params']['classifier']
  expected = pooled.astype(np.float64) @ np.asarray(classifier['kernel'], np.float64) + np.asarray(classifier['bias'])
  np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
  predict, weights = models.fold(model, variables)
  folded = np.asarray(jax.jit(predict)(weights, images))
  largest = lambda logits: (np.sort(logits)[:, -1] == np.sort(logits)[:, -2]).mean()
  anywhere = lambda logits: (np.diff(np.sort(logits)) == 0).mean()
  assert largest(logits) == largest(folded) == 0 and max(anywhere(logits), anywhere(folded)) < 0.01
  assert anywhere(np.asarray(jnp.asarray(logits, jnp.bfloat16), np.float32)) > 0.05


def test_logits_equal_those_of_keras():
  """Compares the whole network, with random weights and batch statistics, with keras.applications.MobileNet."""
  keras = pytest.importorskip('keras')
  if keras.backend.backend() != 'tensorflow':
    pytest.skip('Keras runs on another backend here')
  theirs = keras.applications.MobileNet((64, 64, 3), alpha=0.5, weights=None, classes=7, classifier_activation=None)
  rng = np.random.default_rng(0)
  for variable in theirs.weights:
    low, high = (0.5, 1.5) if 'variance' in variable.path or 'gamma' in variable.path else (-0.3, 0.3)
    variable.assign(rng.uniform(low, high, variable.shape))

  params, batch_stats = {}, {}
  for layer in theirs.layers:
    name = {'conv1': 'conv', 'conv1_bn': 'conv_bn', 'conv_preds': 'classifier'}.get(layer.name, layer.name)
    values = [np.asarray(w) for w in layer.get_weights()]
    if name.endswith('_bn'):
      params[name] = {'scale': values[0], 'bias': values[1]}
      batch_stats[name] = {'mean': values[2], 'var': values[3]}
    elif name == 'classifier':
      params[name] = {'kernel': values[0][0, 0], 'bias': values[1]}
    elif 'dw' in name and values:
      params[name] = {'kernel': values[0].transpose(0, 1, 3, 2)}  # (3, 3, c, 1) -> (3, 3, 1, c)
    elif values:
      params[name] = {'kernel': values[0]}

  images = rng.uniform(-1, 1, (2, 64, 64, 3)).astype(np.float32)
  expected = np.asarray(theirs(images, training=False)).reshape(2, 7)
  for lowering in ('grouped', 'shifted'):
    ours = MobileNet(7, width_multiplier=0.5, lowering=lowering)
    logits = jax.jit(lambda v, x: ours.apply(v, x, train=False))({'params': params, 'batch_stats': batch_stats}, images)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)
