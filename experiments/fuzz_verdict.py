"""What is wrong with how a case of experiments/fuzz.py has ended."""

import contextlib
import csv
import dataclasses
import hashlib
import json
import os
import re
import signal
import unicodedata
from pathlib import Path

from experiments import fuzz_cases
from mobilenet_jax.errors import LONGEST, REQUEUE
from mobilenet_jax.storage.run_files import RESULT_FILE
from mobilenet_jax.sweeps import results
from mobilenet_jax.sweeps.job import LOG_FILE

LONGEST_MESSAGE = LONGEST + len('error:  ...')
# What a command may replace in a folder that it writes to.
PRODUCTS = re.compile(r'candidates\.csv|choose\.(png|svg)|shallow_mobilenet_.*')
PASSED_ON = ('mobilenet_jax/__main__.py', 'mobilenet_jax/runtime/command_line.py')  # which turn errors into exit statuses
UNKNOWN = 'a place that is not known'
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
  workdir = _given(case.argv, '--workdir') if command.startswith(('train', 'sweep')) else ''
  owned = os.path.normpath(workdir) + '/' if workdir else '\0'
  for name, digest in before.items():
    if after.get(name) != digest and not name.startswith(owned) and not PRODUCTS.fullmatch(Path(name).name):
      found.append(f'{command} has {"changed" if name in after else "removed"} a file of the user: {Path(name).name!r}')
  if any(name.endswith('.tmp') and name not in before for name in after) and not ended.late and ended.status >= 0:
    found.append(f'{command} has left a .tmp file')
  return list(dict.fromkeys(found))


def _traceback(text):
  """Returns the type of the last traceback in a text and the innermost place of ours in it; None if there is none."""
  _, mark, last = text.rpartition('Traceback (most recent call last)')
  if not mark:
    return None
  error = re.search(r'^(?!error)[A-Za-z_][\w.]*(?=:|$)', last.partition('\n')[2], re.MULTILINE)
  name = 'an exception of the recipe' if '"recipe.py", line' in last else error[0] if error else 'an exception'
  return f'{name} in {_last_frame(last)}'


def _last_frame(text):
  """Returns the innermost place in a traceback: of ours, or else of a library."""
  ours = [place for place in FRAME.findall(text) if place[0] not in PASSED_ON]
  frames = ours or re.findall(r'File "(?:.*/)?([^/]+/[^/"]+)", line (\d+), in (\w+)', text)
  return '{}:{} ({})'.format(*frames[-1]) if frames else UNKNOWN


def _frame(text):
  """Returns the innermost place of ours in a stack of faulthandler, which begins with the innermost frame."""
  frames = FRAME.findall(text)
  return '{}:{} ({})'.format(*frames[0]) if frames else UNKNOWN


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
    known = re.search('usage: mobilenet_jax|mobilenet_jax [0-9.]+$', out)
    return '' if known else 'neither the usage nor the version is printed'
  if command == ('train',):
    return _not_a_row(folder / _given(argv, '--workdir') / RESULT_FILE)
  if command == ('sweep',):
    path = folder / _given(argv, '--workdir') / results.CSV_FILE
    return '' if path.is_file() and list(csv.DictReader(path.read_text().splitlines())) else 'there is no row'
  if command[0] in ('export', 'import', 'record', 'choose', 'report') and (given := _given(argv, '--out')):
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
