"""Draws Figures 4 and 5 of the paper from tables of results. Does not import JAX.

    python -m experiments.figures --results=runs/fabrics/results.csv --out=runs/fabrics
    python -m experiments.figures --results runs/paper/results.csv runs/ours/results.csv --labels paper ours --out=runs/both
    python -m experiments.figures --results=runs/rates/results.csv --out=runs/rates --x=seconds

This writes figure4 (Mult-Adds) and figure5 (parameters) as PNG and SVG, or, with --x, the one figure of that column. Runs that
differ only in their seed are one point, with the standard deviation as its error bar. Each table has a colour and a fit of its
own, and so has, within a table, each combination of what varies besides width and resolution. The main metric of the task
is drawn; --metric draws another column.
"""

import argparse
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from mobilenet_jax.errors import UserError, counted, few
from mobilenet_jax.runtime import command_line
from mobilenet_jax.storage.files import expanded, read_regular, whole_file
from mobilenet_jax.sweeps import looks, tables
from mobilenet_jax.sweeps.tables import Point, Table

REFERENCE_LOOKS = {'paper': ('+', '0.25', 'the paper'), 'published': ('x', '0.55', 'published models (TF-slim)')}
NUMBERS = {'mult_adds': 4, 'params': 5}  # the figures of the paper
AXES = {'mult_adds': ('Mult-Adds (millions)', 1e6), 'params': ('parameters (millions)', 1e6),
        'seconds': ('training time (seconds)', 1)}
NETWORK = ('width_multiplier', 'height', 'width', *tables.COSTS)  # what a mark and its label show
COLORS = ('#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9', '#5e3c99', '#8c510a')  # of series
STYLES = ('--', ':', '-.', (0, (6, 2, 1, 2, 1, 2)))
MAX_LABELS = 48  # more would cover each other


class Series(NamedTuple):
  """What has one look and one fit: the points of a table that share everything but width and resolution."""
  label: str
  points: list[Point]


def series_of(found: Sequence[Table], labels: Sequence[str], apart: Sequence[str] = ()) -> tuple[list[Series], list[str]]:
  """Returns the series of tables, and remarks on what makes them hard to compare.

  Args:
    found: tables of one metric.
    labels: what to call each; '' leaves it out.
    apart: columns that do not divide a table, such as that of the x axis.
  """
  series, remarks = [], []
  for table, label in zip(found, labels):
    points, said = tables.over_seeds(table.rows)
    remarks += [f'{table.path}: {text}' for text in said]
    columns = [column for column in tables.differing([point.settings for point in points]) if column not in (*NETWORK, *apart)]
    groups = {}
    for point in points:
      groups.setdefault(tuple(point.settings.get(column) for column in columns), []).append(point)
    if len(groups) > len(COLORS):
      raise UserError(f'{table.path}: besides width and resolution, these vary, in {len(groups)} combinations: '
                      f'{", ".join(columns)}; expected at most {len(COLORS)}; choose rows, as with --where '
                      + _example(columns[0], points))
    for values, members in groups.items():
      parts = [label, *(_setting(column, value) for column, value in zip(columns, values))]
      series.append(Series(', '.join(filter(None, parts)), members))
  if len(series) > len(COLORS):
    raise UserError(f'{len(series)} series in {counted(len(found), "table")}; expected at most {len(COLORS)}; give fewer '
                    'tables, or choose rows with --where')
  return series, [*remarks, *tables.incomparable([row for table in found for row in table.rows])]


def _setting(column, value) -> str:
  if column == 'model' and value is not None:
    return value
  return f'{column.rpartition(".")[2]} {"not set" if value is None else value}'


def _example(column, points) -> str:
  return next(f"'{column}={point.settings[column]}'" for point in points if column in point.settings)


def value(point: Point, column: str) -> int | float | None:
  """Returns a number of a point, set or measured; None if it has none."""
  found = {**point.settings, **point.means}.get(column)
  return None if isinstance(found, str) else found


