"""Faults injected into a small run: does it end as if nothing had been?

    make faults                                  # all: runs/faults/faults.csv and .md
    python -m experiments.faults --count=10 --only='killed in a step' --out=runs/faults

Each injection is a run of its own, on CPU: the fault comes, at a moment that follows from the number of the injection,
and the same command is started again until it ends. It has survived where the final parameters, metrics.jsonl and the
row are those of a run without faults, bit for bit. Time lost is what all its starts took together, less what the run
without faults took.
"""

from mobilenet_jax import cli  # first: it quietens what the others import

import argparse
import collections
import dataclasses
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from experiments import distillation
from mobilenet_jax import checkpoint, errors, evaluate, models, report, results, run, train
from mobilenet_jax import config as config_lib
from mobilenet_jax.data.examples import ArraySource
from mobilenet_jax.errors import UserError

MARKDOWN = {'fault': ('fault', ''), 'injected': ('injected', 'd'), 'survived': ('survived with equal results', 'd'),
            'seconds_lost': ('seconds lost, median', '.1f'), 'steps_again': ('steps done again, median', '.0f')}
# What a run calls, and how often in the whole of VICTIM's: a fault comes at one of these calls, or up to DELAY after.
CALLS = {'step': (run.Run, 'train', 24), 'checkpoint': (checkpoint.Checkpoints, 'save', 6),
         'evaluation': (evaluate, 'evaluate', 6), 'row': (results, 'write', 1)}
DELAY = 0.08  # seconds: as long as a checkpoint of the small network takes to be written
LOG_FILE = 'log.txt'
TRIES = 5  # starts of a run, before it counts as lost
# Of a victim: a checkpoint and an evaluation every fourth step.
CHANGES = {
    'model.width_multiplier': 0.25, 'model.dropout_rate': 0.1, 'data.image_size': (32, 32), 'data.crop_min_area': 0.7,
    'batch_size': 8, 'eval_batch_size': 8, 'train_for': '24 steps', 'log_every': '3 steps', 'eval_every': '4 steps',
    'checkpoint_every': '4 steps', 'ema_decay': 0.9, 'optim.learning_rate': 0.01, 'optim.epsilon': 1e-3}


@dataclasses.dataclass(frozen=True)
class Fault:
  """One kind.

  Attributes:
    call: of CALLS, when it comes.
    signal: that comes then.
    damage: what is done to the run's folder once it has ended; the run then starts again.
    first: call at which it may come.
  """

  call: str
  signal: int = signal.SIGKILL
  first: int = 0
  damage: Callable[[Path, np.random.Generator], None] | None = None


def truncate(path: Path, rng: np.random.Generator) -> None:
  content = path.read_bytes()
  path.write_bytes(content[:rng.integers(len(content))])


def flip(path: Path, rng: np.random.Generator) -> None:
  content = bytearray(path.read_bytes())
  content[rng.integers(len(content))] ^= 1 << rng.integers(8)
  path.write_bytes(content)


def _damaging(damage: Callable) -> Fault:
  """A kill, and damage to a file of the newest checkpoint, the larger it is the likelier."""
  def newest_checkpoint(folder, rng):
    steps = [int(path.name) for path in (folder / checkpoint.FOLDER).iterdir() if path.name.isdecimal()]
    newest = folder / checkpoint.FOLDER / str(max(steps))
    files = sorted(path for path in newest.rglob('*') if path.is_file())
    sizes = np.array([path.stat().st_size for path in files])
    damage(files[rng.choice(len(files), p=sizes / sizes.sum())], rng)
  return Fault('step', damage=newest_checkpoint, first=12)  # when there are two


def _damage_row(folder, rng):
  if (folder / results.RESULT_FILE).exists():
    truncate(folder / results.RESULT_FILE, rng)


FAULTS = {
    'killed in a step': Fault('step'),
    'killed at a checkpoint': Fault('checkpoint'),
    'killed in an evaluation': Fault('evaluation'),
    'killed at the row of the results': Fault('row'),
    'SIGTERM': Fault('step', signal.SIGTERM),
    'SIGTERM in an evaluation': Fault('evaluation', signal.SIGTERM),
    'SIGINT': Fault('step', signal.SIGINT),
    'killed, newest checkpoint truncated': _damaging(truncate),
    'killed, a bit of the newest checkpoint flipped': _damaging(flip),
    'killed, a file of the newest checkpoint missing': _damaging(lambda path, _: path.unlink()),
    'killed at the row, the row truncated': Fault('row', damage=_damage_row),
}
COUNTS = collections.defaultdict(lambda: 5, {
    'killed in a step': 20, 'killed at a checkpoint': 15, 'killed in an evaluation': 10, 'killed at the row of the results': 5})


def victim(folder: Path, fault: str, number: int) -> None:
  """Trains in `folder`; where `fault` is given, that comes, at a moment that follows from `number`."""
  models.VARIANTS['mobilenet'] = {'body': ((1, 64), (2, 128))}  # compiled in two seconds
  signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell ignores for what it starts in the background
  if fault:
    _arm(FAULTS[fault], np.random.default_rng([number, sorted(FAULTS).index(fault)]))
  rng = np.random.default_rng(0)
  sources = [ArraySource(rng.integers(0, 256, (count, 40, 40, 3), np.uint8), np.arange(count, dtype=np.int32) % 4, 4)
             for count in (50, 20)]
  train.train(config_lib.changed(config_lib.base(), CHANGES), folder, tuple(sources))


