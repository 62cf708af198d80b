"""The cases of experiments/fuzz.py: command lines and their files, each drawn from a seed."""

import contextlib
import dataclasses
import functools
import io
import json
import os
import random
import re
from pathlib import Path

from experiments import fuzz_files as files
from mobilenet_jax import config as config_lib
from mobilenet_jax import models
from mobilenet_jax.__main__ import COMMANDS, main

# Command lines that do something in the folder that fuzz_files.make describes. They write to `new`, `new.npz` or `new.html`.
VALID = (
    ['train', '--config=recipe.py', '--workdir=new'],
    ['train', '--config=recipe.py:data=npz:set.npz', '--workdir=new'],
    ['train', '--config=recipe.py:data=folder:labelled', '--workdir=new'],
    ['train', '--config=recipe.py:recorded=teacher.npz', '--workdir=new'],
    ['train', '--config=recipe.py', '--workdir=run'],
    ['sweep', '--config=recipe.py', '--workdir=new', '--launcher=here'],
    ['sweep', '--config=recipe.py', '--workdir=sweep', '--launcher=here'],
    ['sweep', 'status', '--workdir=sweep'],
    ['sweep', 'logs', '--workdir=sweep', '--run=shallow_mobilenet_0.03125_32'],
    ['sweep', 'cancel', '--workdir=sweep'],
    ['evaluate', 'run'],
    ['evaluate', 'run', '--data=folder:photos', '--json', '--batch=3'],
    ['predict', 'run', 'photos', '--top=1'],
    ['predict', 'run', 'photos/test/a/0.png', 'photos/test/b', '--format=json', '--annotate=new'],
    ['predict', 'run', '-', '--format=csv', '--batch=1'],
    ['predict', f'keras_{files.SIZE}.h5', 'photos/test'],
    ['export', 'run', 'stablehlo', '--out=new', '--images=photos'],
    ['choose', '--max-mult-adds=100M', '--min-accuracy=50%'],
    ['choose', '--table=paper', '--max-params=3M'],
    ['choose', '--table=sweep/results.csv', '--out=new'],
    ['report', 'sweep', 'run', '--out=new.html'],
    ['record', 'run', '--data=folder:photos', '--out=new.npz'],
    ['complexity', '--config=recipe.py'],
    ['complexity', 'run'],
    ['evaluate', 'run', '--checkpoint=best'],
    ['complexity', '--config=recipe.py', '--json', '--config.model.num_classes=10'],
    ['import', f'slim_{files.SIZE}.pb', '--out=new'],
    ['import', f'slim_{files.SIZE}.ckpt', '--out=new', f'--image-size={files.SIZE}', '--raw'],
    ['import', f'slim_{files.SIZE}.tgz', f'--image-size={files.SIZE}', '--out=new'],
    ['import', f'keras_{files.SIZE}.h5', f'--image-size={files.SIZE}', '--out=new'],
)
STDIN = 'photos/test/a/0.png\nphotos/test/b/0.png\n'  # of every command; predict reads it if it is asked to
TRAIN, PREDICT = VALID[0], ['predict', 'run']
OF_FACES = ['--config.task=embedding', '--config.data.name=folder:people', '--config.data.pairs=pairs.txt',
            '--config.data.per_identity=2', '--config.embedding.size=4']
# Flags that ask a command to wait for something that does not come here: other hosts, or Ctrl-C.
WAITING = ('--coordinator', '--hosts', '--watch')
# Values that mean something in some field.
MEANINGS = ('folder:', 'npz:', 'hf:', 'hf:photos', 'feature:x', 'folder:photos/train/a', 'npz:teacher.npz', 'teacher.npz',
            '0.5', 'skip', 'class', 'attributes', 'train', 'run')
# What a recipe may do at its wrong moment, and what its functions may return.
ACTIONS = (
    'raise ValueError("two\\nlines")', 'raise RuntimeError("\\x1b[31m" + "x" * 3000)', 'raise KeyError("name")',
    'raise Exception', 'raise SystemExit', 'raise SystemExit(3)', 'raise SystemExit("text")', 'raise KeyboardInterrupt',
    'raise OSError(2, "gone", "file")', 'raise StopIteration', 'raise AssertionError', '1 / 0', 'import not_there',
    'from configs import not_there', 'recurse = lambda: recurse()\n{indent}recurse()', 'open("missing.txt")',
    'raise MemoryError', 'undefined', 'raise UnicodeDecodeError("utf-8", b"a", 0, 1, "x")')
SOURCES = (
    b'', b'get_config = 3\n', b'def get_config(:\n', b'\x00', b'\xff\xfe', b'  x = 1\n y', b'def get_config(a, b):\n  pass\n',
    b'async def get_config():\n  pass\n', b'class get_config:\n  pass\n', b'# coding: nothing\n', b'(' * 500, b'{"json": 1}')
