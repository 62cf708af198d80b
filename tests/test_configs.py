"""Every recipe in configs/ builds, and traces one training step. Nothing is computed."""

import importlib
import math

import jax
import ml_collections
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
  tx = optimizer.create(config.optim, optimizer.learning_rate(config, 100))
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
  assert sizes('data=fabrics') == [36, 45, 54, 63]
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


FIELDS = {'task': config_lib.all_fields({})['task'],
          **{f'{network}:{name}': field for network in models.MODELS
             for name, field in config_lib.all_fields(models.fields(network)).items()}}
PATHS_AND_NAMES = {'task', 'model.name', 'data.data_dir', 'data.pairs', 'data.recorded', 'init.model', 'distill.model',
                   'distill.features'}  # each is checked where it is used
NONSENSE = {
    bool: (None, 1, 0.0, 'maybe', ()),
    int: (None, True, 1.5, '3', 'x', (), -1, -2**40),
    float: (None, True, 'x', '', (), math.nan, math.inf, -math.inf, -1.0, -1e-9, 1e300, 10**400),
    str: (None, 1, (), b'x', 'a\0b'),
    tuple: (None, 1.5, 'x', (1.5, 2.5), ('a', 'b'), (-1, -1), (True, True), ((1, 2), (3, 4)), [None]),
}


def of_its_own(name):
  """Returns the optimiser or the schedule, as a change, of a field that not all of them have; {} for any other field."""
  alone = {'optim.nesterov': 'sgd', 'optim.b1': 'adamw', 'optim.b2': 'adamw', 'optim.final_fraction': 'linear'}
  return {f'optim.{"schedule" if name == "optim.final_fraction" else "name"}': alone[name]} if name in alone else {}


def refused(network, name, value):
  """Checks that `value` is refused in one line that names the field, by whichever way it comes."""
  plain = config_lib.changed(config_lib.base(), {'model.name': network, **of_its_own(name)})
  as_python = lambda: config_lib.changed(plain, {name: value})

  def by_assignment():
    recipe, (part, _, field) = config_lib.changed(plain, {}), name.rpartition('.')
    (recipe[part] if part else recipe)[field] = value
    return recipe

  def as_text():
    if isinstance(value, str | float | int) and not isinstance(value, bool) and '\0' not in str(value):
      return config_lib.overridden(plain, {name: str(value)}, models.fields(network))
    return as_python()

  for way in (as_python, by_assignment, as_text):
    if way is as_text and (str(value) in ('1', '0.0') or isinstance(value, str) and value.isdecimal()):
      continue  # which stand for a value of the type
    if way is by_assignment and value is True:
      continue  # which ml_collections turns into 1.0
    with pytest.raises((UserError, TypeError, OverflowError)) as error:  # the others come from ml_collections
      checked(way())
    if isinstance(error.value, UserError):
      assert str(error.value).startswith(f'{name}=') and '\n' not in str(error.value), error.value
    else:
      assert way is by_assignment


@pytest.mark.parametrize('case', FIELDS)
def test_every_field_refuses_nonsense_and_says_what_it_expects(case):
  network, _, name = case.rpartition(':')
  field = FIELDS[case]
  assert field.comment and '\n' not in field.comment
  for value in NONSENSE[type(field.default)]:
    if value == -1 == field.default:  # which stands for another field's value
      continue
    refused(network or 'mobilenet', name, value)
  if type(field.default) is str and name not in PATHS_AND_NAMES:
    for value in ('', '-1 steps', 'nan epochs', '9 weeks') if field.default.endswith(('steps', 'epochs', 'epoch')) else (' ',):
      refused(network or 'mobilenet', name, value)
  assert checked(config_lib.changed(config_lib.base(), {'model.name': network or 'mobilenet', **of_its_own(name),
                                                        name: field.default})) is not None


@pytest.mark.parametrize('name, value', (
    ('seed', 2**31 - 1), ('data.image_size', (31, 64)), ('data.image_size', (64,)), ('data.image_size', (10**6, 64)),
    ('data.crop_min_area', 0.0), ('data.eval_crop', 1.5), ('data.held_out_folds', (-1,)), ('distill.temperature', 0.0),
    ('embedding.size', 0), ('embedding.folds', 1), ('batch_size', 0), ('eval_batch_size', 10**12), ('accumulate_steps', 0),
    ('train_for', '0 steps'), ('label_smoothing', 5.0), ('ema_decay', 1.0), ('nonfinite_loss', 'go'), ('optim.decay_rate', 0.0),
    ('optim.momentum', 1.0), ('optim.epsilon', 0.0), ('model.width_multiplier', 0.0), ('model.dtype', 'float16'),
    ('optim.epsilon', 1e-300), ('ema_decay', 1 - 1e-12), ('label_smoothing', 0.9999999999), ('model.batch_norm_epsilon', 1e-300),
    ('model.num_classes', 10**15), ('init.freeze_body', True), ('init.keep_head', True), ('data.stream_size', (16, 16)), ('data.per_identity', 5), ('task', 'detection'), ('model.name', 'resnet')))
