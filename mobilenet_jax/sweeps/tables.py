"""Tables of results: reads a results.csv, takes seeds together, and fits accuracy to cost. Does not import JAX."""

import csv
import io
import math
import re
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mobilenet_jax import config as config_lib
from mobilenet_jax.errors import UserError, counted, few
from mobilenet_jax.storage.files import read_regular
from mobilenet_jax.storage.run_files import MODEL_COLUMNS, RUN_COLUMNS, TEXT_COLUMNS

SWEEP_FILE, CSV_FILE = 'sweep.json', 'results.csv'  # in the folder of a sweep: the names of its runs, and their rows
REFERENCE = Path(__file__).parent / 'imagenet_reference.csv'  # the paper's results and the published models'
HEADLINES = {'classification': 'top1', 'attributes': 'mean_ap', 'embedding': 'accuracy'}  # the main metric of each task
# The headlines of the tasks as titles of an axis. A table has percentages as fractions.
TITLES = {'top1': 'top-1 accuracy (%)', 'top5': 'top-5 accuracy (%)', 'mean_ap': 'mean average precision (%)',
          'emulation': 'emulation', 'accuracy': 'verification accuracy (%)', 'auc': 'AUC', 'distance': 'distance'}
NEEDED = ('model', 'width_multiplier', 'height', 'width', 'mult_adds', 'params')
SEEDS = ('seed', 'data.seed')
COSTS = ('mult_adds', 'params')  # follow from the others
MAX_NUMBER = 1e100  # larger ones would overflow in sums of squares
_APART = ('name', *SEEDS, 'seconds', 'commit', 'device', 'extended')  # what runs that differ only in their seed need not share
_SETTINGS = {*MODEL_COLUMNS, *RUN_COLUMNS} - {*_APART}
_FIELDS = set(config_lib.all_fields({}))
_SECTIONS = {field.partition('.')[0] for field in _FIELDS if '.' in field}
_SEED = re.compile(r'(_data-seed-?\d+)?(_s\d+)?$')
_NUMBER = re.compile(r'[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?|[+-]?(nan|inf)', re.IGNORECASE | re.ASCII)


class Table(NamedTuple):
  """A table of results.

  Attributes:
    path: its file.
    task: the name of the task; '' if a metric was asked for that is no task's main metric.
    metric: the column of the main metric, or the one asked for.
    varied: the columns that were set and in which rows differ, such as 'height' or 'optim.learning_rate'.
    rows: one dict for each run, with ints, floats and texts by column. It lacks what is empty in the table. Every row has the
      columns in NEEDED and the metric.
    remarks: what was left out, and why.
  """
  path: Path
  task: str
  metric: str
  varied: list[str]
  rows: list[dict]
  remarks: list[str]


class Point(NamedTuple):
  """Runs that differ in nothing but their seed.

  Attributes:
    names: the names of the runs.
    settings: what they share, by column.
    means: the mean of each number that was measured, by column. It lacks columns that not all of the runs have.
    deviations: their sample standard deviations (n - 1); {} for a single run.
  """
  names: tuple[str, ...]
  settings: dict
  means: dict[str, float]
  deviations: dict[str, float]

  @property
  def name(self) -> str:
    """The name that its runs have in common, without the seed that naming.py ends it with; that of a single run."""
    shared = {_SEED.sub('', name) for name in self.names} if len(self.names) > 1 else set(self.names)
    return shared.pop() if len(shared) == 1 else few(self.names)


class Fit(NamedTuple):
  """The least-squares fit y = intercept + slope log10(x), or the problem that prevents one or leaves R² undefined."""
  intercept: float
  slope: float
  r_squared: float
  problem: str = ''


def lines(path: Path) -> list[dict[str | None, str | list[str] | None]]:
  """Returns the lines of a CSV file as csv.DictReader does. There may be none.

  Raises:
    UserError: if it cannot be read, or is no CSV file.
  """
  try:
    text = read_regular(path).decode('utf-8-sig')  # spreadsheets begin a file with a byte order mark
    reader = csv.DictReader(io.StringIO(text, newline=''))
    found = list(reader)
  except OSError as error:
    raise UserError(f'{path}: {error.strerror}; expected the results.csv of a sweep') from error
  except (csv.Error, UnicodeDecodeError) as error:
    raise UserError(f'{path}: not a table of results ({error}); expected the results.csv of a sweep') from error
  columns = reader.fieldnames or []
  if twice := [column for i, column in enumerate(columns) if column in columns[:i]]:
    raise UserError(f'{path}: has two columns {twice[0]}; expected each column once')
  return found


