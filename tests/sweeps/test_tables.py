"""Tables of results: what is read, what is left out and said, seeds against NumPy, fits against SciPy."""

import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from scipy import stats

from mobilenet_jax import tasks
from mobilenet_jax.errors import UserError
from mobilenet_jax.storage.run_files import RUN_COLUMNS
from mobilenet_jax.sweeps import results, tables


def row(alpha=1.0, size=56, seed=0, **columns):
  """Returns a row as a run writes it."""
  return {'name': f'mobilenet_{alpha}_{size}_s{seed}', 'model': 'mobilenet', 'width_multiplier': alpha, 'height': size,
          'width': size, 'mult_adds': int(4e7 * alpha**2 * (size / 56) ** 2) + 1, 'params': int(3e6 * alpha**2), 'loss': 1.0,
          'top1': 0.5, 'top5': 0.9, 'measured_against': 'labels', 'eval_examples': 100, 'examples_seen': 6400,
          'seconds': 10.0 + seed, 'dataset': 'fabrics', 'seed': seed, 'commit': f'c{seed}', 'device': 'cpu'} | columns


def read(tmp_path, rows, metric=''):
  results.write_csv(tmp_path / 'results.csv', rows)
  return tables.read(tmp_path / 'results.csv', metric)


def test_jax_and_matplotlib_are_not_imported():
  code = "import sys; from mobilenet_jax.sweeps import tables; assert not {'jax', 'matplotlib'} & set(sys.modules)"
  subprocess.run([sys.executable, '-c', code], cwd=ROOT, check=True, capture_output=True)


def test_headlines_are_those_of_the_tasks():
  assert tables.HEADLINES == {name: task.main_metric for name, task in tasks.TASKS.items()}
  assert {name: '%' in form for name, (_, form) in tasks.headlines().items()} == {
      name: '%' in title for name, title in tables.TITLES.items()}


def test_values_have_their_types(tmp_path):
  columns = ('optim.learning_rate', 'data.stream_size', 'optim.warmup', 'model.new', 'val_at_0.1')
  rows = [row(**dict(zip(columns, (1e-3, '64x48', '5', '', '')))),
          row(0.5, **dict(zip(columns, (1, '64', '5 epochs', 2, 0.3))))]
  table = read(tmp_path, rows)
  assert table.rows == [{column: value for column, value in line.items() if value != ''} for line in rows]
  assert (table.task, table.metric, table.remarks) == ('classification', 'top1', [])
  assert table.varied == ['width_multiplier', 'optim.learning_rate', 'data.stream_size', 'optim.warmup', 'model.new']


@pytest.mark.parametrize('task, metric', tables.HEADLINES.items())
def test_the_main_metric_is_that_of_the_task(task, metric, tmp_path):
  line = {column: value for column, value in row().items() if column not in ('top1', 'top5')} | {metric: 0.25}
  table = read(tmp_path, [line])
  assert (table.task, table.metric, table.rows[0][metric]) == (task, metric, 0.25)
  assert read(tmp_path, [line], 'loss').metric == 'loss'


def test_seeds_are_taken_together_and_nothing_else(tmp_path):
  rng = np.random.default_rng(0)
  rows = [row(alpha, 56, seed, top1=rng.uniform(), extended='5 epochs at step 10' if seed else '',
              **{'optim.learning_rate': rate, 'data.seed': seed % 2})
          for seed in range(3) for alpha in (1.0, 0.5) for rate in (1e-3, 2e-3)]
  rows.append(row(1.0, 56, 3, top1=0.1, extended='', measured_against='given pairs',
                  **{'optim.learning_rate': 1e-3, 'data.seed': 0}))
  points, remarks = tables.over_seeds(read(tmp_path, rows).rows)
  assert len(points) == 5 and not remarks
  for point in points[:4]:
    members = [line for line in rows if line['name'] in point.names and all(
        line[column] == value for column, value in point.settings.items())]
    assert len(members) == len(point.names) == 3
    for column in ('top1', 'seconds'):
      values = np.array([line[column] for line in members])
      mean = values.sum() / 3
      np.testing.assert_allclose(point.means[column], mean)
      np.testing.assert_allclose(point.deviations[column], np.sqrt(((values - mean) ** 2).sum() / 2))
    assert not {'seed', 'data.seed', 'commit', 'device', 'name', 'seconds'} & set(point.settings)
  assert points[4].names == (rows[-1]['name'],) and points[4].deviations == {} and points[4].means['top1'] == 0.1


@pytest.mark.parametrize('seeds', ((0, 0, 1), ('', '', ''), ('', '', 2)))
def test_the_same_seed_twice_is_not_averaged(seeds, tmp_path):
  points, remarks = tables.over_seeds(read(tmp_path, [row(seed=0) | {'seed': seed} for seed in seeds]).rows)
  assert [len(point.names) for point in points] == [1, 1, 1]
  assert len(remarks) == 1 and '3 rows agree in everything, a seed included, and are not averaged' in remarks[0]


def test_a_row_that_lacks_a_column_agrees_with_others_that_lack_it(tmp_path):
  """An earlier version did not write measured_against, and a network may lack a field."""
  rows = [row(seed=seed, measured_against=against, loss=loss)
          for seed, against, loss in ((0, '', 1.0), (1, '', 2.0), (2, 'labels', 3.0), (3, 'labels', ''))]
  table = read(tmp_path, rows)
  points, _ = tables.over_seeds(table.rows)
  assert [len(point.names) for point in points] == [2, 2] and table.varied == ['measured_against']
  assert points[0].means['loss'] == 1.5 and 'loss' not in points[1].means  # the mean of one would pass for that of two


