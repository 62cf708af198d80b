"""What --sweep and --seeds make of a recipe and its sweep."""

import itertools

import pytest
from conftest import assert_one_line, command

from mobilenet_jax.commands import recipe as recipe_lib
from mobilenet_jax.commands import variations
from mobilenet_jax.errors import UserError


def changes(given=(), seeds=0, recipe='configs/grid.py', **fields):
  return variations.changes(recipe_lib.read(recipe, fields), list(given), seeds)


def test_the_runs_are_all_combinations():
  found, remarks = changes(['optim.learning_rate=1e-3,3e-3', 'model.width_multiplier=0.35,1.4'], 3, 'configs/fabrics.py')
  assert not remarks and found == [
      {'optim.learning_rate': rate, 'model.width_multiplier': width, 'seed': seed}
      for rate, width, seed in itertools.product((1e-3, 3e-3), (0.35, 1.4), (0, 1, 2))]
  assert [change['seed'] for change in changes(seeds=2, recipe='configs/fabrics.py', seed='5')[0]] == [5, 6]


def test_a_recipe_s_own_sweep_is_combined_with_them():
  own, _ = changes()
  found, _ = changes(['optim.epsilon=0.1,1'], 2)
  assert len(own) == 16 and len(found) == 64
  assert {tuple(sorted(change)) for change in found} == {tuple(sorted([*own[0], 'optim.epsilon', 'seed']))}


def test_values_of_the_command_line_take_the_place_of_the_recipe_s():
  found, remarks = changes(['model.width_multiplier=0.35'])
  assert [change['model.width_multiplier'] for change in found] == [0.35] * 4  # one for each of the four sizes
  assert len({change['data.image_size'] for change in found}) == 4
  assert remarks == ['model.width_multiplier: 0.35 in place of the 1.0, 0.75, 0.5, ... of grid.py']
  found, remarks = changes(['model.width_multiplier=0.35', 'data.image_size=(56, 40),(32,32)'])
  assert [change['data.image_size'] for change in found] == [(56, 40), (32, 32)] and len(remarks) == 2


@pytest.mark.parametrize('text, expected', (
    ('a', ['a']), ('a,b', ['a', 'b']), (' a , b ', ['a', 'b']), ('(1, 2),(3,4)', ['(1, 2)', '(3,4)']), ('"a,b",c', ['a,b', 'c']),
    ("'a, b'", ['a, b']), ('5 epochs,10 epochs', ['5 epochs', '10 epochs']), ('a,', ['a', '']), (',a', ['', 'a']), ('', ['']),
    ('a,,b', ['a', '', 'b'])))
def test_values_are_separated_by_commas_outside_of_brackets_and_quotes(text, expected):
  assert variations._items(text) == expected


@pytest.mark.parametrize('given, seeds, fields, message', (
    (['optim.learning_rat=1,2'], 0, {}, "--sweep optim.learning_rat: optim has no field 'learning_rat'; did you mean"),
    (['optim.learning_rate'], 0, {}, 'expected a field and its values, such as --sweep optim.learning_rate=1e-3,3e-3'),
    (['optim.learning_rate=1,'], 0, {}, 'expected values between the commas'),
    (['optim.learning_rate=fast'], 0, {}, 'optim.learning_rate=fast: expected float'),
    (['optim.learning_rate=0.1,1e-1'], 0, {}, 'optim.learning_rate: 0.1 is given twice'),
    (['seed=0,1', 'seed=2'], 0, {}, '--sweep seed: is given twice'),
    (['seed=0,1'], 2, {}, '--seeds=2 and --sweep seed: expected one of them'),
    (['seed=0,1'], 0, {'seed': '3'}, '--sweep seed: is given twice, also as --config.seed'),
    (['model.name=resnet'], 0, {}, "model.name='resnet': expected one of mobilenet"),
    ([], 0, {'model.width_multiplier': '0.3'}, '--config.model.width_multiplier has no effect, as the sweep of'),
    ([], 0, {'data.stream_size': '(64, 64)'}, 'expected --sweep data.stream_size=...'),
    (['optim.name=sgd,adamw'], 0, {'optim.rms_decay': '0.5'}, '--config.optim.rms_decay has no effect, as no run of the'),
    (['optim.name=sgd,adamw', 'optim.nesterov=False,True'], 0, {}, 'optim.nesterov=False: optim.name=adamw has no such field')))
