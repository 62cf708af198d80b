"""Imports published weights into a folder that every other command takes.

    python -m mobilenet_jax.pretrained mobilenet_0.25_128 --out=runs/imported
    python -m mobilenet_jax.pretrained mobilenet_v1_0.25_128_frozen.pb --out=runs/imported
"""

from mobilenet_jax import cli  # first: it quietens what the others import

import argparse
from pathlib import Path

from mobilenet_jax import config as config_lib
from mobilenet_jax import trained
from mobilenet_jax.errors import UserError


def main(args: argparse.Namespace) -> None:
  if args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir())):
    raise UserError(f'--out={args.out}: is a file, or there is something in it; give an empty or a new folder')
  model = trained.load(args.model, averaged=not args.raw)
  model.save(args.out)
  print(f'{config_lib.model_name(model.config)} of {model.num_classes} classes in {args.out}')


if __name__ == '__main__':
  parser = cli.Parser(__doc__)
  parser.add_argument('model', help='a .pb, .ckpt, .tgz or .h5 file, or the name of a published model')
  parser.add_argument('--out', type=Path, required=True, help='a new folder')
  parser.add_argument('--raw', action='store_true', help='of a TF-slim checkpoint, the variables and not their averages')
  cli.run_with(parser, main)
