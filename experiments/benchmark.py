"""Measures our speed and that of other implementations, in one run.

    python -m experiments.benchmark --out=runs/benchmark            # or: make benchmark
    python -m experiments.benchmark --quick                         # one case each of inference and training
    python -m experiments.benchmark --grid                          # all 16 models, ours against grouped; no chart

This writes benchmark.csv (one row per measurement), benchmark.png and benchmark.svg; --grid writes benchmark_grid.csv. Every
implementation runs in a process of its own, as its users start it. Each peer is measured in turns with ours, a few calls of
one and a few of the other, so that a slow minute of the machine slows both. `ratio` is the peer's median divided by ours from
the same turns, above 1 if we are faster. `compile_s` is the time of the first call minus that of a usual one. `peak_mb` is
the peak memory of the process with all its libraries, or of the accelerator. The input pipeline is measured alone, on JPEG
files made for it.
"""

import argparse
import contextlib
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt
import numpy as np

from experiments import figures
from experiments.benchmark_implementations import IMPLEMENTATIONS, OURS, missing
from experiments.benchmark_input import measure_input
from mobilenet_jax.config import RESOLUTION_MULTIPLIERS, WIDTH_MULTIPLIERS
from mobilenet_jax.runtime.environment import MEMORY_SETTING

COLUMNS = ('implementation', 'model', 'mode', 'batch', 'ms_per_image', 'peak_mb', 'compile_s', 'ratio')
TURN_SECONDS = 1.0  # about how long a turn lasts
CALLS = 2, 30  # in a turn, at least and at most


class Worker:
  """A process that runs one implementation, and waits until it is asked to measure."""

  def __init__(self, name, alpha, size, dtype, mode, batch):
    self._batch = batch
    environment = dict(os.environ)
    if name.startswith(OURS):
      environment.update(MEMORY_SETTING, JAX_COMPILATION_CACHE_DIR='')  # as the command line sets it, but without the cache
    self._errors = tempfile.TemporaryFile('w+')
    self._process = subprocess.Popen(
        [sys.executable, '-m', 'experiments.benchmark_implementations',
         *(str(value) for value in (name, alpha, size, dtype, mode, batch))],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True, env=environment)
    self.peak_mb, self.times = 0, []
    answer = self._read()
    self.compile_s = answer['compile_s']
    self._calls = int(np.clip(TURN_SECONDS * 1e3 / answer['warm_ms'], *CALLS))

  def turn(self) -> list[float]:
    """Makes some calls and returns the milliseconds per image of each."""
    self._process.stdin.write(f'{self._calls}\n')
    self._process.stdin.flush()
    answer = self._read()
    self.peak_mb = answer['peak_mb']
    times = [ms / self._batch for ms in answer['ms']]
    self.times += times
    return times

  def close(self) -> None:
    self._process.stdin.close()
    self._process.wait()
    self._process.stdout.close()
    self._errors.close()

  def _read(self):
    line = self._process.stdout.readline()
    if not line:
      self._process.wait()
      self._errors.seek(0)
      reason = (self._errors.read().strip() or f'exit status {self._process.returncode}').splitlines()[-1]
      raise RuntimeError(reason[:200])
    return json.loads(line)


def measure(peers, model, mode, batch, dtype, turns):
  """Returns a row for ours and for each peer, for one case. A peer that fails is reported and left out."""
  alpha, size = model
  case = {'model': f'mobilenet_{alpha:.2f}_{size}', 'mode': mode, 'batch': batch}
  row = lambda name, worker, times, ratio: {
      'implementation': name, **case, 'ms_per_image': round(statistics.median(times), 3),
      'peak_mb': round(worker.peak_mb), 'compile_s': round(worker.compile_s, 1), 'ratio': round(ratio, 2)}
  rows = []
  with contextlib.closing(Worker(OURS, alpha, size, dtype, mode, batch)) as ours:
    for name in peers:
      try:
        with contextlib.closing(Worker(name, alpha, size, dtype, mode, batch)) as peer:
          pairs = [(ours.turn(), peer.turn()) for _ in range(turns)]
          ours_times, peer_times = (sum(part, []) for part in zip(*pairs))
          ratio = statistics.median(peer_times) / statistics.median(ours_times)
          rows.append(row(name, peer, peer_times, ratio))
      except (RuntimeError, BrokenPipeError) as error:
        print(f'  {name} failed, left out: {error}', flush=True)
        continue
      _print(rows[-1])
    if not ours.times:
      ours.turn()
    rows.insert(0, row(OURS, ours, ours.times, 1.0))
  _print(rows[0])
  return rows


def _print(row):
  print(f'  {row["implementation"]:24} {row["ms_per_image"]:9.2f} ms per image {row["ratio"]:7.2f} x ours '
        f'{row["peak_mb"]:7,} MB   compiled in {row["compile_s"]:.1f} s', flush=True)


