"""Measures the input pipeline alone, and how soon it gives a first batch.

    make benchmark-input                                    # writes runs/benchmark_input/input.csv and .md
    make benchmark-input ARGS="--against=../before"         # in turns with another checkout of this project
    python -m experiments.benchmark_input --quick

Every measurement is a process of its own; those of two checkouts take turns, so that a slow minute of the machine slows both.
`ms_cpu` is the CPU time of all threads for an image. The JPEG files are smooth colour with grain, of as many bytes as
photographs of that size. A run that is resumed starts at 95 % of an epoch of COUNT examples: small JPEG files in a folder,
or the same images as records of a TFDS set. `load_s` is the time to look up the examples, which includes making an index of
records in the first of the turns, and `first_batch_s` the time from there to the first batch; both are medians of the turns.
"""

import argparse
import contextlib
import io
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

SIZES = ((375, 500), (480, 640), (1500, 2000))  # height and width of photographs; one of ImageNet's is 94 KB as JPEG
PHOTO = SIZES[0]
ARRAYS = (32, 64)  # pixels
BATCH = 64
COUNT = 200_000  # examples of an epoch in which a run is resumed
TURNS = 3
COLUMNS = ('checkout', 'case', 'images_per_s', 'ms_cpu', 'load_s', 'first_batch_s', 'peak_mb')


def make_jpegs(folder: Path, size: tuple[int, int], files: int = 256, links: int = 1) -> float:
  """Makes JPEG files of two classes, and returns the kilobytes per file.

  Args:
    folder: gets the splits train and test.
    size: height and width.
    files: how many different files there are in train.
    links: how many names each of them has.
  """
  rng = np.random.default_rng(0)
  paths = [folder / 'train' / str(i % 2) / f'{i}.jpg' for i in range(files)]
  for path in (*paths, *(folder / 'test' / name / '0.jpg' for name in '01')):
    small = rng.integers(0, 256, (12, 16, 3), np.uint8)
    image = np.asarray(Image.fromarray(small).resize(size[::-1], Image.Resampling.BICUBIC), np.float32)
    image = (image + rng.normal(0, 17, image.shape)).clip(0, 255).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, quality=90)
  for i in range(1, links):
    for path in paths:
      os.link(path, path.with_stem(f'{path.stem}_{i}'))
  return statistics.mean(path.stat().st_size for path in paths) / 1e3


def measure_input() -> list[dict]:
  """Measures the training pipeline on files of PHOTO, for the table of experiments/benchmark.py."""
  with tempfile.TemporaryDirectory() as folder:
    kilobytes = make_jpegs(Path(folder), PHOTO)
    found = _in_process('', {'name': f'folder:{folder}', 'batches': 24})
  size = f'{PHOTO[1]}x{PHOTO[0]} ({kilobytes:.0f} KB)'
  print(f'  input pipeline alone, JPEG of {size}: {found["images_per_s"]:.0f} images/s', flush=True)
  return [{'implementation': 'mobilenet_jax input', 'model': 'JPEG to 224', 'mode': 'input', 'batch': BATCH,
           'ms_per_image': round(1e3 / found['images_per_s'], 3), 'peak_mb': '', 'compile_s': '', 'ratio': ''}]


def _in_process(checkout, case):
  """Measures a case with the code in the folder `checkout`, by default this one, in a process of its own."""
  environment = {**os.environ, 'PYTHONPATH': checkout or str(Path(__file__).parent.parent), 'TF_CPP_MIN_LOG_LEVEL': '3'}
  command = [sys.executable, __file__, f'--case={json.dumps(case)}']
  done = subprocess.run(command, env=environment, capture_output=True, text=True)
  if done.returncode:
    sys.exit(f'error: {checkout or "this checkout"}: {done.stderr}')
  return json.loads(done.stdout.splitlines()[-1])


def _measure(case: dict) -> dict:
  """Measures a case in this process, with whatever version of mobilenet_jax is imported."""
  from mobilenet_jax import config as config_lib
  from mobilenet_jax.data import load, train_batches
  config = config_lib.base().data
  config.name, size = case['name'], case.get('size', 224)
  config.image_size = (size, size)
  config.data_dir = case.get('data_dir', '')
  if 'data_dir' in case:
    config.eval_split = 'train'
  started = time.perf_counter()
  source = load(config)[0]
  loaded = time.perf_counter() - started
  started = time.perf_counter()
  with contextlib.closing(train_batches(source, config, BATCH, 0, case.get('start', 0), print)) as stream:
    next(stream)
    first = time.perf_counter() - started
    for _ in range(8 if case['batches'] else 0):  # until what was made ahead is used up
      next(stream)
    started, cpu = time.perf_counter(), time.process_time()
    for _ in range(case['batches']):
      next(stream)
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
  images = case['batches'] * BATCH
  return {'load_s': loaded, 'first_batch_s': first, 'peak_mb': _peak_mb(),
          **({'images_per_s': images / seconds, 'ms_cpu': cpu * 1e3 / images} if images else {})}


