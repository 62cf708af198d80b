"""Runs random command lines on random files, and looks for those that do not end as they should.

    make fuzz                                       # five minutes
    python -m experiments.fuzz --seconds=60 --seed=1000
    python -m experiments.fuzz --case=1017          # one case again, whose folder is kept

Each case follows from its number alone: a command line and the files in its folder, some of them damaged; see fuzz_cases.py. A
case is right if there is neither a traceback nor a hang, the exit status is 0 only if the command has done what it was asked
for, or else its last line says in plain text what is wrong, and no file that was there before is harmed. What is wrong is
reported by its kind, with the first case that shows it.

A case is a copy of this process, which has imported everything, in a folder of its own. A few cases start a Python of their
own. The memory of a case is limited, and all places that it may write to are in its folder. If root starts this, it gives up
the right to open files that nobody may open.
"""

import argparse
import atexit
import collections
import contextlib
import csv
import dataclasses
import faulthandler
import hashlib
import importlib
import json
import os
import re
import resource
import shlex
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
import unicodedata
from pathlib import Path

os.environ.setdefault('XLA_FLAGS', '--xla_backend_optimization_level=0')  # most of the time of a case is compilation

from experiments import fuzz_cases, fuzz_files
from mobilenet_jax import __main__ as command_line_main
from mobilenet_jax.errors import REQUEUE, UserError
from mobilenet_jax.runtime import command_line
from mobilenet_jax.runtime.environment import MEMORY_SETTING
from mobilenet_jax.storage.run_files import RESULT_FILE
from mobilenet_jax.sweeps import results
from mobilenet_jax.sweeps.job import LOG_FILE

ROOT = Path(__file__).parent.parent
MEMORY = 6 * 2**30  # bytes that a case may use
PATIENCE, LEAST_SECONDS = 3, 20  # a case may take this many times as long as a whole sweep, and this long anyway
END_SECONDS = 10  # for a training run to end after SIGTERM, with a checkpoint
LONGEST_MESSAGE = 600  # characters of an error
# What a command may replace in a folder that it writes to.
PRODUCTS = re.compile(r'candidates\.csv|choose\.(png|svg)|shallow_mobilenet_.*')
FRAME = re.compile(r'File ".*?/(mobilenet_jax/[^"]+)", line (\d+),? in (\w+)')


@dataclasses.dataclass(frozen=True)
class Ended:
  """How a case ended.

  Attributes:
    status: the exit status; minus the number of a signal.
    late: whether it had to be told to end.
    out, err: what it printed.
    where: what is known of the place in the code where it ended: a traceback, or that of a UserError.
    seconds: how long it took.
  """
  status: int
  late: bool
  out: str
  err: str
  where: str
  seconds: float


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
    where = paths[2].open('w')
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


def contents(folder: Path) -> dict[str, str]:
  """Returns a digest of each file in a folder and below it, by its path from there."""
  found = {}
  for parent, folders, names in os.walk(folder):
    del folders
    for path in (Path(parent) / name for name in names):
      kind = 'link' if path.is_symlink() else 'file' if path.is_file() else 'other'
      with contextlib.suppress(OSError):
        found[str(path.relative_to(folder))] = hashlib.sha1(path.read_bytes()).hexdigest() if kind == 'file' else kind
  return found


def faults(case: fuzz_cases.Case, ended: Ended, folder: Path, before: dict[str, str]) -> list[str]:
  """Returns what is wrong with the end of a case, each as a kind of fault; [] if it is right."""
  command = ' '.join(fuzz_cases.command_of(case.argv))
  after, printed = contents(folder), f'{ended.out}\n{ended.err}'
  logs = ''.join((folder / name).read_text(errors='replace') for name in after
                 if Path(name).name == LOG_FILE and after[name] != before.get(name))
  found = []
  if crash := _traceback(printed) or _traceback(logs):
    found.append(crash)
  if ended.late and ended.status != REQUEUE:
    found.append(f'a hang of {command} in {_frame(ended.where)}')
  elif ended.status < 0:
    found.append(f'died of {signal.Signals(-ended.status).name} in {_frame(ended.where)}')
  elif ended.status not in (0, 1, REQUEUE):
    found.append(f'status {ended.status} of {command} in {_frame(ended.where)}')
  elif ended.status == 0 and (missing := _not_done(case.argv, ended.out, folder)):
    found.append(f'status 0 of {command}, but {missing}')
  elif ended.status == 1 and not crash:
    found += [f'{wrong}, raised in {_last_frame(ended.where)}' for wrong in _wrong_with_message(ended.err)]
  if case.valid and ended.status:
    found.append(f'status {ended.status} of a valid {command}')
  owned = [os.path.normpath(text) + '/' for text in [_given(case.argv, '--workdir')] if text and command in ('train', 'sweep')]
  for name, digest in before.items():
    if after.get(name) != digest and not name.startswith(tuple(owned)) and not PRODUCTS.fullmatch(Path(name).name):
      found.append(f'{command} has {"changed" if name in after else "removed"} a file of the user')
  if any(name.endswith('.tmp') and name not in before for name in after) and not ended.late and ended.status >= 0:
    found.append(f'{command} has left a .tmp file')
  return list(dict.fromkeys(found))


