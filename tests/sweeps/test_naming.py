"""Sweeps over any field: names of runs, columns of what varies, and sweeps that grow."""

import csv
import json

import pytest
from conftest import tiny_config

from mobilenet_jax import config as config_lib
from mobilenet_jax import models
from mobilenet_jax.errors import UserError
from mobilenet_jax.storage import run_files
from mobilenet_jax.sweeps import naming, results
from mobilenet_jax.sweeps.sweep import sweep
from mobilenet_jax.training import checked

RATES = [{'optim.learning_rate': rate} for rate in (0.001, 0.003)]


def names(changes, existing=None, config=None):
  config = config or tiny_config()
  return naming.names([(change, checked(config_lib.changed(config, change))) for change in changes], existing or {})


@pytest.mark.parametrize('changes, expected', (
    ([{}], ['']),
    (RATES, ['_lr0.001', '_lr0.003']),
    ([{'seed': 0, 'optim.learning_rate': 0.002}, {'seed': 1, 'optim.learning_rate': 0.002}], ['_s0', '_s1']),
    ([{'optim.learning_rate': rate, 'seed': seed} for rate in (1e-5, 0.1) for seed in (0, 1)],
     ['_lr1e-05_s0', '_lr1e-05_s1', '_lr0.1_s0', '_lr0.1_s1']),
    ([{'optim.learning_rate': 0.1234567}, {'optim.learning_rate': 0.1234568}], ['_lr0.1234567', '_lr0.1234568']),
    ([{'data.flip': True}, {'data.flip': False}], ['_flipTrue', '_flipFalse']),
    ([{'data.stream_size': (64, 48)}, {'data.stream_size': (40, 40)}], ['_stream_size64x48', '_stream_size40x40']),
    ([{'train_for': '5 epochs'}, {'train_for': '8 steps'}], ['_train_for-5epochs', '_train_for-8steps']),
    ([{'model.dropout_rate': 0.5}, {'model.dropout_rate': 0.0}], ['_dropout_rate0.5', '_dropout_rate0']),
    ([{'optim.name': 'rmsprop', 'optim.momentum': 0.5}, {'optim.name': 'rmsprop'}, {'optim.name': 'adamw'}],
     ['_optim-rmsprop_momentum0.5', '_optim-rmsprop_momentum0.9', '_optim-adamw']),
    ([{'optim.schedule': 'cosine'}, {'optim.schedule': 'constant'}], ['_schedule-cosine', '_schedule-constant']),
    ([{'data.seed': 3}, {'data.seed': 4}], ['_data-seed3', '_data-seed4']),
    ([{'data.name': 'cifar10'}, {'data.name': 'fabrics'}], ['_data-cifar10', '_data-fabrics'])))
def test_a_run_is_named_after_what_differs(changes, expected):
  assert names(changes) == [f'mobilenet_0.25_32{end}' for end in expected]


def test_width_size_and_model_have_their_places():
  found = names([{'model.width_multiplier': 0.5, 'data.image_size': (40, 32)},
                 {'model.name': 'conv_mobilenet', 'optim.learning_rate': 1.0}])
  assert found == ['mobilenet_0.5_40x32_lr0.01', 'conv_mobilenet_0.25_32_lr1']
  alike = names([{'model.width_multiplier': width} for width in (0.1234567, 0.12345671, 2, 2.0000001, 1, 1.0000001)])
  assert alike == [f'mobilenet_{width}_32' for width in ('0.1234567', '0.12345671', '2', '2.0000001', '1.0', '1.0000001')]


@pytest.mark.parametrize('field', [field for field, content in config_lib.all_fields(models.fields('mobilenet')).items()
                                   if isinstance(content.default, str) and not content.range.expected.startswith('one of')
                                   and field not in ('model.name', 'task', 'model.dtype', 'init.model', 'distill.model', 'data.pairs')
                                   and 'duration' not in content.range.expected and 'unit' not in content.range.expected])
