"""The command line: python -m mobilenet_jax COMMAND, or, if the package is installed, mobilenet_jax COMMAND."""

import importlib
import sys

from mobilenet_jax import __version__
from mobilenet_jax.errors import UserError
from mobilenet_jax.runtime import command_line

# The module of each command in `commands`, and what the command does. Only the module that is needed is imported.
COMMANDS = {
    'train': ('train', 'train one model'),
    'sweep': ('sweep', 'train the models of a sweep; see also sweep status, sweep logs and sweep cancel'),
    'report': ('report', 'write a page of one or several sweeps, to look at in a browser'),
    'evaluate': ('evaluate', 'evaluate a trained model on a data set'),
    'predict': ('predict', 'label images'),
    'export': ('export', 'convert a trained model to TFLite, ONNX, StableHLO, SavedModel or Keras'),
    'choose': ('choose', 'find the most accurate model within a budget'),
    'record': ('record', "record a teacher's outputs for distillation"),
    'complexity': ('complexity', 'count the Mult-Adds and parameters of a model'),
    'import': ('import_model', 'import published weights'),
}
USAGE = '\n'.join([
    'usage: mobilenet_jax COMMAND [arguments]', '',
    *(f'  {name:11} {purpose}' for name, (_, purpose) in COMMANDS.items()), '',
    'mobilenet_jax COMMAND --help describes a command; mobilenet_jax --version prints the version.'])


def main(argv: list[str] | None = None) -> None:
  """Runs the command that `argv` names, by default that of this process. Exits as command_line.run does."""
  command_line.run(lambda: _dispatch(sys.argv[1:] if argv is None else argv))


def _dispatch(argv):
  if not argv or argv[0] in ('--help', '-h', 'help'):
    print(USAGE)
    return
  if argv[0] == '--version':
    print(f'mobilenet_jax {__version__}')
    return
  if argv[0] not in COMMANDS:
    raise UserError(f'{argv[0]!r} is not a command; expected one of {", ".join(COMMANDS)}')
  importlib.import_module(f'mobilenet_jax.commands.{COMMANDS[argv[0]][0]}').main(argv[1:])


if __name__ == '__main__':
  main()
