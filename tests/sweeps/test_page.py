"""The page of sweeps, as far as no browser is needed: what is in it, what it says is missing, what it refuses."""

import base64
import csv
import hashlib
import html.parser
import json
import shutil

import made_up
import numpy as np
import pytest
from conftest import assert_one_line, command
from scipy import stats

from mobilenet_jax.storage import files, run_files
from mobilenet_jax.sweeps import page as page_lib
from mobilenet_jax.sweeps import results
from mobilenet_jax.sweeps.page import contents

VOID = {'meta', 'link', 'input', 'wbr'}
MARKUP = '"><script>alert(1)</script><!--\'&amp;'
FIRST = 'mobilenet_1.0_56'


class Parsed(html.parser.HTMLParser):
  """A page: the texts of its tables, its scripts and styles, and its other words. A tag that is not closed is an error."""

  def __init__(self, text):
    super().__init__()
    self.open, self.tags, self.tables, self.code, self.words = [], [], {}, [], ''
    self.feed(text)
    self.close()
    assert not self.open
    self.words = ' '.join(self.words.split())
    for row in (row for rows in self.tables.values() for row in rows):
      row[:] = map(str.strip, row)

  def handle_starttag(self, tag, attrs):
    attrs = dict(attrs)
    self.tags.append((tag, attrs))
    if tag not in VOID:
      self.open.append(tag)
    if tag == 'table':
      self.rows = self.tables.setdefault(attrs.get('id', len(self.tables)), [])
    if tag == 'tr':
      self.rows.append([])
    if tag in ('td', 'th'):
      self.rows[-1].append('')
    if tag in ('script', 'style'):
      self.code.append((attrs.get('id', tag), ''))

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    if self.open and self.open[-1] in ('script', 'style'):
      self.code[-1] = self.code[-1][0], self.code[-1][1] + data
    elif {'td', 'th'} & {*self.open}:
      self.rows[-1][-1] += data
    else:
      self.words += data

  def table(self, name):
    """The rows of a table, by the texts of its first row."""
    titles, *rows = self.tables[name]
    return [dict(zip(titles, row, strict=True)) for row in rows]

  @property
  def data(self):
    return json.loads(dict(self.code)['data'])


def parsed(folder):
  """The page of a folder, and what the command says."""
  done = command('report', folder)
  assert done.returncode == 0, done.stderr
  *remarks, last = done.stdout.splitlines()
  assert last.startswith(f'page     {folder / "report.html"}: ')
  page = Parsed((folder / 'report.html').read_text())
  assert all(remark.removeprefix('remark   ') in page.words for remark in remarks)
  return page, done.stdout


@pytest.fixture(scope='module')
def grid(tmp_path_factory):
  folder = tmp_path_factory.mktemp('sweeps') / 'grid'
  made_up.grid(folder)
  return folder


@pytest.fixture(scope='module')
def page_of_grid(grid):
  return parsed(grid)


def test_a_page_has_every_run_the_means_over_seeds_and_the_fit(grid, page_of_grid):
  page, said = page_of_grid
  assert said.splitlines()[-1].startswith(f'page     {grid}/report.html: 48 finished of 48 runs, ') and 'remark' not in said
  rows = [run_files.read_row(grid / name) for name in results.read_sweep(grid)]
  assert [line['name'] for line in page.table('runs')] == [row['name'] for row in rows]
  assert [line['top-1'] for line in page.table('runs')] == [f'{row["top1"]:.2%}' for row in rows]
  lines = page.table('points-classification')
  top1 = 100 * np.array([row['top1'] for row in rows]).reshape(16, 3)  # the seeds of a model are next to each other
  assert [line['top-1 (%)'] for line in lines] == [
      f'{mean:.2f} ± {deviation:.2f} %' for mean, deviation in zip(top1.mean(1), top1.std(1, ddof=1))]
  assert [(line['α'], line['input'], line['seeds']) for line in lines] == [
      (f'{alpha:g}', str(size), '3') for alpha in made_up.ALPHAS for size in made_up.SIZES]
  expected = stats.linregress(np.log10([row['mult_adds'] for row in rows[::3]]), top1.mean(1))
  fit = f'grid: R² {expected.rvalue**2:.3f} over 16 points; ten times the Mult-Adds give {expected.slope:.3g} more'
  assert fit in page.words
  panel, = page.data['panels']
  np.testing.assert_allclose([point['high'] - point['value'] for point in panel['points']], top1.std(1, ddof=1), atol=2e-4)
  ends = panel['ends']
  np.testing.assert_allclose([end['value'] for end in ends], [
      expected.intercept + expected.slope * np.log10(1e6 * end['mult_adds']) for end in ends], rtol=1e-4)
  differing = {line['field']: line['grid'] for line in next(
      page.table(name) for name, rows in page.tables.items() if rows[0][0] == 'field')}
  assert differing == {'model.width_multiplier': '0.25 (12 runs), 0.5 (12 runs), 0.75 (12 runs), 1 (12 runs)',
                       'data.image_size': '32 (12 runs), 40 (12 runs), 48 (12 runs), 56 (12 runs)',
                       'seed': '0 (16 runs), 1 (16 runs), 2 (16 runs)'}
  curve = page.data['runs'][0]['evaluations']
  assert len(curve) == 20 and curve[-1] == [1000, pytest.approx(top1[0, 0], rel=1e-4)]


