"""The optimisers and the schedules, compared step by step with TensorFlow's, Keras's and NumPy's, and in small runs."""

import math
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import random_images, tiny_config

from mobilenet_jax import config as config_lib
from mobilenet_jax.errors import Interrupted, UserError
from mobilenet_jax.models import MobileNet, defaults
from mobilenet_jax.storage import checkpoints, run_files
from mobilenet_jax.training import optimizer as optimizer_lib
from mobilenet_jax.training import checked, train, train_group
from mobilenet_jax.training.durations import too_short_for


class OneBlock(MobileNet):
  body = ((1, 64),)


def with_optim(config=None, **changes):
  """Returns a config with these fields of `optim`, without weight decay unless it is given."""
  return config_lib.changed(config or config_lib.base(), {
      'optim.weight_decay': 0.0, **{f'optim.{name}': value for name, value in changes.items()}})


def create(freeze_body=False, rate=0.1, **changes):
  return optimizer_lib.create(with_optim(**changes).optim, lambda step: rate, freeze_body)


@pytest.mark.parametrize('epsilon', (1.0, 1e-3))
def test_rmsprop_equals_tensorflow(epsilon):
  tf = pytest.importorskip('tensorflow')
  config = with_optim(epsilon=epsilon, decay_rate=0.5, learning_rate=0.1, warmup='3 steps', decay_every='4 steps')
  tx = optimizer_lib.create(config.optim, optimizer_lib.learning_rate(config, 100))
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


def test_the_default_keeps_the_state_and_the_steps_from_before_there_was_a_choice():
  """Checkpoints of earlier versions have this state: two of weight decay and one of RMSprop, in a chain. To the bit."""
  params = {'conv': {'kernel': jnp.linspace(-1, 1, 6)}, 'classifier': {'kernel': jnp.ones(3), 'bias': jnp.zeros(2)}}
  rate = lambda step: 0.1 * 0.9**step
  kernels = {'conv': {'kernel': True}, 'classifier': {'kernel': True, 'bias': False}}
  before = optax.chain(
      optax.add_decayed_weights(4e-5, kernels), optax.add_decayed_weights(0.0, jax.tree.map(lambda _: False, kernels)),
      optax.rmsprop(rate, decay=0.9, eps=1.0, initial_scale=1.0, eps_in_sqrt=True, momentum=0.9))
  now = optimizer_lib.create(config_lib.base().optim, rate)
  states = [tx.init(params) for tx in (before, now)]
  assert jax.tree.structure(states[0]) == jax.tree.structure(states[1])
  for _ in range(3):
    (expected, first), (updates, second) = (tx.update(params, state, params) for tx, state in zip((before, now), states))
    jax.tree.map(np.testing.assert_array_equal, (expected, first), (updates, second))
    states = [first, second]


RULES = {
    'sgd': {'name': 'sgd', 'momentum': 0.8},
    'nesterov': {'name': 'sgd', 'momentum': 0.8, 'nesterov': True},
    'plain': {'name': 'sgd', 'momentum': 0.0},
    'adamw': {'name': 'adamw', 'b1': 0.8, 'b2': 0.95, 'epsilon': 1e-6},
}


def by_numpy(rule, weights, gradients, rates, decay):
  """Returns the weights after each step, computed as the papers and torch.optim define it, in float64."""
  w, m, v, found = np.asarray(weights, np.float64), 0.0, 0.0, []
  for t, (g, rate) in enumerate(zip(gradients, rates), start=1):
    if rule['name'] == 'sgd':
      g = g + decay * w
      m = rule['momentum'] * m + g
      w = w - rate * (g + rule['momentum'] * m if rule.get('nesterov') else m)
    else:
      m, v = rule['b1'] * m + (1 - rule['b1']) * g, rule['b2'] * v + (1 - rule['b2']) * g**2
      root = np.sqrt(v / (1 - rule['b2']**t)) + rule['epsilon']
      w = w - rate * (m / (1 - rule['b1']**t) / root + decay * w)
    found.append(w)
  return found