def read(path: Path, metric: str = '') -> Table:
  """Reads the results.csv of a sweep, also of an earlier version.

  Args:
    path: the file.
    metric: the column that every row must have; by default the main metric of the task.

  Raises:
    UserError: if nothing in it can be used, or it has rows of several tasks.
  """
  found = lines(path)
  if not found:
    raise UserError(f'{path}: has no rows; let a run of the sweep finish first')
  columns = [column for column in found[0] if column is not None]
  if missing := [column for column in (*NEEDED, *([metric] if metric else [])) if column not in columns]:
    raise UserError(f'{path}: has no column {", ".join(missing)}; expected the columns of a results.csv')
  metric = metric or _main_metric(path, found, columns)
  texts = {column for column in columns if _holds_texts(column, [line[column] for line in found if line[column]])}
  rows, left_out, unusable = [], [], {}
  for i, line in enumerate(found, start=1):
    row = {'name': f'row {i}'} | {column: cell if column in texts else _number(cell) for column, cell in line.items()
                                  if column is not None and cell}
    if problem := _problem(line, row, metric):
      left_out.append(f'{row["name"]} ({problem})')
      continue
    for column in [column for column, value in row.items() if value is None]:
      unusable.setdefault(column, []).append(row['name'])
      del row[column]
    rows.append(row)
  remarks = [f'{path}: {counted(len(left_out), "row")} of {len(found)} left out: {_some(left_out)}'] if left_out else []
  remarks += [f'{path}: {column} is no finite number in {counted(len(names), "row")} and left out there: {_some(names)}'
              for column, names in unusable.items()]
  if not rows:
    raise UserError(f'{path}: no row is complete: {_some(left_out)}')
  task = next((task for task, main in HEADLINES.items() if main == metric), '')
  return Table(path, task, metric, [column for column in differing(rows) if column not in COSTS], rows, remarks)


def _main_metric(path, found, columns) -> str:
  """Returns the main metric of the task that the rows are of."""
  counts = {main: sum(bool(line[main]) for line in found) for main in HEADLINES.values() if main in columns}
  counts = {main: count for main, count in counts.items() if count}
  if not counts:
    raise UserError(f'{path}: has no metric of a task; expected a column {" or ".join(HEADLINES.values())} with values')
  if len(counts) > 1 and max(counts.values()) < len(found):  # rows of one task may have columns of the same names
    kinds = ', '.join(f'{counted(count, "row")} with {main}' for main, count in counts.items())
    raise UserError(f'{path}: has rows of several tasks ({kinds}); expected one task, or the metric that is wanted')
  return max(counts, key=counts.get)


def _holds_texts(column, cells) -> bool:
  """Returns whether a column is one of texts: a known one, a field with a text among its values, or an unknown one of texts."""
  if column in (*_SETTINGS, *_APART, *TITLES) and not is_field(column):
    return column in TEXT_COLUMNS
  numbers = [bool(_NUMBER.fullmatch(cell)) for cell in cells]
  return not (all(numbers) if is_field(column) else any(numbers))


def _number(cell: str) -> int | float | None:
  """Returns a number; None if the cell has none that can be used."""
  if not _NUMBER.fullmatch(cell) or not abs(value := float(cell)) < MAX_NUMBER:
    return None
  return int(cell) if re.fullmatch(r'[+-]?\d+', cell) else value


def _problem(line, row, metric) -> str:
  """Returns why a row cannot be used, or ''."""
  if cells := line.get(None):
    return f'{counted(len(cells), "cell")} more than columns'
  if None in line.values():
    return f'{counted(sum(cell is not None for cell in line.values()), "cell")} in {len(line)} columns'
  for column in (*NEEDED, metric):
    if column not in row:
      return f'no {column}'
    if row[column] is None or column != metric and column != 'model' and row[column] <= 0:
      return f'{column}={line[column][:20]}'
    if column == metric and TITLES.get(column, '').endswith('(%)') and not 0 <= row[column] <= 1:
      return f'{column}={line[column][:20]}, which is no fraction'
  return ''


def _some(names) -> str:
  return few(names).removesuffix(', ...') + (f' and {len(names) - 3} more' if len(names) > 3 else '')


def is_field(column: str) -> bool:
  """Returns whether a column is a field of configs, also if only some network or an earlier version has it."""
  section, dot, _ = column.partition('.')
  return column in _FIELDS or bool(dot) and section in _SECTIONS