def test_a_page_needs_nothing_else_and_runs_only_its_own_scripts(page_of_grid):
  page, _ = page_of_grid
  policy = next(attrs['content'] for tag, attrs in page.tags if attrs.get('http-equiv') == 'Content-Security-Policy')
  allowed = dict(part.strip().split(' ', 1) for part in policy.split(';'))
  assert allowed['default-src'] == "'none'" and 'unsafe' not in policy
  digests = {kind: [f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
                    for name, text in page.code if name == kind] for kind in ('script', 'style')}
  assert allowed['script-src'].split() == digests['script'] and allowed['style-src'].split() == digests['style']
  addresses = [attrs[name] for _, attrs in page.tags for name in ('src', 'href', 'action') if name in attrs]
  assert addresses and all(address.startswith(('#', 'data:')) for address in addresses)
  assert not any(name.startswith('on') or name == 'style' for _, attrs in page.tags for name in attrs)


def test_what_has_not_finished_is_said_with_the_reason(tmp_path):
  folder = tmp_path / 'runs'
  made_up.failed(folder, 'failed', 'out of memory')
  made_up.failed(folder, MARKUP.replace('/', '∕'), f'{MARKUP} "quoted"')
  for name in ('stopped', 'running'):
    made_up.add(folder, name, made_up.config(0.5), finished=False)
  (folder / 'stopped' / 'checkpoints' / '500').mkdir(parents=True)
  results.add_runs(folder, [*results.read_sweep(folder), 'to come'])
  with files.lock(folder / 'running'):
    page, said = parsed(folder)
  table = next(rows for rows in page.tables.values() if 'so far, or why' in rows[0])
  assert [row[:1] + row[2:] for row in table[1:]] == [
      ['failed', 'failed', 'out of memory'], [MARKUP.replace('/', '∕'), 'failed', f'{MARKUP} "quoted"'],
      ['stopped', 'stopped', table[3][3]], ['running', 'running', table[4][3]], ['to come', 'waiting', 'not started']]
  assert all(row[3].startswith('step 500/1000, top-1 ') for row in table[3:5]) and table[4][3].endswith(', 1:20 left')
  assert '2 failed, 1 stopped, 1 running, 1 waiting of 5 runs' in said
  assert 'No run has finished yet' in page.words
  assert [run['name'] for run in page.data['runs'] if run['evaluations']] == [
      'failed', MARKUP.replace('/', '∕'), 'stopped', 'running']


def test_fields_that_are_markup_stay_text(tmp_path):
  folder = tmp_path / 'a<b>\udc80'
  for i, text in enumerate((MARKUP, '</script>')):
    made_up.add(folder, f'run{i}', made_up.config(0.5, **{'data.data_dir': text}))
  out = tmp_path / 'page.html'
  assert command('report', folder, '--out', out).returncode == 0
  page = Parsed(out.read_text())
  assert [line['data.data_dir'] for line in page.table('runs')] == [MARKUP, '</script>']
  assert page.data['panels'][0]['points'][0]['f0'] == MARKUP
  assert len(page.code) == 4  # style, library, data, script
  assert r'a<b>\udc80' in page.words