def draw(series: Sequence[Series], x: str, metric: str = 'top1', references: Sequence[dict] = ()):
  """Returns a Matplotlib figure of a metric against a column.

  It has one mark per resolution, labels with alpha, and a log-linear fit for each series, other than against parameters, as
  in Figure 5 of the paper, or against what was set.

  Args:
    series: what to draw.
    x: the column of the horizontal axis, whose numbers are on a logarithmic scale if all are above 0.
    metric: the column of the vertical axis.
    references: rows of results of others, with a source, drawn below ours.

  Raises:
    UserError: if a point lacks one of the columns, or there are too many resolutions.
  """
  title, unit = AXES.get(x, (x, 1))
  y_title = tables.TITLES.get(metric, metric)
  factor = 100 if y_title.endswith('(%)') else 1
  points = [point for one in series for point in one.points]
  _check_drawable(points, (x, metric))
  sizes = looks.marks(_size(point) for point in points)
  xs = lambda points: np.array([value(point, x) / unit for point in points])
  ys = lambda points: np.array([factor * value(point, metric) for point in points])

  figure, axes = plt.subplots(figsize=(6.4, 4.4), layout='constrained')
  handles = [] if len(series) == 1 else _marks(sizes, series)
  fitted = x == 'mult_adds' or not any(x in point.settings for point in points)
  for i, (one, color) in enumerate(zip(series, COLORS)):
    alone = len(series) == 1
    for size, look in sizes.items():
      if members := [point for point in one.points if _size(point) == size]:
        axes.plot(xs(members), ys(members), **look if alone else _colored(look, color), zorder=3)
    spread = [point for point in one.points if metric in point.deviations]
    if spread:
      axes.errorbar(xs(spread), ys(spread), [factor * point.deviations[metric] for point in spread], fmt='none',
                    ecolor='0.25' if alone else color, elinewidth=0.9, capsize=2, zorder=2.5)
    style = {'color': '0.4' if alone else color, 'linestyle': STYLES[i % len(STYLES)], 'linewidth': 1}
    handles += _fit(axes, xs(one.points), ys(one.points), style, '' if alone else _words(one.label), fitted)
  if len(series) == 1:
    handles = [*([Line2D([], [], linestyle='None', label=_words(series[0].label))] if series[0].label else []),
               *_marks(sizes, series), *handles]
  handles += _references(axes, references, x, metric, unit, factor)

  shown = [value(point, x) / unit for point in points]
  above = x == 'params'  # the networks of one alpha are above each other
  tops = ys(points) + (factor * np.array([point.deviations.get(metric, 0) for point in points]) if above else 0)
  labels = _labels(points, xs(points), tops, above)
  axes.set_xlabel(_words(title))
  axes.set_ylabel(_words(y_title))
  axes.margins(0.08)
  axes.grid(True, which='major', color='0.88', linewidth=0.6)
  axes.set_axisbelow(True)
  if min(shown) > 0:
    axes.set_xscale('log')
    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)) if high > 5 * low else MaxNLocator(5))
  if above:
    axes.set_xticks(_apart(shown))
  axes.xaxis.set_minor_locator(NullLocator())
  axes.xaxis.set_major_formatter(lambda number, _: f'{number:,.0f}' if 1e3 <= abs(number) < 1e7 else f'{number:.3g}')
  looks.finish(axes, labels if len(labels) <= MAX_LABELS else [], handles, _legend_title(points, metric, len(labels)), above)
  return figure


def _check_drawable(points, columns) -> None:
  for column in columns:
    if any(value(point, column) is None for point in points):
      raise UserError(f'{column}: expected a column of numbers that all runs have')
  if (count := len({_size(point) for point in points})) > looks.MAX_LOOKS:
    raise UserError(f'{count} input sizes; expected at most {looks.MAX_LOOKS}; choose rows, as with --where height=224')


def _size(point) -> tuple[int, int]:
  return point.settings['height'], point.settings['width']


def _colored(look, color) -> dict:
  return {**look, 'color': color, **({'markeredgecolor': color} if 'markerfacecolor' in look else {})}


def _words(label) -> str:
  """Returns a label as Matplotlib shows it, without formulas, on lines that are not too long."""
  return textwrap.fill(label, 40).replace('$', r'\$')


def _marks(sizes, series) -> list[Line2D]:
  """Returns the entries of a legend for the input sizes, in grey if the colours stand for the series."""
  return [Line2D([], [], **look if len(series) == 1 else _colored(look, '0.6'), label=f'{height:g} x {width:g}')
          for (height, width), look in sizes.items()]


