"""What every command line here shares: flags in, one call, one-line errors, quiet libraries."""

import argparse
import contextlib
import errno
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

# Before any library reads them: TensorFlow's and XLA's start-up notes bury our own lines.
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')
# What XLA compiled is kept between runs; JAX's own variable says where, and an empty one switches it off.
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', os.path.expanduser('~/.cache/mobilenet_jax/compiled'))

from absl import flags
from absl import logging as absl_logging
from ml_collections import config_flags

from mobilenet_jax.errors import REQUEUE, Interrupted, UserError

# glibc gives every large buffer back to the system after each step and takes it anew in 4 KiB pages. In huge
# pages a training step is 1.5 times as fast (1.0 MobileNet at 224, batch 64, two cores: 36 to 23 ms an image).
MEMORY_SETTING = {'GLIBC_TUNABLES': 'glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=100000000000:'
                                    'glibc.malloc.trim_threshold=100000000000'}


def define_config() -> None:
  """Defines --config=FILE.py[:key=value,...], whose fields are flags too: --config.batch_size=64."""
  config_flags.DEFINE_config_file('config', help_string='A recipe: configs/NAME.py[:key=value,...].')


def define_hosts() -> None:
  """Defines the flags by which one host of several is told of the others; see parallel.join_hosts."""
  flags.DEFINE_string('coordinator', '', 'Of several hosts, address and port of the first; under Slurm, Open MPI and on '
                      'Cloud TPU they find each other.')
  flags.DEFINE_integer('hosts', 0, 'How many hosts there are, with --coordinator.')
  flags.DEFINE_integer('host', -1, 'Which of them this is, from 0.')


class Parser(argparse.ArgumentParser):
  """Arguments of a command that takes no config; what is wrong with them is an error like any other."""

  def __init__(self, doc: str):
    super().__init__(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)

  def error(self, message):
    raise UserError(f'{message}; --help lists the arguments')


def run(main: Callable[[flags.FlagValues], None]) -> None:
  """Parses the command line, calls `main(flags)`, and turns errors of the user into one line, status 1."""
  with _one_line_errors('interrupted: the same command continues'):
    main(_parse(flags.FLAGS, sys.argv))


def run_with(parser: Parser, main: Callable[[argparse.Namespace], None]) -> None:
  """As `run`, with the arguments that `parser` finds."""
  with _one_line_errors('interrupted'):
    main(parser.parse_args())


@contextlib.contextmanager
def _one_line_errors(interrupted: str):
  use_huge_pages()
  quiet()
  try:
    yield
  except BrokenPipeError:  # whoever reads our output has seen enough
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
  except (UserError, OSError) as error:
    if not is_of_the_user(error):
      raise
    sys.exit(f'error: {describe(error)}')
  except (Interrupted, KeyboardInterrupt) as interrupt:
    print(str(interrupt) or interrupted, file=sys.stderr)
    sys.exit(REQUEUE)


def use_huge_pages() -> None:
  """On Linux, starts this command again with MEMORY_SETTING, which glibc reads only at the start."""
  if sys.platform == 'linux' and 'GLIBC_TUNABLES' not in os.environ:
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **MEMORY_SETTING})


def recipe_path(values: flags.FlagValues) -> Path:
  """The recipe's file: --config without the argument behind the first colon."""
  return Path(config_flags.get_config_filename(values['config']).partition(':')[0])


def is_of_the_user(error: Exception) -> bool:
  """Whether one line says it all, and a traceback would not help."""
  return isinstance(error, UserError) or isinstance(error, OSError) and error.errno in (
      errno.ENOSPC, errno.EACCES, errno.EROFS)


def describe(error: Exception) -> str:
  """One line for a person."""
  if not is_of_the_user(error):
    return ' '.join(f'{type(error).__name__}: {error}'.split())
  if isinstance(error, OSError):
    advice = 'free some space' if error.errno == errno.ENOSPC else 'choose a folder you may write to'
    return f'{error.filename or "writing"}: {os.strerror(error.errno)}; {advice} and start the same command again'
  return ' '.join(str(error).split())


def quiet() -> None:
  """Silences what the libraries log: warnings bury our own lines, and what fails is raised as well."""
  absl_logging.set_verbosity(absl_logging.FATAL)  # Orbax, TFDS
  for name in ('jax', 'tensorflow', 'orbax'):
    logging.getLogger(name).setLevel(logging.ERROR)


def _parse(values: flags.FlagValues, argv: list[str]) -> flags.FlagValues:
  try:
    rest = values(argv)
  except UserError:
    raise
  except flags.Error as error:
    raise UserError(f'{error}; --help lists the flags') from error
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    message = ' '.join(str(error).strip('"\'').split())
    raise UserError(f'--config: {message}') from error
  if len(rest) > 1:
    raise UserError(f'{rest[1]!r} is no flag of this command; flags look like --workdir=runs/mine')
  if 'help' in values and values.help:  # absl prints it only under app.run
    print(values.main_module_help())
    sys.exit(0)
  if not values['config'].present:
    raise UserError('--config is missing; give a recipe such as --config=configs/fabrics.py')
  if not recipe_path(values).is_file():
    raise UserError(f'--config: there is no file {recipe_path(values)}; the recipes are in configs/')
  return values
