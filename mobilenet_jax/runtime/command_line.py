"""What the command lines of this project share: arguments, one-line errors, exit statuses."""

import argparse
import functools
import io
import os
import shutil
import sys
from collections.abc import Callable

from mobilenet_jax.errors import REQUEUE, Interrupted, UserError, describe, is_of_the_user
from mobilenet_jax.runtime import environment


MAX_COLUMNS = 120  # of a help, if the terminal has as many or there is none


class Parser(argparse.ArgumentParser):
  """An argument parser whose errors are UserErrors and whose help begins with a module's docstring."""

  def __init__(self, doc: str, command: str | None = None, add_help: bool = True):
    module = getattr(sys.modules['__main__'], '__spec__', None)  # of python -m experiments.NAME
    prog = f'mobilenet_jax {command}' if command else module and f'python -m {module.name}'
    columns = shutil.get_terminal_size((MAX_COLUMNS, 0)).columns
    layout = functools.partial(argparse.RawDescriptionHelpFormatter, width=min(columns, MAX_COLUMNS))
    super().__init__(prog, description=doc, formatter_class=layout, allow_abbrev=False, add_help=add_help)

  def parse_known_args(self, args=None, namespace=None):
    given = sys.argv[1:] if args is None else list(args)
    if without := [argument for argument in given if argument.startswith('--') and argument.endswith('=--')]:
      raise UserError(f'{without[0]}: expected a value other than --')  # which argparse turns into no value at all
    options = [argument.partition('=')[0] for argument in given]
    once = {option for option, action in self._option_string_actions.items() if action.default != []}  # others are collected
    if twice := [option for option in options if options.count(option) > 1 and option in once]:
      raise UserError(f'{twice[0]} is given twice; expected one value')
    return super().parse_known_args(given, namespace)

  def error(self, message):
    raise UserError(f'{message}; --help lists the arguments')


def run(main: Callable[[], None]) -> None:
  """Calls `main` and turns what it raises into an exit status.

  A UserError is printed as one line, and the exit status is 1. After an interruption the exit status is REQUEUE: the same
  command can be started again to continue.
  """
  environment.use_huge_pages()
  environment.quiet()
  for stream in (sys.stdout, sys.stderr):
    if isinstance(stream, io.TextIOWrapper):
      stream.reconfigure(errors='backslashreplace')  # the name of a file need not be UTF-8
  try:
    main()
  except BrokenPipeError:  # the reader of our output has closed it
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
  except (Interrupted, KeyboardInterrupt) as interrupt:
    print(str(interrupt) or 'interrupted; the same command can be started again', file=sys.stderr)
    sys.exit(REQUEUE)
  except Exception as error:
    if not is_of_the_user(error):
      raise
    sys.exit(f'error: {describe(error)}')


def run_with(parser: Parser, main: Callable[[argparse.Namespace], None]) -> None:
  """Calls `main` with the parsed arguments of this process, as `run` does."""
  run(lambda: main(parser.parse_args()))
