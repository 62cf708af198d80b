"""Chooses the most accurate model within a budget, and finds the Pareto front that it belongs to."""

import ml_collections

from mobilenet_jax import config as config_lib
from mobilenet_jax import models
from mobilenet_jax.errors import UserError
from mobilenet_jax.storage.files import expanded
from mobilenet_jax.sweeps import tables

SOURCES = ('published', 'paper')  # the sources of its rows
COSTS = {'mult_adds': 'Mult-Adds', 'params': 'parameters', 'latency_ms': 'latency'}
COLUMNS = ('name', 'model', 'width_multiplier', 'height', 'width', 'mult_adds', 'params', 'top1', 'latency_ms',
           'device', 'within', 'picked')  # of candidates.csv
UNITS = {'': 1, 'k': 10**3, 'M': 10**6, 'G': 10**9}


def pareto_front(rows: list[dict], cost: str) -> list[dict]:
  """Returns the rows that no other row beats, cheapest first.

  A row is beaten by another that is at least as accurate (`top1`) at no more `cost`, and better in one of the two. Rows that
  are equal in both are all kept.
  """
  front = []
  for row in sorted(rows, key=lambda row: (row[cost], -row['top1'])):
    if not front or row['top1'] > front[-1]['top1'] or all(row[key] == front[-1][key] for key in (cost, 'top1')):
      front.append(row)
  return front


def choose(rows: list[dict], limits: dict[str, float]) -> dict:
  """Returns the row with the highest top1 that meets every limit; among equally accurate rows, that with fewer Mult-Adds.

  If the only limit is an accuracy, it returns the row with the fewest Mult-Adds that reaches it.

  Args:
    rows: at least one row; each has name, top1, mult_adds, and the columns that `limits` names.
    limits: the minimum for top1, in [0, 1], and the maximum for any other column.

  Raises:
    UserError: if no row meets all limits. It names the nearest row, the limits that it misses, and by how much.
  """
  if fitting := [row for row in rows if within(row, limits)]:
    if _wants_cheapest(limits):
      return min(fitting, key=lambda row: (row['mult_adds'], -row['top1']))
    return max(fitting, key=lambda row: (row['top1'], -row['mult_adds']))
  near = _nearest(rows, limits)
  raise UserError(f'there is no model{_describe(limits)} among {len(rows)} models; the nearest, {near["name"]}, '
                  f'{_misses(near, limits, by_how_much=True)}; relax the limits that it misses')


def within(row: dict, limits: dict[str, float]) -> bool:
  """Returns whether a row meets every limit. A row that lacks a column does not meet its limit."""
  return all(field in row and _excess(row, field, limit) <= 0 for field, limit in limits.items())


def _wants_cheapest(limits) -> bool:
  return set(limits) == {'top1'}


def explain(picked: dict, rows: list[dict], limits: dict[str, float]) -> str:
  """Returns one line that says why `picked` was chosen from `rows`."""
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
  return f'{reason}the nearest that is {rival}, {near["name"]} ({show(shown, near[shown])}), {_misses(near, limits)}'


def read(table: str) -> tuple[list[dict], list[str]]:
  """Returns the models of a table: 'published' or 'paper' (ImageNet), or the path of a sweep's results.csv; and remarks.

  Runs that differ only in their seed are one model, with the mean of their accuracies. Where that cannot be told, a remark
  says so.

  Raises:
    UserError: if there is no such table, if it is not a table of results, or if it contains no model.
  """
  path = tables.REFERENCE if table in SOURCES else expanded(table)
  if not path.is_file():
    raise UserError(f'--table={table}: expected {", ".join(SOURCES)}, or the path of a results.csv')
  lines = tables.lines(path)
  rows = [_row(line, f'--table={table}, row {i}') for i, line in enumerate(lines, start=1)
          if table not in SOURCES or line['source'] == table]
  if not rows:
    raise UserError(f'--table={table}: no model in it; let a run of the sweep finish first')
  return (rows, []) if table in SOURCES else _means(path, rows)