def _arm(fault, rng):
  """Has the signal come at, or soon after, one of the calls."""
  owner, name, calls = CALLS[fault.call]
  original, at, delay, count = getattr(owner, name), rng.integers(fault.first, calls), rng.uniform(0, DELAY), iter(range(10**6))

  def called(*args, **kwargs):
    if next(count) == at:
      threading.Timer(delay, os.kill, (os.getpid(), fault.signal)).start()
    return original(*args, **kwargs)

  for module in (owner, train) if owner is evaluate else (owner,):
    setattr(module, name, called)


def start(folder: Path, fault: str = '', number: int = 0) -> int:
  """The exit status of a victim; what it prints is in its LOG_FILE."""
  folder.mkdir(parents=True, exist_ok=True)
  with (folder / LOG_FILE).open('a') as log:
    command = [sys.executable, '-m', 'experiments.faults', f'--victim={folder}', f'--fault={fault}', f'--number={number}']
    return subprocess.run(command, stdout=log, stderr=log, cwd=Path(__file__).parent.parent).returncode


def inject(fault: str, number: int, folder: Path) -> dict:
  """Has a fault come, and starts the run again until it ends: its statuses, the seconds and the steps that it was at."""
  kind, again, started = FAULTS[fault], 0, time.monotonic()
  statuses = [start(folder, fault, number)]
  if kind.damage and statuses[0]:
    kind.damage(folder, np.random.default_rng(number))
  while statuses[-1] and len(statuses) < TRIES:
    ended, reached = results.read(folder), max((row['step'] for row in report.read(folder)), default=0)
    said = len((folder / LOG_FILE).read_text())
    statuses.append(start(folder))
    if not ended:
      continued = re.search(r'continuing at step (\d+)', (folder / LOG_FILE).read_text()[said:])
      again += max(reached - int(continued[1] if continued else 0), 0)
  return {'statuses': statuses, 'seconds': time.monotonic() - started, 'steps_again': again}


def outcome(folder: Path) -> tuple:
  """What a run has become: parameters and all else of the final state, metrics, and the row but for its times."""
  row = {name: value for name, value in (results.read(folder) or {}).items() if name != 'seconds'}
  state, _ = checkpoint.read_newest(folder)
  leaves = [(jax.tree_util.keystr(path), np.asarray(leaf).tobytes())
            for path, leaf in jax.tree_util.tree_leaves_with_path(state)]
  return leaves, (folder / report.METRICS_FILE).read_bytes(), row


def main(args: argparse.Namespace) -> None:
  if args.victim:
    return victim(args.victim, args.fault, args.number)
  if args.only and args.only not in FAULTS:
    raise UserError(f'--only={args.only}: expected one of ' + ', '.join(FAULTS))
  shutil.rmtree(args.out, ignore_errors=True)
  start(args.out / 'compiled')  # and what it compiled is kept
  started = time.monotonic()
  if status := start(args.out / 'whole'):
    raise UserError(f'the run without faults ended with status {status}; see {args.out}/whole/log.txt')
  seconds, expected = time.monotonic() - started, outcome(args.out / 'whole')
  rows = []
  for fault in [args.only] if args.only else FAULTS:
    found, count = [], args.count or COUNTS[fault]
    for number in range(3 * count):
      if len(found) == count:
        break
      folder = args.out / f'{"_".join(fault.replace(",", "").split())}_{number}'
      injected = inject(fault, number, folder)
      survived = not injected['statuses'][-1] and outcome(folder) == expected
      wanted = errors.REQUEUE if FAULTS[fault].signal != signal.SIGKILL else -signal.SIGKILL
      came = injected['statuses'][0] == wanted  # else it had ended before
      print(f'{fault} {number}: {injected["statuses"]} {"survived" if survived else "NOT THE SAME"}, '
            f'{injected["steps_again"]} steps again', flush=True)
      if came or not survived:
        found.append({'survived': survived, 'lost': injected['seconds'] - seconds, 'again': injected['steps_again']})
      if survived:
        shutil.rmtree(folder)
    rows.append({'fault': fault, 'injected': len(found), 'survived': sum(one['survived'] for one in found),
                 'seconds_lost': round(statistics.median(one['lost'] for one in found), 2) if found else '',
                 'steps_again': statistics.median(one['again'] for one in found) if found else ''})
  distillation.write_table(args.out / 'faults', rows, MARKDOWN)
  print(f'a run without faults takes {seconds:.1f} s')
  if any(row['survived'] < row['injected'] for row in rows):
    raise UserError(f'not all runs survived; what is left of them is in {args.out}')


if __name__ == '__main__':
  parser = cli.Parser(__doc__)
  parser.add_argument('--out', type=Path, default=Path('runs/faults'), help='folder of the runs and the table')
  parser.add_argument('--only', default='', help='one fault of the table')
  parser.add_argument('--count', type=int, default=0, help='of each fault; by default 50 kills, and 5 of each other')
  parser.add_argument('--victim', type=Path, help=argparse.SUPPRESS)
  parser.add_argument('--fault', default='', help=argparse.SUPPRESS)
  parser.add_argument('--number', type=int, default=0, help=argparse.SUPPRESS)
  cli.run_with(parser, main)