def test_values_out_of_range_are_refused(name, value):
  with pytest.raises(UserError, match=f'{name}='):
    checked(config_lib.changed(config_lib.base(), {name: value}))


@pytest.mark.parametrize('changes, message', (
    ({'init.model': 'runs/a', 'init.freeze_body': True, 'model.freeze_batch_stats': False},
     'model.freeze_batch_stats=False: the running statistics of a frozen body would still move'),
    ({'task': 'embedding', 'accumulate_steps': 2}, 'accumulate_steps=2: the loss of task=embedding compares the examples')))
def test_values_that_contradict_each_other_are_refused(changes, message):
  with pytest.raises(UserError, match=message):
    checked(config_lib.changed(config_lib.base(), changes))


def test_a_field_that_no_config_has_is_named_however_it_is_set():
  for name, message in (('optim.nn', "optim has no field 'nn'; it has name, rms_decay, momentum, epsilon, learn"),
                        ('optim.lerning_rate', 'did you mean optim.learning_rate'),
                        ('optimizer.momentum', 'a config has no part optimizer; it has task, seed, model'),
                        ('batchsize', 'did you mean batch_size'), ('warmup', 'did you mean optim.warmup'), ('optim', 'a part of a config, not a field')):
    with pytest.raises(UserError, match=message):
      config_lib.overridden(config_lib.base(), {name: '1'}, {})
    with pytest.raises(UserError, match=message):
      config_lib.changed(config_lib.base(), {name: 1})
    recipe, (part, _, field) = config_lib.base(), name.rpartition('.')
    if name != 'optim':  # ml_collections refuses a number in place of a part
      if part:
        recipe[part] = recipe.get(part, ml_collections.ConfigDict())
        recipe[part][field] = 1
      else:
        recipe[field] = 1
      with pytest.raises(UserError, match=message):
        checked(recipe)


OF_ANOTHER = (  # changes, the field that is wrong with them, and those that the optimiser or the schedule has
    ({'optim.name': 'sgd'}, ('optim.epsilon', 0.1), 'momentum, nesterov'),
    ({'optim.name': 'sgd'}, ('optim.b1', 0.9), 'momentum, nesterov'),
    ({'optim.name': 'adamw'}, ('optim.momentum', 0.9), 'b1, b2, epsilon'),
    ({}, ('optim.nesterov', True), 'rms_decay, momentum, epsilon'),
    ({}, ('optim.final_fraction', 0.1), 'decay_rate, decay_every'),
    ({'optim.schedule': 'cosine'}, ('optim.decay_every', '1 epoch'), 'final_fraction'),
    ({'optim.schedule': 'linear'}, ('optim.decay_rate', 0.5), 'final_fraction'),
    ({'optim.schedule': 'constant'}, ('optim.final_fraction', 0.5), 'none of its own'))


@pytest.mark.parametrize('changes, wrong, own', OF_ANOTHER)
def test_a_field_of_another_optimiser_or_schedule_is_refused_however_it_is_set(changes, wrong, own):
  name, value = wrong
  choice, = changes or {'optim.schedule' if 'fraction' in name else 'optim.name': ''}
  message = f'{name}={value}: {choice}={{}} has no such field; it has {own}'.format(
      changes.get(choice) or config_lib.base().optim[choice.removeprefix('optim.')])

  def recipe():
    config = config_lib.base()
    for field, content in {**changes, name: value}.items():
      config.optim[field.removeprefix('optim.')] = content
    return config

  texts = {field: str(content) for field, content in {**changes, name: value}.items()}
  ways = (lambda: config_lib.validated(recipe()), lambda: checked(recipe()),
          lambda: config_lib.changed(config_lib.base(), {**changes, name: value}),  # as in Python and in a sweep
          lambda: config_lib.changed(config_lib.base(), {name: value, **changes}),
          lambda: config_lib.changed(config_lib.changed(config_lib.base(), changes), {name: value}),
          lambda: config_lib.overridden(config_lib.base(), texts, {}))
  for way in ways:
    with pytest.raises(UserError) as error:
      way()
    assert str(error.value) == message


