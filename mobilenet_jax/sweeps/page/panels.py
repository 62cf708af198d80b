"""A panel: the charts of the runs of one task, the data that they draw, and the same as a table."""

import collections
import math
from typing import NamedTuple

from mobilenet_jax.errors import counted
from mobilenet_jax.sweeps import tables
from mobilenet_jax.sweeps.page import charts, points
from mobilenet_jax.sweeps.page.contents import MISSING, TITLES, Differences, Run, is_number, order, round_to, shown
from mobilenet_jax.sweeps.tables import SEEDS

FEW = 12  # values of a field for which each has its own place on an axis of the parallel coordinates
INPUT, WIDTH, SWEEP = 'data.image_size', 'model.width_multiplier', 'sweep'


class Cell(NamedTuple):
  """A cell of a table: its text, and the number by which it is sorted, or None if that is the text."""
  text: str
  number: float | None = None


class Table(NamedTuple):
  """A table: the titles of its columns, and its rows."""
  titles: list[str]
  rows: list[list[Cell]]

  def has_numbers(self, column: int) -> bool:
    return any(row[column].number is not None for row in self.rows)


class Panel(NamedTuple):
  """What a page shows of a task.

  Attributes:
    task: its name.
    measure: its main metric.
    data: the charts, and what they draw, as page.js takes them.
    colours: the titles of the choices of what the colour stands for.
    fits: the fits in words.
    table: the points.
    seeds: the largest number of runs in a point.
    parallel: whether there are parallel coordinates.
    remarks: what is missing.
  """
  task: str
  measure: points.Measure
  data: dict
  colours: list[str]
  fits: list[str]
  table: Table
  seeds: int
  parallel: bool
  remarks: list[str]


def panel(task: str, runs: list[Run], differences: Differences) -> Panel:
  """Returns the panel of a task.

  Args:
    task: its name.
    runs: all runs of the page, those of other tasks included.
    differences: what differs between their configs.
  """
  measure = points.measure_of(task)
  found, remarks = points.points_of(runs, task)
  values = {name: [_value(point, name) for point in found] for name in (*differences.varied, *differences.between, SWEEP)}
  values = {name: of_points for name, of_points in values.items() if len({shown(name, value) for value in of_points}) > 1}
  varied = [name for name in differences.varied if name in values and name not in SEEDS]
  columns = {name: charts.Column(f'f{i}', title(name), [shown(name, value) for value in order(values[name])],
                                  all(map(is_number, values[name])), name not in (INPUT, WIDTH))
             for i, name in enumerate(values) if name in varied or name == SWEEP}
  series = _series(found, [name for name in columns if columns[name].of_fits])
  fits = {label: points.fit(members, measure) for label, members in series.items()}
  colours = sorted(columns, key=lambda name: ((SWEEP, INPUT, WIDTH).index(name) if name in (SWEEP, INPUT, WIDTH) else 9))
  shape = lambda colour: next((columns[name] for name in (INPUT, WIDTH, *columns) if name in columns and name != colour),
                              columns.get(colour))
  tooltip = [columns[name] for name in columns if name in varied] + [columns[name] for name in columns if name not in varied]
  seeds = max((len(point.runs) for point in found), default=0)
  lines = any(not fit.problem for fit in fits.values())
  data = {
      'costs': [charts.costs(measure.title, tooltip, columns.get(name), shape(name), seeds > 1, lines)
                for name in colours or [None]],
      'curves': charts.curves(measure.title),
      'points': [_drawn(i, point, measure, columns) for i, point in enumerate(found)],
      'ends': [end for label, fit in fits.items() for end in _ends(label, fit, series[label], columns)]}
  parallel = len(varied) > 2 and len(found) > 1
  if parallel:
    data |= _parallel(found, measure, {name: values[name] for name in varied})
  remarks += [f'{remark}.' for remark in tables.incomparable([run.row for run in runs if run.task == task and run.row])]
  return Panel(task, measure, data, [title(name) for name in colours], _words(fits, series),
               _table(found, measure, varied, SWEEP in columns, seeds > 1), seeds, parallel, remarks)


def title(name: str) -> str:
  """Returns how a page calls a field of a config."""
  return TITLES.get(name, name)


def _drawn(i, point, measure, columns) -> dict:
  """Returns a point as the charts take it."""
  value, deviation = measure.factor * point.value, measure.factor * (point.deviation or 0)
  text = f'{value_text(point, measure)}' + (f' ({len(point.runs)} seeds)' if len(point.runs) > 1 else '')
  values = {name: _value(point, name) for name in columns}
  fields = {column.field: shown(name, values[name]) for name, column in columns.items()}
  fields |= {f'{column.field}n': values[name] for name, column in columns.items() if column.numbers}
  return {'id': i, 'name': point.name, 'sweep': point.sweep, 'runs': point.runs, **fields,
          'mult_adds': round_to(point.mult_adds / 1e6), 'mult_adds_text': millions(point.mult_adds),
          'params': round_to(point.params / 1e6), 'params_text': millions(point.params), 'value': round_to(value, 6),
          'value_text': text, 'seconds_text': MISSING if point.seconds is None else f'{point.seconds:.1f}',
          'description': f'{point.name}: {measure.title} {text}',
          'low': None if point.deviation is None else round_to(value - deviation, 6),
          'high': None if point.deviation is None else round_to(value + deviation, 6)}


