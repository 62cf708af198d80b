"""Imports published weights into a folder, which all other commands accept as a model.

    mobilenet_jax import mobilenet_0.25_128 --out=runs/imported
    mobilenet_jax import mobilenet_v1_0.25_128_frozen.pb --out=runs/imported
"""

from pathlib import Path

from mobilenet_jax import config as config_lib
from mobilenet_jax import trained
from mobilenet_jax.errors import UserError
from mobilenet_jax.runtime import command_line


def main(argv: list[str]) -> None:
  parser = command_line.Parser(__doc__, 'import')
  parser.add_argument('model', help='a .pb, .ckpt, .tgz or .h5 file, or the name of a published model')
  parser.add_argument('--out', type=Path, required=True, help='a new folder')
  parser.add_argument('--raw', action='store_true', help='import the variables of a TF-slim checkpoint, not their averages')
  args = parser.parse_args(argv)

  if args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir())):
    raise UserError(f'--out={args.out}: is a file or a folder that is not empty; give an empty or a new folder')
  model = trained.load(args.model, averaged=not args.raw)
  model.save(args.out)
  print(f'{config_lib.model_name(model.config)} of {model.num_classes} classes in {args.out}')
