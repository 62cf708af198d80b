"""Labels images with their most likely classes.

    mobilenet_jax predict mobilenet_1.0_224 cat.jpg holidays/ [--top=5] [--format=table|json|csv]
    find photos -name '*.jpg' | mobilenet_jax predict runs/mine - --annotate=annotated --batch=64

If an image cannot be read, it is reported on standard error, the other images are labelled, and the exit status is 1.
"""

import csv
import itertools
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from mobilenet_jax import config as config_lib
from mobilenet_jax import trained
from mobilenet_jax.commands import model_argument
from mobilenet_jax.commands.image_paths import find_images
from mobilenet_jax.data import eval_batches, from_images, read_image
from mobilenet_jax.errors import UserError, describe
from mobilenet_jax.runtime import command_line
from mobilenet_jax.runtime.pace import progress
from mobilenet_jax.storage.files import expanded

STANDARD_INPUT = '-'
_SOFTWARE = 'mobilenet_jax predict'  # what an annotated image says of itself

Prediction = tuple[Path, list[tuple[str, float]]]  # an image, and its most likely labels with their probabilities


def predict(model: trained.TrainedModel, paths: list[Path], k: int, batch: int, errors: list[str],
            annotated: list[Path] | None = None) -> Iterator[Prediction]:
  """Yields each readable image with its k most likely labels, in order. Adds a message to `errors` for each other image.

  Images are read and cropped ahead, `batch` at a time, while the network works.

  Args:
    model: the model.
    paths: the images.
    k: the number of labels.
    batch: the number of images at a time.
    errors: takes the messages.
    annotated: for each image, the file to write it to with its labels.
  """
  config = config_lib.changed(model.config, {'data.bad_images': 'skip'}).data
  source = from_images([str(path) for path in paths], np.zeros(len(paths), np.int32), 0, upright=config.exif_orientation)
  batches = eval_batches(source, config, batch, lambda error: errors.append(str(error)), transform=model.task.transform)
  # The labels themselves show how far it is, if a person sees them.
  said = (lambda count: None) if sys.stdout.isatty() else progress('labelling', len(paths))
  for first, made in zip(range(0, len(paths), batch), batches):
    names = [str(path) if read else None for path, read in zip(paths[first:first + batch], made['mask'])]
    for i, row, read in zip(range(first, len(paths)), model.prediction(made['image'], names), made['mask']):
      if read:
        top = trained.top_labels(row, model.labels, k)
        if annotated:
          annotate(paths[i], top, config.exif_orientation).save(annotated[i], pnginfo=_mark())
        yield paths[i], top
    said(first + batch)


def annotate(path: Path, top: list[tuple[str, float]], upright: bool) -> Image.Image:
  """Returns the image, at most 640 pixels wide, above its most likely labels, each with a bar for its probability.

  `upright` is as in data.read_image.
  """
  picture = Image.fromarray(read_image(path, upright))
  picture.thumbnail((640, 640))
  width, line = max(picture.width, 320), 22
  sheet = Image.new('RGB', (width, picture.height + line * len(top) + 8), 'white')
  sheet.paste(picture, ((width - picture.width) // 2, 0))
  draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=13)
  for i, (label, probability) in enumerate(top):
    y = picture.height + 4 + i * line
    draw.rectangle((0, y + 1, round(width * probability), y + line - 2), fill='#c6dbef')
    draw.text((6, y + 3), f'{probability:6.1%}  {label}', fill='black', font=font)
  return sheet


def write_table(predictions: Iterator[Prediction], out) -> None:
  for path, top in predictions:
    print(path, file=out)
    for label, probability in top:
      print(f'  {probability:6.2%}  {label}', file=out)


def write_json(predictions: Iterator[Prediction], out) -> None:
  out.write('[')
  for i, (path, top) in enumerate(predictions):
    row = {'file': str(path), 'top': [{'label': label, 'probability': round(p, 6)} for label, p in top]}
    out.write((',\n ' if i else '') + json.dumps(row, allow_nan=False))
  out.write(']\n')


def write_csv(predictions: Iterator[Prediction], out) -> None:
  writer = csv.writer(out, lineterminator='\n')
  writer.writerow(('file', 'rank', 'label', 'probability'))
  for path, top in predictions:
    writer.writerows((path, rank, label, f'{p:.6f}') for rank, (label, p) in enumerate(top, start=1))


FORMATS = {'table': write_table, 'json': write_json, 'csv': write_csv}


def main(argv: list[str]) -> None:
  parser = command_line.Parser(__doc__, 'predict')
  model_argument.add_arguments(parser)
  parser.add_argument('images', nargs='+', help='images and folders of images; - for a list of paths on standard input')
  parser.add_argument('--top', type=int, default=5, help='labels per image, 5 by default')
  parser.add_argument('--batch', type=int, default=32, help='images at a time; does not affect the result')
  parser.add_argument('--format', choices=FORMATS, default='table')
  parser.add_argument('--annotate', type=Path, help='folder to write each image to, with its labels below it; no other '
                      'file in it is replaced')
  args = parser.parse_args(argv)

  if args.top < 1:
    raise UserError(f'--top={args.top}: expected at least 1')
  if args.batch < 1:
    raise UserError(f'--batch={args.batch}: expected at least 1')
  listed = sys.stdin.read().splitlines() if STANDARD_INPUT in args.images else []
  paths = find_images(path for path in args.images if path != STANDARD_INPUT)
  paths += [expanded(line) for line in listed if line]
  if not paths:
    raise UserError('standard input names no image; expected one path per line')
  model = model_argument.load(args)
  model.check_labels()
  errors: list[str] = []
  annotated = _annotated_files(paths, args.annotate) if args.annotate else None
  predictions = predict(model, paths, args.top, min(args.batch, len(paths)), errors, annotated)
  FORMATS[args.format](predictions, sys.stdout)
  sys.stdout.flush()
  if errors:
    sys.exit('\n'.join(f'error: {describe(UserError(error))}' for error in errors))


def _annotated_files(paths, folder) -> list[Path]:
  """Returns the file to write for each image, and creates the folder.

  Raises:
    UserError: if one of them exists and was not written by this command.
  """
  names = {}  # keeps the order
  for path in paths:
    free = itertools.chain([path.stem], (f'{path.stem}_{i}' for i in itertools.count(2)))
    names[next(name for name in free if name not in names)] = path
  files = [folder / f'{name}.png' for name in names]
  for file in files:
    if os.path.lexists(file) and not _is_ours(file):
      raise UserError(f'--annotate={folder}: {file.name} is there already and was not written by this command; give another '
                      'folder')
  folder.mkdir(parents=True, exist_ok=True)
  return files


def _is_ours(file):
  try:
    with Image.open(file) as image:
      return image.info.get('Software') == _SOFTWARE
  except (OSError, ValueError):
    return False


def _mark():
  mark = PngImagePlugin.PngInfo()
  mark.add_text('Software', _SOFTWARE)
  return mark
