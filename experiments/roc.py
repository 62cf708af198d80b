"""Draws ROC curves of face verification, VAL against FAR, as PNG and SVG. Does not import JAX.

    python -m experiments.roc --curve teacher=teacher.csv --curve "1.0 MobileNet-160"=student.csv --out=roc.png

A file has the columns far and val, in ascending order, as verification.write_roc writes them. It may have a column accuracy
with the same value in every row. A curve is a staircase: the VAL at the largest threshold whose FAR is at most the given
one. It begins at its first false accept, because its pairs resolve nothing below.
"""

import argparse
import csv
import dataclasses
import sys
from pathlib import Path

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt
import numpy as np

from mobilenet_jax.errors import UserError
from mobilenet_jax.sweeps import looks

FAR_READ = (1e-3, 1e-2, 1e-1)  # the legend reads VAL at the first of these that all curves resolve
COLORS = (*(color for color, _ in looks.LOOKS[:4]), '0.4', '#6a51a3')
STYLES = ('-', '--', '-.', (0, (1, 0.8)))


@dataclasses.dataclass(frozen=True)
class Curve:
  """A curve: far and val (points,) in [0, 1]; accuracy in [0, 1] or None."""
  name: str
  far: np.ndarray
  val: np.ndarray
  accuracy: float | None

  def val_at(self, far: float) -> float:
    """Returns VAL at a false accept rate; NaN if the rate is below the lowest one of the curve."""
    return float(self.val[self.far <= far][-1]) if self.far[self.far > 0][0] <= far else float('nan')

  def label(self, far: float) -> str:
    val = self.val_at(far)
    accuracy = '' if self.accuracy is None else f'{100 * self.accuracy:.2f} %, '
    return f'{self.name}: {accuracy}' + ('VAL not resolved' if np.isnan(val) else f'VAL {100 * val:.1f} %')


def read(name: str, path: Path) -> Curve:
  where = f'--curve {name}={path}'
  try:
    with path.open(newline='') as file:
      rows = list(csv.DictReader(file))
    far, val = (np.array([float(row[column]) for row in rows]) for column in ('far', 'val'))
    accuracy = float(rows[0]['accuracy']) if rows and 'accuracy' in rows[0] else None
  except OSError as error:
    raise UserError(f'{where}: {error.strerror}; expected a CSV file with the columns far and val') from error
  except (KeyError, TypeError, ValueError) as error:
    raise UserError(f'{where}: expected a table of numbers with the columns far and val ({error})') from error
  for column in (far, val):
    if not len(column) or not 0 <= column[0] <= column[-1] <= 1 or not np.all(np.diff(column) >= 0) or not far[-1]:
      raise UserError(f'{where}: expected far and val in ascending order within [0, 1], and far to end above 0')
  return Curve(name, far, val, accuracy)


def draw(curves: list[Curve]):
  figure, axes = plt.subplots(figsize=(8.4, 4), layout='constrained')
  axes.set_xscale('log')
  lowest, least = 1.0, min(curve.far[curve.far > 0][0] for curve in curves)
  read_at = next((far for far in FAR_READ if not any(np.isnan(curve.val_at(far)) for curve in curves)), FAR_READ[-1])
  for i, curve in enumerate(curves):
    resolved = (curve.far > 0) & np.append(np.diff(curve.far) > 0, True)  # the highest VAL of each FAR
    axes.plot(curve.far[resolved], 100 * curve.val[resolved], drawstyle='steps-post', linewidth=1.5,
              color=COLORS[i % len(COLORS)], linestyle=STYLES[i % len(STYLES)], label=curve.label(read_at))
    lowest = min(lowest, curve.val_at(curve.far[resolved][0]))
  axes.axvline(read_at, color='0.6', linewidth=0.8, linestyle=(0, (1, 2)), zorder=1)
  axes.set_xlim(10 ** np.floor(np.log10(least)), 1)
  bottom = max(0, 10 * np.floor(10 * lowest - 0.2))
  axes.set_ylim(bottom, 100 + (100 - bottom) / 50)  # so that a line at 100 % is not cut off
  axes.set_xlabel('false accept rate (FAR)')
  axes.set_ylabel('validation rate (VAL, %)')
  axes.grid(True, which='major', color='0.88', linewidth=0.6)
  axes.set_axisbelow(True)
  known = 'accuracy; ' if any(curve.accuracy is not None for curve in curves) else ''
  figure.legend(title=f'{known}VAL at FAR {read_at:g}', fontsize=8, title_fontsize=8, frameon=False,
                loc='outside right center', handlelength=3)
  return figure


def write(curves: dict[str, Path], out: Path) -> None:
  """Draws the curves in CSV files, given by name, as PNG and SVG.

  Raises:
    UserError: if a file does not contain a curve.
  """
  figure = draw([read(name, path) for name, path in curves.items()])
  out.parent.mkdir(parents=True, exist_ok=True)
  figure.savefig(out, dpi=160)
  figure.savefig(out.with_suffix('.svg'), metadata={'Date': None})
  print(f'roc {out} and .svg')


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--curve', action='append', required=True, metavar='NAME=PATH', help='may be given several times')
  parser.add_argument('--out', type=Path, required=True, help='PNG file to write; an SVG is written beside it')
  args = parser.parse_args()

  try:
    if args.out.suffix != '.png':
      raise UserError(f'--out={args.out}: expected the name of a PNG file, such as roc.png')
    curves = {}
    for curve in args.curve:
      name, _, path = curve.rpartition('=')  # a name may contain a =, as in 'α = 0.5'
      if not name or not path:
        raise UserError(f'--curve {curve}: expected NAME=PATH, such as teacher=runs/teacher/roc.csv')
      curves[name] = Path(path)
    write(curves, args.out)
  except UserError as error:
    sys.exit(f'error: {error}')


if __name__ == '__main__':
  main()
