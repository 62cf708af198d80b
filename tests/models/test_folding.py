import jax
import numpy as np
import pytest

from mobilenet_jax import models
from mobilenet_jax.models.mobilenet import ConvMobileNet, MobileNet, ShallowMobileNet
from mobilenet_jax.runtime import devices


class Small(MobileNet):
  """A MobileNet with both strides and a repeated width, instead of thirteen blocks."""
  body = ((1, 64), (2, 128), (1, 128))


class SmallConv(ConvMobileNet):
  body = Small.body


class Other(Small):
  """A subclass that calls the layers in another way, so that they are not known."""

  def __call__(self, images, *, train, features=None):
    return 2 * super().__call__(images, train=train, features=features)


def check(network, **options):
  """Compares with the model itself, with random statistics, to 1e-5 of the largest logit."""
  model = network(**{'num_classes': 7, 'width_multiplier': 0.25, **options})
  images = jax.random.uniform(jax.random.key(0), (2, 32, 33, 3), minval=-1)
  variables = devices.run_once(lambda rng: model.init(rng, images, train=False), jax.random.key(1))
  rng = np.random.default_rng(2)
  variables = jax.tree.map(lambda leaf: leaf * rng.uniform(0.5, 2, leaf.shape).astype(np.float32) + 0.01, variables)
  expected = devices.run_once(lambda v: model.apply(v, images, train=False), variables)
  predict, weights = models.fold(model, variables)
  actual = devices.run_once(predict, weights, images)
  np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
  return weights


@pytest.mark.parametrize('options', (
    {}, {'activation': 'relu', 'num_classes': 0}, {'lowering': 'grouped'}, {'network': SmallConv},
    *(pytest.param({'network': network}, marks=pytest.mark.slow) for network in (MobileNet, ConvMobileNet, ShallowMobileNet))),
    ids=str)
def test_folded_batch_norm_changes_nothing(options):
  weights = check(**{'network': Small, **options})
  assert not any('bn' in jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(weights))


def test_a_network_that_is_called_in_another_way_is_not_folded():
  weights = check(Other, lowering='grouped')
  assert 'conv_dw_3_bn' in weights['params']
