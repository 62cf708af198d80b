"""The most accurate model within a budget, and the Pareto front that it is taken from.

    python -m mobilenet_jax.choose --max-mult-adds=100M
    python -m mobilenet_jax.choose --max-latency-ms=2 --min-accuracy=55% --out=runs/choice
    python -m mobilenet_jax.choose --table=runs/mine/results.csv --max-params=1.5M --latency

Latency is measured here and now, of the models that meet the other budgets: one image a call, random weights, 1,000
classes, batch norm folded. --out writes choose.png, choose.svg and candidates.csv, which has every model of the table.
"""

from mobilenet_jax import cli  # first: it quietens what the others import

import argparse
import csv
import decimal
import functools
import io
import math
import statistics
import time
from pathlib import Path

import ml_collections

from mobilenet_jax import config as config_lib
from mobilenet_jax import looks
from mobilenet_jax.errors import UserError

REFERENCE = Path(__file__).parent / 'pretrained' / 'imagenet_reference.csv'
SOURCES = ('published', 'paper')  # of the rows in it
COSTS = {'mult_adds': 'Mult-Adds', 'params': 'parameters', 'latency_ms': 'latency'}
COLUMNS = ('name', 'model', 'width_multiplier', 'height', 'width', 'mult_adds', 'params', 'top1', 'latency_ms',
           'device', 'within', 'picked')  # of candidates.csv
UNITS = {'': 1, 'k': 10**3, 'M': 10**6, 'G': 10**9}

NUM_CLASSES = 1000
ROUNDS, TURN_CALLS, TURN_SECONDS = 10, 2, 0.05  # of each model at least 20 calls and 0.5 s in all


def pareto_front(rows: list[dict], cost: str) -> list[dict]:
  """The rows that no other one beats, cheapest first.

  A row is beaten by one that is at least as accurate (`top1`) at no more `cost`, and better in one of the two; of
  rows that are equal in both, all are kept.
  """
  front = []
  for row in sorted(rows, key=lambda row: (row[cost], -row['top1'])):
    if not front or row['top1'] > front[-1]['top1'] or all(row[key] == front[-1][key] for key in (cost, 'top1')):
      front.append(row)
  return front


def choose(rows: list[dict], limits: dict[str, float]) -> dict:
  """The row of the highest top1 that meets every limit; of equally accurate ones that of fewer Mult-Adds.

  Where only an accuracy is asked for, the row of the fewest Mult-Adds that reaches it.

  Args:
    rows: at least one; each with name, top1, mult_adds, and the columns that `limits` names.
    limits: the least for top1, in [0, 1], the most for any other column.

  Raises:
    UserError: where none meets all, naming the nearest, and what it misses by how much.
  """
  if fitting := [row for row in rows if within(row, limits)]:
    if _wants_cheapest(limits):
      return min(fitting, key=lambda row: (row['mult_adds'], -row['top1']))
    return max(fitting, key=lambda row: (row['top1'], -row['mult_adds']))
  near = _nearest(rows, limits)
  raise UserError(f'of {len(rows)} models there is none{_describe(limits)}; the nearest, {near["name"]}, '
                  f'{_misses(near, limits, by_how_much=True)}; relax what it misses')


def within(row: dict, limits: dict[str, float]) -> bool:
  """Whether a row meets every limit; it does not where it lacks the column."""
  return all(field in row and _excess(row, field, limit) <= 0 for field, limit in limits.items())


def _wants_cheapest(limits) -> bool:
  return set(limits) == {'top1'}


def explain(picked: dict, rows: list[dict], limits: dict[str, float]) -> str:
  """Why `picked` and no other one of `rows`, on one line."""
  count = sum(within(row, limits) for row in rows)
  best, rival = ('cheapest', 'cheaper') if _wants_cheapest(limits) else ('most accurate', 'more accurate')
  which = f'the {best} of the' if count > 1 else 'the only one of the'
  models = f'{count} models' if count > 1 else f'{len(rows)} models'
  reason = f'{picked["name"]}: {which} {models}{_describe(limits) or " in the table"}; '
  if _wants_cheapest(limits):
    better = [row for row in rows if row['mult_adds'] < picked['mult_adds']]
  else:
    better = [row for row in rows if row['top1'] > picked['top1']]
  if not better:
    return f'{reason}none in the table is {rival}'
  near = _nearest([row for row in better if all(field in row for field in limits)] or better, limits)
  shown = 'mult_adds' if _wants_cheapest(limits) else 'top1'
  return f'{reason}the nearest that is {rival}, {near["name"]} ({_show(shown, near[shown])}), {_misses(near, limits)}'