def test_names_of_any_text_are_different_names_of_folders(field):
  texts = ('a b', 'a-b', 'a/b', '../a', '"<script>"', 'é', 'e', 'x' * 300, 'x' * 299 + 'y', 'runs/teacher one')
  found = names([{field: text} for text in texts])
  assert len(set(found)) == len(texts)
  assert all(len(name) < 255 and name.isascii() and not set(name) & set('/\\"<> ') and name[0] != '.' for name in found)


def test_equal_runs_are_refused(tmp_path):
  for changes in ([{}, {}], [{'seed': 1}, {'seed': 1}], [{'seed': 0}, {}]):
    with pytest.raises(UserError, match='two runs of the sweep are the same: mobilenet_0.25_32'):
      sweep(tiny_config(), changes, tmp_path / 'runs')
  assert not (tmp_path / 'runs').exists()


def finish(workdir, config, changes):
  """Gives each run of a sweep its folder and a row, as if it had been trained. Returns the names."""
  found = names(changes, naming.existing(workdir, results.runs_so_far(workdir)), config)
  for i, (name, change) in enumerate(zip(found, changes)):
    own = checked(config_lib.changed(config, change))
    run_files.claim(workdir / name, own, longer=False)
    if not run_files.read_row(workdir / name):
      run_files.write_row(workdir / name, {
          **{column: 'x' if column in run_files.TEXT_COLUMNS else 1 for column in run_files.MODEL_COLUMNS}, 'top1': i / 10,
          **{column: 'x' if column in run_files.TEXT_COLUMNS else own.get(column, 1) for column in run_files.RUN_COLUMNS}})
  results.add_runs(workdir, found)
  assert not results.collect(workdir)
  return found


def table(workdir):
  with (workdir / results.CSV_FILE).open() as file:
    return list(csv.DictReader(file))


def test_a_sweep_grows_in_its_folder(tmp_path):
  """A run keeps its name when more is varied; its row gets the columns; what is new is named after all that varies."""
  config = tiny_config()
  assert finish(tmp_path, config, [{}]) == ['mobilenet_0.25_32']
  assert list(table(tmp_path)[0])[:3] == ['name', 'model', 'width_multiplier']
  seeds = [{'seed': seed} for seed in range(3)]
  assert finish(tmp_path, config, seeds) == ['mobilenet_0.25_32', 'mobilenet_0.25_32_s1', 'mobilenet_0.25_32_s2']
  assert [row['seed'] for row in table(tmp_path)] == ['0', '1', '2']
  grown = [{'optim.learning_rate': rate, **seed} for rate in (config.optim.learning_rate, 0.7) for seed in seeds]
  before = [(path, path.read_bytes()) for path in tmp_path.rglob('result.json')]
  assert finish(tmp_path, config, grown)[:4] == [
      'mobilenet_0.25_32', 'mobilenet_0.25_32_s1', 'mobilenet_0.25_32_s2', 'mobilenet_0.25_32_lr0.7_s0']
  assert all(path.read_bytes() == content for path, content in before)
  rows = table(tmp_path)
  assert len(rows) == 6 and {row['optim.learning_rate'] for row in rows} == {str(config.optim.learning_rate), '0.7'}
  # A single value is named as well if the folder has others; and whatever the order, the same runs have the same names.
  assert names([{'optim.learning_rate': 0.9}], naming.existing(tmp_path, results.runs_so_far(tmp_path))) == [
      'mobilenet_0.25_32_lr0.9']
  assert finish(tmp_path, config, grown[::-1]) == finish(tmp_path, config, grown)[::-1]


def test_runs_that_differ_in_their_length_alone_are_told_apart(tmp_path):
  lengths = [{'train_for': '20 epochs'}, {'train_for': '10 epochs'}]
  longer, shorter = finish(tmp_path, tiny_config(), lengths)
  existing = naming.existing(tmp_path, results.runs_so_far(tmp_path))
  for length, name in (('20 epochs', longer), ('10 epochs', shorter)):
    assert names([{'seed': 0}, {'seed': 1}], existing, tiny_config(train_for=length))[0] == name


