"""The figures are drawn from CSV files alone, without JAX: what is drawn, what is said, and legends that cover nothing."""

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, assert_one_line, experiment
from matplotlib import pyplot as plt

from experiments import figures
from mobilenet_jax.errors import UserError
from mobilenet_jax.sweeps import looks, results, tables

GRID = [(alpha, size) for alpha in (1.0, 0.75, 0.5, 0.25) for size in (56, 48, 40, 32)]


def row(alpha, size, seed=0, **columns):
  mult_adds = int(36e6 * alpha**2 * (size / 56) ** 2)
  return {'name': f'{alpha}_{size}_{seed}', 'model': 'mobilenet', 'width_multiplier': alpha, 'height': size, 'width': size,
          'mult_adds': mult_adds, 'params': int(4e6 * alpha**2), 'top1': 0.5 + 0.05 * np.log(mult_adds / 1e6),
          'seconds': 10 * alpha + size, 'seed': seed} | columns


@pytest.fixture
def write_table(tmp_path):
  def write(name, rows):
    path = tmp_path / name / 'results.csv'
    path.parent.mkdir()
    results.write_csv(path, rows)
    return path
  return write


@pytest.fixture
def table(write_table):
  return write_table('grid', [row(*one) for one in GRID])


@pytest.fixture(autouse=True)
def close():
  yield
  plt.close('all')


def series_of(*paths):
  return figures.series_of([tables.read(path) for path in paths], figures.labels_of(paths))[0]


def draw(*args):
  return experiment('figures', *args)


def marks(axes):
  """Returns the points (x, y) of the marks, without the caps of the error bars."""
  return sorted(tuple(point) for line in axes.lines if line.get_linestyle() == 'None' and line.get_marker() in 'os^D'
                for point in line.get_xydata())


def legend_of(figure):
  inside = figure.axes[0].get_legend()
  return inside or figure.legends[0]


def entries(figure):
  return [text.get_text() for text in legend_of(figure).get_texts()]


def test_both_figures_and_the_table(table, tmp_path):
  done = draw('--results', table, '--out', tmp_path / 'out', '--name', 'my_', '--reference', 'paper,published')
  assert done.returncode == 0, done.stderr
  for number in (4, 5):
    assert (tmp_path / 'out' / f'my_figure{number}.png').read_bytes().startswith(b'\x89PNG')
    assert '</svg>' in (tmp_path / 'out' / f'my_figure{number}.svg').read_text()
  assert (tmp_path / 'out' / 'my_results.csv').read_text() == table.read_text()


def test_jax_is_not_imported(table, tmp_path):
  code = ("import sys; from experiments import figures; "
          f"figures.main(figures.parser().parse_args(['--results', {str(table)!r}, '--out', {str(tmp_path / 'out')!r}])); "
          "assert not {'jax', 'tensorflow'} & set(sys.modules)")
  subprocess.run([sys.executable, '-c', code], cwd=ROOT, check=True, capture_output=True)


def test_figure_4_shows_every_model_on_a_logarithmic_axis(table):
  figure = figures.draw(series_of(table), 'mult_adds')
  axes = figure.axes[0]
  assert axes.get_xscale() == 'log'
  assert marks(axes) == sorted((line['mult_adds'] / 1e6, 100 * line['top1']) for line in tables.read(table).rows)
  assert entries(figure) == ['56 x 56', '48 x 48', '40 x 40', '32 x 32', 'log-linear fit, $R^2$ = 1.00']
  assert legend_of(figure).get_title().get_text() == 'input; labels are α'
  assert sorted(text.get_text() for text in axes.texts) == sorted(['1', '0.75', '0.5', '0.25'] * 4)


def test_figure_5_has_one_label_for_each_width(table):
  axes = figures.draw(series_of(table), 'params').axes[0]
  assert sorted(text.get_text() for text in axes.texts) == ['0.25', '0.5', '0.75', '1']
  assert len(marks(axes)) == 16 and not [line for line in axes.lines if line.get_linestyle() == '--']


