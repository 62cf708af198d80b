"""Published MobileNet V1 weights, imported as trained models: by name, see release.py, or from a file, see readers.py."""

import re
from pathlib import Path

from mobilenet_jax import config as config_lib
from mobilenet_jax import models
from mobilenet_jax.storage.run_files import CONFIG_FILE
from mobilenet_jax.trained.labels import imagenet_labels
from mobilenet_jax.trained.model import TrainedModel, load_folder
from mobilenet_jax.trained.published import readers, release, weights

DEFAULT_SIZE = 224


def load(name: str | Path, averaged: bool = True) -> TrainedModel:
  """Imports a file of published weights, or a published model by name; see trained.load.

  TF-slim's convention is kept: there are 1,001 outputs, the first of which is the background. If a file does not contain
  the input size, it is read from the name of the file; the default is 224.
  """
  path = Path(name).expanduser()
  if path.exists() or path.suffix in readers.SUFFIXES:
    return _import(path, str(name), averaged)
  path = release.fetch(str(name))
  if not averaged:
    return _import(path, str(name), averaged)
  imported = release.cache_folder() / str(name).replace(':', '_')
  if not (imported / CONFIG_FILE).exists():  # the last file that `save` writes
    _import(path, str(name), averaged).save(imported)
  return load_folder(imported, str(name))


def _import(path: Path, origin: str, averaged: bool) -> TrainedModel:
  content = readers.read(path, averaged)
  name_of = {'slim': weights.slim_name, 'keras': weights.keras_name}[content.family]
  variables, width_multiplier, num_classes = weights.from_theirs(content.arrays, name_of, origin)

  config = config_lib.base()
  config.data.name, config.data.eval_split = 'imagenet2012', 'validation'
  config.data.image_size = content.image_size or _size_in(path.name) or config_lib.square(DEFAULT_SIZE)
  config.model.num_classes = num_classes
  config.model.width_multiplier = width_multiplier
  config.model.batch_norm_epsilon = round(content.epsilon, 9)  # the value as written, without float32's rounding
  config.model.padding = 'keras' if content.family == 'keras' else 'same'
  config.model = models.complete(config.model)
  return TrainedModel(config, variables, imagenet_labels(num_classes), origin)


def _size_in(file_name: str) -> tuple[int, int] | None:
  match = re.search(r'(?<![0-9.])(224|192|160|128)(?![0-9])', file_name)
  return config_lib.square(int(match[1])) if match else None