CONFIGS = (
    'None', '{}', '3', '"text"', 'config.to_dict()', 'type(config)()', 'type(config)({"model": 3})', 'config.data',
    'config.model', '[config]', 'config, config', 'get_config', 'type(config)({**config.to_dict(), "extra": 1})',
    'type(config)({**config.to_dict(), "data": None})')
SWEEPS = (
    'None', '""', '"abc"', '{}', '{"seed": 1}', '[]', '[None]', '[{}]', '[{}, {}]', '[{"nothing": 1}]',
    '[{"data.nothing": 1}]', '[{"batch_size": "x"}]', '[{"model": None}]', '[{"model.name": 3}]', '[{1: 2}]', '[[]]', '3',
    'config', '[config]', 'iter([{}])', '[{"model.width_multiplier": 0.03}] * 2000',
    '[{"model.width_multiplier": float("nan")}]', '[{"data.image_size": 32}]',
    '[{"data.image_size": (32, 32)}, {"data.image_size": (0, 0)}]', '[{"data": {"name": "x"}}]', '[{"train_for": 3}]')
VARIED = (
    'seed=0,1', 'seed=1,1', 'seed=', 'seed', '=', ',', 'seed=,', 'seed=a', 'optim.learning_rate=1e-3,3e-3', 'optim=1',
    'optim.learning_rate=nan,1', 'data.image_size=(32,32),(40,40)', 'data.image_size=32,40', 'model.name=mobilenet,nn2',
    'model.name=none', 'train_for=1 step,2 steps', 'data.name="a,b"', 'data.recorded=é,/,..', 'model.width_multiplier=0.03,0.06',
    'batch_size=4,8', 'data.flip=True,False', 'data.flip=maybe', 'seed=' + ','.join(map(str, range(300))))


@dataclasses.dataclass(frozen=True)
class Case:
  """A command line, and how it is run.

  Attributes:
    kind: one of KINDS.
    argv: the arguments of mobilenet_jax.
    valid: whether it has to succeed.
    alone: whether it is run by a Python of its own, as a user runs it, instead of a copy of this one.
  """
  kind: str
  argv: list[str]
  valid: bool
  alone: bool


def draw(seed: int, folder: Path) -> Case:
  """Draws a case, and changes the files in its folder.

  Args:
    seed: the same seed draws the same case.
    folder: a folder as fuzz_files.make describes, with a trained run in run/ and a finished sweep in sweep/.
  """
  rng = random.Random(seed)
  kind = rng.choices(list(KINDS), [weight for weight, _ in KINDS.values()])[0]
  argv = KINDS[kind][1](rng, folder)
  with_trained = argv[1:2] == ['run'] or '=run' in ' '.join(argv)  # whose network only this process knows, see fuzz.main
  return Case(kind, [_argument(text) for text in argv], kind == 'valid', rng.random() < 0.02 and not with_trained)


def _argument(text):
  """Returns text as the system can pass it on."""
  return text.replace('\0', '')[:10_000]


def _valid(rng, folder):
  del folder
  return list(rng.choice(VALID))


def _arguments(rng, folder):
  files.odd_places(folder)
  argv = list(rng.choice(VALID))
  for _ in range(rng.choice((1, 1, 1, 2, 3))):
    _change(rng, argv, [flag for flag in _flags(command_of(argv)) if flag not in WAITING])
  return argv


def command_of(argv: list[str]) -> tuple[str, ...]:
  """Returns the command that a command line names, such as ('sweep', 'status'); () if there is no such command."""
  if tuple(argv[:2]) in (('sweep', 'status'), ('sweep', 'logs'), ('sweep', 'cancel')):
    return tuple(argv[:2])
  return tuple(argv[:1]) if argv and argv[0] in COMMANDS else ()


@functools.cache
def _flags(command):
  """Returns the flags that the help of a command lists."""
  with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.suppress(SystemExit):
    main([*command, '--help'])
  return sorted(set(re.findall(r'--[a-z][a-z_-]*', printed.getvalue()))) if command else []