def _traceback(text):
  """Returns the type of the last traceback in a text and the innermost place of ours in it; None if there is none."""
  _, mark, last = text.rpartition('Traceback (most recent call last)')
  if not mark:
    return None
  error = next((line for line in last.splitlines()[1:] if line and not line[0].isspace()), '?')
  return f'{error.partition(":")[0][:100]} in {_last_frame(last)}'


def _last_frame(text):
  """Returns the last place of ours that a traceback names, other than that which turns errors into exit statuses."""
  frames = [place for place in FRAME.findall(text) if place[0] not in ('mobilenet_jax/__main__.py', 'mobilenet_jax/runtime/command_line.py')]
  return '{}:{} ({})'.format(*frames[-1]) if frames else 'a place that is not known'


def _frame(text):
  """Returns the innermost place of ours in a stack of faulthandler, which begins with the innermost frame."""
  frames = FRAME.findall(text)
  return '{}:{} ({})'.format(*frames[0]) if frames else 'a place that is not known'


def _wrong_with_message(err):
  """Yields what is wrong with the error that a command has printed."""
  last = err.removesuffix('\n').rpartition('\n')[2]
  if not last.startswith('error: ') or len(last) < 12:
    yield 'the last line is no error'
  if len(last) > LONGEST_MESSAGE:
    yield f'an error of more than {LONGEST_MESSAGE} characters'
  if any(unicodedata.category(character) == 'Cc' for character in last):
    yield 'an error with a control character'


def _given(argv, flag):
  """Returns the last value of a flag on a command line; '' if it has none."""
  values = [argument.partition('=')[2] for argument in argv if argument.startswith(f'{flag}=')]
  values += [value for argument, value in zip(argv, argv[1:]) if argument == flag]
  return values[-1] if values else ''


def _not_done(argv, out, folder):
  """Returns what a command that has succeeded should have done and has not; '' if all is done."""
  command = fuzz_cases.command_of(argv)
  if not out.strip():
    return 'nothing is printed'
  if not command or '--help' in argv or '-h' in argv:
    return '' if re.search('usage: mobilenet_jax|mobilenet_jax [0-9.]+$', out) else 'neither the usage nor the version is printed'
  if command == ('train',):
    return _not_a_row(folder / _given(argv, '--workdir') / RESULT_FILE)
  if command == ('sweep',):
    path = folder / _given(argv, '--workdir') / results.CSV_FILE
    return '' if path.is_file() and list(csv.DictReader(path.read_text().splitlines())) else 'there is no row'
  if command[0] in ('export', 'import', 'record', 'choose') and (given := _given(argv, '--out')):
    path = folder / given
    if not (any(path.iterdir()) if path.is_dir() else path.is_file() and path.stat().st_size):
      return 'there is nothing in --out'
  if '--json' in argv or command == ('predict',) and _given(argv, '--format') == 'json':
    try:
      json.loads(out, parse_constant=lambda name: json.loads('not JSON'))
    except ValueError:
      return 'what it printed is not JSON'
  return ''


def _not_a_row(path):
  try:
    return '' if json.loads(path.read_text())['name'] else 'its row has no name'
  except (OSError, ValueError, TypeError, KeyError) as error:
    return f'there is no row ({type(error).__name__})'


def play(seed: int, world: Path, folder: Path, seconds: float) -> tuple[fuzz_cases.Case, Ended, list[str]]:
  """Runs one case in `folder`, which it makes. Returns the case, how it ended, and what is wrong with that."""
  shutil.copytree(world, folder, symlinks=True)
  case = fuzz_cases.draw(seed, folder)
  before = contents(folder)
  ended = run(case.argv, folder, seconds, case.alone)
  return case, ended, faults(case, ended, folder, before)


def _remove(folder):
  for name in ('locked', 'readonly'):  # else only root could
    with contextlib.suppress(OSError):
      (folder / name).chmod(0o700)
  shutil.rmtree(folder)