def change_row(**values):
  def change(folder):
    path = folder / FIRST / run_files.RESULT_FILE
    row = {**json.loads(path.read_text()), **values}
    path.write_text(json.dumps({name: value for name, value in row.items() if value is not None}))
  return change


def write(name, content):
  return lambda folder: (folder / name).write_bytes(content)


def change_all(**values):
  def change(folder):
    for name in results.read_sweep(folder):
      path = folder / name / run_files.RESULT_FILE
      path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
  return change


# What is done to a sweep of four runs, what the page says of it, and how many points are left.
SPOILT = {
    'no_metric': (change_row(top1=None), f'{FIRST} is in no chart: top1 is missing.', 3),
    'nan': (change_row(top1=float('nan')), f'{FIRST} is in no chart: top1 is nan.', 3),
    'percent': (change_row(top1=56), f'{FIRST} is in no chart: top1 is 56, which is no fraction.', 3),
    'no_cost': (change_row(mult_adds=0), f'{FIRST} is in no chart: mult_adds is 0.', 3),
    'more_columns': (change_row(extra=3.5, another=1), '', 4),
    'other_data': (change_row(dataset='cifar10'), 'The runs differ in dataset (', 4),
    'equal': (change_all(top1=0.5), 'undefined', 4),
    'one_cost': (change_all(mult_adds=10), 'one_cost: no fit: ', 4),
    'three_rows': (lambda folder: shutil.rmtree(folder / FIRST), 'three_rows: R² ', 3),
    'without_metrics': (lambda folder: (folder / FIRST / run_files.METRICS_FILE).unlink(),
                        f'{FIRST}: no evaluation in its metrics.jsonl', 4),
    'damaged_metrics': (write(f'{FIRST}/metrics.jsonl', b'{"step": 1, "split": "eval", "top1": 1e999}\n\xff\n[]\n{"step":'),
                        f'{FIRST}: 2 lines of its metrics.jsonl cannot be read.', 4),
    'without_config': (lambda folder: (folder / FIRST / run_files.CONFIG_FILE).unlink(),
                       f'without_config/{FIRST}/config.json: there is no such file', 4),
    'damaged_config': (write(f'{FIRST}/config.json', b'{"seed": {"a": []}}'), f'damaged_config/{FIRST}/config.json: damaged', 4),
    'odd_config': (write(f'{FIRST}/config.json', b'{"data": {"image_size": [[56], [56]]}, "task": 3}'), '', 4),
    'damaged_names': (write('sweep.json', b'{"runs'), 'damaged_names/sweep.json: damaged', 4)}


def test_what_cannot_be_used_is_said(tmp_path):
  for name, (spoil, _, _) in SPOILT.items():
    for alpha in made_up.ALPHAS:
      made_up.add(tmp_path / name, f'mobilenet_{alpha}_56', made_up.config(alpha))
    spoil(tmp_path / name)
  done = command('report', *(tmp_path / name for name in SPOILT), '--out', tmp_path / 'page.html')
  assert done.returncode == 0, done.stderr
  page = Parsed((tmp_path / 'page.html').read_text())
  for remark in done.stdout.splitlines()[:-1]:
    assert remark.removeprefix('remark   ') in page.words
  lines = page.table('points-classification')
  for name, (_, remark, drawn) in SPOILT.items():
    assert remark in page.words
    for rows in (page.data['panels'][0]['points'], lines):
      assert sum(row['sweep'] == name for row in rows) == drawn, name
    assert [line['sweep'] for line in page.table('runs')].count(name) == 4


@pytest.mark.parametrize('count', (1, 2))
def test_one_and_two_rows_have_a_page(count, tmp_path):
  for alpha in made_up.ALPHAS[:count]:
    made_up.add(tmp_path, f'mobilenet_{alpha}_56', made_up.config(alpha))
  page, _ = parsed(tmp_path)
  assert len(page.data['panels'][0]['points']) == count
  assert 'R² ' not in page.words and 'no fit: ' in page.words


