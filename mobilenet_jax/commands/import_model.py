"""Imports published weights, or one checkpoint of a run, into a folder, which all other commands accept as a model.

    mobilenet_jax import mobilenet_0.25_128 --out=runs/imported
    mobilenet_jax import vww.ckpt --image-size=96 --out=runs/imported
    mobilenet_jax import runs/mine --checkpoint=best --out=runs/imported
"""

from pathlib import Path

from mobilenet_jax import config as config_lib
from mobilenet_jax.commands import model_argument
from mobilenet_jax.errors import UserError
from mobilenet_jax.runtime import command_line


def main(argv: list[str]) -> None:
  parser = command_line.Parser(__doc__, 'import')
  model_argument.add_arguments(parser)
  parser.add_argument('--out', type=Path, required=True, help='a new folder')
  parser.add_argument('--raw', action='store_true', help='import the variables themselves, not their moving averages')
  args = parser.parse_args(argv)

  if args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir())):
    raise UserError(f'--out={args.out}: is a file or a folder that is not empty; give an empty or a new folder')
  model = model_argument.load(args, averaged=not args.raw)
  model.save(args.out)
  print(f'{config_lib.model_name(model.config)} of {model.num_classes} classes in {args.out}')
