"""Published MobileNet V1 weights, imported as trained models: by name, see release.py, or from a file, see readers.py."""

from pathlib import Path

from mobilenet_jax import config as config_lib
from mobilenet_jax import models
from mobilenet_jax.errors import UserError
from mobilenet_jax.storage.files import expanded
from mobilenet_jax.storage.run_files import CONFIG_FILE
from mobilenet_jax.trained.labels import imagenet_labels
from mobilenet_jax.trained.model import TrainedModel, check_finite, load_folder
from mobilenet_jax.trained.published import readers, release, weights


def load(name: str | Path, averaged: bool = True, image_size: tuple[int, int] | None = None) -> TrainedModel:
  """Imports a file of published weights, or a published model by name; see trained.load.

  TF-slim's convention is kept: there are 1,001 outputs, the first of which is the background. `image_size` is for files of
  which neither the content nor the name, if it is as TF-slim and Keras name their files, says the size.

  Raises:
    UserError: as in `readers.read`, `release.fetch` and `weights.from_theirs`, if the size is missing, if weights are
      not finite, or if the file of a published model is another model.
  """
  name, path = str(name), expanded(name)
  if readers.is_file(path):
    return _import(path, name, averaged, image_size)
  path, digest = release.fetch(name)
  imported = release.cache_folder() / f'{name.replace(":", "_")}-{digest[:12]}'  # what another file gives has another name
  if averaged and (imported / CONFIG_FILE).exists():  # the last file that `save` writes
    return load_folder(imported, name)
  model = _import_published(name, path, averaged)
  with release.unless_read_only():
    release.record(path, digest)
    if averaged:
      with release.cache_lock():
        if not (imported / CONFIG_FILE).exists():
          model.save(imported)
  return model


def _import_published(name, path, averaged):
  model = _import(path, name, averaged)
  width_multiplier, size = release.width_and_size(name)
  found = model.config.model.width_multiplier, tuple(model.config.data.image_size)
  if found != (width_multiplier, (size, size)):
    raise UserError(f'{path}: is a {config_lib.model_name(model.config)}, expected {name}; remove the file, so that the right '
                    'one is fetched, or load it by its path')
  return model


def _import(path: Path, origin: str, averaged: bool, image_size: tuple[int, int] | None = None) -> TrainedModel:
  content = readers.read(path, averaged)
  name_of = {'slim': weights.slim_name, 'keras': weights.keras_name}[content.family]
  variables, width_multiplier, num_classes = weights.from_theirs(content.arrays, name_of, origin)
  check_finite(variables, origin)
  size = content.image_size or image_size or readers.size_in(path.name)
  if not size:
    raise UserError(f'{path}: neither the file nor its name says the image size; give --image-size=SIZE (image_size=SIZE in '
                    'Python), or for a recipe, which takes a name only, import the file first: mobilenet_jax import FILE '
                    '--image-size=SIZE --out=FOLDER')

  config = config_lib.base()
  config.data.name, config.data.eval_split = 'imagenet2012', 'validation'
  config.data.image_size = size
  config.model.num_classes = num_classes
  config.model.width_multiplier = width_multiplier
  config.model.batch_norm_epsilon = round(content.epsilon, 9)  # the value as written, without float32's rounding
  config.model.padding = 'keras' if content.family == 'keras' else 'same'
  config.model, config.optim = models.complete(config.model), config_lib.complete_optim(config.optim)
  return TrainedModel(config, variables, imagenet_labels(num_classes), origin)
