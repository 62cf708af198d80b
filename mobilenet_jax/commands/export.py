"""Exports a trained model, and compares each file, run in its own runtime, with the model.

    mobilenet_jax export mobilenet_1.0_224 tflite onnx --out=exported
    mobilenet_jax export runs/mine tflite-int8 --calibration=photos --images=photos --out=exported

Formats: tflite, tflite-float16, tflite-dynamic, tflite-int8, onnx, stablehlo, saved_model, keras.

A format that fails is reported on standard error, the others are written, and the exit status is 1.
"""

import sys
from pathlib import Path

import numpy as np

from mobilenet_jax.commands import model_argument
from mobilenet_jax.commands.image_paths import images_in
from mobilenet_jax.errors import UserError, describe, is_of_the_user
from mobilenet_jax.runtime import command_line
from mobilenet_jax.trained.export import FORMATS, Network, check_request, export, warning

MAX_IMAGES = 256  # taken from a folder, evenly spread
FEW_IMAGES = 10  # fewer than these say little
_AGREES = {'classes': 'top-1 agrees', 'attributes': 'decisions agree'}


def main(argv: list[str]) -> None:
  parser = command_line.Parser(__doc__, 'export')
  model_argument.add_arguments(parser)
  parser.add_argument('formats', nargs='+', choices=FORMATS, metavar='FORMAT')
  parser.add_argument('--out', type=Path, required=True, help='folder to write to')
  parser.add_argument('--name', help='name of the files, without suffix; by default that of the model')
  parser.add_argument('--logits', action='store_true', help='output logits instead of probabilities, or embeddings of any '
                      'length')
  parser.add_argument('--preprocessing', action='store_true', help='take uint8 images and scale them inside the network')
  parser.add_argument('--images', type=Path, help='folder of images to check with; by default those of --calibration, or '
                      'generated ones')
  parser.add_argument('--calibration', type=Path, help='folder of images from which tflite-int8 gets its ranges')
  args = parser.parse_args(argv)

  formats = list(dict.fromkeys(args.formats))
  if args.calibration and 'tflite-int8' not in formats:
    raise UserError(f'--calibration={args.calibration}: only tflite-int8 is calibrated; add this format, or give the images of '
                    'the check with --images')
  found = {folder: images_in(folder, f'{option}={folder}') for option, folder in
           (('--calibration', args.calibration), ('--images', args.images)) if folder}
  model = model_argument.load(args)
  network = Network(model, softmax=not args.logits, preprocessing=args.preprocessing)
  if args.logits and not model.num_classes:
    raise UserError(f'--logits: {args.model} has no classifier, and its output is its features; leave out --logits')
  check_request(network, formats, args.out, args.calibration is not None, args.name)
  read = {folder: _read(model, folder, walked) for folder, walked in found.items()}
  calibration, images = (read.get(folder) for folder in (args.calibration, args.images or args.calibration))
  kind = f'images of {args.images or args.calibration}' if images is not None else 'generated images'
  failed = False
  for form in formats:
    try:
      path, check = export(network, form, args.out, images, calibration, args.name)
    except Exception as error:
      if not is_of_the_user(error):
        raise
      failed = True
      print(f'error: {describe(error)}', file=sys.stderr, flush=True)
      continue
    agrees = '' if check.agreement is None else f', {_AGREES[model.task.kind]} on {check.agreement:.1%}'
    print(f'{path}: {_size(path) / 1e6:.2f} MB; on {check.images} {kind} its {network.output} differ by at most '
          f'{check.max_difference:.1e}{agrees}', flush=True)
    if text := warning(form, check):
      print(f'warning: {text}', file=sys.stderr, flush=True)
  if failed:
    sys.exit(1)


def _read(model, folder, walked):
  """Returns at most MAX_IMAGES images, as TrainedModel.prepare does, and says which they are on standard error."""
  count = min(MAX_IMAGES, len(walked.images))
  chosen = [walked.images[i] for i in np.linspace(0, len(walked.images) - 1, count).round().astype(int)]
  images = []
  for path in chosen:
    try:
      images.append(model.prepare(folder / path))
    except UserError as error:
      print(f'skipping {describe(error)}', file=sys.stderr)
  if not images:
    raise UserError(f'{folder}: none of the {count} images that were tried can be read; expected a folder of images')
  spread = ', evenly spread' if count < len(walked.images) else ''
  left_out = f'; left out: {walked.left_out()}' if walked.left_out() else ''
  print(f'{folder}: uses {len(images):,} of {len(walked.images):,} images{spread}{left_out}', file=sys.stderr)
  if len(images) < FEW_IMAGES:
    print(f'warning: {folder}: {len(images)} images say little about a file, and less about the ranges of tflite-int8; give at '
          f'least {FEW_IMAGES}, better 100', file=sys.stderr)
  return np.concatenate(images)


def _size(path: Path) -> int:
  return sum(p.stat().st_size for p in path.rglob('*')) if path.is_dir() else path.stat().st_size