def test_seeds_are_one_point_with_an_error_bar(write_table):
  """Means, deviations and the fit are those of NumPy, written out."""
  rng = np.random.default_rng(0)
  rows = [row(*one, seed, top1=rng.uniform()) for one in GRID for seed in range(3)]
  figure = figures.draw(series_of(write_table('seeds', rows)), 'mult_adds')
  axes = figure.axes[0]
  values = 100 * np.array([line['top1'] for line in rows]).reshape(16, 3)
  x = np.array([line['mult_adds'] for line in rows[::3]]) / 1e6
  mean = values.sum(axis=1) / 3
  deviation = np.sqrt(((values - mean[:, None]) ** 2).sum(axis=1) / 2)
  np.testing.assert_allclose(marks(axes), sorted(zip(x, mean)))
  bars = sorted(tuple(np.ravel(path.vertices)) for path in axes.collections[0].get_paths())
  np.testing.assert_allclose(bars, sorted(zip(x, mean - deviation, x, mean + deviation)))
  design = np.stack([np.ones(16), np.log10(x)], axis=1)
  fitted = design @ np.linalg.solve(design.T @ design, design.T @ mean)
  r_squared = 1 - ((mean - fitted) ** 2).sum() / ((mean - mean.mean()) ** 2).sum()
  assert entries(figure)[-1] == f'log-linear fit, $R^2$ = {r_squared:.2f}'
  assert legend_of(figure).get_title().get_text().endswith('means of 3 seeds;\nbars: ± standard deviation')


def test_each_table_has_a_colour_and_a_fit(write_table):
  paths = [write_table('paper', [row(*one) for one in GRID]),
           write_table('ours', [row(*one, top1=0.3 + 0.01 * i % 3) for i, one in enumerate(GRID)])]
  figure = figures.draw(series_of(*paths), 'mult_adds')
  assert len(marks(figure.axes[0])) == 32
  assert [text.split(':')[0] for text in entries(figure)[-2:]] == ['paper', 'ours']
  fits = [line for line in figure.axes[0].lines if line.get_linestyle() != 'None']
  for fit, path in zip(fits, paths, strict=True):
    rows = tables.read(path).rows
    x, y = [line['mult_adds'] for line in rows], [100 * line['top1'] for line in rows]
    slope, intercept = np.polyfit(np.log10(x), y, 1)
    ends = fit.get_xdata()
    np.testing.assert_allclose(fit.get_ydata(), intercept + slope * np.log10(ends * 1e6))
  assert len({fit.get_color() for fit in fits}) == 2


def test_what_else_varies_divides_a_table(write_table):
  """Two learning rates are not one point, and another model is neither dropped nor part of the fit."""
  rows = [row(*one, seed, **{'optim.learning_rate': rate}) for one in GRID[:4] for rate in (0.001, 0.003) for seed in (0, 1)]
  other = row(1.0, 56, model='conv_mobilenet', mult_adds=300_000_000, **{'optim.learning_rate': 0.001})
  path = write_table('rates', [*rows, other])
  series = series_of(path)
  assert [one.label for one in series] == ['mobilenet, learning_rate 0.001', 'mobilenet, learning_rate 0.003',
                                           'conv_mobilenet, learning_rate 0.001']
  assert [len(one.points) for one in series] == [4, 4, 1]
  assert entries(figures.draw(series, 'mult_adds'))[-1] == f'{series[-1].label}: no fit: fewer than three costs'
  chosen = tables.where(tables.read(path), ['model=mobilenet', 'optim.learning_rate=3e-3', 'height=56', 'height=48'])
  assert {(line['optim.learning_rate'], line['height']) for line in chosen.rows} == {(0.003, 56), (0.003, 48)}
  over_rates = figures.series_of([chosen], [''], ['optim.learning_rate'])[0]
  assert len(over_rates) == 1