def measure_latency(rows: list[dict]) -> list[float]:
  """Milliseconds of a forward pass of one image, on this machine, of each row's model; the median of many.

  The models take turns, so that a machine whose speed drifts is as fast for one as for another.
  """
  import jax  # here, as whoever asks for no latency need not wait for JAX to load

  from mobilenet_jax import inference, models, parallel

  def initialize(row):
    model = models.create(_config(row).model, NUM_CLASSES)
    images = jax.numpy.zeros((1, config_lib.MIN_SIZE, config_lib.MIN_SIZE, 3))
    variables = parallel.run_once(lambda rng: model.init(rng, images, train=False), jax.random.key(0))
    predict, weights = inference.fold(model, variables)
    return functools.partial(jax.jit(predict), weights)

  def prepare(row):
    image = jax.random.uniform(jax.random.key(1), (1, row['height'], row['width'], 3), minval=-1)
    call = functools.partial(networks[_network(row)], image)
    jax.block_until_ready(call())
    return call

  different = {_network(row): row for row in rows}  # the weights do not depend on the resolution
  networks = dict(zip(different, parallel.at_once(initialize, list(different.values()))))
  calls = parallel.at_once(prepare, rows)
  times = [[] for _ in rows]
  for _ in range(ROUNDS):
    for call, mine in zip(calls, times):
      jax.block_until_ready(call())  # untimed: the others' weights are in the caches
      turn = []
      while len(turn) < TURN_CALLS or sum(turn) < TURN_SECONDS:
        start = time.perf_counter()
        jax.block_until_ready(call())
        turn.append(time.perf_counter() - start)
      mine += turn
  return [1e3 * statistics.median(mine) for mine in times]


def read(table: str) -> list[dict]:
  """The models of a table: 'published' or 'paper' (ImageNet), or the path of a sweep's results.csv.

  Raises:
    UserError: where there is no such table, it is none, or no model is in it.
  """
  path = REFERENCE if table in SOURCES else Path(table).expanduser()
  if not path.is_file():
    raise UserError(f'--table={table}: expected {", ".join(SOURCES)}, or the path of a results.csv')
  try:
    with path.open(newline='') as file:
      lines = list(csv.DictReader(file))
  except (csv.Error, UnicodeDecodeError) as error:
    raise UserError(f'--table={table}: not a table of results ({error})') from error
  rows = [_row(line, f'--table={table}, row {i}') for i, line in enumerate(lines, start=1)
          if table not in SOURCES or line['source'] == table]
  if not rows:
    raise UserError(f'--table={table}: no model in it; let a run of the sweep finish first')
  return rows


def _row(line, where):
  kinds = {'model': str, 'width_multiplier': float, 'height': int, 'width': int, 'mult_adds': int, 'params': int,
           'top1': float}
  row = {}
  for key, kind in kinds.items():
    if line.get(key) is None:
      raise UserError(f'{where}: has no {key}; expected the columns of a results.csv, {", ".join(kinds)} among them')
    try:
      row[key] = kind(line[key])
    except ValueError:
      raise UserError(f'{where}: {key}={line[key]}: expected a number') from None
  if min(row['mult_adds'], row['params']) < 1 or not 0 <= row['top1'] <= 1:
    raise UserError(f'{where}: mult_adds={row["mult_adds"]}, params={row["params"]}, top1={row["top1"]}: expected at '
                    'least 1, at least 1, and a fraction in [0, 1]')
  try:
    config_lib.validate(_config(row))
  except UserError as error:
    raise UserError(f'{where}: {error}') from error
  return {'name': line.get('name') or config_lib.model_name(_config(row)), **row}