def _fit(axes, x, y, style, name, fitted) -> list[Line2D]:
  """Draws the fit of a series, if it is to be `fitted`, and returns its entry of the legend, with the name if it has one."""
  if not fitted:
    return [Line2D([], [], color=style['color'], marker='o', linestyle='None', label=name)] if name else []
  fit = tables.log_linear_fit(x, y)
  words = fit.problem or f'$R^2$ = {fit.r_squared:.2f}'
  if np.isfinite(fit.slope):
    ends = np.array([x.min() * 0.85, x.max() * 1.15])
    axes.plot(ends, fit.intercept + fit.slope * np.log10(ends), **style, zorder=1)
  else:
    style = {**style, 'linestyle': 'None'}
  label = f'{name}: {words}' if name else words if fit.problem else f'log-linear fit, {words}'
  return [Line2D([], [], **style, marker='o' if name else '', label=label)]


def _references(axes, rows, x, metric, unit, factor) -> list[Line2D]:
  handles = []
  for source, (marker, color, label) in REFERENCE_LOOKS.items():
    if members := [row for row in rows if row['source'] == source]:
      handles += axes.plot([row[x] / unit for row in members], [factor * row[metric] for row in members], marker,
                           color=color, markersize=7, zorder=2, label=label)
  return handles


def _labels(points, x, y, above) -> list[tuple[tuple[float, float], str]]:
  """Returns alpha and where it is written: at the highest point of a network among those that are about above each other.

  Args:
    points, x, y: the points and where they are, or where their error bars end.
    above: whether the networks of one alpha have one label.
  """
  found = {}
  for i in np.argsort(-y, kind='stable'):
    alpha = points[i].settings['width_multiplier']
    labelled = found.setdefault((alpha, '' if above else _size(points[i])), [])
    if not any(abs(x[i] - there[0]) <= 0.2 * abs(x[i]) for there, _ in labelled):
      labelled.append(((x[i], y[i]), f'{alpha:g}'))
  return [label for labelled in found.values() for label in labelled]


def _apart(numbers) -> list[float]:
  """Returns those of the numbers that are far enough from the next one for a tick each."""
  ticks = []
  for number in sorted(set(numbers)):
    if not ticks or number > 1.12 * ticks[-1]:
      ticks.append(number)
  return ticks


def _legend_title(points, metric, labels) -> str:
  counts = {len(point.names) for point in points if metric in point.deviations}
  lines = ['input; labels are α' if labels <= MAX_LABELS else f'input; without the {labels} labels of α']
  if counts:
    some = '' if all(metric in point.deviations for point in points) else ', where there are several'
    number = f'{min(counts)}' if len(counts) == 1 else f'{min(counts)} to {max(counts)}'
    lines.append(f'means of {number} seeds{some};\nbars: ± standard deviation')
  return '\n'.join(lines)


def save(figure, path: Path) -> None:
  """Writes a figure as PNG and SVG, whatever the suffix of `path`, and closes it."""
  figure.savefig(path.with_suffix('.png'), dpi=160)
  figure.savefig(path.with_suffix('.svg'), metadata={'Date': None})
  plt.close(figure)


def write(series: Sequence[Series], folder: Path, metric: str = 'top1', references: Sequence[dict] = (), prefix: str = '',
          x: str = '') -> None:
  """Draws Figures 4 and 5, or the figure of the column `x`, and writes them into `folder`, as PNG and SVG."""
  drawn = {column: draw(series, column, metric, references) for column in ([x] if x else NUMBERS)}
  folder.mkdir(parents=True, exist_ok=True)
  for column, figure in drawn.items():
    name = f'figure{NUMBERS[column]}' if column in NUMBERS else 'figure_' + re.sub(r'\W+', '_', column)
    path = folder / f'{prefix}{name}.png'
    save(figure, path)
    print(f'{name.replace("figure", "figure ").replace(" _", " ")} {path} and .svg')


def having(series: Sequence[Series], column: str, option: str) -> tuple[list[Series], list[str]]:
  """Returns the series without the points that lack a number in a column, and remarks on these.

  Raises:
    UserError: if no point is left. It names the `option` that asked for the column, and the columns of numbers.
  """
  kept = [Series(label, [point for point in points if value(point, column) is not None]) for label, points in series]
  points = [point for one in series for point in one.points]
  left_out = [name for point in points if value(point, column) is None for name in point.names]
  if not any(one.points for one in kept):
    numbers = dict.fromkeys(name for point in points for name in {**point.settings, **point.means}
                            if value(point, name) is not None)
    raise UserError(f'{option}={column}: expected a column of numbers: {", ".join(numbers)}')
  remarks = [f'{counted(len(left_out), "run")} left out, without {column}: {few(left_out)}'] if left_out else []
  return [one for one in kept if one.points], remarks


