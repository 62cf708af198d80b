"""Figures 4 and 5 from the published weights. Each of the 16 models is evaluated and compared with its published accuracy.

    python -m experiments.published --data=imagenet2012 --out=runs/published --download
    python -m experiments.published --data=folder:/imagenet/val --out=runs/published

This evaluates the models in the cache, or all 16 with --download. A folder contains <synset>/<image>, or images and a
labels.csv (file,label; 0 to 999 in the order of synsets). It writes results.csv, figure4 and figure5. The images are read once
for each resolution.
"""

import argparse
import time
from pathlib import Path

from experiments import figures
from mobilenet_jax import config as config_lib
from mobilenet_jax import trained
from mobilenet_jax.data import load_whole
from mobilenet_jax.errors import UserError, counted
from mobilenet_jax.models import measure
from mobilenet_jax.runtime import command_line, devices
from mobilenet_jax.runtime.environment import commit
from mobilenet_jax.runtime.pace import progress
from mobilenet_jax.sweeps import results, tables
from mobilenet_jax.trained.published import release
from mobilenet_jax.training import evaluate_trained


def evaluate_published(names: list[str], data: dict) -> list[dict]:
  """Evaluates published models on the data that the fields in `data` name. Returns a row each, see storage/run_files.py."""
  rows = []
  for size in release.SIZES:
    models = {name: trained.load(name) for name in names if name.endswith(f'_{size}')}
    if not models:
      continue
    started = time.monotonic()
    config = config_lib.changed(next(iter(models.values())).config, {
        **data, 'data.exif_orientation': False, 'eval_batch_size': 100})
    source = load_whole(config.data)
    print(*source.remarks, sep='\n', end='\n' if source.remarks else '', flush=True)
    what = f'evaluating {" and ".join(models)} ({len(rows)} of {len(names)} models done)'
    print(f'{what} on {counted(len(source), "image")}', flush=True)
    evaluations = evaluate_trained(list(models.values()), source, config, lambda error: print(f'skipping {error.name}'),
                                   progress(what, len(source)))
    for (name, model), means in zip(models.items(), evaluations):
      cost = measure(model.module, (size, size, 3), train=False)
      rows.append({
          'name': name, 'model': 'mobilenet', 'width_multiplier': model.config.model.width_multiplier, 'height': size,
          'width': size, 'mult_adds': cost.mult_adds, 'params': cost.trainable, 'top1': means['top1'],
          'top5': means['top5'], 'loss': means['loss'], 'eval_examples': means['examples'], 'examples_seen': '',
          'seconds': round(time.monotonic() - started, 1), 'dataset': config.data.name, 'seed': '', 'commit': commit(),
          'device': devices.device_name()})
  return sorted(rows, key=lambda row: names.index(row['name']))


def main(args: argparse.Namespace) -> None:
  names = [name for name in release.NAMES if args.download or release.cached(name)]
  if not names:
    raise UserError(f'{release.cache_folder()}: none of the 16 published models is there; fetch them with --download, or '
                    f'put their files there, such as {release.address(release.NAMES[0]).rpartition("/")[2]}')
  rows = evaluate_published(names, {'data.name': args.data, 'data.data_dir': args.data_dir,
                                    'data.eval_split': args.split})
  args.out.mkdir(parents=True, exist_ok=True)
  results.write_csv(args.out / 'results.csv', rows)
  references = [row for row in tables.read(tables.REFERENCE).rows if row['source'] == 'published']
  known = {(row['width_multiplier'], row['height']): row['top1'] for row in references}
  print(f'top-1 on {args.data}, {rows[0]["eval_examples"]:,} images, and published top-1 on ImageNet')
  for row in rows:
    print(f'{row["name"]:20} {row["top1"]:7.2%} {known[row["width_multiplier"], row["height"]]:7.1%}')
  series, remarks = figures.series_of([tables.read(args.out / 'results.csv')], [''])
  print(*remarks, sep='\n', end='\n' if remarks else '')
  figures.write(series, args.out, references=references)


if __name__ == '__main__':
  parser = command_line.Parser(__doc__)
  parser.add_argument('--data', required=True, help='imagenet2012 as TFDS has it, or folder:/path')
  parser.add_argument('--data_dir', default='', help='folder of TFDS data')
  parser.add_argument('--split', default='validation', help='split of the data')
  parser.add_argument('--out', type=Path, required=True, help='folder to write to')
  parser.add_argument('--download', action='store_true', help='download the models that are not in the cache')
  command_line.run_with(parser, main)