def _means(path, rows) -> tuple[list[dict], list[str]]:
  """Returns one row for the runs that differ only in their seed, so that no seed is chosen for its luck, and remarks."""
  by_name = {row['name']: row for row in rows}
  if len(by_name) < len(rows):
    return rows, [f'{path}: several rows have one name, so no seeds are averaged']
  found = tables.read(path, 'top1')
  points, remarks = tables.over_seeds(found.rows)
  for point in points:
    if len(point.names) > 1 and set(point.names) <= set(by_name):
      members = [by_name.pop(name) for name in point.names]
      name = f'{point.name} (mean of {len(members)} seeds)'
      by_name[name] = {**members[0], 'name': name, 'top1': point.means['top1']}
  return list(by_name.values()), [*found.remarks, *(f'{path}: {remark}' for remark in remarks)]


def _row(line, where):
  kinds = {'model': str, 'width_multiplier': float, 'height': int, 'width': int, 'mult_adds': int, 'params': int,
           'top1': float}
  row = {}
  for key, kind in kinds.items():
    if line.get(key) is None:
      raise UserError(f'{where}: has no {key}; expected the columns of a results.csv, including {", ".join(kinds)}')
    try:
      row[key] = kind(line[key])
    except ValueError:
      raise UserError(f'{where}: {key}={line[key]}: expected a number') from None
  if min(row['mult_adds'], row['params']) < 1 or not 0 <= row['top1'] <= 1:
    raise UserError(f'{where}: mult_adds={row["mult_adds"]}, params={row["params"]}, top1={row["top1"]}: expected at '
                    'least 1, at least 1, and a fraction in [0, 1]')
  try:
    name = config_lib.model_name(config_of(row))
  except UserError as error:
    raise UserError(f'{where}: {error}') from error
  return {'name': line.get('name') or name, **row}


def config_of(row: dict) -> ml_collections.ConfigDict:
  """Returns a complete config for the network and the input size that a row names.

  Raises:
    UserError: if there is no such network or size.
  """
  config = config_lib.changed(config_lib.base(), {
      'model.name': row['model'], 'data.image_size': (row['height'], row['width'])})
  if 'width_multiplier' in models.fields(row['model']):
    config.model.width_multiplier = row['width_multiplier']
  config = config_lib.validated(config)
  config.model = models.complete(config.model)
  return config


def _excess(row, field, limit) -> float:
  """Returns how far a row exceeds a limit: as a fraction for a cost, as a difference for an accuracy; at most 0 within it."""
  return limit - row[field] if field == 'top1' else (row[field] - limit) / limit


def _nearest(rows, limits) -> dict:
  """Returns the row whose largest excess is smallest; among equal rows, the most accurate one."""
  return min(rows, key=lambda row: (
      max(_excess(row, field, limit) for field, limit in limits.items() if field in row), -row['top1']))


def _misses(row, limits, by_how_much=False) -> str:
  """Returns text like 'needs 106.8 M Mult-Adds (6.77 M over) and reaches 62.1% top-1 (0.9 points short)'."""
  verbs = {'latency_ms': 'takes', 'top1': 'reaches'}
  words = []
  for field, limit in limits.items():
    if field in row and _excess(row, field, limit) > 0:
      words.append(f'{verbs.get(field, "needs")} {show(field, row[field])}')
      if by_how_much:
        short = f'{100 * (limit - row[field]):.3g} points short'
        words[-1] += f' ({short if field == "top1" else _number(field, row[field] - limit) + " over"})'
  return ' and '.join(words)


def _describe(limits) -> str:
  """Returns text like ' within 100 M Mult-Adds and 5 ms with at least 60% top-1'; '' without limits."""
  costs = ' and '.join(show(field, limits[field]) for field in COSTS if field in limits)
  least = f' with at least {show("top1", limits["top1"])}' if 'top1' in limits else ''
  return (f' within {costs}' if costs else '') + least


def show(field: str, value: float) -> str:
  """Returns a value of a column with its unit, like '41.03 M Mult-Adds'."""
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
  """Returns the Pareto front of accuracy against `cost` as an aligned table, one model per line."""
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