def _config(row) -> ml_collections.ConfigDict:
  return config_lib.changed(config_lib.base(), {
      'model.name': row['model'], 'model.width_multiplier': row['width_multiplier'],
      'data.image_size': (row['height'], row['width'])})


def _network(row):
  return row['model'], row['width_multiplier']


def _excess(row, field, limit) -> float:
  """How far a row is beyond a limit: of a cost its part, of an accuracy the difference; at most 0 within."""
  return limit - row[field] if field == 'top1' else (row[field] - limit) / limit


def _nearest(rows, limits) -> dict:
  """The row whose largest excess is least; of equal ones the most accurate."""
  return min(rows, key=lambda row: (
      max(_excess(row, field, limit) for field, limit in limits.items() if field in row), -row['top1']))


def _misses(row, limits, by_how_much=False) -> str:
  """Like 'needs 106.8 M Mult-Adds (6.77 M over) and reaches 62.1% top-1 (0.9 points short)'."""
  verbs = {'latency_ms': 'takes', 'top1': 'reaches'}
  words = []
  for field, limit in limits.items():
    if field in row and _excess(row, field, limit) > 0:
      words.append(f'{verbs.get(field, "needs")} {_show(field, row[field])}')
      if by_how_much:
        short = f'{100 * (limit - row[field]):.3g} points short'
        words[-1] += f' ({short if field == "top1" else _number(field, row[field] - limit) + " over"})'
  return ' and '.join(words)


def _describe(limits) -> str:
  """Like ' within 100 M Mult-Adds and 5 ms with at least 60% top-1'; '' without limits."""
  costs = ' and '.join(_show(field, limits[field]) for field in COSTS if field in limits)
  least = f' with at least {_show("top1", limits["top1"])}' if 'top1' in limits else ''
  return (f' within {costs}' if costs else '') + least


def _show(field, value) -> str:
  unit = {'mult_adds': ' Mult-Adds', 'params': ' parameters', 'top1': ' top-1'}.get(field, '')
  return _number(field, value) + unit


def _number(field, value) -> str:
  if field == 'top1':
    return f'{100 * value:.4g}%'
  if field == 'latency_ms':
    return f'{value:.3g} ms'
  unit = max((unit for unit in UNITS if UNITS[unit] <= value), key=UNITS.get, default='')
  return f'{value / UNITS[unit]:.4g} {unit}'.rstrip()


def front_table(rows: list[dict], cost: str, limits: dict[str, float], picked: dict) -> str:
  """The Pareto front of accuracy against `cost`, a model a line, aligned."""
  rows = [row for row in rows if cost in row]
  front = pareto_front(rows, cost)
  columns = {'top1': ('top-1 (%)', lambda x: f'{100 * x:.2f}'),
             'mult_adds': ('Mult-Adds (M)', lambda x: f'{x / 1e6:.1f}'),
             'params': ('parameters (M)', lambda x: f'{x / 1e6:.2f}')}
  if any('latency_ms' in row for row in rows):
    columns['latency_ms'] = 'latency (ms)', lambda x: f'{x:.3f}'
  cells = [('model', *(title for title, _ in columns.values()), '')]
  for row in front:
    remark = 'picked' if row is picked else '' if within(row, limits) else 'not within'
    cells.append((row['name'], *(text(row[field]) if field in row else '-' for field, (_, text) in columns.items()),
                  remark))
  widths = [max(map(len, column)) for column in zip(*cells)]
  lines = ['  '.join(f'{cell:{">" if 0 < i <= len(columns) else "<"}{width}}'
                     for i, (cell, width) in enumerate(zip(line, widths))).rstrip() for line in cells]
  return '\n'.join([f'Pareto front of top-1 against {COSTS[cost]}: {len(front)} of {len(rows)} models', *lines])


