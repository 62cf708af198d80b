"""Trains a MobileNet beside TensorFlow, from the same weights on the same batches, and measures how far the two part.

    python -m experiments.parity --out=experiments/results       # or: make parity

Ours is training as users start it: the recipe configs/imagenet.py for batches of 16, with RMSprop, momentum, warm-up,
staircase, L2, label smoothing and averaged weights, on the embedded dataset at 96x96, without dropout. parity_sides.py has both
sides.

It writes parity.csv, with a row for each case, step and layer, and parity.png. A layer is a convolution with its batch norm,
or the classifier. The largest difference of its parameters is divided by the largest distance that one of them has moved since
the start, and so for its running statistics, and for the averages of both; a row has the largest of these four, for us and
TensorFlow, and for two runs of TensorFlow with one and two threads. What is tolerated was fixed before the first run. The exit
status is 1 if it is exceeded.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from experiments import figures
from experiments.benchmark import write_csv
from experiments.parity_sides import INPUTS, OURS, STEPS, TENSORFLOW, Case, run
from mobilenet_jax.runtime import command_line
from mobilenet_jax.runtime.environment import commit

TIMES_TENSORFLOW = 5  # in float32: the tolerated multiple of the difference between two runs of TensorFlow, from step JUDGED on
JUDGED = 10
THREADS = (1, 2)
OF_MOVEMENT = 1e-6  # in float64: the tolerated difference
OF_LOSS = 0.02  # in bfloat16: the tolerated relative difference of the mean loss from that in float32
CASES = (
    Case('float64', {'model.dtype': 'float64'}),
    Case('float64, two devices', {'model.dtype': 'float64', 'model.sync_batch_norm': True}, devices=2),
    Case('float64, two parts', {'model.dtype': 'float64', 'accumulate_steps': 2}),
    Case('float32'),
    Case('float32, two devices', {'model.sync_batch_norm': True}, devices=2),
    Case('float32, two parts', {'accumulate_steps': 2}),
    Case('float32, group of four', group=4),
    Case('bfloat16', {'model.dtype': 'bfloat16'}),
)


def measure(cases: Sequence[Case], width_multiplier: float, most: int,
            folder: Path) -> tuple[list[dict], dict[str, np.ndarray]]:
  """Runs both sides of each case. Returns a row for each case, step and layer, and the losses of each case by step.

  Args:
    cases: some of CASES.
    width_multiplier: of the model.
    most: the number of steps, in float64 at most JUDGED.
    folder: for temporary files.
  """
  rows, losses, first = [], {}, {}
  for case in cases:
    steps = min(most, JUDGED) if case.dtype == 'float64' else most  # it is slow, and shows in few steps what is different
    own = folder / case.name
    run(OURS, case, width_multiplier, steps, own)
    key = case.dtype == 'float64', case.parts
    if key not in first:  # what TensorFlow does is the same for all cases of this key
      first[key] = own
      for threads in sorted({*THREADS}):
        run(TENSORFLOW, case, width_multiplier, steps, own, threads)
    theirs = first[key]
    start, ours, one, other = (np.load(path) for path in (theirs / INPUTS, own / f'{OURS}.npz', *(
        theirs / f'{TENSORFLOW}_{threads}.npz' for threads in THREADS)))
    with np.load(own / INPUTS) as inputs:
      assert all((inputs[name] == start[name]).all() for name in start), 'both sides need the same weights and batches'
    losses[case.name], losses[f'{TENSORFLOW}, {case.dtype}'] = ours['losses'], one['losses']
    found = [row for step in STEPS if step <= steps for row in _rows(step, start, ours, one, other)]
    rows += [{'case': case.name, **row} for row in found]
    worst = max((row for row in found if row['step'] == steps), key=lambda row: row['ours'])
    print(f'{case.name}: after {steps} steps at most {worst["ours"]:.1e} of the movement of a layer ({worst["layer"]}), '
          f'TensorFlow and itself {max(row["tensorflow"] for row in found if row["step"] == steps):.1e}', flush=True)
  return rows, losses


def _rows(step, start, ours, one, other):
  """Yields a row for each layer. Its arrays are compared in four kinds: parameters, statistics, and the averages of each."""
  kinds = {}  # by layer and kind: (movement, difference of ours, difference of TensorFlow's) of each array
  for name in (name.removeprefix('start/') for name in start if name.startswith('start/')):
    layer, _, index = name.partition('/')
    for when in ('now', 'average'):
      value = one[f'{step}/{when}/{name}'].astype(np.float64)
      apart = [np.abs(theirs - value).max() for theirs in (
          start[f'start/{name}'], ours[f'{step}/{when}/{name}'], other[f'{step}/{when}/{name}'])]
      kind = layer.endswith('_bn') and index in '23', when
      kinds.setdefault(layer.removesuffix('_bn'), {}).setdefault(kind, []).append(apart)
  for layer, found in kinds.items():
    moved, mine, theirs = np.array([np.max(apart, axis=0) for apart in found.values()]).T  # (kinds,) each
    largest = lambda apart: float(f'{max(apart / moved):.3g}')
    yield {'step': step, 'layer': layer, OURS: largest(mine), TENSORFLOW: largest(theirs)}


def faults(rows: list[dict], losses: dict[str, np.ndarray]) -> list[str]:
  """Returns what is not tolerated, one line each."""
  found = []
  for row in rows:
    where = f'{row["case"]}, step {row["step"]}, {row["layer"]}'
    if row['case'].startswith('float64'):
      if not row['ours'] <= OF_MOVEMENT:  # neither is NaN
        found.append(f'{where}: {row["ours"]:.1e} of the movement, tolerated {OF_MOVEMENT:.0e}')
    elif row['case'] != 'bfloat16' and row['step'] >= JUDGED and not row['ours'] <= TIMES_TENSORFLOW * row['tensorflow']:
      found.append(f'{where}: {row["ours"]:.1e}, more than {TIMES_TENSORFLOW} x {row["tensorflow"]:.1e}')
  if 'bfloat16' in losses:
    ours, theirs = losses['bfloat16'].mean(), losses[f'{TENSORFLOW}, float32'].mean()
    print(f'bfloat16: mean loss {ours:.4f}, float32 {theirs:.4f}')
    if not abs(ours / theirs - 1) <= OF_LOSS:
      found.append(f'bfloat16: the mean loss differs by {ours / theirs - 1:+.1%}, tolerated {OF_LOSS:.0%}')
  return found


def draw(rows: list[dict]):
  """Draws the largest difference of any layer by step, for each case."""
  figure, axes = plt.subplots(figsize=(7.6, 4.2), layout='constrained')
  worst = lambda case, side: {step: max(row[side] for row in rows if row['case'] == case and row['step'] == step)
                              for step in dict.fromkeys(row['step'] for row in rows if row['case'] == case)}
  for marker, case in zip('osD^v<>x', dict.fromkeys(row['case'] for row in rows)):
    by_step = worst(case, 'ours')
    axes.plot(by_step.keys(), by_step.values(), marker=marker, markersize=4, linewidth=1, alpha=0.8, label=case)
  by_step = worst('float32', 'tensorflow')
  axes.plot(by_step.keys(), by_step.values(), color='black', linestyle='--', label='TensorFlow with 1 and 2 threads')
  axes.set(xscale='log', yscale='log', xlabel='step', ylabel='largest difference from TensorFlow,\nas a part of the movement')
  axes.set_xticks(STEPS, map(str, STEPS))
  axes.minorticks_off()
  axes.grid(True, which='major', color='0.88', linewidth=0.6)
  figure.legend(fontsize=8, loc='outside right center')
  return figure


def main(args: argparse.Namespace) -> None:
  with tempfile.TemporaryDirectory() as folder:
    rows, losses = measure(CASES, args.alpha, args.steps, Path(folder))
  write_csv([{**row, 'commit': commit()} for row in rows], args.out / 'parity.csv')
  figures.save(draw(rows), args.out / 'parity')
  wrong = faults(rows, losses)
  print(*wrong, f'{len(wrong)} differences are not tolerated', sep='\n')
  sys.exit(bool(wrong))


if __name__ == '__main__':
  parser = command_line.Parser(__doc__)
  parser.add_argument('--out', type=Path, required=True, help='folder to write to')
  parser.add_argument('--steps', type=int, default=max(STEPS), help='number of steps')
  parser.add_argument('--alpha', type=float, default=1.0, help='width multiplier')
  command_line.run_with(parser, main)