def test_contradictions_and_wrong_values_are_refused(given, seeds, fields, message):
  with pytest.raises(UserError) as error:
    changes(given, seeds, **fields)
  assert message in str(error.value)


def test_a_value_that_the_sweep_is_made_of_has_an_effect(tmp_path):
  """Whether the sweep sets the field to what is given says nothing: it may compute with it, or set it by chance."""
  (tmp_path / 'recipe.py').write_text(
      'from configs.fabrics import get_config\n'
      'def sweep(config):\n'
      "  return [{'optim.learning_rate': k * config.optim.learning_rate, 'model.width_multiplier': 0.5} for k in (2, 4)]\n")
  recipe = str(tmp_path / 'recipe.py')
  found, _ = changes(recipe=recipe, **{'optim.learning_rate': '0.25'})
  assert [change['optim.learning_rate'] for change in found] == [0.5, 1.0]
  with pytest.raises(UserError, match='model.width_multiplier has no effect, as the sweep of .* sets it to 0.5; expected'):
    changes(recipe=recipe, **{'model.width_multiplier': '0.5'})
  with pytest.raises(UserError, match='model.width_multiplier has no effect, as the sweep of .* sets it to 1.0, 0.75, 0.5'):
    changes(**{'model.width_multiplier': '0.5'})
  assert changes(**{'data.image_size': '(63, 63)'}) == changes()  # the recipe's own value


def test_a_field_that_one_of_the_networks_has_may_be_varied():
  found, _ = changes(['model.name=mobilenet,conv_mobilenet', 'model.dropout_rate=0.1'], recipe='configs/fabrics.py')
  assert len(found) == 2


def test_what_an_optimiser_leaves_out_of_the_recipe_is_said(tmp_path):
  recipe, workdir = '--config=configs/small_images.py:data=folder:/nowhere', f'--workdir={tmp_path}/run'
  done = command('sweep', recipe, workdir, '--sweep=optim.name=rmsprop,sgd', '--config.optim.schedule=cosine', '--seeds=2',
                 '--launcher=here')
  assert done.stdout.splitlines()[:3] == [
      'optim.schedule=cosine in place of staircase, whose decay_every=1 epoch is left out',
      'optim.name=sgd in place of rmsprop, whose epsilon=1e-06 is left out', 'reading folder:/nowhere for 4 runs']
  done = command('train', recipe, workdir, '--config.optim.name=adamw')
  assert done.stdout.startswith('optim.name=adamw in place of rmsprop, whose epsilon=1e-06 is left out\n')
  done = command('train', recipe, '--config.optim.name=adamw', '--help')
  assert "optim.epsilon=1e-08" in done.stdout and 'optim.b2=0.999' in done.stdout and 'optim.momentum' not in done.stdout
  assert done.stdout.endswith('whose epsilon=1e-06 is left out\n')
  assert_one_line(command('train', recipe, workdir, '--config.optim.name=sgd', '--config.optim.epsilon=1e-3'),
                  'optim.epsilon=1e-3: optim.name=sgd has no such field; it has momentum, nesterov')


def test_the_command_takes_several_fields(tmp_path):
  """It gets as far as the data that there is not."""
  done = command('sweep', '--config=configs/small_images.py:data=folder:/nowhere', f'--workdir={tmp_path}/run', '--seeds=2',
                 '--sweep', 'optim.learning_rate=1e-3,3e-3', '--sweep=model.width_multiplier=0.35,1.4', '--launcher=here')
  assert 'reading folder:/nowhere for 8 runs' in done.stdout and done.returncode == 1


def test_a_recipe_of_one_run_needs_something_to_vary(tmp_path):
  assert_one_line(command('sweep', '--config=configs/fabrics.py', f'--workdir={tmp_path}/run'),
                  'has no sweep(config); expected what to vary, such as --sweep optim.learning_rate=1e-3,3e-3 or --seeds=3')
  assert_one_line(command('sweep', '--config=configs/fabrics.py', f'--workdir={tmp_path}/run', '--seeds=few'), 'few: expected')
  assert not (tmp_path / 'run').exists()