def _change(rng, argv, flags):
  """Makes one change to a command line."""
  text = rng.choice(files.ODD if rng.random() < 0.5 else files.NONSENSE)
  change = rng.choice(('value', 'value', 'value', 'flag', 'flag', 'flag', 'place', 'place', 'drop', 'double', 'more',
                       'misspelt', 'any'))
  given = [i for i, argument in enumerate(argv) if argument.startswith('--') and '=' in argument]
  places = [i for i, argument in enumerate(argv) if i and not argument.startswith('-')]
  if change == 'value' and given:
    at = rng.choice(given)
    argv[at] = argv[at].partition('=')[0] + '=' + _value(rng, argv[at], text)
  elif change == 'flag' and flags:
    flag = rng.choice(flags)
    argv.append(flag if rng.random() < 0.1 else f'{flag}={text}')
  elif change == 'drop' and argv:
    del argv[rng.randrange(len(argv))]
  elif change == 'double' and argv:
    argv.append(rng.choice(argv))
  elif change == 'place' and places:
    argv[rng.choice(places)] = text
  elif change == 'more':
    argv.insert(rng.randint(1, max(len(argv), 1)), text)
  elif change == 'misspelt' and given:
    at = rng.choice(given)
    text = argv[at]
    argv[at] = rng.choice((text.replace('--', '-'), text.replace('=', ' '), text.replace('=', 's='), text.upper(),
                           text.partition('=')[0]))
  elif change == 'any':
    argv.append(f'{text}={text}')


def _value(rng, argument, text):
  """Returns another value of a flag; one that has parts keeps some of them."""
  value = argument.partition('=')[2]
  if ':' in value and rng.random() < 0.5:
    head, _, rest = value.partition(':')
    return f'{head}:{rest.partition(":")[0]}:{text}' if ':' in rest or rest.startswith('data') else f'{head}:{text}'
  return text


def _fields(rng, folder):
  """Sets a field or two of a config to nonsense."""
  if rng.random() < 0.3:
    files.odd_places(folder)
  argv = list(rng.choice((TRAIN, TRAIN, ['complexity', '--config=recipe.py'], [*TRAIN, *OF_FACES])))
  known = {**config_lib.flat(config_lib.base()), **{f'model.{name}': None for name in models.fields('shallow_mobilenet')}}
  for _ in range(rng.choice((1, 1, 2))):
    text = rng.choice((*files.NONSENSE, *files.NONSENSE, *files.ODD, *models.MODELS, *MEANINGS))
    argv.append(f'--config.{rng.choice(list(known))}{rng.choice(("=",) * 9 + (".x=",))}{text}')
  return argv


def _recipe(rng, folder):
  """Writes a recipe that fails, or whose functions return something else."""
  path = folder / 'recipe.py'
  place = rng.choice(('source', 'module', 'get_config', 'sweep', 'config', 'runs', 'runs', 'varied'))
  if place == 'source':
    path.write_bytes(rng.choice(SOURCES))
  else:
    indent = '' if place == 'module' else '  '
    action = rng.choice(ACTIONS).format(indent=indent)
    path.write_text({
        'module': lambda: f'{files.RECIPE}\n{action}\n',
        'get_config': lambda: files.RECIPE.replace('  return config', f'  {action}\n  return config'),
        'sweep': lambda: files.RECIPE.replace('  return [', f'  {action}\n  return ['),
        'config': lambda: files.RECIPE.replace('return config', f'return {rng.choice(CONFIGS)}'),
        'runs': lambda: f'{files.RECIPE}\ndef sweep(config):\n  return {rng.choice(SWEEPS)}\n',
        'varied': lambda: files.RECIPE,
    }[place]())
  if place in ('sweep', 'runs', 'varied'):
    varied = [f'--sweep={rng.choice(VARIED)}' for _ in range(rng.choice((1, 2)) if place == 'varied' else 0)]
    seeds = [f'--seeds={rng.choice((0, 1, 2, -1, "x"))}'] if place == 'varied' and rng.random() < 0.3 else []
    return ['sweep', '--config=recipe.py', '--workdir=new', '--launcher=here', *varied, *seeds]
  return list(rng.choice((TRAIN, ['complexity', '--config=recipe.py'])))


def _images(rng, folder):
  """Puts odd or damaged images among the others, in one of the places from which images are read."""
  argv = list(rng.choice((TRAIN, ['evaluate', 'run'], ['evaluate', 'run', '--data=folder:photos'], [*PREDICT, 'photos/test'],
                          ['report', 'sweep', 'run', '--out=new.html'],
                          ['record', 'run', '--data=folder:photos', '--out=new.npz'], [*PREDICT, 'photos', '--annotate=new'],
                          [*PREDICT, 'photos', '--annotate=photos/test/a'],
                          ['export', 'run', 'stablehlo', '--out=new', '--images=photos'])))
  for i in range(rng.choice((1, 1, 3))):
    content, suffix = files.odd_image(rng)
    name = rng.choice(('odd', 'odd', 'ö', 'a b', '-x', 'new\nline', os.fsdecode(b'\xe9t\xe9'))) + str(i)
    (folder / 'photos' / rng.choice(('train', 'test')) / rng.choice('ab') / (name + suffix)).write_bytes(content)
  if argv[0] == 'train' and rng.random() < 0.5:
    argv.append('--config.data.bad_images=skip')
  return argv


