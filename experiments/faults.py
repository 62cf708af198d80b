"""Injects faults into a small run, and checks that it ends as if there had been no fault.

    make faults                                  # all: runs/faults/faults.csv and .md
    python -m experiments.faults --count=10 --only='killed in a step' --out=runs/faults

Each injection is a run of its own, on CPU. The fault comes at a moment that is derived from the number of the injection.
The same command is then started again until it ends. The run has survived if its final parameters, metrics.jsonl and row are
those of a run on the same data without faults, bit for bit. If its inputs change between two starts, it has to refuse to go on
and say what has changed, and to go on once the change is undone. The time lost is what all its starts took together, minus what
the run without faults took. For a full disk a small disk is mounted, which needs root; without root these faults are left out.
"""

import argparse
import collections
import contextlib
import dataclasses
import functools
import itertools
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np

from experiments import distillation, victims
from mobilenet_jax import config as config_lib
from mobilenet_jax import models
from mobilenet_jax.data import Source
from mobilenet_jax.errors import REQUEUE, UserError
from mobilenet_jax.runtime import command_line, devices
from mobilenet_jax.storage import checkpoints, run_files
from mobilenet_jax.training import evaluation, run, train

MARKDOWN = {'fault': ('fault', ''), 'injected': ('injected', 'd'), 'survived': ('survived with equal results', 'd'),
            'seconds_lost': ('seconds lost, median', '.1f'), 'steps_again': ('steps repeated, median', '.0f')}
# What a run calls, and how often a whole victim calls it. A fault comes at one of these calls.
CALLS = {'step': (run.Run, 'train', 24), 'checkpoint': (checkpoints.Checkpoints, 'save', 6),
         'evaluation': (evaluation, 'evaluate', 6), 'row': (run_files, 'write_row', 1), 'example': (Source, '__getitem__', 192)}
DELAY = 0.08  # seconds by which a signal is delayed at most: the time to write a checkpoint of the small network
DISK = 24 * 2**20  # bytes of the small disk: about ten times a checkpoint
LOG_FILE, BALLAST = 'log.txt', 'ballast'
TRIES = 5  # starts of a run before it counts as lost
HOSTS_END_SECONDS = 60  # within which the other hosts must end after one has died
KILLED, TOLD = (-signal.SIGKILL,), (REQUEUE,)  # exit statuses


@dataclasses.dataclass(frozen=True)
class Fault:
  """One kind of fault.

  Attributes:
    call: one of CALLS. The fault comes at one of these calls.
    act: causes the fault, given the run's folder and a random generator.
    ends: the exit statuses with which the fault may end the process; 0 if it does not end it.
    first: the first call at which the fault may come.
    damage: damages the run's folder, or changes its inputs, after the process has ended and before it is started again.
    mend: undoes the damage once the run has refused to go on with it; None if it has to go on in spite of it.
    data: which of victims.DATA the run is trained on.
    small_disk: whether the run's folder is on a small disk.
    hosts: how many hosts train. The fault hits the last one; the others end by themselves.
    says: what the run must report about the fault.
  """

  call: str
  act: Callable[[Path, np.random.Generator], None]
  ends: tuple[int, ...]
  first: int = 0
  damage: Callable[[Path, np.random.Generator], None] | None = None
  mend: Callable[[Path], None] | None = None
  data: str = 'plain'
  small_disk: bool = False
  hosts: int = 1
  says: str = ''


def send(*signals: int) -> Callable:
  """Returns a function that sends signals to this process, one after the other, within DELAY."""
  def act(folder, rng):
    del folder
    moments = np.sort(rng.uniform(0, DELAY, len(signals)))
    for moment, number in zip(moments, signals):
      threading.Timer(moment, os.kill, (os.getpid(), number)).start()
  return act


