"""Recipes on the command line: --config=FILE.py[:key=value,...] and --config.FIELD=VALUE."""

import argparse
import contextlib
import runpy
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import ml_collections

from mobilenet_jax import config as config_lib
from mobilenet_jax import models
from mobilenet_jax.errors import UserError
from mobilenet_jax.runtime import command_line
from mobilenet_jax.storage.files import expanded

ROOT = Path(__file__).parents[2]  # of the repository, which has the folder configs/
_FIELD = '--config.'
_LEFT = 40  # columns of a field and its value in the help; longer ones have a line of their own


class Recipe(NamedTuple):
  """A recipe.

  Attributes:
    path, namespace: its file, and what that defines.
    own: the config that it returns.
    config: the same for this command line.
    given: the fields that the command line sets.
    left_out: remarks on what that leaves out of `own`.
  """
  path: Path
  namespace: dict
  own: ml_collections.ConfigDict
  config: ml_collections.ConfigDict
  given: tuple[str, ...]
  left_out: list[str]


def parser(doc: str, command: str) -> command_line.Parser:
  """Returns a parser with --config. It does not know the fields, --config.FIELD=VALUE; `parse` reads them."""
  parser = command_line.Parser(doc, command, add_help=False)
  parser.add_argument('-h', '--help', action='store_true', help='show this help, with all fields of the config, and exit')
  parser.add_argument('--config', metavar='FILE.py[:key=value,...]',
                      help='a recipe, such as configs/fabrics.py:alpha=0.5; it is looked up in this folder, then beside '
                           'the package; --config.FIELD=VALUE sets a field of its config')
  return parser