def draw(rows: list[dict], limits: dict[str, float], picked: dict):
  """Accuracy against latency, where it is measured, beside accuracy against Mult-Adds; a Matplotlib figure."""
  from matplotlib.colors import to_rgb
  from matplotlib.figure import Figure
  from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

  pale = lambda color: tuple(0.3 * part + 0.7 for part in to_rgb(color))
  costs = {'latency_ms': ('latency, one image (ms)', 1), 'mult_adds': ('Mult-Adds (millions)', 1e6)}
  costs = {cost: look for cost, look in costs.items() if any(cost in row for row in rows)}
  figure = Figure(figsize=(7.2, 4.2) if len(costs) > 1 else (4.8, 4.4), layout='constrained')
  panels = figure.subplots(1, len(costs), sharey=True, squeeze=False)[0]
  for axes, (cost, (title, unit)) in zip(panels, costs.items()):
    plot = lambda members, *style, **options: axes.plot(
        [row[cost] / unit for row in members], [100 * row['top1'] for row in members], *style, **options)
    shown = [row for row in rows if cost in row]
    for height, look in looks.marks(row['height'] for row in rows).items():
      members = [row for row in shown if row['height'] == height]
      plot([row for row in members if within(row, limits)], **look, zorder=3, label=f'{height} × {height}')
      colors = {'markerfacecolor': pale(look['color']), 'markeredgecolor': '0.55'}
      plot([row for row in members if not within(row, limits)], **look | colors, zorder=3)
    plot(pareto_front(shown, cost), color='0.45', linewidth=0.8, zorder=1, label='Pareto front')
    plot([picked], 'o', markersize=13, markerfacecolor='none', markeredgecolor='black', markeredgewidth=1.2, zorder=4,
         label=f'picked: {picked["name"]}')
    axes.set_xscale('log')
    axes.margins(0.1)
    axes.set_xlabel(title)
    axes.grid(True, color='0.88', linewidth=0.6)
    axes.set_axisbelow(True)
  for axes, (cost, (_, unit)) in zip(panels, costs.items()):  # now that the accuracies of all panels are on the axis
    _budget(axes.axvline, axes.get_xlim, axes.set_xlim, limits.get(cost, math.inf) / unit)
    _budget(axes.axhline, axes.get_ylim, axes.set_ylim, 100 * limits.get('top1', math.inf))
    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)) if high > 5 * low else MaxNLocator(5))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter('{x:.3g}')
  panels[0].set_ylabel('top-1 accuracy (%)')
  handles = {label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels())}
  figure.legend(handles.values(), handles.keys(), loc='outside lower center', ncols=4 if len(costs) > 1 else 3,
                fontsize=8, title='input; labels are α; pale: not within the budget', title_fontsize=8)
  figure.draw_without_rendering()  # where things are is known from here on
  for axes, (cost, (_, unit)) in zip(panels, costs.items()):
    labels = []
    for row in sorted(rows, key=lambda row: row['top1']):
      if cost in row:
        kind = row['model'].removesuffix('mobilenet').rstrip('_')
        labels.append(((row[cost] / unit, 100 * row['top1']), f'{kind} {row["width_multiplier"]:g}'.strip()))
    looks.label(axes, labels)
  return figure


def _budget(span, get_limits, set_limits, value):
  """Draws a limit that is on the axis or near it; one far off says nothing that the points do not."""
  low, high = get_limits()
  if low / 1.5 < value < 1.5 * high:
    span(value, color='#b30000', linewidth=0.9, linestyle='--', zorder=2, label='budget')
    set_limits(min(low, value / 1.05), max(high, value * 1.05))


def write(folder: Path, rows: list[dict], limits: dict[str, float], picked: dict) -> None:
  """Writes choose.png, choose.svg and candidates.csv: all, or, where one cannot be written, none."""
  table = io.StringIO()
  writer = csv.DictWriter(table, COLUMNS, lineterminator='\n')
  writer.writeheader()
  writer.writerows({**row, 'within': int(within(row, limits)), 'picked': int(row is picked)} for row in rows)
  figure, png, svg = draw(rows, limits, picked), io.BytesIO(), io.BytesIO()
  figure.savefig(png, format='png', dpi=160)
  figure.savefig(svg, format='svg', metadata={'Date': None})
  contents = {'choose.png': png.getvalue(), 'choose.svg': svg.getvalue(), 'candidates.csv': table.getvalue().encode()}

  folder.mkdir(parents=True, exist_ok=True)
  try:
    for name, content in contents.items():
      (folder / f'{name}.tmp').write_bytes(content)
    for name in contents:
      (folder / f'{name}.tmp').replace(folder / name)
  finally:
    for name in contents:
      (folder / f'{name}.tmp').unlink(missing_ok=True)


