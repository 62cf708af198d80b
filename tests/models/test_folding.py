import jax
import numpy as np
import pytest

from mobilenet_jax import models
from mobilenet_jax.models.mobilenet import ConvMobileNet, MobileNet, ShallowMobileNet
from mobilenet_jax.runtime import devices


@pytest.mark.parametrize('options', (
    {}, {'activation': 'relu'}, {'lowering': 'grouped'}, {'num_classes': 0}, {'network': ShallowMobileNet},
    {'network': ConvMobileNet}), ids=str)
def test_folded_batch_norm_changes_nothing(options):
  """Against the model itself, with random statistics, to 1e-5 of the largest logit."""
  model = {'network': MobileNet, **options}['network'](
      **{'num_classes': 7, 'width_multiplier': 0.25, **{k: v for k, v in options.items() if k != 'network'}})
  images = jax.random.uniform(jax.random.key(0), (2, 32, 33, 3), minval=-1)
  variables = devices.run_once(lambda rng: model.init(rng, images, train=False), jax.random.key(1))
  leaves, tree = jax.tree.flatten(variables)
  keys = jax.random.split(jax.random.key(2), len(leaves))
  variables = tree.unflatten([leaf * jax.random.uniform(key, leaf.shape, minval=0.5, maxval=2) + 0.01
                              for key, leaf in zip(keys, leaves)])
  expected = devices.run_once(lambda v: model.apply(v, images, train=False), variables)
  predict, weights = models.fold(model, variables)
  actual = devices.run_once(predict, weights, images)
  np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