def test_a_config_has_the_fields_of_its_optimiser_and_its_schedule_alone():
  """A recipe's values that another choice does not have, or has in another meaning, are left out, and that is said."""
  recipe = importlib.import_module('configs.fabrics').get_config()
  common = {'name', 'learning_rate', 'warmup', 'schedule', 'weight_decay', 'depthwise_weight_decay', 'clip_norm'}
  default = {'rms_decay', 'momentum', 'epsilon', 'decay_rate', 'decay_every'}
  for change, own, said in (
      ({}, default, []),
      ({'optim.name': 'rmsprop', 'optim.schedule': 'staircase'}, default, []),
      ({'optim.name': 'sgd'}, {'momentum', 'nesterov', 'decay_rate', 'decay_every'},
       ['optim.name=sgd in place of rmsprop, whose epsilon=1e-06 is left out']),
      ({'optim.name': 'adamw', 'optim.schedule': 'cosine'}, {'b1', 'b2', 'epsilon', 'final_fraction'},
       ['optim.name=adamw in place of rmsprop, whose epsilon=1e-06 is left out',
        'optim.schedule=cosine in place of staircase, whose decay_rate=0.6, decay_every=100 steps are left out']),
      ({'optim.schedule': 'constant', 'optim.momentum': 0.5}, {'rms_decay', 'momentum', 'epsilon'},
       ['optim.schedule=constant in place of staircase, whose decay_rate=0.6, decay_every=100 steps are left out'])):
    config = checked(config_lib.changed(recipe, change))
    assert set(config.optim) == common | own and config_lib.left_out(recipe, change) == said
    assert config.optim.learning_rate == recipe.optim.learning_rate and config.optim.weight_decay == 0.0
    assert config_lib.to_json(config_lib.from_dict(config.to_dict())) == config_lib.to_json(config)
    texts = {field: str(value) for field, value in change.items()}
    assert config_lib.left_out(recipe, texts) == said
    assert config_lib.to_json(checked(config_lib.overridden(recipe, texts, {}))) == config_lib.to_json(config)
  assert checked(config_lib.changed(recipe, {'optim.name': 'adamw'})).optim.epsilon == 1e-8
  momentum = config_lib.changed(recipe, {'optim.momentum': 0.5})  # is the same in both
  assert config_lib.changed(momentum, {'optim.name': 'sgd'}).optim.momentum == 0.5


def test_nesterov_without_momentum_is_refused():
  with pytest.raises(UserError, match='optim.nesterov=True: expected False without optim.momentum'):
    checked(config_lib.changed(config_lib.base(), {'optim.name': 'sgd', 'optim.nesterov': True, 'optim.momentum': 0.0}))


def test_no_decay_means_no_decay():
  config = config_lib.changed(config_lib.base(), {'optim.learning_rate': 0.5, 'optim.decay_every': '0 epochs'})
  schedule = optimizer.learning_rate(config, 10)
  assert [float(schedule(step)) for step in (0, 1, 999)] == [0.5] * 3


def test_too_many_steps_to_count_are_refused():
  with pytest.raises(UserError, match='at most 2,147,483,647 steps'):
    config_lib.steps('99999999999 epochs', 'train_for', 10, 4)


def misspelt(name):
  """Returns the name with a letter too few, with one twice, and with two neighbours swapped, for each letter."""
  swapped = (name[:i] + name[i + 1] + name[i] + name[i + 2:] for i in range(len(name) - 1))
  return {*(name[:i] + name[i + 1:] for i in range(len(name))), *(name[:i] + name[i] + name[i:] for i in range(len(name))),
          *swapped}


def test_no_misspelt_field_is_accepted():
  """Every field of the schema and of the network, at every level, by one letter."""
  config = config_lib.base()
  known = config_lib.all_fields(models.fields('mobilenet'))
  rng = np.random.default_rng(0)
  for name, field in known.items():
    wrong = sorted(misspelt(name) - set(known))
    for other in (*rng.choice(wrong, 3), f'{name}.', f'{name}.{name}', f'.{name}', name.upper(), f'model.{name}.x'):
      with pytest.raises(UserError) as error:
        checked(config_lib.changed(config, {str(other): field.default}))
      assert str(other).rpartition('.')[2] in str(error.value) and '\n' not in str(error.value)
  for part in ('optim', 'model', 'data'):
    with pytest.raises(UserError, match=f'{part}: a part of a config, not a field; expected a field in it'):
      config_lib.changed(config, {part: {}})
  with pytest.raises(UserError, match='3: a config has no field'):
    config_lib.changed(config, {3: 1})
  config.extra = {}
  with pytest.raises(UserError, match="extra: a config has no field 'extra'|a config has no part extra"):
    checked(config)
