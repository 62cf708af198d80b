"""Trained models and their uses: published weights, outputs for a dataset, latency, export.

This module is the public interface of the package: other packages import from here, and from `trained.export` and
`trained.published`, which are packages of their own.
"""

from pathlib import Path

import ml_collections

from mobilenet_jax import config as config_lib
from mobilenet_jax.errors import UserError
from mobilenet_jax.storage.files import expanded
from mobilenet_jax.trained import published
from mobilenet_jax.trained.labels import class_keys, top_labels
from mobilenet_jax.trained.latency import measure_latency
from mobilenet_jax.trained.model import NEWEST, TrainedModel, config_of_folder, digest_of, load_folder, notes
from mobilenet_jax.trained.recording import PART_FILE, outputs_for, record

__all__ = ['NEWEST', 'PART_FILE', 'TrainedModel', 'class_keys', 'config_of', 'digest_of', 'load', 'measure_latency', 'notes',
           'outputs_for', 'record', 'top_labels']


def load(name: str | Path, averaged: bool = True, image_size: int | tuple[int, int] | None = None,
         checkpoint: str | int = NEWEST) -> TrainedModel:
  """Loads a trained model.

  Args:
    name: one of three. The folder of a run or of an imported model. Or a file of published weights, see
      published/readers.py. Or the name of a published model, see published/release.py, which is downloaded on first use.
    averaged: use the moving averages of the weights, if a run or a TF-slim checkpoint has them.
    image_size: (height, width) of the network's input, or one number for both. It must be given for a file of which neither
      the content nor the name says it.
    checkpoint: of a run: 'newest', the newest intact one; 'best', the one with the highest main metric; or a step.

  Raises:
    UserError: if there is no such model or checkpoint, its file is damaged, weights or statistics are not finite, or the
      image size is missing or not that of the model.
  """
  path = expanded(name)
  size = config_lib.square(image_size) if isinstance(image_size, int) else image_size and tuple(image_size)
  if size and (len(size) != 2 or min(size) < config_lib.MIN_SIZE):
    raise UserError(f'image size {image_size}: expected one number or (height, width), each at least {config_lib.MIN_SIZE}')
  if path.is_dir():
    model = load_folder(path, str(name), str(checkpoint), averaged)
  elif str(checkpoint) != NEWEST:
    raise UserError(f'{name}: no folder of a run, so it has no checkpoint {checkpoint}; leave the checkpoint out')
  else:
    model = published.load(name, averaged, size)
  if size and size != tuple(model.config.data.image_size):
    raise UserError(f'{name}: its image size is {"x".join(map(str, model.config.data.image_size))}, not '
                    f'{"x".join(map(str, size))}; leave the image size out')
  return model


def config_of(name: str | Path) -> ml_collections.ConfigDict:
  """Returns the config of a trained model, see `load`. The weights of a run or a saved model are not read.

  Raises:
    UserError: as in `load`.
  """
  path = expanded(name)
  return config_of_folder(path, str(name)) if path.is_dir() else load(name).config