def test_any_column_is_an_axis(write_table, tmp_path):
  rows = [row(*one, **{'optim.warmup': i % 2, 'seconds': '' if i == 0 else 100 + i}) for i, one in enumerate(GRID)]
  path = write_table('grid', rows)
  done = draw('--results', path, '--out', tmp_path / 'out', '--x=seconds')
  assert done.returncode == 0 and '1 run left out, without seconds: 1.0_56_0' in done.stdout, done.stderr
  assert {file.name for file in (tmp_path / 'out').iterdir()} == {'figure_seconds.png', 'figure_seconds.svg', 'results.csv'}
  series = figures.series_of([tables.read(path)], [''], ['optim.warmup'])[0]
  axes = figures.draw(series, 'optim.warmup').axes[0]
  assert len(series) == 1 and axes.get_xscale() == 'linear' and {x for x, _ in marks(axes)} == {0, 1}  # 0 has no logarithm


def test_the_main_metric_of_the_task_is_drawn(write_table):
  rows = [{name: value for name, value in row(*one).items() if name != 'top1'} | {'mean_ap': 0.25} for one in GRID]
  table = tables.read(write_table('faces', rows))
  figure = figures.draw(figures.series_of([table], [''])[0], 'mult_adds', table.metric)
  assert figure.axes[0].get_ylabel() == 'mean average precision (%)' and {y for _, y in marks(figure.axes[0])} == {25}
  assert entries(figure)[-1] == 'R² is undefined, as all are equal'


def random_series(rng, count):
  found = []
  for i in range(count):
    sizes = rng.choice([32, 40, 48, 56, 64, 96, 128, 160, 192, 224], rng.integers(1, 6), replace=False)
    rows = [row(float(alpha), int(size), seed, top1=float(rng.uniform()), seconds=float(rng.uniform(10, 1e4)))
            for alpha in rng.choice([0.25, 0.35, 0.5, 0.75, 1.0, 1.4], rng.integers(1, 4), replace=False) for size in sizes
            for seed in range(rng.integers(1, 3))]
    found.append(figures.Series(f'table {i} ' + 'of words ' * rng.integers(8), tables.over_seeds(rows)[0]))
  return found


@pytest.mark.parametrize('count', range(1, 7))
def test_a_legend_covers_no_mark(count):
  """Neither a mark nor an error bar nor a label, at the resolution of the file; and it is whole."""
  rng = np.random.default_rng(count)
  figure = figures.draw(random_series(rng, count), ('mult_adds', 'seconds')[count % 2])
  figure.set_dpi(160)
  figure.draw_without_rendering()
  axes, box = figure.axes[0], legend_of(figure).get_window_extent()
  boxes = [text.get_window_extent() for text in axes.texts]
  assert boxes and not any(box.overlaps(other) for other in boxes)
  marked = [line for line in axes.lines if line.get_linestyle() == 'None']
  points = axes.transData.transform([point for line in marked for point in line.get_xydata()])
  bars = [axes.transData.transform(path.vertices) for bar in axes.collections for path in bar.get_paths()]
  reach = 4 * 160 / 72
  for low, high in [(point, point) for point in points] + [(bar.min(axis=0), bar.max(axis=0)) for bar in bars]:
    (left, bottom), (right, top) = low - reach, high + reach
    assert right < box.x0 or left > box.x1 or top < box.y0 or bottom > box.y1
  assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1
  assert np.all(axes.bbox.size > 160 * np.array((4.5, 3)))  # the axes keep their size


@pytest.mark.parametrize('count', (1, 2, 3))
def test_a_few_rows_are_drawn(count, write_table):
  figure = figures.draw(series_of(write_table('few', [row(*one) for one in GRID[:count]])), 'mult_adds')
  assert len(marks(figure.axes[0])) == count and ('no fit: fewer than three costs' in entries(figure)) == (count < 3)


def test_equal_costs_are_drawn_without_a_fit(write_table):
  figure = figures.draw(series_of(write_table('equal', [row(*one, mult_adds=1000) for one in GRID])), 'mult_adds')
  assert len(marks(figure.axes[0])) == 16 and entries(figure)[-1] == 'no fit: fewer than three costs'


