import os
import signal
import time
from pathlib import Path

# Compiled once a machine, by whichever test comes first; must be set before JAX is imported.
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(Path(__file__).parent.parent / '.pytest_cache' / 'jax'))
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.5')
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')

import numpy as np
import pytest

from mobilenet_jax import config as config_lib
from mobilenet_jax import models, report
from mobilenet_jax.data.sources import ArraySource


TINY = {'body': ((1, 64), (2, 128))}


@pytest.fixture
def tiny_model(monkeypatch):
  """Makes 'mobilenet' two blocks deep: compiled in two seconds rather than ten."""
  monkeypatch.setitem(models.VARIANTS, 'mobilenet', TINY)


def kill_at(step, folders):
  """Has this process kill itself when it reports `step`, once each of the run folders has a checkpoint."""
  written = report.Report.train

  def killed(self, at, values):
    if at == step:
      while not all(any((folder / 'checkpoints').glob('[0-9]')) for folder in folders):  # written in the background
        time.sleep(0.05)
      os.kill(os.getpid(), signal.SIGKILL)
    written(self, at, values)

  report.Report.train = killed


def tiny_config(**changes):
  """A run of eight steps on 32x32 images; `changes` by dotted name."""
  config = config_lib.base()
  config.update_from_flattened_dict({
      'model.width_multiplier': 0.25, 'model.batch_norm_decay': 0.9, 'model.dropout_rate': 0.0,
      'data.image_size': (32, 32), 'data.crop_min_area': 0.9, 'batch_size': 8, 'eval_batch_size': 8,
      'train_for': '8 steps', 'log_every': '2 steps', 'eval_every': '4 steps', 'checkpoint_every': '4 steps',
      'optim.learning_rate': 0.01, 'optim.epsilon': 1e-3, **changes})
  return config


def random_images(count, classes=4, size=32, seed=0):
  """Noise around a colour of the class."""
  rng = np.random.default_rng(seed)
  labels = np.arange(count) % classes
  colors = np.random.default_rng(99).uniform(50, 200, (classes, 1, 1, 3))
  images = colors[labels] + rng.normal(0, 40, (count, size, size, 3))
  return ArraySource(np.clip(images, 0, 255).astype(np.uint8), labels.astype(np.int32), classes)


NEVER = lambda name: pytest.fail(f'{name} was skipped')


def data_config(**changes):
  """The part `data` of a config."""
  return tiny_config(**{f'data.{key}': value for key, value in changes.items()}).data
