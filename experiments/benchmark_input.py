"""Measures the input pipeline alone, on JPEG files made for it."""

import contextlib
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from mobilenet_jax import config as config_lib
from mobilenet_jax.data import keep_in_memory, load, train_batches
from mobilenet_jax.data.tfds_sets import MAX_BYTES_IN_MEMORY

PHOTO = (375, 500)  # height and width of a typical ImageNet photograph, 94 KB as JPEG
BATCH = 64


def make_jpegs(folder, size, in_memory=False, files=256):
  """Makes JPEG files of two classes, and returns the kilobytes per file. `size` is (height, width).

  With `in_memory` there are `files` files; without, more than are kept decoded in memory.
  """
  rng = np.random.default_rng(0)
  paths = [folder / 'train' / str(i % 2) / f'{i}.jpg' for i in range(files)]
  for path in (*paths, *(folder / 'test' / name / '0.jpg' for name in '01')):
    # Smooth colour with grain has as many bytes as a photograph of that size.
    small = rng.integers(0, 256, (12, 16, 3), np.uint8)
    image = np.asarray(Image.fromarray(small).resize(size[::-1], Image.Resampling.BICUBIC), np.float32)
    image = (image + rng.normal(0, 17, image.shape)).clip(0, 255).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, quality=90)
  if not in_memory:
    for i in range(-(-MAX_BYTES_IN_MEMORY // (files * size[0] * size[1] * 3))):
      for path in paths:
        os.link(path, path.with_stem(f'{path.stem}_{i}'))
  return statistics.mean(path.stat().st_size for path in paths) / 1e3


def measure_input(batches=24):
  """Measures the images per second of the training pipeline alone, at 224, on a folder with few and with many JPEG files."""
  rows = []
  for kind in ('kept decoded', 'decoded each time'):
    with tempfile.TemporaryDirectory() as folder:
      kilobytes = make_jpegs(Path(folder), PHOTO, in_memory=kind == 'kept decoded')
      config = config_lib.base()
      config.data.name = f'folder:{folder}'
      source = keep_in_memory(load(config.data)[0])
      with contextlib.closing(train_batches(source, config.data, BATCH, 0, 0, print)) as stream:
        for _ in range(6):  # until the prefetched batches are used up
          next(stream)
        start = time.perf_counter()
        for _ in range(batches):
          next(stream)
        ms = (time.perf_counter() - start) * 1e3 / (batches * BATCH)
      print(f'  input pipeline alone, JPEG of {PHOTO[1]}x{PHOTO[0]} ({kilobytes:.0f} KB), {kind}: '
            f'{1e3 / ms:.0f} images/s', flush=True)
      rows.append({'implementation': f'mobilenet_jax input, {kind}', 'model': 'JPEG to 224', 'mode': 'input',
                   'batch': BATCH, 'ms_per_image': round(ms, 3), 'peak_mb': '', 'compile_s': '', 'ratio': ''})
  return rows