def test_labels_are_text(write_table, tmp_path):
  """Neither a formula nor hidden, as Matplotlib hides labels that begin with an underscore."""
  paths = [write_table(name, [row(*one) for one in GRID[:3]]) for name in ('a', 'b')]
  series, _ = figures.series_of([tables.read(path) for path in paths], ['_$x_1$', '<b>'])
  figure = figures.draw(series, 'params')
  assert entries(figure)[-2:] == [r'_\$x_1\$', '<b>']
  figures.save(figure, tmp_path / 'figure.png')
  assert len(list(csv.reader((tmp_path / 'figure.svg').open()))) > 100  # it can be drawn


@pytest.mark.parametrize('paths, given, expected', (
    (('a/results.csv',), (), ['']), (('a/results.csv', 'b/results.csv'), (), ['a', 'b']), (('a.csv', 'b.csv'), (), ['a', 'b']),
    (('a/x/results.csv', 'b/x/results.csv'), (), ['a/x/results.csv', 'b/x/results.csv']),
    (('a.csv', 'b.csv'), ('paper', 'ours'), ['paper', 'ours'])))
def test_names_of_tables(paths, given, expected):
  assert figures.labels_of([Path(path) for path in paths], given) == expected


def test_runs_that_may_not_compare_are_said(write_table):
  found = [tables.read(write_table(name, [row(*GRID[0], dataset=name)])) for name in ('cifar10', 'fabrics')]
  assert figures.series_of(found, ['a', 'b'])[1] == [
      'The runs differ in dataset (cifar10, fabrics), so that their results may not compare']


def test_too_many_series_say_how_to_choose(write_table):
  rows = [row(*GRID[0], **{'optim.learning_rate': rate / 1000}) for rate in range(1, 11)]
  with pytest.raises(UserError, match="10 combinations: optim.learning_rate; expected at most 8; .*--where 'optim.learn"):
    series_of(write_table('rates', rows))


def test_sizes_that_would_look_alike_are_an_error(write_table):
  with pytest.raises(UserError, match=f'17 input sizes; expected at most {looks.MAX_LOOKS}'):
    figures.draw(series_of(write_table('sizes', [row(1.0, 32 + i) for i in range(17)])), 'mult_adds')


@pytest.mark.parametrize('args, message', (
    (['--results', 'nowhere.csv'], 'nowhere.csv: No such file'),
    (['--results', 'Makefile'], 'Makefile: has no column model, width_multiplier'),
    (['--results', 'tests'], 'tests: Is a directory; expected the results.csv'),
    (['--results', '{table}', '--reference', 'mine'], 'expected paper or published'),
    (['--results', '{table}', '--x', 'seconds', '--reference', 'paper'], '--reference=paper: has only top1, mult_adds and'),
    (['--results', '{table}', '--x', 'device'], '--x=device: expected a column of numbers: width_multiplier, height'),
    (['--results', '{table}', '--metric', 'seed'], '--metric=seed: expected a column of numbers'),
    (['--results', '{table}', '--where', 'optim=1'], '--where optim=1: {table} has no such column'),
    (['--results', '{table}', '--where', 'height=1'], 'no row of {table} is left; expected height to be one of 56, 48'),
    (['--results', '{table}', '{faces}'], '{table} is of classification (top1), {faces} of attributes (mean_ap); expected'),
    (['--results', '{table}', '--results', '{faces}', '--labels', 'a'], '--labels: 1 label for 2 tables; expected one each'),
    (['--results', '{table}', '{table}'], '--results: {table} is given twice'),
    (['--results', '{table}', '--out={sweep}'], 'is the folder of a sweep, whose results.csv would be replaced by {table}')))
def test_bad_input_is_one_line(args, message, table, write_table, tmp_path):
  faces = write_table('faces', [{name: value for name, value in row(*GRID[0]).items() if name != 'top1'} | {'mean_ap': 0.5}])
  (faces.parent / 'sweep.json').write_text('{}')
  before = faces.read_text()
  paths = {'table': table, 'faces': faces, 'sweep': faces.parent}
  out = [] if '--out={sweep}' in args else ['--out', tmp_path / 'out']
  assert_one_line(draw(*(arg.format(**paths) for arg in args), *out), message.format(**paths))
  assert not (tmp_path / 'out').exists() and faces.read_text() == before