@pytest.mark.parametrize('rule', RULES)
def test_sgd_and_adamw_equal_their_definitions(rule):
  """With a warm-up, L2 or decoupled weight decay on a convolution, another one on a depthwise kernel, and none on a bias."""
  rng, layers = np.random.default_rng(0), {'conv': ('kernel', 0.1), 'conv_dw_1': ('kernel', 0.3), 'classifier': ('bias', 0.0)}
  config = with_optim(**RULES[rule], learning_rate=0.1, warmup='4 steps', schedule='constant', weight_decay=0.1,
                      depthwise_weight_decay=0.3)
  tx = optimizer_lib.create(config.optim, optimizer_lib.learning_rate(config, 100))
  gradients = {layer: rng.normal(size=(8, 5)).astype(np.float32) for layer in layers}
  start = params = {layer: {kind: jnp.linspace(-1, 1, 5)} for layer, (kind, _) in layers.items()}
  rates = [0.1 * min(1, (step + 1) / 4) for step in range(8)]
  expected = {layer: by_numpy(RULES[rule], start[layer][kind], gradients[layer], rates, decay)
              for layer, (kind, decay) in layers.items()}
  state = tx.init(params)
  for step in range(8):
    updates, state = tx.update({layer: {kind: gradients[layer][step]} for layer, (kind, _) in layers.items()}, state, params)
    params = jax.tree.map(jnp.add, params, updates)
    for layer, (kind, _) in layers.items():
      np.testing.assert_allclose(params[layer][kind], expected[layer][step], rtol=1e-5, atol=1e-6, err_msg=layer)


@pytest.mark.parametrize('rule', RULES)
def test_sgd_and_adamw_equal_keras(rule):
  """At a constant learning rate: Keras has it inside the momentum. Only Keras's AdamW has decoupled weight decay."""
  keras = pytest.importorskip('keras')
  given = {name: value for name, value in RULES[rule].items() if name != 'name'}
  if rule == 'adamw':
    theirs = keras.optimizers.AdamW(0.1, weight_decay=0.2, beta_1=given['b1'], beta_2=given['b2'], epsilon=1e-12)
    given.update(epsilon=1e-12, weight_decay=0.2)  # Keras's epsilon is another one, which matters as little when it is tiny
  else:
    theirs = keras.optimizers.SGD(0.1, **given)
  tx = create(name=RULES[rule]['name'], **given)
  params = {'conv': {'kernel': jnp.linspace(-1, 1, 5)}}
  variable, state = keras.Variable(np.asarray(params['conv']['kernel']), dtype='float32'), tx.init(params)
  for gradient in np.random.default_rng(0).normal(size=(8, 5)).astype(np.float32):
    theirs.apply([keras.ops.convert_to_tensor(gradient)], [variable])
    updates, state = tx.update({'conv': {'kernel': gradient}}, state, params)
    params = jax.tree.map(jnp.add, params, updates)
    np.testing.assert_allclose(params['conv']['kernel'], keras.ops.convert_to_numpy(variable.value), rtol=1e-4, atol=1e-5)


def rates(at, **changes):
  """Returns the learning rate at some steps of a run of 110 steps, 11 epochs of 10 steps of 8 images."""
  config = config_lib.changed(with_optim(learning_rate=2.0, **changes), {'train_for': '11 epochs', 'batch_size': 8})
  schedule = optimizer_lib.learning_rate(config, 10)
  return [float(schedule(step)) for step in at]