def where(table: Table, conditions: Sequence[str]) -> Table:
  """Returns a table with the rows that meet conditions, such as 'model=mobilenet'; of several on one column, any will do.

  Raises:
    UserError: if a condition names no column, or no row is left.
  """
  wanted, rows = {}, table.rows
  for condition in conditions:
    column, _, text = condition.partition('=')
    if not any(column in row for row in table.rows):
      columns = dict.fromkeys(column for row in table.rows for column in row)
      raise UserError(f'--where {condition}: {table.path} has no such column; expected COLUMN=VALUE, with a column of '
                      + ', '.join(columns))
    wanted.setdefault(column, []).append(text)
  for column, texts in wanted.items():
    values = list(dict.fromkeys(str(row[column]) for row in rows if column in row))
    rows = [row for row in rows if column in row and any(_equals(row[column], text) for text in texts)]
    if not rows:
      raise UserError(f'--where {" ".join(conditions)}: no row of {table.path} is left; expected {column} to be one of '
                      + _some(values))
  return table._replace(rows=rows)


def _equals(found, text) -> bool:
  try:
    return found == (text if isinstance(found, str) else float(text))
  except ValueError:
    return False


def settings(row: dict) -> dict:
  """Returns what was set for a run rather than measured. All texts are; a number in a column of another name was measured."""
  return {column: value for column, value in row.items()
          if column not in _APART and (column in _SETTINGS or is_field(column) or isinstance(value, str))}


def differing(rows: Sequence[dict]) -> list[str]:
  """Returns the settings in which rows differ. A row that lacks a column differs from those that have it."""
  columns = dict.fromkeys(column for row in rows for column in settings(row))
  return [column for column in columns if len({row.get(column) for row in rows}) > 1]


def over_seeds(rows: Sequence[dict]) -> tuple[list[Point], list[str]]:
  """Takes the rows together that agree in all settings and have different seeds.

  A row that lacks a column agrees only with others that lack it. If two rows have the same seed, or none, something that the
  table does not have must set them apart; then each is a point of its own, and a remark says so.

  Returns:
    The points, in the order of their first rows, and the remarks.
  """
  groups, points, remarks = {}, [], []
  for row in rows:
    groups.setdefault(frozenset(settings(row).items()), []).append(row)
  for group in groups.values():
    if len({tuple(row.get(seed) for seed in SEEDS) for row in group}) < len(group):
      names = few(list(dict.fromkeys(row['name'] for row in group)))
      remarks.append(f'{counted(len(group), "row")} agree in everything, a seed included, and are not averaged: {names}')
      points += [_point([row]) for row in group]
    else:
      points.append(_point(group))
  return points, remarks


def incomparable(rows: Sequence[dict]) -> list[str]:
  """Returns remarks on what makes it doubtful whether the results of rows compare."""
  remarks = []
  for column in ('dataset', 'measured_against', 'eval_examples'):
    values = dict.fromkeys(str(row.get(column, 'not known')) for row in rows)
    if len(values) > 1:
      remarks.append(f'The runs differ in {column} ({few(list(values))}), so that their results may not compare')
  return remarks


def _point(rows) -> Point:
  shared = settings(rows[0])
  measured = [column for column, value in rows[0].items() if column not in (*shared, *SEEDS) and not isinstance(value, str)
              and all(column in row for row in rows)]
  values = {column: [row[column] for row in rows] for column in measured}
  means = {column: statistics.fmean(found) for column, found in values.items()}
  deviations = {column: statistics.stdev(found) for column, found in values.items()} if len(rows) > 1 else {}
  return Point(tuple(row['name'] for row in rows), shared, means, deviations)


def log_linear_fit(x: Sequence[float], y: Sequence[float]) -> Fit:
  """Fits y = a + b log10(x) by least squares, if there are at least three different x, all above 0."""
  if len(set(x)) < 3:
    return Fit(math.nan, math.nan, math.nan, 'no fit: fewer than three costs')
  if min(x) <= 0:
    return Fit(math.nan, math.nan, math.nan, 'no fit: a cost is not above 0')
  x, y = np.log10(np.asarray(x, float)), np.asarray(y, float)
  if np.ptp(y) <= 1e-9 * abs(y).max():
    return Fit(float(y.mean()), 0.0, math.nan, 'R² is undefined, as all are equal')
  slope, intercept = np.polyfit(x, y, 1)
  r_squared = 1 - ((y - intercept - slope * x) ** 2).sum() / ((y - y.mean()) ** 2).sum()
  return Fit(float(intercept), float(slope), float(r_squared))