def _show(argv):
  """Returns a command line as a person can type it, at most 300 characters of it."""
  text = shlex.join(argv)
  if not text.isprintable():
    text = ' '.join(argument if argument.isprintable() and shlex.quote(argument) == argument
                    else "$'" + ascii(argument)[1:-1].replace("'", "\\'") + "'" for argument in argv)
  return text if len(text) < 300 else f'{text[:140]} ... {text[-140:]}'


def fuzz(args, world: Path) -> None:
  limit = max(PATIENCE * make_world(world), LEAST_SECONDS)
  started, statuses, kinds, first = time.monotonic(), collections.Counter(), collections.Counter(), {}
  seed = args.seed
  while time.monotonic() - started < args.seconds:
    folder = world.with_name(f'case_{seed}')
    case, ended, wrong = play(seed, world, folder, limit)
    statuses[ended.status if ended.status in (0, 1, 2, REQUEUE) else 'other'] += 1
    kinds.update(wrong)
    for kind in wrong:
      if kind not in first:
        first[kind] = seed, case.argv
        print(f'{seed}: {kind}: {_show(case.argv)}', flush=True)
    _remove(folder)
    seed += 1
  print()
  for kind, count in kinds.most_common():
    print(f'{count:4} x {kind}\n       first: --case={first[kind][0]}, mobilenet_jax {_show(first[kind][1])}')
  ends = ', '.join(f'{statuses[status]} with status {status}' for status in (0, 1, 2, REQUEUE, 'other') if statuses[status])
  print(f'{seed - args.seed} cases, {args.seed} to {seed - 1}: {ends}; {len(kinds)} kinds of faults in {kinds.total()} cases; '
        f'{time.monotonic() - started:.0f} s, at most {limit:.0f} s each')
  if kinds:
    raise UserError(f'{len(kinds)} kinds of faults; --case=NUMBER repeats a case')


def repeat(args, world: Path) -> None:
  """Runs one case and prints everything about it. Its folder is kept."""
  limit = max(PATIENCE * make_world(world), LEAST_SECONDS)
  folder = world.with_name(f'case_{args.case}')
  whole = contents(world)
  case, ended, wrong = play(args.case, world, folder, limit)
  after = contents(folder)
  print(f'mobilenet_jax {_show(case.argv)}\n{case.kind}{", in a Python of its own" if case.alone else ""}; files that differ '
        'afterwards:')
  for name in sorted({*whole, *after}):
    if whole.get(name) != after.get(name):
      print(f'  {name!r}: {"new" if name not in whole else "gone" if name not in after else "changed"}')
  print(f'status {ended.status} after {ended.seconds:.1f} s{", told to end" if ended.late else ""}\n--- stdout\n{ended.out}\n'
        f'--- stderr\n{ended.err}\n--- where\n{ended.where}\n--- faults')
  print(*wrong or ['none'], f'--- its folder is {folder}', sep='\n')


def main(args: argparse.Namespace) -> None:
  for module, _ in command_line_main.COMMANDS.values():
    importlib.import_module(f'mobilenet_jax.commands.{module}')
  for name in ('mobilenet_jax.data.tfds_sets', 'mobilenet_jax.sweeps.choice_figure', 'tensorflow', 'h5py'):
    importlib.import_module(name)
  temporary = tempfile.mkdtemp(prefix='fuzz_')  # not TemporaryDirectory, which each copy of this process would remove at its end
  os.environ.update({**MEMORY_SETTING, 'JAX_COMPILATION_CACHE_DIR': f'{temporary}/compiled',
                     'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0'})
  try:
    (repeat if args.case is not None else fuzz)(args, Path(temporary) / 'world')
  finally:
    if args.case is None:
      shutil.rmtree(temporary)


if __name__ == '__main__':
  if os.geteuid() == 0 and os.environ.setdefault('FUZZ_RESTRICTED', '0') == '0':  # permissions mean nothing to root
    os.environ['FUZZ_RESTRICTED'] = '1'
    os.execvp('setpriv', ['setpriv', '--inh-caps=-all', '--bounding-set=-all', sys.executable, *sys.orig_argv[1:]])
  parser = command_line.Parser(__doc__)
  parser.add_argument('--seconds', type=float, default=300, help='how long to go on')
  parser.add_argument('--seed', type=int, default=0, help='the number of the first case')
  parser.add_argument('--case', type=int, help='run only the case of this number, and print everything about it')
  command_line.run_with(parser, main)