def test_a_run_that_takes_values_from_its_origin_or_teacher_keeps_its_name(tmp_path):
  """The folder's config has what training.completed filled in, which the given one leaves open."""
  config = tiny_config(**{'init.model': 'runs/origin', 'distill.model': 'runs/teacher'})
  filled_in = checked(config_lib.changed(config, {'model.activation': 'relu', 'data.stream_size': (64, 64)}))
  run_files.claim(tmp_path / 'mobilenet_0.25_32', filled_in, longer=False)
  results.add_runs(tmp_path, ['mobilenet_0.25_32'])
  existing = naming.existing(tmp_path, results.runs_so_far(tmp_path))
  assert names([{'seed': 0}, {'seed': 1}], existing, config) == ['mobilenet_0.25_32', 'mobilenet_0.25_32_s1']
  plain = tiny_config()  # without another model, the activation is the recipe's own
  assert names([{'seed': 0}, {'seed': 1}], existing, plain) == ['mobilenet_0.25_32_s0', 'mobilenet_0.25_32_s1']


def test_every_varied_field_is_a_column_and_a_lacking_one_empty(tmp_path):
  changes = [{'model.name': 'nn2'}, {'model.dropout_rate': 0.5}, {'model.dropout_rate': 0.25},
             {'data.stream_size': (64, 48), 'train_for': '3 epochs'}, {'data.bad_images': 'skip', 'seed': 5}]
  config = config_lib.base()
  config.data.image_size = (32, 32)
  finish(tmp_path, config, changes)
  rows = table(tmp_path)
  assert {'model.dropout_rate', 'data.stream_size', 'train_for'} <= set(rows[0])
  assert not {'data.bad_images', 'model.name', 'seed.1', 'data.image_size'} & set(rows[0])  # faults leave no trace in results
  assert [row['data.stream_size'] for row in rows] == ['0x0', '0x0', '0x0', '64x48', '0x0']
  assert [row['name'] for row in rows] == results.read_sweep(tmp_path)


def test_all_runs_that_a_changed_recipe_would_invalidate_are_named(tmp_path):
  finish(tmp_path, tiny_config(), RATES)
  content = lambda: {path: path.read_bytes() for path in tmp_path.rglob('*.json')}
  before = content()
  with pytest.raises(UserError, match=r'_lr0.001 belongs to another config .*batch_size.*Also refused: mobilenet_0.25_32_lr0.003$'):
    sweep(tiny_config(batch_size=4), RATES, tmp_path, launcher='here')
  assert content() == before


def test_folders_without_a_readable_config_are_no_runs_to_compare_with(tmp_path):
  finish(tmp_path, tiny_config(), RATES)
  (tmp_path / 'mobilenet_0.25_32_lr0.001' / 'config.json').write_text('{')
  assert list(naming.existing(tmp_path, results.runs_so_far(tmp_path))) == ['mobilenet_0.25_32_lr0.003']
  other = json.loads((tmp_path / 'mobilenet_0.25_32_lr0.003' / 'config.json').read_text())
  other['model']['name'] = 'a network that there is no more'
  (tmp_path / 'mobilenet_0.25_32_lr0.003' / 'config.json').write_text(json.dumps(other))
  assert not naming.existing(tmp_path, results.runs_so_far(tmp_path))
  assert not results.collect(tmp_path) and len(table(tmp_path)) == 2


def test_what_a_changed_recipe_leaves_apart_is_said(tmp_path):
  """New seeds of another recipe collide with no run, but their results do not compare with those that are there."""
  finish(tmp_path, tiny_config(), RATES)
  existing = [config_lib.flat(config) for config in naming.existing(tmp_path, results.runs_so_far(tmp_path)).values()]
  of = lambda changes, **fields: [config_lib.flat(checked(config_lib.changed(tiny_config(**fields), change)))
                                  for change in changes]
  seeds = [{'seed': 3}, {'seed': 4}]
  assert naming.between(existing, of(seeds, **RATES[0])) == []  # a sweep that grows
  assert naming.between(existing, of(seeds, batch_size=4, **{'data.crop_min_area': 0.5})) == [
      'data.crop_min_area=0.9, here 0.5', 'batch_size=8, here 4']