def main(args: argparse.Namespace) -> None:
  if args.out and not next(path for path in (args.out, *args.out.absolute().parents) if path.exists()).is_dir():
    raise UserError(f'--out={args.out}: expected a folder, to be or that is there')
  rows = read(args.table)
  given = {'mult_adds': args.max_mult_adds, 'params': args.max_params, 'latency_ms': args.max_latency_ms,
           'top1': args.min_accuracy}
  limits = {field: limit for field, limit in given.items() if limit is not None}
  without_latency = {field: limit for field, limit in limits.items() if field != 'latency_ms'}
  picked = choose(rows, without_latency)
  costs = [cost for cost in COSTS if cost in limits] or ['mult_adds']
  if args.latency or 'latency_ms' in limits:
    from mobilenet_jax import parallel
    candidates = [row for row in rows if within(row, without_latency)]
    print(f'measuring the latency of {len(candidates)} models, one image a call, on {parallel.device_name()}',
          flush=True)
    for row, latency in zip(candidates, measure_latency(candidates)):
      row.update(latency_ms=latency, device=parallel.device_name())
    picked = choose(candidates, limits)
    costs += ['latency_ms'] if 'latency_ms' not in costs else []
  for cost in costs:
    print(front_table(rows, cost, limits, picked) + '\n')
  print(f'pick: {picked["name"]}, ' + ', '.join(_show(field, picked[field]) for field in ('top1', *COSTS)
                                                if field in picked))
  print(explain(picked, rows, limits))
  if args.out:
    write(args.out, rows, limits, picked)
    print(f'table  {args.out / "candidates.csv"}\nfigure {args.out / "choose.png"} and .svg')


def parse_amount(text: str) -> float:
  """'100e6' or '100M' as a number above 0."""
  unit = text[-1:] if text[-1:] in UNITS else ''
  value = _decimal(text.removesuffix(unit), UNITS[unit])
  if not 0 < value < math.inf:
    raise argparse.ArgumentTypeError(f'{text}: expected a number above 0, such as 100e6 or 100M (units: k, M, G)')
  return value


def parse_milliseconds(text: str) -> float:
  value = _decimal(text, 1)
  if not 0 < value < math.inf:
    raise argparse.ArgumentTypeError(f'{text}: expected milliseconds above 0, such as 2.5')
  return value


def parse_fraction(text: str) -> float:
  """'0.6' or '60%' as a number in [0, 1]."""
  value = _decimal(text.removesuffix('%'), decimal.Decimal('0.01') if text.endswith('%') else 1)
  if not 0 <= value <= 1:
    raise argparse.ArgumentTypeError(f'{text}: expected a fraction from 0 to 1 or a percentage, such as 0.6 or 60%')
  return value


def _decimal(text, unit) -> float:
  """text * unit, rounded once: 70.9% is 0.709, as in a table; NaN where it is no number."""
  try:
    return float(decimal.Decimal(text) * unit)
  except (ArithmeticError, ValueError):
    return math.nan


if __name__ == '__main__':
  parser = cli.Parser(__doc__)
  parser.add_argument('--max-mult-adds', type=parse_amount, help='for one image, such as 100e6 or 100M')
  parser.add_argument('--max-params', type=parse_amount, help='parameters, such as 2e6 or 2M')
  parser.add_argument('--max-latency-ms', type=parse_milliseconds, help='for one image, on this machine')
  parser.add_argument('--min-accuracy', type=parse_fraction, help='top-1, such as 0.6 or 60%%')
  parser.add_argument('--table', default='published', help='published (the TF-slim release, on ImageNet; the default), '
                      "paper, or the path of a sweep's results.csv")
  parser.add_argument('--latency', action='store_true', help='measure the latency without a budget for it, too')
  parser.add_argument('--out', type=Path, help='folder for the figure and the table')
  cli.run_with(parser, main)