@pytest.mark.parametrize('changes, at, expected', (
    ({'decay_rate': 0.9, 'decay_every': '1 epoch'}, (0, 9, 10, 25, 109), (2, 2, 1.8, 2 * 0.9**2, 2 * 0.9**10)),
    ({'decay_rate': 0.9, 'decay_every': '1 epoch', 'warmup': '20 steps'}, (0, 9, 10, 19, 20),
     (0.1, 1.0, 1.8 * 11 / 20, 1.8, 2 * 0.9**2)),
    ({'schedule': 'constant'}, (0, 55, 109), (2, 2, 2)),
    ({'schedule': 'constant', 'warmup': '80 examples'}, (0, 4, 9, 10, 109), (0.2, 1, 2, 2, 2)),
    ({'schedule': 'cosine'}, (0, 55, 109, 110, 500), (2, 1, 1 + math.cos(math.pi * 109 / 110), 0, 0)),
    ({'schedule': 'cosine', 'warmup': '1 epoch', 'final_fraction': 0.1}, (0, 9, 10, 35, 60, 110),
     (0.2, 2, 2, 2 * (0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2), 1.1, 0.2)),
    ({'schedule': 'linear'}, (0, 55, 109, 110, 500), (2, 1, 2 / 110, 0, 0)),
    ({'schedule': 'linear', 'warmup': '1 epoch', 'final_fraction': 0.25}, (0, 9, 10, 60, 85, 110),
     (0.2, 2, 2, 1.25, 0.875, 0.5)),
    ({'schedule': 'linear', 'warmup': '200 steps'}, (0, 99, 109), (0.01, 1, 1.1))))
def test_schedules_equal_closed_forms(changes, at, expected):
  np.testing.assert_allclose(rates(at, **changes), expected, rtol=1e-5, atol=1e-6)


def test_a_schedule_over_the_run_says_if_its_warmup_leaves_no_steps():
  config = lambda **changes: with_optim(tiny_config(**{'model.batch_norm_decay': 0.0}), warmup='8 steps', **changes)
  assert too_short_for(config(schedule='cosine'), 10) == [
      "optim.warmup='8 steps': as long as the run of 8 steps, which leaves none for optim.schedule=cosine"]
  assert too_short_for(config(schedule='constant'), 10) == []


def test_l2_leaves_depthwise_filters_biases_and_batch_norm_alone():
  """With zero gradients, one step changes only the parameters with L2, by lr x decay x w / sqrt(v + epsilon)."""
  model = OneBlock(3, width_multiplier=0.25)
  variables = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False))
  params = jax.tree.map(lambda x: jnp.ones(x.shape), variables['params'])

  def moved(**changes):
    tx = create(**changes)
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    return {'/'.join(k.key for k in path) for path, u in jax.tree_util.tree_leaves_with_path(updates) if (u != 0).any()}

  assert moved(weight_decay=0.1) == {'conv/kernel', 'conv_pw_1/kernel', 'classifier/kernel'}
  assert moved(depthwise_weight_decay=0.1) == {'conv_dw_1/kernel'}
  assert moved() == set()


@pytest.mark.parametrize('freeze_body', (False, True))
@pytest.mark.parametrize('clip_norm', (0.5, 1e3))
def test_clipping_is_by_the_norm_of_all_trained_gradients_without_weight_decay(clip_norm, freeze_body):
  params = {'conv': {'kernel': jnp.full(4, 2.0)}, 'classifier': {'kernel': jnp.full(3, 2.0), 'bias': jnp.ones(2)}}
  rng = np.random.default_rng(0)
  gradients = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), params)
  trained = [g for layer, g in gradients.items() if layer == 'classifier' or not freeze_body]
  norm = np.sqrt(sum((g.astype(np.float64)**2).sum() for layer in trained for g in layer.values()))
  scale = min(1, clip_norm / norm)
  tx = create(freeze_body, name='sgd', momentum=0.0, clip_norm=clip_norm, weight_decay=0.3)
  updates, _ = tx.update(gradients, tx.init(params), params)
  for layer, kind in (('conv', 'kernel'), ('classifier', 'kernel'), ('classifier', 'bias')):
    expected = -0.1 * (scale * gradients[layer][kind] + (0.6 if kind == 'kernel' else 0))
    if freeze_body and layer == 'conv':
      expected = np.zeros(4)
    np.testing.assert_allclose(updates[layer][kind], expected, rtol=1e-5)


@pytest.mark.parametrize('name', ('rmsprop', 'sgd', 'adamw'))
def test_without_clipping_the_state_is_as_if_there_were_none(name):
  params = {'conv': {'kernel': jnp.ones(4)}, 'classifier': {'kernel': jnp.ones(3)}}
  for freeze_body in (False, True):
    off, on = (jax.tree.structure(create(freeze_body, name=name, clip_norm=norm).init(params)) for norm in (0.0, 1.0))
    assert off != on and off == jax.tree.structure(create(freeze_body, name=name).init(params))


