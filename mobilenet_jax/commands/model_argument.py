"""The arguments that select a trained model: which one, its image size, and which checkpoint of a run."""

import argparse

from mobilenet_jax import trained
from mobilenet_jax.errors import UserError
from mobilenet_jax.runtime import command_line


def add_arguments(parser: command_line.Parser, required: bool = True) -> None:
  """Adds the model, --image-size and --checkpoint, for `load`."""
  parser.add_argument('model', nargs=None if required else '?', help='a run folder, a file of published weights, or the name '
                      'of a published model')
  parser.add_argument('--image-size', type=_size, metavar='SIZE', help='of a file that does not say it: a number of pixels, '
                      'or HEIGHTxWIDTH')
  parser.add_argument('--checkpoint', default=trained.NEWEST, metavar='newest|best|STEP', help='of a run: the newest one (the '
                      'default), the one with the highest main metric, or that of a step')


def load(args: argparse.Namespace, averaged: bool = True) -> trained.TrainedModel:
  """Loads the model; see trained.load."""
  return trained.load(args.model, averaged, args.image_size, args.checkpoint)


def _size(text):
  height, _, width = text.partition('x')
  try:
    return int(height), int(width or height)
  except ValueError:
    raise UserError(f'--image-size={text}: expected a number of pixels, such as 128, or HEIGHTxWIDTH, such as 96x128') from None
