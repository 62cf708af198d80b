"""The figures are drawn from a CSV file alone, without JAX."""

import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, experiment
from scipy import stats

from experiments import figures



@pytest.fixture
def table(tmp_path):
  path = tmp_path / 'table.csv'
  lines = ['name,model,width_multiplier,height,width,mult_adds,params,top1']
  for alpha in (1.0, 0.75, 0.5, 0.25):
    for size in (56, 48, 40, 32):
      mult_adds = int(36e6 * alpha**2 * (size / 56) ** 2)
      lines.append(f'x,mobilenet,{alpha},{size},{size},{mult_adds},{int(4e6 * alpha**2)},{0.5 + 0.05 * np.log(mult_adds / 1e6)}')
  lines.append('x,conv_mobilenet,1.0,56,56,300000000,29000000,0.9')  # not part of this figure
  path.write_text('\n'.join(lines) + '\n')
  return path


def draw(*args):
  return experiment('figures', *args)


def test_both_figures_and_the_table(table, tmp_path):
  done = draw('--results', table, '--out', tmp_path / 'out', '--name', 'my_', '--reference', 'paper,published')
  assert done.returncode == 0, done.stderr
  for number in (4, 5):
    assert (tmp_path / 'out' / f'my_figure{number}.png').read_bytes().startswith(b'\x89PNG')
    assert '</svg>' in (tmp_path / 'out' / f'my_figure{number}.svg').read_text()
  assert (tmp_path / 'out' / 'my_results.csv').read_text() == table.read_text()


def test_jax_is_not_imported(table, tmp_path):
  code = ("import sys; from experiments import figures; "
          f"sys.argv[1:] = ['--results', {str(table)!r}, '--out', {str(tmp_path / 'out')!r}]; "
          "figures.main(); assert not {'jax', 'tensorflow'} & set(sys.modules)")
  subprocess.run([sys.executable, '-c', code], cwd=ROOT, check=True, capture_output=True)


def test_figure_4_shows_every_model_on_a_logarithmic_axis(table):
  rows = figures.read(table)
  axes = figures.figure4(rows).axes[0]
  assert axes.get_xscale() == 'log'
  points = np.concatenate([line.get_xydata() for line in axes.lines if line.get_linestyle() == 'None'])
  assert sorted(map(tuple, points)) == sorted((row['mult_adds'] / 1e6, 100 * row['top1']) for row in rows)
  assert len(points) == 16
  labels = [text.get_text() for text in axes.get_legend().get_texts()]
  assert labels == ['56 x 56', '48 x 48', '40 x 40', '32 x 32', 'log-linear fit, $R^2$ = 1.00']
  assert sorted(text.get_text() for text in axes.texts) == sorted(['1', '0.75', '0.5', '0.25'] * 4)


def test_fit_equals_scipys():
  rng = np.random.default_rng(0)
  mult_adds = 10 ** rng.uniform(6, 9, 16)
  accuracy = 10 * np.log10(mult_adds) + rng.normal(0, 3, 16)
  expected = stats.linregress(np.log10(mult_adds), accuracy)
  np.testing.assert_allclose(figures.log_linear_fit(mult_adds, accuracy),
                             (expected.intercept, expected.slope, expected.rvalue**2))


def test_reference_has_the_papers_and_the_published_models():
  rows = figures.read(figures.REFERENCE)
  assert [sum(row['source'] == source for row in rows) for source in ('paper', 'published')] == [8, 16]


@pytest.mark.parametrize('args, message', (
    (['--results', 'nowhere.csv'], '--results=nowhere.csv: No such file'),
    (['--results', 'Makefile'], '--results=Makefile: not a table of results'),
    (['--results', figures.REFERENCE, '--reference', 'mine'], 'expected paper or published')))
def test_bad_input_is_one_line(args, message, tmp_path):
  done = draw(*args, '--out', tmp_path)
  assert done.returncode == 1 and message in done.stderr
  assert done.stderr.startswith('error: ') and done.stderr.count('\n') == 1
