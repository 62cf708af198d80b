"""Every recipe in configs/ builds, and traces one training step. Nothing is computed."""

import importlib

import jax
import numpy as np
import pytest
from conftest import ROOT

from mobilenet_jax import config as config_lib
from mobilenet_jax import models, tasks
from mobilenet_jax.data import from_images, blank_batch
from mobilenet_jax.errors import UserError
from mobilenet_jax.runtime import devices
from mobilenet_jax.training import checked, optimizer
from mobilenet_jax.training.state import init_state
from mobilenet_jax.training.step import make_train_step

RECIPES = sorted(path.stem for path in (ROOT / 'configs').glob('*.py'))


def one_example(config):
  """Returns one example with every target that a task may need, and, except for classification, a teacher's outputs."""
  extra = {}
  if config.task != 'classification':
    extra = {'attributes': np.zeros((1, 17), np.int32), 'teacher': np.zeros((1, config.embedding.size), np.float32)}
    if config.task == 'attributes':
      extra['teacher'] = extra['teacher'][:, :17]
  names = {'attributes': tuple(map(str, range(17)))}
  return from_images(np.zeros((1, 64, 64, 3), np.uint8), np.zeros(1, np.int32), 10, None, extra, ('0',), names)


def trace_one_step(config):
  config = checked(config)
  task, source = tasks.create(config), one_example(config)
  model = models.create(config.model, task.outputs(source)[0], devices.AXIS)
  tx = optimizer.create(config.optim, optimizer.learning_rate(config.optim, 10, 100))
  size = config.batch_size
  batch = blank_batch(config.data, source, size)
  step = make_train_step(model, task, tx, config)

  state = jax.eval_shape(lambda rng: init_state(rng, model, tx, config), jax.random.key(0))
  # vmap stands in for pmap: it has the axis, and eval_shape can trace it without a device.
  mapped = jax.vmap(step, (None, 0, None, None), axis_name=devices.AXIS)
  new_state, sums = jax.eval_shape(mapped, state, jax.tree.map(lambda x: x[None], batch), jax.random.key(0), {})
  expected = jax.tree.map(lambda x: ((1, *x.shape), x.dtype), state)
  assert jax.tree.map(lambda x: (x.shape, x.dtype), new_state) == expected
  metrics = {'classification': {'top1', 'top5'}, 'attributes': {'emulation'}, 'embedding': {'distance'}}
  assert {'loss', 'count', 'finite', *metrics[config.task]} == set(sums)


@pytest.mark.parametrize('name', RECIPES)
def test_every_recipe_traces_one_step(name):
  trace_one_step(importlib.import_module(f'configs.{name}').get_config())


SWEEPS = [name for name in RECIPES if hasattr(importlib.import_module(f'configs.{name}'), 'sweep')]


def runs(name):
  recipe = importlib.import_module(f'configs.{name}')
  config = recipe.get_config()
  return [config_lib.changed(config, {**change, 'model.lowering': 'grouped'})  # quicker to trace
          for change in recipe.sweep(config)]


@pytest.mark.parametrize('name', SWEEPS)
def test_every_run_of_every_sweep_has_a_name_and_the_first_and_the_last_trace_one_step(name):
  members = runs(name)
  assert len({config_lib.model_name(checked(member)) for member in members}) == {'grid': 16, 'ablations': 4}[name]
  for member in (members[0], members[-1]):
    trace_one_step(member)


@pytest.mark.slow
@pytest.mark.parametrize('name', SWEEPS)
def test_every_run_of_every_sweep_traces_one_step(name):
  for member in runs(name):
    trace_one_step(member)


def test_options_trace_too():
  config = importlib.import_module('configs.fabrics').get_config('alpha=0.25,res=32')
  config.update_from_flattened_dict({
      'accumulate_steps': 4, 'ema_decay': 0.99, 'data.color_distortion': 1.0, 'label_smoothing': 0.1,
      'model.dtype': 'bfloat16', 'model.sync_batch_norm': True, 'model.activation': 'relu'})
  trace_one_step(config)


def test_grid_scales_the_resolutions_of_the_paper():
  grid = importlib.import_module('configs.grid')
  sizes = lambda arg: sorted({change['data.image_size'][0] for change in grid.sweep(grid.get_config(arg))})
  assert sizes('data=imagenet2012') == [128, 160, 192, 224]
  assert sizes('data=fabrics') == [32, 40, 48, 56]
  with pytest.raises(UserError, match='res=40'):
    sizes('data=cifar10,res=40')


@pytest.mark.parametrize('duration, steps', (
    ('100 steps', 100), ('1 step', 1), ('2 epochs', 20), ('0.5 epochs', 5), ('640 examples', 10), ('0 steps', 0)))
def test_durations(duration, steps):
  assert config_lib.steps(duration, 'train_for', steps_per_epoch=10, batch_size=64) == steps


@pytest.mark.parametrize('duration', ('10', 'ten epochs', '3 weeks', '1 epoch 5 steps', '', '-1 steps', '1.2.3 steps'))
def test_bad_durations_name_the_units(duration):
  with pytest.raises(UserError, match="train_for=.*'N steps', 'N epochs' or 'N examples'"):
    config_lib.steps(duration, 'train_for', 10, 64)


def test_difference_names_what_changed():
  old, new = config_lib.base(), config_lib.base()
  new.optim.learning_rate = 0.1
  text = config_lib.difference(config_lib.to_json(old), config_lib.to_json(new))
  assert text == '- "learning_rate": 0.045, + "learning_rate": 0.1'
