"""The optimiser, compared step by step with TensorFlow's own, which the paper used."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mobilenet_jax import config as config_lib
from mobilenet_jax.models import MobileNet
from mobilenet_jax.training import optimizer as optimizer_lib


class OneBlock(MobileNet):
  body = ((1, 64),)


def optim_config(**changes):
  config = config_lib.base().optim
  config.update({'weight_decay': 0.0, **changes})
  return config


@pytest.mark.parametrize('epsilon', (1.0, 1e-3))
def test_rmsprop_equals_tensorflow(epsilon):
  tf = pytest.importorskip('tensorflow')
  config = optim_config(epsilon=epsilon, decay_rate=0.5, learning_rate=0.1)
  schedule = optimizer_lib.learning_rate(config, warmup_steps=3, decay_steps=4)
  tx = optimizer_lib.create(config, schedule)
  params = {'classifier': {'kernel': jnp.linspace(-1, 1, 5)}}
  state = tx.init(params)
  theirs = tf.Variable(np.asarray(params['classifier']['kernel']))
  rate = tf.Variable(0.0)
  optimizer = tf.compat.v1.train.RMSPropOptimizer(rate, decay=0.9, momentum=0.9, epsilon=epsilon)
  rng = np.random.default_rng(0)
  for step in range(12):
    gradient = rng.normal(size=5).astype(np.float32)
    rate.assign(0.1 * 0.5 ** (step // 4) * min(1, (step + 1) / 3))
    optimizer.apply_gradients([(tf.constant(gradient), theirs)])
    updates, state = tx.update({'classifier': {'kernel': jnp.asarray(gradient)}}, state, params)
    params = jax.tree.map(jnp.add, params, updates)
    np.testing.assert_allclose(params['classifier']['kernel'], theirs.numpy(), rtol=2e-5, atol=1e-6)


def test_staircase():
  schedule = optimizer_lib.learning_rate(optim_config(learning_rate=1.0, decay_rate=0.94), 0, 10)
  np.testing.assert_allclose([schedule(s) for s in (0, 9, 10, 25)], [1, 1, 0.94, 0.94**2], rtol=1e-6)


def test_l2_leaves_depthwise_filters_biases_and_batch_norm_alone():
  """With zero gradients, one step changes only the parameters with L2, by lr x decay x w / sqrt(v + epsilon)."""
  model = OneBlock(3, width_multiplier=0.25)
  variables = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False))
  params = jax.tree.map(lambda x: jnp.ones(x.shape), variables['params'])

  def moved(**changes):
    tx = optimizer_lib.create(optim_config(**changes), lambda step: 0.1)
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    return {'/'.join(k.key for k in path) for path, u in jax.tree_util.tree_leaves_with_path(updates) if (u != 0).any()}

  assert moved(weight_decay=0.1) == {'conv/kernel', 'conv_pw_1/kernel', 'classifier/kernel'}
  assert moved(depthwise_weight_decay=0.1) == {'conv_dw_1/kernel'}
  assert moved() == set()