def test_two_tasks_each_have_their_measure_and_a_run_may_be_alone(tmp_path):
  made_up.grid(tmp_path / 'attributes', seeds=1, task='attributes')
  made_up.add(tmp_path / 'faces', 'one', made_up.config(task='embedding'))
  out = tmp_path / 'new' / 'both.html'
  done = command('report', tmp_path / 'attributes', tmp_path / 'faces' / 'one', '--out', out)
  assert done.returncode == 0, done.stderr
  page = Parsed(out.read_text())
  assert [panel['task'] for panel in page.data['panels']] == ['attributes', 'embedding']
  assert {'mean AP (%)'} < {*page.tables['points-attributes'][0]} and {'accuracy (%)'} < {*page.tables['points-embedding'][0]}
  assert [line['sweep'] for line in page.table('runs')] == ['attributes'] * 16 + [contents.SINGLE]
  assert {'mean AP', 'emulation', 'accuracy', 'AUC'} < {*page.tables['runs'][0]}
  assert page.table('runs')[0]['accuracy'] == page.table('runs')[16]['mean AP'] == '–'


def test_parallel_coordinates_where_more_than_two_fields_vary(tmp_path):
  for alpha in (1.0, 0.5):
    for rate in (0.1, 0.001, 0.01):
      for seed in range(2):
        made_up.add(tmp_path, f'a{alpha}_lr{rate}_s{seed}', made_up.config(alpha, seed=seed, **{'optim.learning_rate': rate}))
  page, _ = parsed(tmp_path)
  assert 'lines' not in page.data['panels'][0]  # two fields, and seeds
  assert [line['name'] for line in page.table('points-classification')][:2] == ['a1.0_lr0.1', 'a1.0_lr0.001']
  for batch in (16, 32):
    made_up.add(tmp_path, f'a1.0_b{batch}', made_up.config(1.0, batch_size=batch))
  panel = parsed(tmp_path)[0].data['panels'][0]
  assert len(panel['lines']) == 8 * 4  # three fields and the measure
  rates = {tick['text']: tick['at'] for tick in panel['ticks'] if tick['axis'] == 'optim.learning_rate'}
  assert rates == {'0.001': 0, '0.01': 0.5, '0.1': 1}


def test_up_to_200_runs_have_curves_in_three_megabytes(grid, monkeypatch):
  runs, _ = contents.read([grid])
  curve = [(10 * i, 0.1234567 + i / 7000) for i in range(contents.CURVE_POINTS)]
  many = [runs[i % 48]._replace(name=f'mobilenet_0.5_160_lr0.002_{i}', evaluations=curve, losses=curve,
                                config={**runs[i % 48].config, 'optim.learning_rate': i / 1e4}) for i in range(201)]
  text, remarks = page_lib.build(many[:200], [])
  assert len(text.encode()) <= 3_000_000 and not remarks
  assert all(len(run['losses']) == contents.CURVE_POINTS for run in Parsed(text).data['runs'])
  monkeypatch.setattr(page_lib, 'MOST_BYTES', 960_000)
  for given in (many, runs):  # too many, and too large
    text, remarks = page_lib.build(given, [])
    page = Parsed(text)
    assert 'The learning curves are left out' in remarks[-1] and remarks[-1] in page.words
    assert 'type="checkbox"' not in text and not any(page.data['runs'])


def test_long_curves_are_thinned_and_keep_their_end(tmp_path):
  made_up.add(tmp_path / 'x', 'run', made_up.config(), points=1000)
  page, _ = parsed(tmp_path / 'x')
  curve = page.data['runs'][0]['evaluations']
  assert 100 <= len(curve) <= contents.CURVE_POINTS and curve[-1][0] == 1000
  assert 'at most 150 points of each' in page.words