def draw(rows):
  """Draws one panel per case: horizontal bars of milliseconds per image, the fastest on top, ours in colour."""
  cases = list(dict.fromkeys((row['model'], row['mode'], row['batch']) for row in rows if row['mode'] != 'input'))
  columns = min(len(cases), 2)
  lines = -(-len(cases) // columns)
  tallest = max(sum((row['model'], row['mode'], row['batch']) == case for row in rows) for case in cases)
  figure, panels = plt.subplots(lines, columns, figsize=(5.2 * columns, lines * (0.9 + 0.27 * tallest)),
                                layout='constrained', squeeze=False)
  for panel in panels.flat[len(cases):]:
    panel.remove()
  for panel, case in zip(panels.flat, cases):
    members = sorted((row for row in rows if (row['model'], row['mode'], row['batch']) == case),
                     key=lambda row: -row['ms_per_image'])
    colors = ['#2171b5' if row['implementation'] == OURS else '0.72' for row in members]
    bars = panel.barh([row['implementation'] for row in members], [row['ms_per_image'] for row in members],
                      color=colors, height=0.72)
    panel.bar_label(bars, [f'{row["ms_per_image"]:.3g}' for row in members], padding=3, fontsize=8)
    # On a linear axis, a peer many times slower than the others would make them invisible.
    panel.set_xscale('log')
    low, high = members[-1]['ms_per_image'], members[0]['ms_per_image']
    panel.set_xlim(low / 2, high * (high / low) ** 0.15 * 1.3)
    panel.set_title(f'{case[0]}, {case[1]}, batch {case[2]}', fontsize=9)
    panel.set_xlabel('milliseconds per image (logarithmic)', fontsize=8)
    panel.tick_params(labelsize=8)
    panel.spines[['top', 'right']].set_visible(False)
    panel.minorticks_off()
  return figure


def write_csv(rows, path: Path) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  with path.open('w', newline='') as file:
    writer = csv.DictWriter(file, rows[0].keys())
    writer.writeheader()
    writer.writerows(rows)


def save_chart(rows, out: Path) -> None:
  figures.save(draw(rows), out / 'benchmark')


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--out', type=Path, default=Path('runs/benchmark'), help='folder to write to')
  parser.add_argument('--alpha', type=float, default=1.0, help='width multiplier of the model')
  parser.add_argument('--res', type=int, default=224, help="side of the model's input in pixels")
  parser.add_argument('--dtype', choices=('float32', 'bfloat16'), default='float32')
  parser.add_argument('--grid', action='store_true', help='measure all 16 models, against our grouped lowering only')
  parser.add_argument('--inference', default='1,32', help='batch sizes, separated by commas; may be empty')
  parser.add_argument('--training', default='8,64', help='batch sizes; on a GPU 256 and more make sense')
  parser.add_argument('--peers', default=','.join(name for name in IMPLEMENTATIONS if name != OURS),
                      help='names, separated by commas')
  parser.add_argument('--turns', type=int, default=3, help='turns of ours and of each peer')
  parser.add_argument('--quick', action='store_true', help='inference with batch 1 and training with batch 8, two turns')
  args = parser.parse_args()
  if args.quick:
    args.inference, args.training, args.turns = '1', '8', 2
  peers = ['mobilenet_jax grouped'] if args.grid else args.peers.split(',')
  if unknown := set(peers) - set(IMPLEMENTATIONS):
    sys.exit(f'error: --peers: {", ".join(sorted(unknown))}; expected some of {", ".join(IMPLEMENTATIONS)}')
  try:
    cases = [(mode, int(batch)) for mode in ('inference', 'training')
             for batch in filter(None, getattr(args, mode).split(','))]
  except ValueError:
    sys.exit(f'error: --inference={args.inference} --training={args.training}: expected batch sizes such as 8,64')
  models = [(args.alpha, args.res)]
  if args.grid:
    models = [(alpha, round(224 * rho)) for alpha in WIDTH_MULTIPLIERS for rho in RESOLUTION_MULTIPLIERS]

  lacking = {name: packages for name in peers if (packages := missing(name))}
  for name, packages in lacking.items():
    print(f'{name}: left out, because it needs {", ".join(packages)}; pip install -r requirements-benchmark.txt')
  rows = []
  for model in models:
    for mode, batch in cases:
      print(f'mobilenet {model[0]:g} at {model[1]}, {mode}, batch {batch}, {args.dtype}', flush=True)
      able = [name for name in peers if name not in lacking and (mode == 'inference' or IMPLEMENTATIONS[name][1])]
      rows += measure(able, model, mode, batch, args.dtype, args.turns)
      write_csv(rows, args.out / ('benchmark_grid.csv' if args.grid else 'benchmark.csv'))
  if args.grid:
    return
  rows += measure_input()
  write_csv(rows, args.out / 'benchmark.csv')
  save_chart(rows, args.out)
  print(f'{args.out}/benchmark.csv, .png and .svg')


if __name__ == '__main__':
  main()
