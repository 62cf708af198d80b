"""Runs random command lines on random files, and looks for those that do not end as they should.

    make fuzz                                       # five minutes
    python -m experiments.fuzz --seconds=60 --seed=1000
    python -m experiments.fuzz --case 17 1023       # some cases again, on the files of the last run

Each case follows from its number: a command line and the files in its folder, some of them damaged; see fuzz_cases.py. It is
right if there is neither a traceback nor a hang, the exit status is 0 only if the command has done what it was asked for, or
else its last line says in plain text what is wrong, and no file that was there before is harmed; see fuzz_verdict.py. What is
wrong is reported by its kind, with the first case that shows it, whose folder is kept as it was afterwards.

A case is a copy of this process, which has imported everything, in a folder of its own. A few cases start a Python of their
own. The memory of a case is limited, and all places that it may write to are in its folder. If root starts this, it gives up
the right to open files that nobody may open.
"""

import argparse
import atexit
import collections
import contextlib
import faulthandler
import importlib
import os
import resource
import shlex
import shutil
import signal
import sys
import threading
import time
import traceback
from pathlib import Path

os.environ.setdefault('XLA_FLAGS', '--xla_backend_optimization_level=0')  # compiles in less time

from experiments import fuzz_cases, fuzz_files, victims
from experiments.fuzz_verdict import Ended, contents, faults
from mobilenet_jax import models
from mobilenet_jax import __main__ as command_line_main
from mobilenet_jax.errors import REQUEUE, UserError
from mobilenet_jax.runtime import command_line
from mobilenet_jax.runtime.environment import MEMORY_SETTING

ROOT = Path(__file__).parent.parent
WORLD = 'world'  # the folder of which each case has a copy
MEMORY = 6 * 2**30  # bytes that a case may use
PATIENCE, LEAST_SECONDS = 3, 20  # a case may take this many times as long as a whole sweep, and this long anyway
WITH_PROCESSES = 6  # and this many times longer if it starts a Python of its own
END_SECONDS = 30  # for a training run to end after SIGTERM, with a checkpoint


def run(argv: list[str], folder: Path, seconds: float, alone: bool = False) -> Ended:
  """Runs mobilenet_jax with these arguments in `folder`, and ends all of its processes."""
  started = time.monotonic()
  logs = folder.with_name(f'{folder.name}_logs')
  logs.mkdir()
  paths = [logs / name for name in ('out', 'err', 'where')]
  for path in paths:
    path.touch()
  child = os.fork()
  if not child:
    _become(argv, folder, paths, alone)
  status, late = _wait(child, started + seconds), False
  if status is None:
    late = True
    with contextlib.suppress(ProcessLookupError):
      os.kill(child, signal.SIGUSR1)  # writes where it is
      time.sleep(0.5)
      os.kill(child, signal.SIGTERM)
    status = _wait(child, time.monotonic() + END_SECONDS)
  with contextlib.suppress(ProcessLookupError):
    os.killpg(child, signal.SIGKILL)
  if status is None:
    status = _wait(child, float('inf'))
  _end_jobs(folder)
  out, err, where = (path.read_text(errors='replace') for path in paths)
  shutil.rmtree(logs)
  return Ended(status, late, out, err, where, time.monotonic() - started)


def _wait(child, until):
  while time.monotonic() < until:
    ended, status = os.waitpid(child, os.WNOHANG)
    if ended:
      return os.waitstatus_to_exitcode(status)
    time.sleep(0.005)
  return None


def _end_jobs(folder):
  """Kills the jobs of a sweep, which have process groups of their own. They have HOME from the case."""
  mark = b'HOME=' + os.fsencode(folder) + b'\0'
  for path in Path('/proc').glob('[0-9]*/environ'):
    with contextlib.suppress(OSError):
      if mark in path.read_bytes():
        os.kill(int(path.parent.name), signal.SIGKILL)


