"""Tests the contract of networks, see mobilenet_jax/models/__init__.py, also with a network without batch norm."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import command, images_of, random_images

from mobilenet_jax import config as config_lib
from mobilenet_jax import models, trained
from mobilenet_jax.errors import UserError
from mobilenet_jax.models import nn2
from mobilenet_jax.models.mobilenet import MobileNet
from mobilenet_jax.runtime import devices
from mobilenet_jax.trained.export import FORMATS, Network, export
from mobilenet_jax.training import evaluate_trained, train


def part(name, **fields):
  """Returns the `model` section of a config."""
  return config_lib.changed(config_lib.base(), {'model.name': name, **{f'model.{k}': v for k, v in fields.items()}}).model


def paths(tree):
  return [tuple(key.key for key in path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


@pytest.mark.parametrize('name', models.MODELS)
def test_every_network_keeps_the_contract(name):
  """Checks arguments, outputs, features, names, collections and the fields a recipe may set, by tracing only."""
  images = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)
  key = jax.eval_shape(lambda: jax.random.key(0))

  def trace(network, train=False):
    """Returns the shapes of variables, outputs, features and updates."""
    collections = jax.eval_shape(lambda key, x: network.init(key, x, train=False), key, images)

    def apply(collections, key, x):
      features = {}
      outputs, updates = network.apply(collections, x, train=train, features=features, rngs={'dropout': key},
                                       mutable=['batch_stats'])
      return outputs, features, updates

    return models.variables_of(collections), *jax.eval_shape(apply, collections, key, images)

  for fields in ({}, {'dtype': 'bfloat16'} if 'dtype' in models.fields(name) else {}):
    variables, outputs, features, _ = trace(models.create(part(name, **fields), 7))
    assert outputs.shape == (2, 7) and outputs.dtype == jnp.float32
    assert features['pooled'].shape[0] == 2 and features['pooled'].ndim == 2 and len(features) > 1
    assert all(map_.shape[0] == 2 and map_.ndim == 4 for feature, map_ in features.items() if feature != 'pooled')
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))
  if 'dtype' in models.fields(name):  # the dtype of the last trace is bfloat16
    half = models.create(part(name, dtype='bfloat16'), 7)
    calls = jax.eval_shape(lambda key, x: half.init_with_output(key, x, train=False, mutable=True, capture_intermediates=True),
                           key, images)[1]['intermediates']
    assert calls[models.CLASSIFIER]['__call__'][0].dtype == jnp.float32
  params = variables['params']
  width = features['pooled'].shape[1]
  assert {k: v.shape for k, v in params[models.CLASSIFIER].items()} == {'kernel': (width, 7), 'bias': (7,)}
  assert models.PROJECTION not in params
  depthwise = {path[:-1] for path in paths(params) if any(part.startswith(models.DEPTHWISE) for part in path)}
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    names = tuple(key.key for key in path)
    if names[-1] == 'kernel' and len(leaf.shape) == 4 and names[:-1] in depthwise:
      assert leaf.shape[2] == 1

  headless, outputs, features, _ = trace(models.create(part(name), 0))
  assert models.CLASSIFIER not in headless['params'] and outputs.shape == features['pooled'].shape
  _, _, _, updates = trace(models.create(part(name), 7), train=True)
  assert jax.tree.map(jnp.shape, updates.get('batch_stats', {})) == jax.tree.map(jnp.shape, variables['batch_stats'])


@pytest.mark.parametrize('name', models.MODELS)
def test_a_recipe_gives_a_network_only_fields_that_it_has(name):
  fields = models.defaults(name)
  complete = models.complete(part(name, **fields))
  assert complete.to_dict() == {'name': name, 'num_classes': 0, **fields}
  assert models.complete(part(name)).to_dict() == complete.to_dict()
  with pytest.raises(UserError, match=rf'model.heads=8: {name} has no such field; it has {", ".join(fields)}'):
    models.complete(part(name, heads=8))


def others(field):
  """Returns other values of a field than its default: all of its choices, or one that differs clearly."""
  default, choices = field.default, field.range.expected.removeprefix('one of ').split(', ')
  candidates = {bool: (not default,), str: choices}.get(type(default)) or (2 * default, default / 2, default + 1,
                                                                                default + 0.5)
  values = [value for value in candidates if value != default and type(value) is type(default) and field.range.holds(value)]
  assert values, 'the field needs a range from which the test can take another value'
  return values if isinstance(default, str) else values[:1]


@pytest.mark.parametrize('name', [name for name in models.MODELS if name != 'shallow_mobilenet'])  # whose body is replaced
def test_fields_that_are_part_of_what_the_weights_compute_are_marked(name, monkeypatch):
  """With another value, the same variables give other outputs if a field is marked, and else the same ones but for rounding."""
  monkeypatch.setattr(MobileNet, 'body', ((1, 16), (2, 16)))  # all kinds of layers, in less time
  monkeypatch.setattr(nn2, 'INCEPTIONS', {row: nn2.INCEPTIONS[row] for row in ('3b', '3c')})
  images = np.random.default_rng(1).uniform(-1, 1, (2, 41, 41, 3)).astype(np.float32)  # maps of odd sizes, too
  rng = np.random.default_rng(0)

  def draw(path, leaf):
    if path[-1].key in ('scale', 'var'):
      return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
    return rng.normal(0, 3 / np.sqrt(max(np.prod(leaf.shape[:-1]), 1)), leaf.shape).astype(np.float32)

  def shapes(network):
    return jax.eval_shape(lambda key, x: models.variables_of(network.init(key, x, train=False)), jax.random.key(0), images)

  create = lambda **fields: models.create(part(name, **fields), 7, 'devices')
  expected_shapes = shapes(create())
  variables = jax.tree_util.tree_map_with_path(draw, expected_shapes)
  changed = {(field, value): create(**{field: value})
             for field, content in models.fields(name).items() for value in others(content)
             if value != 'float64'}  # JAX computes in float32 here
  marked = {*models.fields_of_weights(name)}
  same_shapes = {case: network for case, network in changed.items() if shapes(network) == expected_shapes}
  assert {case[0] for case in changed} == set(models.fields(name)) and marked <= {case[0] for case in same_shapes}
  run = lambda variables: [network.apply(variables, images, train=False) for network in (create(), *same_shapes.values())]
  usual, *found = map(np.asarray, devices.run_once(run, variables))
  for (field, value), outputs in zip(same_shapes, found):
    difference = np.abs(outputs - usual).max() / usual.std()
    if (name, field) == ('conv_mobilenet', 'padding'):  # inherited, and of depthwise convolutions alone
      assert difference == 0
    elif field in marked:
      assert difference > 1e-4, (field, value)
    else:
      assert difference <= {'dtype': 0.05, 'lowering': 1e-5}.get(field, 0), (field, value, difference)


@pytest.mark.parametrize('fields, message', (
    ({'name': 'nn2', 'width_multiplier': 0.5}, 'model.width_multiplier=0.5: nn2 has no such field; it has activation, '),
    ({'name': 'resnet'}, "model.name='resnet': expected one of mobilenet, "),
    ({'name': 'mobilenet', 'dropout_rate': 'much'}, "model.dropout_rate='much': expected float, such as 0.001"),
    ({'name': 'mobilenet', 'sync_batch_norm': 1}, 'model.sync_batch_norm=1: expected bool'),
    ({'name': 'mobilenet', 'batch_norm_epsilon': 0}, 'model.batch_norm_epsilon=0: expected a number above 0'),
    ({'name': 'mobilenet', 'num_classes': -1}, 'model.num_classes=-1: expected a number at least 0'),
    ({'name': 'mobilenet', 'body': ((1, 64),)}, 'mobilenet has no such field')))
def test_other_values_are_one_line(fields, message):
  with pytest.raises(UserError) as error:
    models.complete(part(**fields))
  assert message in str(error.value) and '\n' not in str(error.value)


class Plain(nn.Module):
  """A small network without batch norm, dropout or lowerings, as a user would write it."""
  num_classes: int
  channels: int = 8

  @nn.compact
  def __call__(self, images, *, train, features=None):
    features = {} if features is None else features
    x = features['conv'] = nn.relu(nn.Conv(self.channels, (3, 3), strides=2, name='conv')(images))
    x = features['pooled'] = x.mean((1, 2))
    if not self.num_classes:
      return x
    return nn.Dense(self.num_classes, name='classifier')(x)


class Normed(Plain):
  """A network with a batch norm of its own, which has no field to freeze its statistics."""

  @nn.compact
  def __call__(self, images, *, train, features=None):
    images = nn.BatchNorm(use_running_average=not train, name='norm')(images)
    return super().__call__(images, train=train, features=features)


class Counting(Plain):
  """A network with a collection that nothing would save."""

  @nn.compact
  def __call__(self, images, *, train, features=None):
    self.variable('counts', 'calls', jnp.zeros, ())
    return nn.Dense(self.num_classes, name='classifier')(images.mean((1, 2)))


@pytest.fixture
def plain(monkeypatch):
  monkeypatch.setitem(models.MODELS, 'plain', Plain)
  monkeypatch.setitem(models.MODELS, 'normed', Normed)
  monkeypatch.setitem(models.MODELS, 'counting', Counting)
  config = config_lib.changed(config_lib.base(), {
      'model.name': 'plain', 'model.channels': 16, 'data.image_size': (32, 32), 'batch_size': 8, 'eval_batch_size': 8,
      'train_for': '8 steps', 'log_every': '2 steps', 'eval_every': '4 steps', 'checkpoint_every': '4 steps'})
  return config


def test_a_network_without_batch_norm_trains_evaluates_folds_and_exports(plain, tmp_path):
  pytest.importorskip('tf2onnx')
  config = config_lib.changed(plain, {'ema_decay': 0.9, 'accumulate_steps': 2})
  row = train(config, tmp_path / 'run', (random_images(40), random_images(20)))
  assert row['model'] == 'plain' and row['name'] == 'plain_32' and row['params'] == 3 * 3 * 3 * 16 + 16 + 16 * 4 + 4
  assert row['mult_adds'] == 16 * 16 * 16 * 27 + 16 * 4
  model = trained.load(tmp_path / 'run')
  assert model.variables['batch_stats'] == {}
  images = images_of(random_images(5))
  inputs = images.astype(np.float32) / 127.5 - 1
  logits = Plain(4, 16).apply({'params': model.variables['params']}, inputs, train=False)
  evaluation, = evaluate_trained([model], random_images(20), model.config, pytest.fail)
  assert evaluation == pytest.approx({name: row[name] for name in ('loss', 'top1', 'top5')} | {'examples': 20})
  predict, weights = model.fold()
  np.testing.assert_allclose(predict(weights, inputs), logits, atol=1e-6)
  assert model.features(list(images), 'conv').shape == (5, 16, 16, 16)
  expected = np.asarray(jax.nn.softmax(logits))
  for name in ('tflite', 'onnx', 'stablehlo', 'saved_model'):
    path, _ = export(Network(model), name, tmp_path / 'exported', images)
    np.testing.assert_allclose(FORMATS[name].run(path, inputs), expected, atol=1e-5)
  with pytest.raises(UserError, match='keras: its MobileNet is the model mobilenet with relu6, not plain'):
    export(Network(model), 'keras', tmp_path / 'exported')

  second = config_lib.changed(plain, {'init.model': str(tmp_path / 'run'), 'init.keep_head': True, 'init.freeze_body': True,
                                      'distill.model': str(tmp_path / 'run'), 'distill.softmax_weight': 1.0,
                                      'distill.features_weight': 1.0, 'distill.features': 'conv:conv'})
  train(second, tmp_path / 'second', (random_images(40), random_images(20)))
  before, after = model.variables['params'], trained.load(tmp_path / 'second').variables['params']
  np.testing.assert_array_equal(before['conv']['kernel'], after['conv']['kernel'])
  assert set(after) == {'conv', 'classifier'}


def test_a_network_with_other_collections_is_one_line(plain, tmp_path):
  config = config_lib.changed(plain, {'model.name': 'counting'})
  with pytest.raises(UserError, match='the network has the collections counts; expected params and'):
    train(config, tmp_path, (random_images(40), random_images(20)))


def test_a_body_whose_statistics_cannot_be_frozen_is_one_line(plain, tmp_path):
  config = config_lib.changed(plain, {'model.name': 'normed', 'train_for': '1 steps'})
  train(config, tmp_path / 'first', (random_images(40), random_images(20)))
  config = config_lib.changed(config, {'init.model': str(tmp_path / 'first'), 'init.freeze_body': True})
  with pytest.raises(UserError, match='init.freeze_body=True: normed has batch norm, but no field freeze_batch_stats'):
    train(config, tmp_path / 'second', (random_images(40), random_images(20)))


def test_fields_on_the_command_line_are_those_of_the_network():
  complexity = ['complexity', '--config=configs/face_embeddings.py:model=nn2,res=96']
  done = command(*complexity, '--config.model.dropout_rate=0.5', '--config.model.lowering=grouped')
  assert done.returncode == 0 and 'inception_5b' in done.stdout, done.stderr
  done = command(*complexity, '--config.model.padding=keras')
  assert done.returncode == 1 and "model.padding: model has no field 'padding'; it has " in done.stderr, done.stderr
  done = command('complexity', '--config=configs/face_embeddings.py:model=nn2,alpha=0.5')
  assert done.stderr.startswith('error: model.width_multiplier=0.5: nn2 has no such field; it has activation'), done.stderr
