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
  return config_lib.changed(config_lib.base(), {f'optim.{name}': value for name, value in {'weight_decay': 0.0, **changes}.items()}
                            ).optim


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


@pytest.mark.parametrize('schedule, expected', (
    ('cosine', lambda part: 0.1 + 0.9 * (1 + np.cos(np.pi * part)) / 2), ('linear', lambda part: 1 - 0.9 * part),
    ('constant', lambda part: 1.0)))
def test_schedules_equal_their_formulas(schedule, expected):
  """At the start, within and at the end of the warm-up, in the middle, at the end and after it."""
  options = {} if schedule == 'constant' else {'final_fraction': 0.1}
  rate = optimizer_lib.learning_rate(optim_config(schedule=schedule, learning_rate=2.0, **options), 20, total_steps=120)
  for step in (0, 5, 19, 20, 21, 70, 119, 120, 200):
    part = min(max((step - 20) / 100, 0), 1)
    np.testing.assert_allclose(rate(step), 2 * expected(part) * min(1, (step + 1) / 20), rtol=1e-5)
  none_left = optimizer_lib.learning_rate(optim_config(schedule=schedule, learning_rate=2.0, **options), 20, total_steps=10)
  np.testing.assert_allclose(none_left(9), 1.0)  # the warm-up is longer than the run


def steps_of(config, gradients, decayed=True, **options):
  """Returns the weights after a step with each gradient, from ones; of a classifier, whose kernel has weight decay."""
  params = {'classifier': {'kernel' if decayed else 'bias': jnp.ones(len(gradients[0]))}}
  tx = optimizer_lib.create(config, lambda step: 0.1 / (step + 1), **options)
  state, found = tx.init(params), []
  for gradient in gradients:
    updates, state = tx.update(jax.tree.map(lambda w: jnp.asarray(gradient, w.dtype), params), state, params)
    params = jax.tree.map(jnp.add, params, updates)
    found.append(jax.tree.leaves(params)[0])
  return np.array(found)


GRADIENTS = np.random.default_rng(0).normal(size=(8, 5))


@pytest.mark.parametrize('nesterov', (False, True))
@pytest.mark.parametrize('momentum', (0.0, 0.8))
@pytest.mark.parametrize('decayed', (False, True))
def test_sgd_equals_its_formula(nesterov, momentum, decayed):
  found = steps_of(optim_config(name='sgd', momentum=momentum, nesterov=nesterov, weight_decay=0.3), GRADIENTS, decayed)
  weights, mean = np.ones(5), np.zeros(5)
  for i, gradient in enumerate(GRADIENTS):
    gradient = gradient + 0.3 * decayed * weights
    mean = momentum * mean + gradient
    weights = weights - 0.1 / (i + 1) * (gradient + momentum * mean if nesterov else mean)
    np.testing.assert_allclose(found[i], weights, rtol=1e-5)


@pytest.mark.parametrize('decayed', (False, True))
def test_adamw_equals_its_formula(decayed):
  found = steps_of(optim_config(name='adamw', b1=0.8, b2=0.95, epsilon=1e-3, weight_decay=0.3), GRADIENTS, decayed)
  weights, mean, square = np.ones(5), np.zeros(5), np.zeros(5)
  for i, gradient in enumerate(GRADIENTS):
    mean, square = 0.8 * mean + 0.2 * gradient, 0.95 * square + 0.05 * gradient**2
    adam = mean / (1 - 0.8 ** (i + 1)) / (np.sqrt(square / (1 - 0.95 ** (i + 1))) + 1e-3)
    weights = weights - 0.1 / (i + 1) * (adam + 0.3 * decayed * weights)
    np.testing.assert_allclose(found[i], weights, rtol=1e-5)


@pytest.mark.parametrize('name', ('rmsprop', 'sgd', 'adamw'))
def test_a_clipped_gradient_is_one_that_was_scaled_before(name):
  """Also before L2 is added to it. The state of an optimiser without clipping is what it was."""
  config = optim_config(name=name, weight_decay=0.3)
  scaled = GRADIENTS * np.minimum(1, 1.5 / np.linalg.norm(GRADIENTS, axis=1, keepdims=True))
  clipped = steps_of(optim_config(name=name, weight_decay=0.3, clip_norm=1.5), GRADIENTS)
  np.testing.assert_allclose(clipped, steps_of(config, scaled), rtol=1e-4)
  assert not np.allclose(clipped, steps_of(config, GRADIENTS))
  # With a frozen body, its gradients are not part of the norm.
  params = {'classifier': {'kernel': jnp.ones(5)}, 'conv': {'kernel': jnp.ones(5)}}
  tx = optimizer_lib.create(optim_config(name=name, clip_norm=1.5), lambda step: 0.1, freeze_body=True)
  alone = optimizer_lib.create(optim_config(name=name, clip_norm=1.5), lambda step: 0.1)
  gradient = {'classifier': {'kernel': jnp.asarray(GRADIENTS[0])}, 'conv': {'kernel': 1000 * jnp.ones(5)}}
  moved, _ = tx.update(gradient, tx.init(params), params)
  expected, _ = alone.update({'classifier': gradient['classifier']}, alone.init({'classifier': params['classifier']}),
                             {'classifier': params['classifier']})
  np.testing.assert_allclose(moved['classifier']['kernel'], expected['classifier']['kernel'], rtol=1e-5)
  assert not moved['conv']['kernel'].any()
