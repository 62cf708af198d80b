"""The runs into which experiments/faults.py injects faults: their network, their config and their data."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from PIL import Image

from mobilenet_jax import config as config_lib
from mobilenet_jax import models, trained
from mobilenet_jax.data import TEACHER, from_images, load
from mobilenet_jax.training import checked

# Changes in the config of a victim: a checkpoint and an evaluation every fourth step.
CHANGES = {
    'model.width_multiplier': 0.25, 'model.dropout_rate': 0.1, 'data.image_size': (32, 32), 'data.crop_min_area': 0.7,
    'batch_size': 8, 'eval_batch_size': 8, 'train_for': '24 steps', 'log_every': '3 steps', 'eval_every': '4 steps',
    'checkpoint_every': '4 steps', 'ema_decay': 0.9, 'optim.learning_rate': 0.01, 'optim.epsilon': 1e-3,
    'nonfinite_loss': 'skip', 'data.bad_images': 'skip', 'data.stall_seconds': 0.5}


class SmallMobileNet(models.MobileNet):
  """The network of the victims."""

  body = ((1, 64), (2, 128))


def _plain(folder: Path) -> tuple:
  rng = np.random.default_rng(0)
  return {}, tuple(from_images(rng.integers(0, 256, (count, 40, 40, 3), np.uint8), np.arange(count, dtype=np.int32) % 4, 4)
                   for count in (50, 20))


def _with_nan(folder: Path) -> tuple:
  """Returns data with a teacher whose output for one image is not a number."""
  _, (train_source, eval_source) = _plain(folder)
  outputs = [np.zeros((len(source.labels), 4), np.float32) for source in (train_source, eval_source)]
  outputs[0][17, 2] = np.nan
  return {'distill.softmax_weight': 1.0, 'data.flip': False}, tuple(
      dataclasses.replace(source, extra={TEACHER: output}) for source, output in zip((train_source, eval_source), outputs))


def _folder(folder: Path) -> tuple:
  """Returns a folder of image files."""
  return _of_files(folder.parent / 'folder_images', folder)


def _recorded(folder: Path) -> tuple:
  """Returns the same images with recorded outputs. Others are beside them."""
  changes, sources = _folder(folder)
  ids = [id for source in sources for id in source.ids]
  for seed, name in enumerate(('teacher.npz', 'other_teacher.npz')):
    path = folder.parent / name
    if not path.exists():
      with path.open('wb') as file:
        np.savez(file, names=ids, logits=np.random.default_rng(seed).normal(size=(len(ids), 4)).astype(np.float32))
  changes |= {'data.recorded': str(folder.parent / 'teacher.npz'), 'distill.softmax_weight': 1.0}
  return changes, load(config_lib.changed(config_lib.base(), changes).data)


def _taught(folder: Path) -> tuple:
  """Returns data and a teacher. Another one is beside it."""
  changes, sources = _plain(folder)
  config = checked(config_lib.changed(config_lib.base(), CHANGES))
  for seed, name in enumerate(('teacher', 'other_teacher')):
    if not (folder.parent / name).exists():
      module = models.create(config.model, 4)
      variables = models.variables_of(module.init(jax.random.key(seed), np.zeros((1, 32, 32, 3)), train=False))
      (folder.parent / name).mkdir()
      trained.TrainedModel(config, variables, None, name).save(folder.parent / name)
  return {'distill.model': str(folder.parent / 'teacher'), 'distill.softmax_weight': 1.0}, sources


def _damaged_image(folder: Path) -> tuple:
  """Returns a folder of image files, one of which is cut off."""
  changes, sources = _of_files(folder.parent / 'images', folder)
  path = folder.parent / 'images' / 'train' / 'class_1' / '17.png'
  path.write_bytes(path.read_bytes()[:200])
  return changes, sources


def _of_files(root: Path, folder: Path) -> tuple:
  """Writes the images of the plain data as files in `root`, unless they are there, and returns that folder."""
  _, arrays = _plain(folder)
  for split, source in zip(('train', 'test'), arrays):
    for i, example in enumerate(source):
      path = root / split / f'class_{example.targets["label"]}' / f'{i}.png'
      path.parent.mkdir(parents=True, exist_ok=True)
      if not path.exists():
        Image.fromarray(example.image).save(path)
  changes = {'data.name': f'folder:{root}'}
  return changes, load(config_lib.changed(config_lib.base(), changes).data)


# Each returns config changes and the sources.
DATA = {'plain': _plain, 'NaN': _with_nan, 'damaged image': _damaged_image, 'folder': _folder, 'recorded': _recorded,
        'taught': _taught}


def _added(folder):
  return folder.parent / 'folder_images' / 'train' / 'class_1' / 'added.png'


def add_image(folder: Path, rng: np.random.Generator) -> None:
  """Adds an image to the folder of a victim."""
  del rng
  Image.new('RGB', (40, 40)).save(_added(folder))


def remove_image(folder: Path) -> None:
  _added(folder).unlink()


def exchange(path: str) -> tuple[Callable, Callable]:
  """Returns functions that put the file or folder other_<path>, beside the run's folder, in the place of <path>, and back."""
  def swap(folder, rng=None):
    del rng
    here, other, aside = (folder.parent / f'{prefix}{path}' for prefix in ('', 'other_', 'aside_'))
    here.rename(aside)
    other.rename(here)
    aside.rename(other)
  return swap, swap