def add_host_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the arguments that tell one of several hosts about the others; see devices.join_hosts."""
  parser.add_argument('--coordinator', default='', help='address and port of the first of several hosts; under Slurm, Open '
                      'MPI and on Cloud TPU the hosts find each other')
  parser.add_argument('--hosts', type=int, default=0, help='number of hosts, with --coordinator')
  parser.add_argument('--host', type=int, default=-1, help='which of them this is, from 0')


def parse(parser: command_line.Parser, argv: list[str], required: bool = True) -> tuple[argparse.Namespace, Recipe | None]:
  """Parses a command line and builds the config. If help is asked for, prints it with all fields of the config, and exits.

  Args:
    parser: a parser from `parser`.
    argv: the arguments.
    required: whether there must be a recipe.

  Returns:
    The arguments, and the recipe, which is None if none is given.

  Raises:
    UserError: if an argument, the recipe or a field is wrong.
  """
  fields, others = _split(argv)
  args = parser.parse_args(others)
  if args.help:
    parser.print_help()
    print(described(args.config, fields))
    sys.exit()
  if args.config:
    return args, read(args.config, fields)
  if required or fields:
    raise UserError('--config is missing; give a recipe such as --config=configs/fabrics.py')
  return args, None


def _split(argv):
  """Returns the fields of a command line, texts by name, and its other arguments."""
  fields, others, rest = {}, [], list(argv)
  while rest:
    argument = rest.pop(0)
    if not argument.startswith(_FIELD):
      others.append(argument)
      continue
    name, separator, text = argument.removeprefix(_FIELD).partition('=')
    if not separator and rest:
      text = rest.pop(0)
    elif not separator:
      raise UserError(f'{argument}: expected a value, as in {argument}=VALUE')
    if name in fields:
      raise UserError(f'{_FIELD}{name} is given twice; expected one value')
    fields[name] = text
  return fields, others


def described(given: str | None, fields: dict[str, str]) -> str:
  """Returns the help of a recipe: its docstring, and every field of its config with its value and its comment.

  Args:
    given: as in `read`; None for the fields alone, with their defaults.
    fields: as in `read`.
  """
  if given:
    recipe = read(given, fields)
    doc, config = f'{recipe.path}\n\n{(recipe.namespace.get("__doc__") or "").strip()}\n\n', recipe.config
    values, remarks = f'their values in {given}', recipe.left_out
  else:
    doc, values, remarks = '', 'their defaults; with --config=RECIPE --help, those of a recipe', []
    config = config_lib.overridden(config_lib.base(), fields, models.fields(fields.get('model.name', 'mobilenet')))
  config.model, config.optim = models.complete(config.model), config_lib.complete_optim(config.optim)
  value_of = config_lib.flat(config)
  rows = [(f'{name}={value_of[name]!r}', field.comment)
          for name, field in config_lib.all_fields(models.fields(config.model.name), config.optim).items()]
  width = max(len(left) for left, _ in rows if len(left) <= _LEFT) + 2
  lines = [f'  {left:{width}}{comment}' if len(left) < width else f'  {left}\n  {"":{width}}{comment}'
           for left, comment in rows]
  return f'\n{doc}fields, set with --config.FIELD=VALUE, and {values}:\n\n' + '\n'.join([*lines, *remarks])


def read(given: str, fields: dict[str, str]) -> Recipe:
  """Runs a recipe.

  Args:
    given: the path of its file, followed by a colon and the argument of its get_config.
    fields: values of fields as text, by dotted name. They override the recipe's.

  Raises:
    UserError: if there is no such file, it is no recipe or fails, or a field is wrong.
  """
  name, _, argument = given.partition(':')
  path = _find(name)
  for folder in (str(Path.cwd()), str(ROOT)):  # recipes import each other as configs.NAME
    if folder not in sys.path:
      sys.path.append(folder)
  with _errors_of(path):
    namespace = runpy.run_path(str(path))
  if not callable(namespace.get('get_config')):
    raise UserError(f'--config: {path} has no get_config(arg); expected a recipe such as configs/fabrics.py')
  with _errors_of(path):
    config = namespace['get_config'](*([argument] if argument else []))
  if not isinstance(config, ml_collections.ConfigDict):
    raise UserError(f'--config: get_config of {path} returned {type(config).__name__}; expected a config from '
                    'mobilenet_jax.config.base()')
  config = config_lib.validated(config)
  network = models.fields(fields.get('model.name', config.model.name))
  return Recipe(path, namespace, config, config_lib.overridden(config, fields, network), tuple(fields),
                config_lib.left_out(config, fields))


def has_sweep(recipe: Recipe) -> bool:
  return callable(recipe.namespace.get('sweep'))


def changes(recipe: Recipe) -> list[dict]:
  """Returns what each run of a recipe's sweep changes in its config.

  Raises:
    UserError: if its function fails or returns something else, or the recipe has GROUPS, which earlier versions read.
  """
  path = recipe.path
  if 'GROUPS' in recipe.namespace:
    raise UserError(f'--config: {path} has GROUPS, which are not read any more: runs with the same batches share them; '
                    'remove it, and use --group, such as --group=data.image_size, for other groups')
  with _errors_of(path):
    found = recipe.namespace['sweep'](recipe.config)
  if (not isinstance(found, list | tuple) or not found or not all(isinstance(change, dict) for change in found)
      or not all(isinstance(name, str) for change in found for name in change)):
    raise UserError(f'--config: sweep(config) of {path} returned {" ".join(repr(found).split())[:60]}; expected a list with a '
                    "dict for each run, such as [{'model.width_multiplier': 0.5}]")
  return list(found)


@contextlib.contextmanager
def _errors_of(path: Path) -> Iterator[None]:
  """Turns whatever the code of a recipe raises into a UserError that names the line."""
  try:
    yield
  except (UserError, KeyboardInterrupt):
    raise
  except BaseException as error:  # SystemExit, too: a recipe does not end a command
    calls = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
    where, text = (path, calls[-1] if calls else 0), str(error)
    if isinstance(error, SyntaxError):  # which may be in a file that the recipe imports
      where, text = (error.filename, error.lineno), error.msg
    place = f'{where[0]}, line {where[1]}' if where[1] else where[0]
    text = ' '.join(text.replace('\\n', ' ').split())
    raise UserError(f'--config: {place}: {type(error).__name__}{": " if text else ""}{text[:300]}') from error


def _find(name: str) -> Path:
  for path in (expanded(name), ROOT / name):
    if path.is_file():
      return path
  raise UserError(f'--config: there is no file {name} here or in {ROOT}; the recipes are in configs/')