def _tables(rng, folder):
  """Changes the text of a labels.csv, a pairs.txt or a results.csv."""
  path, argv = rng.choice((
      ('labelled/labels.csv', [*TRAIN, '--config.data.name=folder:labelled']),
      ('labelled/labels.csv', ['evaluate', 'run', '--data=folder:labelled']),
      ('pairs.txt', [*TRAIN, *OF_FACES]),
      ('sweep/results.csv', ['choose', '--table=sweep/results.csv']),
      ('sweep/results.csv', ['choose', '--table=sweep/results.csv', '--out=new', '--max-params=1M'])))
  if rng.random() < 0.85:
    files.spoil_table(rng, folder / path)
  else:
    files.spoil(rng, folder / path)
  return argv


def _arrays(rng, folder):
  """Changes the arrays of a .npz file, or damages the file."""
  path, argv = rng.choice((
      ('set.npz', [*TRAIN, '--config.data.name=npz:set.npz']), ('set.npz', ['evaluate', 'run', '--data=npz:set.npz']),
      ('set.npz', ['record', 'run', '--data=npz:set.npz', '--out=new.npz']),
      ('teacher.npz', [*TRAIN, '--config.data.recorded=teacher.npz', '--config.distill.softmax_weight=1']),
      ('teacher.npz', ['train', '--config=recipe.py:recorded=teacher.npz', '--workdir=new'])))
  rng.choice((files.spoil_arrays, files.spoil_arrays, files.spoil))(rng, folder / path)
  return argv


def _weights(rng, folder):
  """Damages a file of published weights, or gives it the name of another kind."""
  path = rng.choice(sorted(folder.glob(f'*_{files.SIZE}.*')))
  if rng.random() < 0.15:
    suffixes = '.pb .ckpt .tgz .tar .gz .h5 .hdf5 .index .ckpt.index .zip'.split()
    other = path.with_name('other' + rng.choice((*suffixes, '')))
    path.rename(other)
    path = other
  else:
    files.spoil(rng, path)
  name = f'slim_{files.SIZE}.ckpt' if '.ckpt.' in path.name else path.name
  size = f'--image-size={files.SIZE}'
  return list(rng.choice((['import', name, '--out=new'], ['import', name, '--out=new', size, '--raw'],
                          ['import', name, '--out=new', size], ['predict', name, 'photos/test'],
                          [*TRAIN, f'--config.init.model={name}'])))


def _run_folder(rng, folder):
  """Damages what a run or a sweep has written."""
  argv = list(rng.choice((
      ['train', '--config=recipe.py', '--workdir=run'], ['evaluate', 'run'], [*PREDICT, 'photos/test'],
      ['train', '--config=recipe.py', '--workdir=run', "--config.train_for=2 steps"], [*TRAIN, '--config.init.model=run'],
      ['report', 'sweep', 'run', '--out=new.html'],
      ['record', 'run', '--data=folder:photos', '--out=new.npz'], ['export', 'run', 'stablehlo', '--out=new'],
      ['sweep', '--config=recipe.py', '--workdir=sweep', '--launcher=here'], ['sweep', 'status', '--workdir=sweep'],
      ['sweep', 'logs', '--workdir=sweep'], ['sweep', 'cancel', '--workdir=sweep'],
      [*TRAIN, '--config.distill.model=run', '--config.distill.softmax_weight=1'])))
  whole = folder / ('sweep' if argv[0] == 'sweep' else 'run')
  for _ in range(rng.choice((1, 1, 2, 4))):
    paths = sorted(path for path in whole.rglob('*') if path.is_file() and 'tensorboard' not in path.parts)
    path = rng.choice([path for path in paths if path.suffix in ('.json', '.jsonl')] if rng.random() < 0.5 else paths)
    if path.suffix in ('.json', '.jsonl') and rng.random() < 0.7 and _is_json(path):
      files.spoil_json(rng, path)
    else:
      files.spoil(rng, path)
  return argv


def _is_json(path):
  try:
    json.loads(path.read_text().splitlines()[0] if path.suffix == '.jsonl' else path.read_text())
    return True
  except (ValueError, IndexError):
    return False


KINDS = {
    'valid': (4, _valid), 'arguments': (30, _arguments), 'fields': (14, _fields), 'recipe': (8, _recipe),
    'images': (10, _images), 'tables': (12, _tables), 'arrays': (8, _arrays), 'weights': (7, _weights),
    'run folder': (12, _run_folder)}