def _peak_mb():
  """Returns the peak memory of this process on Linux. That of getrusage counts the process which started it."""
  status = Path('/proc/self/status')
  return int(re.search(r'VmHWM:\s*(\d+) kB', status.read_text())[1]) / 1e3 if status.exists() else float('nan')


def make_records(folder: Path, photos: Path) -> None:
  """Writes the files of make_jpegs as a TFDS set with the name photos, COUNT records."""
  import tensorflow_datasets as tfds

  class Photos(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version('1.0.0')

    def _info(self):
      return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({
          'image': tfds.features.Image(encoding_format='jpeg'), 'label': tfds.features.ClassLabel(num_classes=2)}))

    def _split_generators(self, dl_manager):
      return {'train': self._generate_examples()}

    def _generate_examples(self):
      content = [path.read_bytes() for path in sorted(photos.rglob('*.jpg'))[:256]]
      for i in range(COUNT):
        yield i, {'image': io.BytesIO(content[i % len(content)]), 'label': i % 2}

  tfds.disable_progress_bar()
  with contextlib.redirect_stdout(io.StringIO()):
    Photos(data_dir=str(folder), file_format='tfrecord').download_and_prepare()


def cases(folder: Path, quick: bool) -> dict[str, dict]:
  """Makes the data of all cases in `folder`, and returns the cases by name."""
  found = {}
  for height, width in SIZES[:1] if quick else SIZES:
    photos = folder / f'{width}x{height}'
    files = 256 if height < 1000 else 64
    kilobytes = make_jpegs(photos, (height, width), files, links=-(-2**30 // (files * height * width * 3)) + 1)
    found[f'JPEG of {width}x{height}, {kilobytes:.0f} KB, to 224'] = {
        'name': f'folder:{photos}', 'batches': 24 if height < 1000 else 4}
  for size in ARRAYS:
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (5000, size, size, 3), np.uint8), np.arange(5000) % 10
    np.savez(folder / f'{size}.npz', train_images=images, train_labels=labels, test_images=images[:10], test_labels=labels[:10])
    found[f'arrays of {size}x{size}'] = {'name': f'npz:{folder}/{size}.npz', 'size': size, 'batches': 200}
  if not quick:
    make_jpegs(folder / 'many', (64, 64), links=-(-COUNT // 256))
    make_records(folder / 'records', folder / 'many')
    start = int(0.95 * COUNT / BATCH)
    found[f'resumed at 95 % of {COUNT:,} files'] = {'name': f'folder:{folder}/many', 'size': 64, 'batches': 0, 'start': start}
    found[f'resumed at 95 % of {COUNT:,} records'] = {
        'name': 'photos', 'data_dir': str(folder / 'records'), 'size': 64, 'batches': 0, 'start': start}
  return found


def main(args: argparse.Namespace) -> None:
  from experiments import distillation
  rows, checkouts = [], {'this': ''}
  if args.against:
    checkouts = {'before': str(args.against.resolve()), **checkouts}
  args.out.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(dir=args.out) as folder:
    print('making the data', flush=True)
    for name, case in cases(Path(folder), args.quick).items():
      found = {checkout: [] for checkout in checkouts}
      for _ in range(1 if args.quick else TURNS):
        for checkout, path in checkouts.items():
          found[checkout].append(_in_process(path, case))
      for checkout, turns in found.items():
        row = {key: round(statistics.median(turn[key] for turn in turns), 3) for key in turns[0]}
        rows.append({'checkout': checkout, 'case': name, **{key: row.get(key, '') for key in COLUMNS[2:]}})
        print(', '.join(f'{key} {value}' for key, value in rows[-1].items()), flush=True)
  distillation.write_table(args.out / 'input', rows, {
      'case': ('case', ''), 'checkout': ('checkout', ''), 'images_per_s': ('images/s', ',.0f'), 'ms_cpu': ('CPU ms an image', '.2f'),
      'load_s': ('look up, s', '.2f'), 'first_batch_s': ('first batch, s', '.2f'), 'peak_mb': ('peak MB', ',.0f')})


if __name__ == '__main__':
  if sys.argv[1:] and sys.argv[1].startswith('--case='):  # before anything of this checkout is imported
    print(json.dumps(_measure(json.loads(sys.argv[1].removeprefix('--case=')))))
  else:
    from mobilenet_jax.runtime import command_line
    parser = command_line.Parser(__doc__)
    parser.add_argument('--out', type=Path, default=Path('runs/benchmark_input'), help='folder of the table')
    parser.add_argument('--against', type=Path, help='another checkout to measure in turns with this one')
    parser.add_argument('--quick', action='store_true', help='one turn of few cases')
    command_line.run_with(parser, main)
