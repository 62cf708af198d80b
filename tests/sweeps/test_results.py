"""The results of a sweep: rows of different columns, several sweeps in a folder, unwritable files; misspelt fields."""

import csv
import json

import numpy as np
import pytest
from conftest import assert_one_line, command, images_of, random_images, tiny_config

from mobilenet_jax.errors import UserError
from mobilenet_jax.storage import run_files
from mobilenet_jax.sweeps import choice, launch, results, status, tables, watch
from mobilenet_jax.sweeps.sweep import sweep
from mobilenet_jax.training import checked

NAMES = ('mobilenet_0.25_32', 'mobilenet_0.5_32', 'mobilenet_0.75_32')
WIDTHS = (0.25, 0.5, 0.75)
CHANGES = [{'model.width_multiplier': width} for width in WIDTHS]


def row(name, **metrics):
  return {'name': name, 'model': 'mobilenet', 'width_multiplier': float(name.split('_')[1]), 'height': 32, 'width': 32,
          'mult_adds': 1000, 'params': 100, **metrics, 'eval_examples': 4, 'examples_seen': 64, 'seconds': 1.0,
          'dataset': 'x', 'seed': 0, 'commit': 'c', 'device': 'd'}


ROWS = [row(NAMES[0], top1=0.5), row(NAMES[1], top1=0.6, emulation=0.1, measured_against='labels'),
        row(NAMES[2], top1=0.7, distance=0.3, extended='4 steps')]


@pytest.fixture
def config(tmp_path):
  source = random_images(16, size=36)
  np.savez(tmp_path / 'set.npz', train_images=images_of(source), train_labels=source.labels, test_images=images_of(source),
           test_labels=source.labels)
  return tiny_config(**{'data.name': f'npz:{tmp_path}/set.npz'})


def finished(workdir, config, numbers):
  """Makes the folders of runs that have finished."""
  for i in numbers:
    run_files.claim(workdir / NAMES[i], checked(_with(config, i)), longer=False)
    run_files.write_row(workdir / NAMES[i], ROWS[i])


def _with(config, i):
  config = config.copy_and_resolve_references()
  config.model.width_multiplier = WIDTHS[i]
  return config


def table(workdir):
  with (workdir / results.CSV_FILE).open() as file:
    return list(csv.DictReader(file))


def test_rows_of_different_columns_are_one_table(tmp_path, config, capsys):
  finished(tmp_path, config, range(3))
  results.add_runs(tmp_path, list(NAMES))
  assert results.collect(tmp_path) == ''
  for made, given in zip(table(tmp_path), ROWS):
    assert made == {column: str(given.get(column, '')) for column in made} and set(given) <= set(made)
  status.show_table(tmp_path)
  said = capsys.readouterr().out
  assert 'top-1 60.00%, emulation 0.1000 in 0:01' in said and 'distance 0.3000' in said and '3 finished of 3 runs' in said
  assert [found['top1'] for found in tables.read(tmp_path / results.CSV_FILE).rows] == [0.5, 0.6, 0.7]
  assert choice.choose(choice.read(str(tmp_path / results.CSV_FILE))[0], {})['name'] == NAMES[2]


def test_a_second_sweep_keeps_the_rows_of_the_first(tmp_path, config, capsys):
  workdir = tmp_path / 'runs'
  finished(workdir, config, range(3))
  assert sweep(config, CHANGES[:2], workdir, launcher='here') == ROWS[:2]
  assert 'of other sweeps' not in capsys.readouterr().out
  assert sweep(config, CHANGES[2:] + CHANGES[:1], workdir, launcher='here') == [ROWS[2], ROWS[0]]  # its own, in its order
  assert f'{workdir} also has 1 run of other sweeps, which stay in results.csv\n' in capsys.readouterr().out
  assert [found['name'] for found in table(workdir)] == results.read_sweep(workdir) == list(NAMES)
  # A file of names that is damaged is written anew, with the runs that there are.
  (workdir / results.SWEEP_FILE).write_text('{"runs')
  assert sweep(config, CHANGES[1:2], workdir, launcher='here') == ROWS[1:2]
  assert 'also has 2 runs of other sweeps' in capsys.readouterr().out
  assert results.read_sweep(workdir) == list(NAMES) and len(table(workdir)) == 3


@pytest.mark.parametrize('spoil', (
    lambda workdir: (workdir / results.CSV_FILE).mkdir(),  # as a file that cannot be written
    lambda workdir: (workdir / 'results.lock').mkdir(),
    lambda workdir: (workdir / results.SWEEP_FILE).write_text('{'),
    lambda workdir: (workdir / NAMES[0] / run_files.RESULT_FILE).write_text(json.dumps({**ROWS[0], 'commit': '\udc80'}))))
def test_rows_that_cannot_be_collected_end_nothing(spoil, tmp_path, config, capsys):
  workdir = tmp_path / 'runs'
  finished(workdir, config, range(3))
  results.add_runs(workdir, list(NAMES))
  spoil(workdir)
  said = results.collect(workdir)
  assert f'{workdir}/results.csv is not up to date: ' in said and '\n' not in said
  jobs = watch.Jobs({name: _with(config, i) for i, name in enumerate(NAMES)}, workdir, 'local', None, 0)
  ended = watch._Launched([NAMES[1]], {NAMES[1]: 0}, [])
  assert jobs._to_do_again(launch.Job('local', '1', 'here', ''), ended) == []
  printed = capsys.readouterr().out
  assert f'{NAMES[1]}: top-1 60.00%' in printed and 'is not up to date' in printed
  assert len(sweep(config, CHANGES, workdir, launcher='here')) == 3


def test_a_misspelt_field_of_a_sweep_is_refused_before_anything_is_written(tmp_path):
  workdir = tmp_path / 'runs'
  for change in ({'optim.lerning_rate': 1.0}, {'optim': {'learning_rate': 1.0}}, {'model.widht_multiplier': 0.5},
                 {'learning_rate': 1.0}, {'model.optim.learning_rate': 1.0}, {1: 2}):
    with pytest.raises(UserError, match=r'has no|a part of a config, not a field'):
      sweep(tiny_config(), [{}, change], workdir)
    (tmp_path / 'recipe.py').write_text(f'from mobilenet_jax import config as c\nget_config = c.base\n'
                                        f'def sweep(config):\n  return [{{}}, {change}]\n')
    done = command('sweep', f'--config={tmp_path}/recipe.py', f'--workdir={workdir}')
    assert_one_line(done, 'expected a list with' if 1 in change else next(iter(change)))
  with pytest.raises(UserError, match="--group=data.imagesize: data.imagesize: data has no field 'imagesize'"):
    sweep(tiny_config(), [{}], workdir, grouping='data.imagesize')
  assert not workdir.exists()


def test_a_job_that_also_trains_runs_of_another_sweep_is_refused(tmp_path, config, monkeypatch):
  results.add_runs(tmp_path, list(NAMES))
  for i in (0, 2):
    run_files.claim(tmp_path / NAMES[i], checked(_with(config, i)), longer=False)
    launch.Job('slurm', '7', 'here', '').write(tmp_path / NAMES[i])
  monkeypatch.setattr(status, 'alive', lambda workdir, jobs: dict.fromkeys(jobs, launch.RUNNING))
  with pytest.raises(UserError, match=f'a job trains {NAMES[0]} and, of another sweep, {NAMES[2]}; wait until it ends'):
    sweep(config, CHANGES[:1], tmp_path)
