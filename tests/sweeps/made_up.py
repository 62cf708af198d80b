"""Folders of sweeps with made-up runs, as finished, failed and unfinished ones leave them behind."""

import json
import math
import random

from conftest import tiny_config

from mobilenet_jax import config as config_lib
from mobilenet_jax.storage import run_files
from mobilenet_jax.sweeps import job, results

ALPHAS, SIZES = (1.0, 0.75, 0.5, 0.25), (56, 48, 40, 32)
METRICS = {'classification': ('top1', 'top5'), 'attributes': ('mean_ap', 'emulation'), 'embedding': ('accuracy', 'auc')}


def config(alpha=1.0, size=56, **changes):
  """A config of a run, changes by dotted name."""
  return config_lib.changed(tiny_config(), {
      'model.width_multiplier': alpha, 'data.image_size': (size, size), 'data.stream_size': (56, 56), 'train_for': '1000 steps',
      **changes})


def add(workdir, name, config, finished=True, points=20):
  """Adds a run with plausible values to the folder of a sweep, and returns its row; it need not have finished."""
  alpha, size, rng = config.model.width_multiplier, config.data.image_size[0], random.Random(name)
  mult_adds = round((30e6 * alpha**2 + 6e6 * alpha) * (size / 56) ** 2)
  best = min(0.93 + 0.2 * math.log10(mult_adds / 4e7) + rng.gauss(0, 0.012) - 0.02 * abs(math.log10(
      config.optim.learning_rate / 0.01)), 0.99)
  main, other = METRICS[config.task]
  value = lambda share: best * (1 - math.exp(-3.5 * share))
  folder = workdir / name
  run_files.claim(folder, config, longer=False)
  rows = []
  for i in range(1, (points if finished else points // 2) + 1):
    step = 1000 * i // points
    rows += [{'step': step, 'split': 'train', 'loss': 3 * math.exp(-3 * i / points) + rng.uniform(0, 0.2)},
             {'step': step, 'split': 'eval', 'loss': 1.0, main: value(i / points)}]
  run_files.write_metrics(folder, rows)
  row = {'name': name, 'model': config.model.name, 'width_multiplier': alpha, 'height': size, 'width': size,
         'mult_adds': mult_adds, 'params': round(2.2e6 * alpha**2 + 1e6 * alpha), main: value(1), other: value(1) ** 0.3,
         'loss': 0.5, 'eval_examples': 2000, 'examples_seen': 16000, 'seconds': 40 + mult_adds / 2e5, 'dataset': config.data.name,
         'seed': config.seed, 'commit': 'abc1234', 'device': 'cpu, 1 core'}
  if finished:
    run_files.write_row(folder, row)
  else:
    run_files.write_progress(folder, {'doing': 'training', 'step': 500, 'total_steps': 1000, 'seconds_left': 80})
  results.add_runs(workdir, [*results.runs_so_far(workdir), *([] if name in results.runs_so_far(workdir) else [name])])
  return row


def grid(workdir, seeds=3, points=20, **changes):
  """16 models, each with some seeds."""
  for alpha in ALPHAS:
    for size in SIZES:
      for seed in range(seeds):
        name = f'mobilenet_{alpha}_{size}' + (f'_s{seed}' if seeds > 1 else '')
        add(workdir, name, config(alpha, size, seed=seed, **changes), points=points)
  results.collect(workdir)


def failed(workdir, name, reason, **changes):
  """Adds a run that has failed."""
  add(workdir, name, config(**changes), finished=False)
  (workdir / name / run_files.PROGRESS_FILE).unlink()
  (workdir / name / job.ATTEMPTS_FILE).write_text(json.dumps({'starts': 1, 'step': 0, 'error': reason}))