def test_what_is_left_out_is_said(tmp_path):
  rows = [row(), row(0.75, top1='nan'), row(0.5, top1=''), row(0.25, top1=45.2), row(0.3, mult_adds=0),
          row(0.35, params='many'), row(0.4, loss='inf', top5='1e999')]
  table = read(tmp_path, rows)
  assert [line['width_multiplier'] for line in table.rows] == [1.0, 0.4]
  left_out, *unusable = table.remarks
  assert ('5 rows of 7 left out: mobilenet_0.75_56_s0 (top1=nan), mobilenet_0.5_56_s0 (no top1), mobilenet_0.25_56_s0 '
          '(top1=45.2, which is no fraction) and 2 more') in left_out
  assert [text.split(': ', 1)[1] for text in unusable] == [
      f'{column} is no finite number in 1 row and left out there: mobilenet_0.4_56_s0' for column in ('loss', 'top5')]
  assert not {'loss', 'top5'} & set(table.rows[1])


def test_a_line_that_was_cut_off_is_left_out(tmp_path):
  """A cell of it may be shorter than it was, such as 0.9 for 0.95."""
  results.write_csv(tmp_path / 'results.csv', [row(), row(0.5)])
  text = (tmp_path / 'results.csv').read_text()
  (tmp_path / 'results.csv').write_text('\ufeff' + text[:-20])
  table = tables.read(tmp_path / 'results.csv')
  assert len(table.rows) == 1 and '1 row of 2 left out: mobilenet_0.5_56_s0 (14 cells in 18 columns)' in table.remarks[0]
  (tmp_path / 'results.csv').write_text(text[:-1] + ',more\n')
  assert '(1 cell more than columns)' in tables.read(tmp_path / 'results.csv').remarks[0]


def test_earlier_and_foreign_columns(tmp_path):
  """Numbers of unknown columns were measured, texts were set; a text among numbers is no number."""
  rows = [row(seed=0, flops=1.0, note='a', loss='x'), row(seed=1, flops=2.0, note='a'), row(seed=2, flops=3.0, note='b')]
  table = read(tmp_path, rows)
  assert table.varied == ['note'] and 'loss is no finite number in 1 row' in table.remarks[0]
  points, _ = tables.over_seeds(table.rows)
  assert [point.means['flops'] for point in points] == [1.5, 3.0] and 'loss' not in points[0].means


@pytest.mark.parametrize('content, message', (
    (b'', 'has no rows; let a run of the sweep finish first'),
    (b'name,model\n', 'has no rows'),
    (b'\x89PNG\r\n\x1a\n\x00', 'not a table of results'),
    (b'a;b\n1;2\n', 'has no column model, width_multiplier, height, width, mult_adds, params; expected'),
    (b'top1,top1\n1,2\n', 'has two columns top1'),
    (b'"' + b'x' * 200_000 + b'"\n1\n', 'not a table of results'),
    (','.join([*tables.NEEDED, *RUN_COLUMNS]).encode() + b'\n' + b'1,' * 12 + b'1\n',
     'has no metric of a task; expected a column top1'),
    (','.join([*tables.NEEDED, 'top1', 'mean_ap']).encode() + b'\nm,1,1,1,1,1,.5,\nm,1,1,1,1,1,,.5\n',
     'has rows of several tasks (1 row with top1, 1 row with mean_ap)'),
    (','.join([*tables.NEEDED, 'top1']).encode() + b'\nm,1,1,1,1,x,.5\n', 'no row is complete: row 1 (params=x)')))
def test_what_cannot_be_read_is_one_line(content, message, tmp_path):
  (tmp_path / 'results.csv').write_bytes(content)
  with pytest.raises(UserError) as error:
    tables.read(tmp_path / 'results.csv')
  assert message in str(error.value) and str(tmp_path / 'results.csv') in str(error.value)


@pytest.mark.parametrize('name, message', (('nowhere.csv', 'No such file'), ('.', 'Is a directory')))
def test_a_path_without_a_file(name, message, tmp_path):
  with pytest.raises(UserError, match=f'{message}.*; expected the results.csv of a sweep'):
    tables.read(tmp_path / name)


def test_fit_equals_scipys():
  rng = np.random.default_rng(0)
  mult_adds = 10 ** rng.uniform(6, 9, 16)
  accuracy = 10 * np.log10(mult_adds) + rng.normal(0, 3, 16)
  expected = stats.linregress(np.log10(mult_adds), accuracy)
  fit = tables.log_linear_fit(mult_adds, accuracy)
  np.testing.assert_allclose(fit[:3], (expected.intercept, expected.slope, expected.rvalue**2))
  assert fit.problem == ''


@pytest.mark.parametrize('x, y, problem', (
    ([1, 10, 100], [0.1 + 0.2, 0.3, 0.3], 'R² is undefined, as all are equal'),
    ([1, 10, 100], [0, 0, 0], 'R² is undefined, as all are equal'), ([1, 10, 10], [1, 2, 3], 'no fit: fewer than three costs'),
    ([5], [1], 'no fit: fewer than three costs'), ([0, 1, 2], [1, 2, 3], 'no fit: a cost is not above 0')))
def test_a_fit_without_meaning_is_said(x, y, problem):
  assert tables.log_linear_fit(x, y).problem == problem
