"""Draws Figures 4 and 5 of the paper from a table of results. Does not import JAX.

    python -m experiments.figures --results=runs/fabrics/results.csv --out=runs/fabrics

This writes figure4 and figure5 as PNG and SVG, with results.csv beside them.
"""

import argparse
import csv
import sys
from pathlib import Path

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import LogLocator

from mobilenet_jax.sweeps import looks

REFERENCE = Path(looks.__file__).parent / 'imagenet_reference.csv'

REFERENCE_LOOKS = {'paper': ('+', '0.25', 'the paper'), 'published': ('x', '0.55', 'published models (TF-slim)')}


def read(path: Path) -> list[dict]:
  """Returns the rows of MobileNets in a CSV file. The columns that are drawn are numbers."""
  with path.open(newline='') as file:
    rows = list(csv.DictReader(file))
  for row in rows:
    row.update({key: float(row[key]) for key in ('width_multiplier', 'height', 'mult_adds', 'params', 'top1')})
  return [row for row in rows if row['model'] == 'mobilenet']


def log_linear_fit(mult_adds, accuracy) -> tuple[float, float, float]:
  """Fits accuracy = a + b log10(mult_adds) by least squares. Returns (a, b, R^2); R^2 is NaN if all accuracies are equal."""
  x, y = np.log10(mult_adds), np.asarray(accuracy, float)
  slope, intercept = np.polyfit(x, y, 1)
  total = ((y - y.mean()) ** 2).sum()
  r_squared = 1 - ((y - intercept - slope * x) ** 2).sum() / total if total else float('nan')
  return intercept, slope, r_squared


def figure4(rows: list[dict], references: list[dict] = ()):
  """Draws accuracy against Mult-Adds on a logarithmic axis: one mark per resolution, labels with alpha, the log-linear fit."""
  figure, axes = _axes('Mult-Adds (millions)')
  _points(axes, rows, 'mult_adds')
  _references(axes, references, 'mult_adds')
  if len({row['mult_adds'] for row in rows}) > 2:
    mult_adds = np.array([row['mult_adds'] for row in rows])
    intercept, slope, r_squared = log_linear_fit(mult_adds, [100 * row['top1'] for row in rows])
    ends = np.array([mult_adds.min() * 0.85, mult_adds.max() * 1.15])
    axes.plot(ends / 1e6, intercept + slope * np.log10(ends), color='0.4', linewidth=1, linestyle='--', zorder=1,
              label=f'log-linear fit, $R^2$ = {r_squared:.2f}')
  axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
  _finish(axes)
  figure.draw_without_rendering()  # fixes the layout, which looks.label needs
  looks.label(axes, [((row['mult_adds'] / 1e6, 100 * row['top1']), f'{row["width_multiplier"]:g}') for row in rows])
  return figure


def figure5(rows: list[dict], references: list[dict] = ()):
  """Draws accuracy against parameters: one mark per resolution, the resolutions of one alpha above each other."""
  figure, axes = _axes('parameters (millions)')
  _points(axes, rows, 'params')
  _references(axes, references, 'params')
  axes.set_xticks(sorted({row['params'] / 1e6 for row in rows}))  # one per alpha
  axes.minorticks_off()
  for row in {row['width_multiplier']: row for row in sorted(rows, key=lambda row: row['top1'])}.values():
    # The points of one alpha are above each other, so one label over the highest is enough.
    axes.annotate(f'{row["width_multiplier"]:g}', (row['params'] / 1e6, 100 * row['top1']), xytext=(0, 7),
                  textcoords='offset points', ha='center', fontsize=7)
  _finish(axes)
  return figure


def save(figure, path: Path) -> None:
  """Writes a figure as PNG and SVG, whatever the suffix of `path`, and closes it."""
  figure.savefig(path.with_suffix('.png'), dpi=160)
  figure.savefig(path.with_suffix('.svg'), metadata={'Date': None})
  plt.close(figure)


def write(rows: list[dict], references: list[dict], folder: Path, prefix: str = '') -> None:
  """Draws both figures into `folder`, as PNG and SVG."""
  for number, draw in ((4, figure4), (5, figure5)):
    path = folder / f'{prefix}figure{number}'
    save(draw(rows, references), path)
    print(f'figure {number} {path.with_suffix(".png")} and .svg')


def _axes(xlabel):
  figure, axes = plt.subplots(figsize=(6.4, 4.4), layout='constrained')
  axes.set_xscale('log')
  axes.set_xlabel(xlabel)
  axes.set_ylabel('top-1 accuracy (%)')
  return figure, axes


def _points(axes, rows, column):
  for size, look in looks.marks(row['height'] for row in rows).items():
    members = [row for row in rows if row['height'] == size]
    axes.plot([row[column] / 1e6 for row in members], [100 * row['top1'] for row in members], **look, zorder=3,
              label=f'{size:.0f} x {size:.0f}')


def _references(axes, rows, column):
  for source, (marker, color, label) in REFERENCE_LOOKS.items():
    members = [row for row in rows if row['source'] == source]
    if members:
      axes.plot([row[column] / 1e6 for row in members], [100 * row['top1'] for row in members], marker, color=color,
                markersize=7, zorder=2, label=label)


def _finish(axes):
  axes.xaxis.set_major_formatter('{x:.3g}')
  axes.xaxis.set_minor_formatter('')
  axes.margins(0.08)
  axes.grid(True, which='major', color='0.88', linewidth=0.6)
  axes.set_axisbelow(True)
  axes.legend(title='input; labels are α', fontsize=8, title_fontsize=8, frameon=True, loc='best')


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--results', type=Path, required=True, help='CSV file of a sweep')
  parser.add_argument('--out', type=Path, required=True, help='folder to write to')
  parser.add_argument('--name', default='', help='prefix of the file names, such as cifar10_')
  parser.add_argument('--reference', default='', help='results to draw below ours, for ImageNet: paper, published or both, '
                      'separated by a comma')
  args = parser.parse_args()

  unknown = set(filter(None, args.reference.split(','))) - set(REFERENCE_LOOKS)
  if unknown:
    sys.exit(f'error: --reference={args.reference}: expected {" or ".join(REFERENCE_LOOKS)}')
  try:
    rows = read(args.results)
  except OSError as error:
    sys.exit(f'error: --results={args.results}: {error.strerror}; expected the results.csv of a sweep')
  except (KeyError, ValueError) as error:
    sys.exit(f'error: --results={args.results}: not a table of results ({error})')
  if not rows:
    sys.exit(f'error: --results={args.results}: no row of a MobileNet in it; let a run of the sweep finish first')
  references = [row for row in read(REFERENCE) if row['source'] in args.reference.split(',')]

  args.out.mkdir(parents=True, exist_ok=True)
  copy = args.out / f'{args.name}results.csv'
  if copy.resolve() != args.results.resolve():
    copy.write_text(args.results.read_text())
  print(f'table    {copy}')
  write(rows, references, args.out, args.name)


if __name__ == '__main__':
  main()