def _become(argv, folder, paths, alone):
  """Turns this copy of the process into a run of the command. Does not return."""
  status = 1
  try:
    os.setsid()
    for path, number in zip((folder / 'stdin', *paths[:2]), range(3)):
      os.dup2(os.open(path, os.O_RDWR), number)
    os.chdir(folder)
    os.environ.update(HOME=str(folder), MOBILENET_JAX_CACHE=str(folder / 'cache'), PYTHONPATH=str(ROOT))
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if alone:
      os.execv(sys.executable, [sys.executable, '-m', 'mobilenet_jax', *argv])
    where = paths[2].open('w', encoding='utf-8', errors='backslashreplace')
    faulthandler.enable(where, all_threads=False)
    faulthandler.register(signal.SIGUSR1, where, all_threads=False)
    sys.stdin, sys.stdout = open(0, encoding='utf-8'), open(1, 'w', encoding='utf-8', closefd=False)
    sys.stderr = open(2, 'w', encoding='utf-8', errors='backslashreplace', buffering=1, closefd=False)
    status = _call(argv, where)
    threading._shutdown()  # what the end of a Python does, and os._exit does not
    atexit._run_exitfuncs()
    sys.stdout.flush()
  except BaseException:
    traceback.print_exc()
  finally:
    with contextlib.suppress(Exception):
      sys.stderr.flush()
    os._exit(status)


def _call(argv, where):
  try:
    command_line_main.main(argv)
    return 0
  except SystemExit as exit:
    if exit.__context__:
      traceback.print_exception(exit.__context__, file=where, chain=False)
      where.flush()
    if isinstance(exit.code, str):
      print(exit.code, file=sys.stderr)
      return 1
    return exit.code or 0
  except BaseException:
    traceback.print_exc()
    return 1


def make_world(world: Path) -> float:
  """Makes the folder of which each case has a copy. Returns the seconds that a sweep takes.

  Raises:
    UserError: if the cases cannot run here.
  """
  world.mkdir()
  child = os.fork()  # as TensorFlow and JAX start threads once they are used, which this process must not have
  if not child:
    status = 1
    try:
      fuzz_files.make(world)
      status = 0
    except BaseException:
      traceback.print_exc()
    finally:
      os._exit(status)
  if os.waitpid(child, 0)[1]:
    raise UserError('the files of the cases could not be made, see above')
  (world / 'stdin').write_text(fuzz_cases.STDIN)
  for argv in (['train', '--config=recipe.py', '--workdir=run'],
               ['sweep', '--config=recipe.py', '--workdir=sweep', '--launcher=here']):
    ended = run(argv, world, 600)
    if ended.status:
      raise UserError(f'{shlex.join(argv)} ended with status {ended.status} in a folder without faults: {ended.err}')
  return ended.seconds


def play(seed: int, world: Path, folder: Path, seconds: float) -> tuple[fuzz_cases.Case, Ended, list[str]]:
  """Runs one case in `folder`, which it makes. Returns the case, how it ended, and what is wrong with that."""
  shutil.copytree(world, folder, symlinks=True)
  case = fuzz_cases.draw(seed, folder)
  before = contents(folder)
  with_processes = case.alone or case.argv[:1] == ['sweep'] and '--launcher=here' not in case.argv
  ended = run(case.argv, folder, seconds * (WITH_PROCESSES if with_processes else 1), case.alone)
  return case, ended, faults(case, ended, folder, before)


def _remove(folder):
  for name in ('locked', 'readonly'):  # else only root could
    for path in folder.rglob(name):
      with contextlib.suppress(OSError):
        path.chmod(0o700)
  shutil.rmtree(folder)


def _show(argv):
  """Returns a command line as a person can type it, at most 300 characters of it."""
  text = shlex.join(argv)
  if not text.isprintable():
    text = ' '.join(argument if argument.isprintable() and shlex.quote(argument) == argument
                    else "$'" + ascii(argument)[1:-1].replace("'", "\\'") + "'" for argument in argv)
  return text if len(text) < 300 else f'{text[:140]} ... {text[-140:]}'


