"""Exports a trained model, and compares each file, run in its own runtime, with the model.

    mobilenet_jax export mobilenet_1.0_224 tflite onnx --out=exported
    mobilenet_jax export runs/mine tflite-int8 --calibration=photos --images=photos --out=exported

Formats: tflite, tflite-float16, tflite-dynamic, tflite-int8, onnx, stablehlo, saved_model, keras.
"""

from pathlib import Path

import numpy as np

from mobilenet_jax.commands import model_argument
from mobilenet_jax.commands.image_paths import find_images
from mobilenet_jax.runtime import command_line
from mobilenet_jax.trained.export import FORMATS, Network, export

MAX_IMAGES = 256  # taken from a folder, evenly spread


def main(argv: list[str]) -> None:
  parser = command_line.Parser(__doc__, 'export')
  model_argument.add_arguments(parser)
  parser.add_argument('formats', nargs='+', choices=FORMATS, metavar='FORMAT')
  parser.add_argument('--out', type=Path, required=True, help='folder to write to')
  parser.add_argument('--logits', action='store_true', help='output logits instead of probabilities')
  parser.add_argument('--preprocessing', action='store_true', help='take uint8 images and scale them inside the network')
  parser.add_argument('--images', type=Path, help='folder of images to check with; by default those of --calibration, or '
                      'generated ones')
  parser.add_argument('--calibration', type=Path, help='folder of images from which tflite-int8 gets its ranges')
  args = parser.parse_args(argv)

  model = model_argument.load(args)
  network = Network(model, softmax=not args.logits, preprocessing=args.preprocessing)
  images, calibration = (_prepare(model, folder) for folder in (args.images, args.calibration))
  images = calibration if images is None else images
  kind = f'images of {args.images or args.calibration}' if images is not None else 'generated images'
  for name in args.formats:
    path, check = export(network, name, args.out, images, calibration)
    print(f'{path}: {_size(path) / 1e6:.2f} MB; on {check.images} {kind} its {network.output} differ by at most '
          f'{check.max_difference:.1e}, top-1 agrees on {check.top1_agreement:.1%}', flush=True)


def _prepare(model, folder):
  if folder is None:
    return None
  paths = find_images([folder])
  chosen = [paths[i] for i in np.linspace(0, len(paths) - 1, min(MAX_IMAGES, len(paths))).round().astype(int)]
  return model.prepare(chosen)


def _size(path: Path) -> int:
  return sum(p.stat().st_size for p in path.rglob('*')) if path.is_dir() else path.stat().st_size
