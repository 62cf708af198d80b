"""What tests share: small models and data, and commands, run in this process wherever that is enough."""

import contextlib
import io
import os
import runpy
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
# Real data; what is tested with it is skipped where it is absent.
SHARED = Path(os.environ.get('MOBILENET_SHARED_DATA', ROOT.parent / 'shared' / 'data'))

# Programs are compiled once per machine, by whichever test comes first. To be set before JAX is imported.
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(ROOT / '.pytest_cache' / 'jax'))
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.2')
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
FLAGS = os.environ.get('XLA_FLAGS', '')  # those of make test; processes with several devices add to them

import numpy as np
import pytest
from PIL import Image

from mobilenet_jax import __main__ as command_line
from mobilenet_jax import config as config_lib
from mobilenet_jax import models
from mobilenet_jax.data import from_images
from mobilenet_jax.runtime.environment import MEMORY_SETTING
from mobilenet_jax.training.report import Report

for name, value in MEMORY_SETTING.items():
  os.environ.setdefault(name, value)  # else each command would start itself again


class Done(NamedTuple):
  """How a command ended, as in subprocess.CompletedProcess."""
  returncode: int
  stdout: str
  stderr: str


def command(*args, stdin=''):
  """Runs mobilenet_jax with these arguments in this process, which saves its start; in the folder of the repository."""
  return _here(lambda: command_line.main([str(arg) for arg in args]), stdin)


def experiment(name, *args):
  """Runs an experiment in the same way."""
  def main():
    sys.argv = [name, *map(str, args)]
    runpy.run_path(str(ROOT / 'experiments' / f'{name}.py'), run_name='__main__')
  return _here(main)


def _here(main, stdin=''):
  out, err, before, code = io.StringIO(), io.StringIO(), (sys.argv, sys.stdin), 0
  with (_file_descriptors() as libraries, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err),
        contextlib.chdir(ROOT)):
    try:
      sys.stdin = io.StringIO(stdin)
      main()
    except SystemExit as exit:
      code = exit.code or 0
      if isinstance(code, str):
        print(code, file=sys.stderr)
        code = 1
    finally:
      sys.argv, sys.stdin = before
  return Done(code, out.getvalue(), err.getvalue() + ''.join(libraries))


@contextlib.contextmanager
def _file_descriptors():
  """Collects what libraries print below Python."""
  printed, kept = [], [os.dup(1), os.dup(2)]
  with tempfile.TemporaryFile() as file:
    for number in (1, 2):
      os.dup2(file.fileno(), number)
    try:
      yield printed
    finally:
      for number, copy in enumerate(kept, start=1):
        os.dup2(copy, number)
        os.close(copy)
      file.seek(0)
      printed.append(file.read().decode(errors='replace'))


def assert_one_line(done, message):
  assert done.returncode == 1, done.stdout + done.stderr
  assert done.stderr.startswith('error: ') and done.stderr.count('\n') == 1, done.stderr
  assert message in done.stderr


class TinyMobileNet(models.MobileNet):
  body = ((2, 64),)


class SmallMobileNet(models.MobileNet):
  body = ((1, 64), (2, 128))


@pytest.fixture
def tiny_model(monkeypatch):
  """Makes 'mobilenet' one block deep: compilation is most of what a training test costs."""
  monkeypatch.setitem(models.MODELS, 'mobilenet', TinyMobileNet)


@pytest.fixture
def small_model(monkeypatch):
  """Makes 'mobilenet' two blocks deep, which is enough to learn something."""
  monkeypatch.setitem(models.MODELS, 'mobilenet', SmallMobileNet)


def kill_at(step, folders):
  """Makes this process kill itself when it reports `step`, once each of the run folders has a checkpoint."""
  written = Report.train

  def killed(self, at, values):
    if at == step:
      while not all(any((folder / 'checkpoints').glob('[0-9]')) for folder in folders):  # written in the background
        time.sleep(0.05)
      os.kill(os.getpid(), signal.SIGKILL)
    written(self, at, values)

  Report.train = killed


def tiny_config(**changes):
  """A run of eight steps on 32x32 images; `changes` by dotted name."""
  return config_lib.changed(config_lib.base(), {
      'model.width_multiplier': 0.25, 'model.batch_norm_decay': 0.3, 'model.dropout_rate': 0.0,
      'data.image_size': (32, 32), 'data.crop_min_area': 0.9, 'batch_size': 8, 'eval_batch_size': 8,
      'train_for': '8 steps', 'log_every': '2 steps', 'eval_every': '4 steps', 'checkpoint_every': '4 steps',
      'optim.learning_rate': 0.01, 'optim.epsilon': 1e-3, **changes})


def random_images(count, classes=4, size=32, seed=0):
  """Noise around a colour of the class."""
  rng = np.random.default_rng(seed)
  labels = np.arange(count) % classes
  colors = np.random.default_rng(99).uniform(50, 200, (classes, 1, 1, 3))
  images = colors[labels] + rng.normal(0, 40, (count, size, size, 3))
  return from_images(np.clip(images, 0, 255).astype(np.uint8), labels.astype(np.int32), classes)


def images_of(source):
  """The images of a source, (n, h, w, 3) if they have the same size."""
  return np.stack([example.image for example in source])


NEVER = lambda name: pytest.fail(f'{name} was skipped')


def data_config(**changes):
  """The part `data` of a config."""
  return tiny_config(**{f'data.{key}': value for key, value in changes.items()}).data


def save(path, color=(9, 9, 9)):
  """Writes a small image of one colour."""
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.new('RGB', (33, 40), color).save(path)


def folder(root, names):
  """Writes an image for each name; its red is the position in the alphabet of the first letter of its folder."""
  for name in names:
    save(root / name, (ord(name.rpartition('/')[0].rpartition('/')[2][:1] or 'a') - ord('a'), 0, 0))
  return root


def named(source):
  """The name of the class of each example, by id."""
  return {id: source.class_names[label] for id, label in zip(source.ids, source.labels)}