def value_text(point: points.Point, measure: points.Measure) -> str:
  """Returns the mean and the deviation of a point, such as '56.10 ± 0.52 %'."""
  digits = measure.form[1:-1]
  text = f'{measure.factor * point.value:.{digits}f}'
  if point.deviation is not None:
    text += f' ± {measure.factor * point.deviation:.{digits}f}'
  return text + (' %' if measure.form.endswith('%') else '')


def millions(value: float) -> str:
  """Returns a number of Mult-Adds or parameters, in millions."""
  return f'{value / 1e6:.2f} M' if value >= 1e6 else f'{value / 1e6:.3g} M'


def _value(point, name):
  return point.sweep if name == SWEEP else point.config.get(name)


def _series(found, names) -> dict[str, list[points.Point]]:
  """Returns the points that one line is fitted to, by what to call it: those that agree in all but width and input size.

  Args:
    found: the points.
    names: the columns that set series apart.
  """
  series = {}
  for point in found:
    settings = [f'{title(name)} {shown(name, point.config.get(name))}' for name in names if name != SWEEP]
    series.setdefault(', '.join([point.sweep, *settings]), []).append(point)
  return series


def _ends(label, fit, found, columns) -> list[dict]:
  """Returns the ends of the line of a fit to the points of a series, with what these have in common."""
  if fit.problem:
    return []
  costs = [point.mult_adds for point in found]
  common = {name: (column, _value(found[0], name)) for name, column in columns.items() if column.of_fits}
  shared = {column.field: shown(name, value) for name, (column, value) in common.items()}
  shared |= {f'{column.field}n': value for column, value in common.values() if column.numbers}
  return [{'fit': label, **shared, 'mult_adds': round_to(cost / 1e6),
           'value': round_to(fit.intercept + fit.slope * math.log10(cost), 6)} for cost in (min(costs), max(costs))]


def _words(fits, series) -> list[str]:
  """Returns what there is to say of the fits; of those that have none, their number where there are several."""
  words = [f'{label}: R² {fit.r_squared:.3f} over {counted(len(series[label]), "point")}; ten times the Mult-Adds give '
           f'{fit.slope:.3g} more' for label, fit in fits.items() if not fit.problem]
  problems = collections.Counter(fit.problem for fit in fits.values() if fit.problem)
  of = {fit.problem: label for label, fit in fits.items()}
  return words + [f'{of[problem] if count == 1 else f"{count} series"}: {problem}' for problem, count in problems.items()]


def _parallel(found, measure, values) -> dict:
  """Returns the parallel coordinates of the given fields, by name their values of each point."""
  axes, ticks, places = [], [], []
  for name, of_points in values.items():
    axis, known = title(name), order(of_points)
    by_text = {shown(name, value): i / max(len(known) - 1, 1) for i, value in enumerate(known)}
    axes.append(axis)
    places.append([by_text[shown(name, value)] for value in of_points])
    ticks += [{'axis': axis, 'at': round_to(at), 'text': text} for i, (text, at) in enumerate(by_text.items())
              if len(by_text) <= FEW or i in (0, len(by_text) - 1)]
  drawn = [measure.factor * point.value for point in found]
  low, high = min(drawn), max(drawn)
  places.append([(value - low) / (high - low) if high > low else 0.5 for value in drawn])
  axes.append(measure.title)
  ticks += [{'axis': measure.title, 'at': (value - low) / (high - low) if high > low else 0.5, 'text': f'{value:.4g}'}
            for value in sorted({low, high})]
  lines = [{'id': i, 'name': point.name, 'axis': axis, 'at': round_to(of_points[i]), 'value': round_to(drawn[i], 6),
            'value_text': value_text(point, measure)} for i, point in enumerate(found) for axis, of_points in zip(axes, places)]
  return {'parallel': charts.parallel(measure.title, axes), 'lines': lines, 'ticks': ticks}


def _table(found, measure, varied, several, seeds) -> Table:
  titles = ['name', *(['sweep'] if several else []), *map(title, varied), 'Mult-Adds', 'parameters', measure.title,
            *(['seeds'] if seeds else []), 'seconds']
  return Table(titles, [[
      Cell(point.name), *([Cell(point.sweep)] if several else []),
      *(field_cell(name, point.config.get(name)) for name in varied),
      Cell(millions(point.mult_adds), point.mult_adds), Cell(millions(point.params), point.params),
      Cell(value_text(point, measure), point.value),
      *([Cell(str(len(point.runs)), len(point.runs))] if seeds else []),
      Cell(MISSING) if point.seconds is None else Cell(f'{point.seconds:.1f}', point.seconds)] for point in found])


def field_cell(name: str, value) -> Cell:
  """Returns the cell of a field of a config."""
  first = value[0] if isinstance(value, tuple | list) and value else value
  return Cell(shown(name, value), first if is_number(first) else None)
