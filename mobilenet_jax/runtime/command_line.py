"""What the command lines of this project share: arguments, one-line errors, exit statuses."""

import argparse
import os
import sys
from collections.abc import Callable

from mobilenet_jax.errors import REQUEUE, Interrupted, UserError, describe, is_of_the_user
from mobilenet_jax.runtime import environment


class Parser(argparse.ArgumentParser):
  """An argument parser whose errors are UserErrors and whose help begins with a module's docstring."""

  def __init__(self, doc: str, command: str | None = None):
    prog = f'mobilenet_jax {command}' if command else None
    super().__init__(prog, description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)

  def error(self, message):
    raise UserError(f'{message}; --help lists the arguments')


def run(main: Callable[[], None]) -> None:
  """Calls `main` and turns what it raises into an exit status.

  A UserError is printed as one line, and the exit status is 1. After an interruption the exit status is REQUEUE: the same
  command can be started again to continue.
  """
  environment.use_huge_pages()
  environment.quiet()
  try:
    main()
  except BrokenPipeError:  # the reader of our output has closed it
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
  except (UserError, OSError) as error:
    if not is_of_the_user(error):
      raise
    sys.exit(f'error: {describe(error)}')
  except (Interrupted, KeyboardInterrupt) as interrupt:
    print(str(interrupt) or 'interrupted', file=sys.stderr)
    sys.exit(REQUEUE)


def run_with(parser: Parser, main: Callable[[argparse.Namespace], None]) -> None:
  """Calls `main` with the parsed arguments of this process, as `run` does."""
  run(lambda: main(parser.parse_args()))