def fuzz(args: argparse.Namespace, world: Path, limit: float) -> None:
  """Runs cases until the time is over, and reports the kinds of faults.

  Raises:
    UserError: if there are any.
  """
  started, statuses, kinds, first = time.monotonic(), collections.Counter(), collections.Counter(), {}
  seed = args.seed
  while time.monotonic() - started < args.seconds:
    folder = world.with_name(f'case_{seed}')
    case, ended, wrong = play(seed, world, folder, limit)
    statuses[ended.status if ended.status in (0, 1, 2, REQUEUE) else 'other'] += 1
    kinds.update(wrong)
    new = [kind for kind in wrong if kind not in first]
    for kind in new:
      first[kind] = seed, case.argv
      print(f'{seed}: {kind}: {_show(case.argv)}', flush=True)
    if not new:
      _remove(folder)
    seed += 1
  print()
  for kind, count in kinds.most_common():
    print(f'{count:4} x {kind}\n       first: --case {first[kind][0]}, mobilenet_jax {_show(first[kind][1])}')
  ends = ', '.join(f'{statuses[status]} with status {status}' for status in (0, 1, 2, REQUEUE, 'other') if statuses[status])
  print(f'{seed - args.seed} cases, {args.seed} to {seed - 1}: {ends}; {len(kinds)} kinds of faults in {kinds.total()} cases; '
        f'{time.monotonic() - started:.0f} s, at most {limit:.0f} s each')
  if kinds:
    raise UserError(f'{len(kinds)} kinds of faults; --case NUMBER repeats a case')


def repeat(seed: int, world: Path, limit: float) -> None:
  """Runs one case and prints everything about it."""
  folder = world.with_name(f'case_{seed}')
  if folder.exists():
    _remove(folder)
  whole = contents(world)
  case, ended, wrong = play(seed, world, folder, limit)
  after = contents(folder)
  print(f'\n=== case {seed}: mobilenet_jax {_show(case.argv)}\n{case.kind}{", in a Python of its own" if case.alone else ""}; '
        'files that differ afterwards:')
  for name in sorted({*whole, *after}):
    if whole.get(name) != after.get(name):
      print(f'  {name!r}: {"new" if name not in whole else "gone" if name not in after else "changed"}')
  print(f'status {ended.status} after {ended.seconds:.1f} s{", told to end" if ended.late else ""}\n--- stdout\n{ended.out}\n'
        f'--- stderr\n{ended.err}\n--- where\n{ended.where}\n--- faults')
  print(*wrong or ['none'], f'--- its folder is {folder}', sep='\n')


def main(args: argparse.Namespace) -> None:
  if os.geteuid() == 0 and 'FUZZ_RESTRICTED' not in os.environ and shutil.which('setpriv'):
    os.environ['FUZZ_RESTRICTED'] = '1'  # permissions mean nothing to root
    os.execvp('setpriv', ['setpriv', '--inh-caps=-all', '--bounding-set=-all', sys.executable, *sys.orig_argv[1:]])
  models.MODELS['shallow_mobilenet'] = victims.SmallMobileNet  # two blocks, as most of the time of a case is compilation
  for module, _ in command_line_main.COMMANDS.values():
    importlib.import_module(f'mobilenet_jax.commands.{module}')
  for name in ('mobilenet_jax.data.tfds_sets', 'mobilenet_jax.sweeps.choice_figure', 'tensorflow', 'h5py'):
    importlib.import_module(name)
  out = args.out.resolve()
  if out.exists() and not (out / WORLD).is_dir():
    raise UserError(f'--out={args.out}: exists and is not the folder of an earlier run; give a new one')
  if not args.case and out.exists():
    _remove(out)
  out.mkdir(parents=True, exist_ok=True)
  os.environ.update({**MEMORY_SETTING, 'JAX_COMPILATION_CACHE_DIR': f'{out}/compiled',
                     'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0'})
  limit = LEAST_SECONDS
  if not (out / WORLD).exists():
    limit = max(PATIENCE * make_world(out / WORLD), limit)
  for seed in args.case:
    repeat(seed, out / WORLD, limit)
  if not args.case:
    fuzz(args, out / WORLD, limit)


if __name__ == '__main__':
  parser = command_line.Parser(__doc__)
  parser.add_argument('--seconds', type=float, default=300, help='how long to go on')
  parser.add_argument('--seed', type=int, default=0, help='the number of the first case')
  parser.add_argument('--out', type=Path, default=Path('runs/fuzz'), help='folder of the cases; those of an earlier run '
                      'are removed')
  parser.add_argument('--case', type=int, nargs='+', default=[], help='run only the cases of these numbers, and print '
                      'everything about them')
  command_line.run_with(parser, main)
