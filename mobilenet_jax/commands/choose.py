"""Finds the most accurate model within a budget, and the Pareto front that it belongs to.

    mobilenet_jax choose --max-mult-adds=100M
    mobilenet_jax choose --max-latency-ms=2 --min-accuracy=55% --out=runs/choice
    mobilenet_jax choose --table=runs/mine/results.csv --max-params=1.5M --latency

Latency is measured on this machine, for the models that meet the other budgets: one image per call, random weights, 1,000
classes, batch norm folded. --out writes choose.png, choose.svg and candidates.csv, which lists every model of the table.
"""

import argparse
import decimal
import math
from pathlib import Path

from mobilenet_jax.errors import UserError
from mobilenet_jax.runtime import command_line
from mobilenet_jax.sweeps import choice


def main(argv: list[str]) -> None:
  parser = command_line.Parser(__doc__, 'choose')
  parser.add_argument('--max-mult-adds', type=parse_amount, help='for one image, such as 100e6 or 100M')
  parser.add_argument('--max-params', type=parse_amount, help='parameters, such as 2e6 or 2M')
  parser.add_argument('--max-latency-ms', type=parse_milliseconds, help='for one image, on this machine')
  parser.add_argument('--min-accuracy', type=parse_fraction, help='top-1, such as 0.6 or 60%%')
  parser.add_argument('--table', default='published', help='published (the TF-slim release, on ImageNet; the default), '
                      "paper, or the path of a sweep's results.csv")
  parser.add_argument('--latency', action='store_true', help='measure the latency even without a budget for it')
  parser.add_argument('--out', type=Path, help='folder for the figure and the table')
  _choose(parser.parse_args(argv))


def _choose(args):
  if args.out and not next(path for path in (args.out, *args.out.absolute().parents) if path.exists()).is_dir():
    raise UserError(f'--out={args.out}: expected a folder, new or existing')
  rows, remarks = choice.read(args.table)
  for remark in remarks:
    print(f'remark {remark}')
  given = {'mult_adds': args.max_mult_adds, 'params': args.max_params, 'latency_ms': args.max_latency_ms,
           'top1': args.min_accuracy}
  limits = {field: limit for field, limit in given.items() if limit is not None}
  without_latency = {field: limit for field, limit in limits.items() if field != 'latency_ms'}
  picked = choice.choose(rows, without_latency)
  costs = [cost for cost in choice.COSTS if cost in limits] or ['mult_adds']
  if args.latency or 'latency_ms' in limits:
    candidates = [row for row in rows if choice.within(row, without_latency)]
    _measure_latency(candidates)
    picked = choice.choose(candidates, limits)
    costs += ['latency_ms'] if 'latency_ms' not in costs else []
  for cost in costs:
    print(choice.front_table(rows, cost, limits, picked) + '\n')
  print(f'pick: {picked["name"]}, ' + ', '.join(choice.show(field, picked[field]) for field in ('top1', *choice.COSTS)
                                                if field in picked))
  print(choice.explain(picked, rows, limits))
  if args.out:
    from mobilenet_jax.sweeps import choice_figure  # here, because importing Matplotlib takes time
    choice_figure.write(args.out, rows, limits, picked)
    print(f'table  {args.out / "candidates.csv"}\nfigure {args.out / "choose.png"} and .svg')


def _measure_latency(rows):
  """Adds the columns latency_ms and device to the rows."""
  from mobilenet_jax import trained  # here, because importing the library for checkpoints takes time
  from mobilenet_jax.runtime import devices
  print(f'measuring the latency of {len(rows)} models, one image per call, on {devices.device_name()}', flush=True)
  networks = [(choice.config_of(row).model, (row['height'], row['width'])) for row in rows]
  for row, latency in zip(rows, trained.measure_latency(networks)):
    row.update(latency_ms=latency, device=devices.device_name())


def parse_amount(text: str) -> float:
  """Returns text such as '100e6' or '100M' as a number above 0."""
  unit = text[-1:] if text[-1:] in choice.UNITS else ''
  value = _decimal(text.removesuffix(unit), choice.UNITS[unit])
  if not 0 < value < math.inf:
    raise argparse.ArgumentTypeError(f'{text}: expected a number above 0, such as 100e6 or 100M (units: k, M, G)')
  return value


def parse_milliseconds(text: str) -> float:
  value = _decimal(text, 1)
  if not 0 < value < math.inf:
    raise argparse.ArgumentTypeError(f'{text}: expected milliseconds above 0, such as 2.5')
  return value


def parse_fraction(text: str) -> float:
  """Returns text such as '0.6' or '60%' as a number in [0, 1]."""
  value = _decimal(text.removesuffix('%'), decimal.Decimal('0.01') if text.endswith('%') else 1)
  if not 0 <= value <= 1:
    raise argparse.ArgumentTypeError(f'{text}: expected a fraction from 0 to 1 or a percentage, such as 0.6 or 60%')
  return value


def _decimal(text, unit) -> float:
  """Returns text * unit, rounded once, so that 70.9% is 0.709 as in a table; NaN if the text is not a number."""
  try:
    return float(decimal.Decimal(text) * unit)
  except (ArithmeticError, ValueError):
    return math.nan