def fill_disk(folder: Path, rng: np.random.Generator) -> None:
  """Fills the disk until it has less room than a checkpoint takes."""
  left = rng.integers(16)  # pages
  with contextlib.suppress(OSError), (folder / BALLAST).open('wb', buffering=0) as ballast:
    for _ in range(shutil.disk_usage(folder).free // 4096 - left):
      ballast.write(bytes(4096))


def empty_disk(folder: Path, rng: np.random.Generator) -> None:
  del rng
  (folder / BALLAST).unlink(missing_ok=True)


def stall(folder: Path, rng: np.random.Generator) -> None:
  del folder, rng
  time.sleep(2)  # four times data.stall_seconds


def truncate(path: Path, rng: np.random.Generator) -> None:
  content = path.read_bytes()
  path.write_bytes(content[:rng.integers(len(content))])


def flip(path: Path, rng: np.random.Generator) -> None:
  content = bytearray(path.read_bytes())
  content[rng.integers(len(content))] ^= 1 << rng.integers(8)
  path.write_bytes(content)


def _damaging(damage: Callable) -> Fault:
  """Returns a fault that is a kill and damage to a file of the newest checkpoint. Larger files are more likely to be hit."""
  def newest_checkpoint(folder, rng):
    newest = folder / run_files.CHECKPOINTS / str(run_files.newest_checkpoint(folder))
    paths = sorted(path for path in newest.rglob('*') if path.is_file())
    sizes = np.array([path.stat().st_size for path in paths])
    damage(paths[rng.choice(len(paths), p=sizes / sizes.sum())], rng)
  return Fault('step', send(signal.SIGKILL), KILLED, damage=newest_checkpoint, first=12)  # when there are two checkpoints


def _damage_row(folder, rng):
  if (folder / run_files.RESULT_FILE).exists():
    truncate(folder / run_files.RESULT_FILE, rng)


def _damage_last_metrics(folder, rng):
  path = folder / run_files.METRICS_FILE
  lines = path.read_bytes().splitlines(keepends=True)
  path.write_bytes(b''.join(lines[:-1]) + lines[-1][:rng.integers(len(lines[-1]))])


def _changing(data: str, change: Callable, undo: Callable, says: str) -> Fault:
  """Returns a fault that is a kill and a change of the inputs, which the run has to refuse."""
  return Fault('step', send(signal.SIGKILL), KILLED, damage=change, mend=undo, data=data, first=12, says=f'begun with other '
               f'inputs: now there are {says}')


FAULTS = {
    'killed in a step': Fault('step', send(signal.SIGKILL), KILLED),
    'killed at a checkpoint': Fault('checkpoint', send(signal.SIGKILL), KILLED),
    'killed in an evaluation': Fault('evaluation', send(signal.SIGKILL), KILLED),
    'killed at the row of the results': Fault('row', send(signal.SIGKILL), KILLED),
    'SIGTERM': Fault('step', send(signal.SIGTERM), TOLD, says='training stopped between two steps'),
    'SIGTERM in an evaluation': Fault(
        'evaluation', send(signal.SIGTERM), TOLD, says='training stopped between two steps'),
    'SIGTERM from two senders': Fault('step', send(signal.SIGTERM, signal.SIGTERM), TOLD, says='training stopped between'),
    'SIGINT': Fault('step', send(signal.SIGINT), TOLD, says='training stopped between two steps'),
    'killed, newest checkpoint truncated': _damaging(truncate),
    'killed, a bit of the newest checkpoint flipped': _damaging(flip),
    'killed, a file of the newest checkpoint missing': _damaging(lambda path, _: path.unlink()),
    'killed, last line of the metrics truncated': Fault(
        'step', send(signal.SIGKILL), KILLED, damage=_damage_last_metrics, first=4),
    'killed at the row, the row truncated': Fault('row', send(signal.SIGKILL), KILLED, damage=_damage_row),
    'disk full in a step': Fault('step', fill_disk, (1,), damage=empty_disk, small_disk=True, says='disk is full'),
    'disk full at a checkpoint': Fault(
        'checkpoint', fill_disk, (1,), damage=empty_disk, small_disk=True, says='disk is full'),
    'data stalls for 2 s': Fault('example', stall, (0,), says='has given no batch for'),
    'an image damaged and skipped, killed in a step': Fault(
        'step', send(signal.SIGKILL), KILLED, data='damaged image', says='class_1/17.png: not an image, or damaged'),
    'batches with NaN left out, killed in a step': Fault(
        'step', send(signal.SIGKILL), KILLED, data='NaN', says='going back to step'),
    'killed, an image added': _changing('folder', victims.add_image, victims.remove_image,
                                        '51 examples to train on instead of 50'),
    'killed, the recorded outputs replaced': _changing('recorded', *victims.exchange('teacher.npz'),
                                                       'other recorded outputs of the examples to train on'),
    'killed, the teacher retrained': _changing('taught', *victims.exchange('teacher'), 'other teacher'),
    'one of two hosts killed': Fault('step', send(signal.SIGKILL), KILLED, hosts=2),
}
COUNTS = collections.defaultdict(lambda: 5, {
    'killed in a step': 20, 'killed at a checkpoint': 15, 'killed in an evaluation': 10})  # 50 kills with those at the row


def victim(folder: Path, data: str, fault: str, number: int, host: int, hosts: int, coordinator: str) -> None:
  """Trains in `folder`. If `fault` is given, that fault comes at a moment that is derived from `number`."""
  models.MODELS['mobilenet'] = victims.SmallMobileNet  # compiled in two seconds
  signal.signal(signal.SIGINT, signal.default_int_handler)  # shells make background processes ignore SIGINT
  if hosts > 1:
    devices.join_hosts(coordinator, hosts, host)
  if fault and host == hosts - 1:
    _arm(FAULTS[fault], folder, np.random.default_rng([number, *fault.encode()]))
  changes, sources = victims.DATA[data](folder)
  with devices.ending_with_the_others():
    train(config_lib.changed(config_lib.base(), victims.CHANGES | changes), folder, sources)


def _arm(fault, folder, rng):
  """Makes the fault come at one of the calls."""
  owner, name, calls = CALLS[fault.call]
  original, at, count = getattr(owner, name), rng.integers(fault.first, calls), itertools.count()

  def called(*args, **kwargs):
    if next(count) == at:
      fault.act(folder, rng)
    return original(*args, **kwargs)

  setattr(owner, name, called)


def start(folder: Path, fault: str = '', number: int = 0, data: str = 'plain', hosts: int = 1) -> int:
  """Runs a victim and returns its exit status, or that of its last host. Its output goes to its LOG_FILE."""
  folder.mkdir(parents=True, exist_ok=True)
  command = [sys.executable, '-m', 'experiments.faults', f'--victim={folder}', f'--fault={fault}', f'--number={number}',
             f'--data={data}', f'--hosts={hosts}', f'--coordinator={_free_address()}']
  with (folder / LOG_FILE).open('a') as log:
    processes = [subprocess.Popen([*command, f'--host={host}'], stdout=log, stderr=log, cwd=Path(__file__).parent.parent)
                 for host in range(hosts)]
    status = processes[-1].wait()
    for other in processes[:-1]:
      try:
        ended = other.wait(HOSTS_END_SECONDS)
      except subprocess.TimeoutExpired:
        other.kill()
        raise UserError(f'{folder}: a host was still running {HOSTS_END_SECONDS} s after another had died') from None
      if bool(ended) != bool(status):
        raise UserError(f'{folder}: a host ended with status {ended}, another with {status}')
  return status


def _free_address():
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    return f'127.0.0.1:{free.getsockname()[1]}'


def inject(fault: str, number: int, folder: Path) -> dict:
  """Injects a fault, and starts the run again until it ends. Returns its statuses, its seconds and the steps repeated."""
  kind, again, started = FAULTS[fault], 0, time.monotonic()
  statuses = [start(folder, fault, number, kind.data, kind.hosts)]
  if kind.damage and statuses[0]:
    kind.damage(folder, np.random.default_rng(number))
    if kind.mend:
      statuses.append(start(folder, data=kind.data, hosts=kind.hosts))
      kind.mend(folder)
  while statuses[-1] and len(statuses) < TRIES:
    ended = run_files.read_row(folder)
    reached = max((row['step'] for row in run_files.read_metrics(folder)[0]), default=0)
    said = len((folder / LOG_FILE).read_text())
    statuses.append(start(folder, data=kind.data, hosts=kind.hosts))
    if not ended:
      continued = re.search(r'continuing at step (\d+)', (folder / LOG_FILE).read_text()[said:])
      again += max(reached - int(continued[1] if continued else 0), 0)
  return {'statuses': statuses, 'seconds': time.monotonic() - started, 'steps_again': again}


def outcome(folder: Path) -> tuple:
  """Returns the outcome of a run: the whole final state with the parameters, the metrics, and the row without its times."""
  row = {name: value for name, value in (run_files.read_row(folder) or {}).items() if name != 'seconds'}
  state, _ = checkpoints.read(folder)
  leaves = [(jax.tree_util.keystr(path), np.asarray(leaf).tobytes())
            for path, leaf in jax.tree_util.tree_leaves_with_path(state)]
  return leaves, (folder / run_files.METRICS_FILE).read_bytes(), row


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[None]:
  """Mounts a disk of DISK bytes at a folder."""
  folder.mkdir(parents=True)
  subprocess.run(['mount', '-t', 'tmpfs', '-o', f'size={DISK}', 'tmpfs', folder], check=True, capture_output=True)
  try:
    yield
  finally:
    subprocess.run(['umount', folder], check=True)


def undisturbed(out: Path, data: str, hosts: int) -> tuple[float, tuple]:
  """Returns the seconds that a run without faults takes, and its outcome."""
  folder = out / f'whole_{data.replace(" ", "_")}_{hosts}'
  start(folder.with_name('compiled'), data=data, hosts=hosts)  # fills the compilation cache
  shutil.rmtree(folder.with_name('compiled'))
  started = time.monotonic()
  if status := start(folder, data=data, hosts=hosts):
    raise UserError(f'the run without faults ended with status {status}; see {folder}/{LOG_FILE}')
  return time.monotonic() - started, outcome(folder)


def main(args: argparse.Namespace) -> None:
  if args.victim:
    return victim(args.victim, args.data, args.fault, args.number, args.host, args.hosts, args.coordinator)
  if args.only and args.only not in FAULTS:
    raise UserError(f'--only={args.only}: expected one of ' + ', '.join(FAULTS))
  shutil.rmtree(args.out, ignore_errors=True)
  whole = functools.cache(functools.partial(undisturbed, args.out))
  rows = []
  for fault in [args.only] if args.only else FAULTS:
    kind, count = FAULTS[fault], args.count or COUNTS[fault]
    if kind.small_disk and os.geteuid():
      print(f'{fault}: left out, because mounting a small disk needs root', flush=True)
      continue
    seconds, expected = whole(kind.data, kind.hosts)
    found = []
    for number in range(3 * count):
      if len(found) == count:
        break
      folder = args.out / f'{"_".join(fault.replace(",", "").split())}_{number}'
      with small_disk(folder) if kind.small_disk else contextlib.nullcontext():
        injected = inject(fault, number, folder)
        first, last = injected['statuses'][0], injected['statuses'][-1]
        came = first != 0 or 0 in kind.ends  # otherwise the run ended before the fault
        refused = not kind.mend or not came or injected['statuses'][1] == 1
        said = kind.says in (folder / LOG_FILE).read_text()
        survived = last == 0 and outcome(folder) == expected and refused and (not came or first in kind.ends and said)
        print(f'{fault} {number}: {injected["statuses"]} {"survived" if survived else "NOT THE SAME"}, '
              f'{injected["steps_again"]} steps repeated', flush=True)
        if not survived:
          print((folder / LOG_FILE).read_text())
      if came or not survived:
        found.append({'survived': survived, 'lost': injected['seconds'] - seconds, 'again': injected['steps_again']})
      if survived:
        shutil.rmtree(folder)
    rows.append({'fault': fault, 'injected': len(found), 'survived': sum(one['survived'] for one in found),
                 'seconds_lost': round(statistics.median(one['lost'] for one in found), 2) if found else '',
                 'steps_again': statistics.median(one['again'] for one in found) if found else ''})
  distillation.write_table(args.out / 'faults', rows, MARKDOWN)
  if any(row['survived'] < row['injected'] for row in rows):
    raise UserError(f'not all runs survived; the folders of those that did not are in {args.out}')


if __name__ == '__main__':
  parser = command_line.Parser(__doc__)
  parser.add_argument('--out', type=Path, default=Path('runs/faults'), help='folder of the runs and the table')
  parser.add_argument('--only', default='', help='inject only this fault of the table')
  parser.add_argument('--count', type=int, default=0, help='injections of each fault; by default 50 kills and 5 of each other')
  parser.add_argument('--victim', type=Path, help=argparse.SUPPRESS)
  for hidden, default in {'data': 'plain', 'fault': '', 'number': 0, 'host': 0, 'hosts': 1, 'coordinator': ''}.items():
    parser.add_argument(f'--{hidden}', type=type(default), default=default, help=argparse.SUPPRESS)
  command_line.run_with(parser, main)