def test_a_table_alone_has_a_page(grid, tmp_path):
  """A results.csv without the folders of its runs, or of some of them; with other columns than today's."""
  with (grid / 'results.csv').open() as file:
    lines = [{'extra': 'text', **line} for line in csv.DictReader(file)]
  lines[0]['top1'], lines[1]['top1'] = '', 'nan'
  results.write_csv(tmp_path / 'results.csv', lines)
  page, said = parsed(tmp_path)
  assert '2 rows of 48 left out' in said and 'of 46 runs there is only the row in this table' in said
  assert len(page.data['panels'][0]['points']) == 16 and len(page.table('runs')) == 46
  assert {(line['α'], line['input']) for line in page.table('runs')} == {
      (f'{alpha:g}', str(size)) for alpha in made_up.ALPHAS for size in made_up.SIZES}
  for column in ('mult_adds', 'top1'):
    results.write_csv(tmp_path / 'results.csv', [{name: value for name, value in line.items() if name != column}
                                                 for line in lines])
    assert_one_line(command('report', tmp_path), 'results.csv: has no ')
  made_up.add(tmp_path / 'half', FIRST, made_up.config())
  made_up.add(tmp_path / 'half', 'other', made_up.config(0.5))
  results.collect(tmp_path / 'half')
  shutil.rmtree(tmp_path / 'half' / 'other')
  page, said = parsed(tmp_path / 'half')
  assert [line['state'] for line in page.table('runs')] == ['finished'] * 2 and 'of 1 run there is only the row' in said


@pytest.mark.parametrize('args, message', (
    (['nowhere'], 'nowhere: neither a sweep nor a run is in this folder; expected the --workdir of'),
    (['empty'], 'empty: neither a sweep nor a run'),
    (['sweep', 'empty', '--out=x.html'], 'empty: neither a sweep nor a run'),
    (['sweep', 'sweep/../sweep'], 'is given twice'),
    (['sweep', 'other'], '--out is missing; give the file for the page of several folders'),
    (['sweep', '--out=sweep/results.csv'], 'results.csv: expected the name of an HTML file'),
    (['sweep', '--out=sweep/.html'], 'expected the name of an HTML file'),
    (['sweep', '--out=folder.html'], 'folder.html: expected the name of an HTML file'),
    (['sweep', '--out=sweep/results.csv/x.html'], 'results.csv'),
    ([], 'the following arguments are required: FOLDER')))
def test_what_is_no_sweep_is_one_line_and_nothing_is_written(args, message, tmp_path):
  for name in ('sweep', 'other'):
    made_up.add(tmp_path / name, 'run', made_up.config())
    (tmp_path / name / 'report.html').write_text('as before')
    results.collect(tmp_path / name)
  for name in ('empty', 'folder.html'):
    (tmp_path / name).mkdir()
  before = {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob('*')}
  done = command('report', *(f'--out={tmp_path}/{arg[6:]}' if arg.startswith('--out=') else tmp_path / arg for arg in args))
  assert_one_line(done, message)
  assert before == {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob('*')}


def test_a_line_is_fitted_to_the_points_that_differ_in_width_and_size_alone(tmp_path):
  rates = (0.01, 0.1)
  for rate in rates:
    made_up.grid(tmp_path / f'{rate}', seeds=1, **{'optim.learning_rate': rate})
    for name in results.read_sweep(tmp_path / f'{rate}'):
      made_up.add(tmp_path / 'both', f'{name}_lr{rate}', run_files.read_config(tmp_path / f'{rate}' / name))
  page, _ = parsed(tmp_path / 'both')
  panel, = page.data['panels']
  for rate in rates:
    rows = [run_files.read_row(tmp_path / 'both' / name) for name in results.read_sweep(tmp_path / 'both')
            if name.endswith(f'_lr{rate}')]
    expected = stats.linregress(np.log10([row['mult_adds'] for row in rows]), [100 * row['top1'] for row in rows])
    assert f'both, optim.learning_rate {rate}: R² {expected.rvalue**2:.3f} over 16 points' in page.words
    ends = [end for end in panel['ends'] if end['fit'] == f'both, optim.learning_rate {rate}']
    np.testing.assert_allclose([end['value'] for end in ends], [
        expected.intercept + expected.slope * np.log10(1e6 * end['mult_adds']) for end in ends], rtol=1e-4)


def test_single_runs_of_one_name_are_two_points(tmp_path):
  for folder, alpha in (('a', 1.0), ('b', 0.5)):
    made_up.add(tmp_path / folder, 'run', made_up.config(alpha))
  done = command('report', tmp_path / 'a' / 'run', tmp_path / 'b' / 'run', '--out', tmp_path / 'page.html')
  assert done.returncode == 0, done.stderr
  page = Parsed((tmp_path / 'page.html').read_text())
  for table in ('runs', 'points-classification'):
    assert [line['name'] for line in page.table(table)] == [str(tmp_path / folder / 'run') for folder in 'ab']
