"""Measures what training several models on one stream of batches saves, compared with the same runs alone.

    python -m experiments.benchmark_group --out=runs/benchmark            # or: make benchmark-group
    python -m experiments.benchmark_group --grid --res=224 --batch=256    # all 16, on a GPU

This writes benchmark_group.csv. The images are JPEG files in a folder, decoded for every batch. Each way is a sweep in
processes of its own, as users start it. `train_s` is the time from the first step to the row, without imports and
compilation. `peak_mb` is the peak memory of the largest process, `estimated_mb` what the sweep estimates for its models and
activations.
"""

import argparse
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from experiments.benchmark import write_csv
from experiments.benchmark_implementations import resident_mb
from experiments.benchmark_input import PHOTO, make_jpegs
from mobilenet_jax import config as config_lib
from mobilenet_jax.runtime import devices, environment

WAYS = {'one group': ('all', 1), 'alone, one after another': ('alone', 1), 'alone, one per core': ('alone', 0)}


def measure(alphas: Sequence[float], sizes: Sequence[int], jpeg: tuple[int, int], batch: int, steps: int) -> list[dict]:
  """Returns a row for each of WAYS.

  Args:
    alphas, sizes: width multipliers and input sizes; there is a model for each pair.
    jpeg: height and width of the images.
    batch, steps: batch size and number of steps of every run.
  """
  rows = []
  with tempfile.TemporaryDirectory() as folder:
    make_jpegs(Path(folder) / 'images', jpeg)
    config = config_lib.base()
    config.update_from_flattened_dict({
        'data.name': f'folder:{folder}/images', 'data.image_size': config_lib.square(max(sizes)),
        'data.stream_size': config_lib.square(max(sizes)), 'batch_size': batch,
        'eval_batch_size': batch, 'train_for': f'{steps} steps', 'eval_every': '0 steps', 'checkpoint_every': '0 steps'})
    changes = [{'model.width_multiplier': alpha, 'data.image_size': config_lib.square(size)}
               for alpha in alphas for size in sizes]
    for way, (grouping, jobs) in WAYS.items():
      # In a process of its own, so that the largest of its children belongs to this way.
      with ProcessPoolExecutor(1, multiprocessing.get_context('spawn')) as pool:
        row = pool.submit(_sweep, config.to_dict(), changes, f'{folder}/{way}', grouping, jobs).result()
      rows.append({'way': way, 'models': len(changes), 'jpeg': f'{jpeg[1]}x{jpeg[0]}', 'batch': batch, 'steps': steps,
                   **row})
      print(f'  {way}: {row["train_s"]:.1f} s of training, {row["wall_s"]:.1f} s in all, peak {row["peak_mb"]:,} MB '
            f'({row["estimated_mb"]:,} estimated); time x {row["train_s"] / rows[0]["train_s"]:.2f}',
            flush=True)
  return rows


def _sweep(config, changes, workdir, grouping, jobs):
  import ml_collections

  from mobilenet_jax import training
  from mobilenet_jax.sweeps.sweep import sweep
  config = ml_collections.ConfigDict(config)
  start = time.perf_counter()
  seconds = [row['seconds'] for row in sweep(config, changes, workdir, jobs, grouping)]
  wall_s = time.perf_counter() - start
  at_once = min(jobs or devices.cpu_cores(), len(changes))
  train_s = max(seconds) if grouping == 'all' else sum(seconds) / at_once
  peak_mb = resident_mb(resource.RUSAGE_CHILDREN)
  members = [config_lib.changed(config, change) for change in changes]
  states = [training.state_bytes(member, num_outputs=2) for member in members]
  estimated = (sum(states) if grouping == 'all' else max(states)) + max(training.step_bytes(member, 2) for member in members)
  return {'train_s': round(train_s, 1), 'wall_s': round(wall_s, 1), 'peak_mb': round(peak_mb),
          'estimated_mb': round(estimated / 1e6)}


def main() -> None:
  environment.use_huge_pages()
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--out', type=Path, default=Path('runs/benchmark'), help='folder to write to')
  parser.add_argument('--res', type=int, default=128, help="side of the models' input in pixels; with --grid, the largest")
  parser.add_argument('--grid', action='store_true', help='all 16 models; by default the four widths at one resolution')
  parser.add_argument('--jpeg', type=int, nargs=2, default=PHOTO, help='height and width of the images')
  parser.add_argument('--batch', type=int, default=64)
  parser.add_argument('--steps', type=int, default=100, help='number of steps of each run')
  args = parser.parse_args()
  sizes = [round(args.res * rho) for rho in config_lib.RESOLUTION_MULTIPLIERS] if args.grid else [args.res]
  rows = measure(config_lib.WIDTH_MULTIPLIERS, sizes, tuple(args.jpeg), args.batch, args.steps)
  write_csv(rows, args.out / 'benchmark_group.csv')
  print(args.out / 'benchmark_group.csv')


if __name__ == '__main__':
  main()
