"""Recipes on the command line: --config=FILE.py[:key=value,...] and --config.FIELD=VALUE."""

import argparse
import runpy
import sys
from pathlib import Path
from typing import NamedTuple

import ml_collections

from mobilenet_jax import config as config_lib
from mobilenet_jax import models
from mobilenet_jax.errors import UserError
from mobilenet_jax.runtime import command_line

ROOT = Path(__file__).parents[2]  # of the repository, which has the folder configs/
_FIELD = '--config.'


class Recipe(NamedTuple):
  """A recipe, and the config that it returns for this command line."""
  path: Path
  namespace: dict
  config: ml_collections.ConfigDict


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds --config. The parser does not know the fields, --config.FIELD=VALUE; `parse` reads them."""
  parser.add_argument('--config', metavar='FILE.py[:key=value,...]',
                      help='a recipe, such as configs/fabrics.py:alpha=0.5; it is looked up in this folder, then beside '
                           'the package; --config.FIELD=VALUE sets a field of its config')


def add_host_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the arguments that tell one of several hosts about the others; see devices.join_hosts."""
  parser.add_argument('--coordinator', default='', help='address and port of the first of several hosts; under Slurm, Open '
                      'MPI and on Cloud TPU the hosts find each other')
  parser.add_argument('--hosts', type=int, default=0, help='number of hosts, with --coordinator')
  parser.add_argument('--host', type=int, default=-1, help='which of them this is, from 0')


def parse(parser: command_line.Parser, argv: list[str]) -> tuple[argparse.Namespace, Recipe]:
  """Parses a command line and builds the config.

  Raises:
    UserError: if an argument, the recipe or a field is wrong.
  """
  args, rest = parser.parse_known_args(argv)
  fields, rest = {}, list(rest)
  while rest:
    argument = rest.pop(0)
    if not argument.startswith(_FIELD):
      raise UserError(f'{argument!r} is not an argument of this command; --help lists the arguments')
    name, separator, text = argument.removeprefix(_FIELD).partition('=')
    if not separator and rest:
      text = rest.pop(0)
    elif not separator:
      raise UserError(f'{argument}: expected a value, as in {argument}=VALUE')
    fields[name] = text
  if not args.config:
    raise UserError('--config is missing; give a recipe such as --config=configs/fabrics.py')
  return args, read(args.config, fields)


def read(given: str, fields: dict[str, str]) -> Recipe:
  """Runs a recipe.

  Args:
    given: the path of its file, followed by a colon and the argument of its get_config.
    fields: values of fields as text, by dotted name. They override the recipe's.
  """
  name, _, argument = given.partition(':')
  path = _find(name)
  for folder in (str(Path.cwd()), str(ROOT)):  # recipes import each other as configs.NAME
    if folder not in sys.path:
      sys.path.append(folder)
  try:
    namespace = runpy.run_path(str(path))
  except ImportError as error:
    raise UserError(f'--config: {path}: {error}') from error
  if 'get_config' not in namespace:
    raise UserError(f'--config: {path} has no get_config(arg); expected a recipe such as configs/fabrics.py')
  try:
    config = namespace['get_config'](*([argument] if argument else []))
  except (AttributeError, KeyError, TypeError, ValueError) as error:  # an unknown field, or a value of another type
    raise UserError(f'--config: {" ".join(str(error).split())}') from error
  network = fields.get('model.name', config.model.name)
  return Recipe(path, namespace, config_lib.overridden(config, fields, models.fields(network)))


def _find(name: str) -> Path:
  for path in (Path(name).expanduser(), ROOT / name):
    if path.is_file():
      return path
  raise UserError(f'--config: there is no file {name} here or in {ROOT}; the recipes are in configs/')