@pytest.mark.parametrize('name', ('sgd', 'adamw'))
def test_a_gradient_that_is_not_finite_is_not_hidden_by_clipping(name):
  params = {'conv': {'kernel': jnp.ones(2)}, 'classifier': {'kernel': jnp.ones(2)}}
  for bad in (jnp.nan, jnp.inf, 1e25):  # the square of the last overflows
    tx = create(name=name, clip_norm=1.0)
    updates, _ = tx.update(jax.tree.map(lambda x: x.at[0].set(bad), params), tx.init(params), params)
    assert not jnp.isfinite(optax.global_norm(updates))


DATA = random_images(64), random_images(16, seed=1)
RUNS = {
    'sgd': {'name': 'sgd', 'nesterov': True, 'schedule': 'cosine', 'learning_rate': 0.05, 'clip_norm': 1.0,
            'warmup': '3 steps'},
    'adamw': {'name': 'adamw', 'schedule': 'linear', 'learning_rate': 0.03, 'weight_decay': 0.01},
}


def run_configs():
  config = tiny_config(train_for='24 steps', log_every='8 steps', eval_every='0 steps', checkpoint_every='12 steps')
  return [with_optim(config, **changes) for changes in RUNS.values()]


def test_runs_of_sgd_and_adamw_learn_and_go_on_after_a_stop_bit_for_bit(tiny_model, tmp_path):
  """They train as a group. The stop is between two checkpoints. The learning rates in the metrics are the schedules'."""
  whole, parts = ([tmp_path / kind / name for name in RUNS] for kind in ('whole', 'parts'))
  train_group(run_configs(), whole, DATA)

  def stop_at_8(line):
    if line.startswith('step 8/'):
      os.kill(os.getpid(), signal.SIGTERM)

  with pytest.raises(Interrupted):
    train_group(run_configs(), parts, DATA, says=[stop_at_8] * 2)
  lines = []
  train_group(run_configs(), parts, DATA, says=[lines.append] * 2)
  assert lines.count('continuing at step 8') == 2
  for one, other, (name, changes) in zip(whole, parts, RUNS.items()):
    jax.tree.map(np.testing.assert_array_equal, checkpoints.read_model(one)[0], checkpoints.read_model(other)[0])
    rows = [row for row in run_files.read_metrics(one)[0] if row['split'] == 'train']
    assert rows[-1]['loss'] < 0.8 * rows[0]['loss'], name
    left = {'sgd': (1 + math.cos(math.pi * 20 / 21)) / 2, 'adamw': 1 / 24}[name]
    assert rows[-1]['learning_rate'] == pytest.approx(changes['learning_rate'] * left, rel=1e-4)
  assert set(run_files.read_config(whole[0]).optim) == {
      'name', 'momentum', 'nesterov', 'schedule', 'final_fraction', 'learning_rate', 'warmup', 'weight_decay',
      'depthwise_weight_decay', 'clip_norm'}


@pytest.mark.parametrize('schedule', config_lib.OVER_THE_RUN)
def test_a_run_whose_schedule_depends_on_its_length_does_not_become_longer(schedule, tmp_path):
  short, long_ = (with_optim(tiny_config(train_for=f'{steps} steps'), schedule=schedule) for steps in (8, 16))
  (tmp_path / run_files.CHECKPOINTS / '8').mkdir(parents=True)
  (tmp_path / run_files.CONFIG_FILE).write_text(config_lib.to_json(checked(short)))
  with pytest.raises(UserError, match=f'with optim.schedule={schedule}, train_for cannot change, as the learning rate of every '
                                      'step depends on it; give another --workdir'):
    train(long_, tmp_path, DATA)
  constant = [config_lib.changed(config, {'optim.schedule': 'constant'}) for config in (short, long_)]
  (tmp_path / run_files.CONFIG_FILE).write_text(config_lib.to_json(checked(constant[0])))
  assert run_files.examine(tmp_path, checked(constant[1]), defaults('mobilenet')).longer