def labels_of(paths: Sequence[Path], given: Sequence[str] = ()) -> list[str]:
  """Returns what to call tables: as given, or after their folders if there are several.

  Raises:
    UserError: if the labels are of another number, or some of them are equal.
  """
  if given and len(given) != len(paths):
    raise UserError(f'--labels: {counted(len(given), "label")} for {counted(len(paths), "table")}; expected one each')
  if given:
    labels = list(given)
  elif len(paths) == 1:
    labels = ['']
  else:
    labels = [path.resolve().parent.name if path.name == tables.CSV_FILE else path.stem for path in paths]
    labels = labels if len(set(labels)) == len(labels) else [str(path) for path in paths]
  if twice := [label for i, label in enumerate(labels) if label in labels[:i]]:
    raise UserError(f'--{"labels" if given else "results"}: {twice[0]} is given twice; expected different ones')
  return labels


def _read(paths, args) -> list[Table]:
  """Returns the rows of the tables that are to be drawn, once it is clear that the tables have the same metric."""
  found = [tables.where(tables.read(path, args.metric), args.where) for path in paths]
  if other := [table for table in found if table.metric != found[0].metric]:
    raise UserError(f'--results: {found[0].path} is of {found[0].task} ({found[0].metric}), {other[0].path} of {other[0].task} '
                    f'({other[0].metric}); expected tables of one task, or --metric')
  return found


def _references_of(args, metric) -> list[dict]:
  names = list(filter(None, args.reference.split(',')))
  if set(names) - set(REFERENCE_LOOKS):
    raise UserError(f'--reference={args.reference}: expected {" or ".join(REFERENCE_LOOKS)}')
  if names and (metric != 'top1' or args.x not in ('', *NUMBERS)):
    raise UserError(f'--reference={args.reference}: has only top1, mult_adds and params; leave it out, or --x and --metric')
  return [row for row in tables.read(tables.REFERENCE).rows if row['source'] in names]


def _place_beside(args, table) -> Path:
  """Returns the path of a copy of the table beside its figures, which may be the table itself.

  Raises:
    UserError: if it would replace the results of a sweep.
  """
  copy = args.out / f'{args.name}{tables.CSV_FILE}'
  if copy.resolve() != table.path.resolve() and copy.name == tables.CSV_FILE and (copy.parent / tables.SWEEP_FILE).exists():
    raise UserError(f'--out={args.out}: is the folder of a sweep, whose {copy.name} would be replaced by {table.path}; give '
                    'another folder, or a --name')
  return copy


def main(args: argparse.Namespace) -> None:
  paths = [expanded(path) for path in args.results]
  labels = labels_of(paths, args.labels)
  found = _read(paths, args)
  metric = found[0].metric
  references = _references_of(args, metric)
  series, remarks = series_of(found, labels, [args.x])
  remarks = [*(text for table in found for text in table.remarks), *remarks]
  for option, column in (('--x', args.x), ('--metric', metric)):
    if column:
      series, said = having(series, column, option)
      remarks += said
  print(*remarks, sep='\n', end='\n' if remarks else '')
  copy = _place_beside(args, found[0]) if len(found) == 1 else None
  write(series, args.out, metric, references, args.name, args.x)
  if copy:
    if copy.resolve() != found[0].path.resolve():
      with whole_file(copy) as file:
        file.write(read_regular(found[0].path))
    print(f'table    {copy}')


def parser() -> command_line.Parser:
  parser = command_line.Parser(__doc__)
  some = {'nargs': '+', 'action': 'extend', 'default': []}
  parser.add_argument('--results', **some, required=True, help="one or several sweeps' results.csv")
  parser.add_argument('--labels', **some, help='what to call each table; by default, if there are several, after its folder')
  parser.add_argument('--out', type=Path, required=True, help='folder to write to')
  parser.add_argument('--name', default='', help='prefix of the file names, such as cifar10_')
  parser.add_argument('--x', default='', help='draw only the figure of this column: mult_adds, params, seconds or another')
  parser.add_argument('--metric', default='', help='column to draw, such as top5; by default the main metric of the task')
  parser.add_argument('--where', **some, help='draw only rows with these values, such as optim.learning_rate=0.001')
  parser.add_argument('--reference', default='', help='results to draw below ours, for ImageNet: paper, published or both, '
                      'separated by a comma')
  return parser


if __name__ == '__main__':
  command_line.run_with(parser(), main)
