"""A trained model with everything needed to use it: network, weights, preprocessing and labels.

    import mobilenet_jax
    model = mobilenet_jax.load('mobilenet_1.0_224')        # or the folder of a run, or a file of published weights
    model.top('cat.jpg')                                   # [[('n02123045 tabby, tabby cat', 0.61), ...]]
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from PIL import Image

from mobilenet_jax import config as config_lib
from mobilenet_jax import models, tasks
from mobilenet_jax.data import Source, description, digest, normalize, read_image
from mobilenet_jax.errors import UserError, few
from mobilenet_jax.storage import checkpoints, run_files
from mobilenet_jax.storage.files import expanded, write_whole
from mobilenet_jax.trained.labels import BACKGROUND, class_keys, top_labels

NEWEST, BEST = 'newest', 'best'  # checkpoints of a run, besides the steps


@dataclasses.dataclass(frozen=True, repr=False)
class TrainedModel:
  """A trained model.

  Attributes:
    config: a complete config; its `data` section describes the preprocessing of an image.
    variables: {'params', 'batch_stats'}.
    labels: the name of each output, or None if the outputs have no names.
    origin: where the model comes from, as shown in messages: the folder of a run, a file, or the name of a published model.
    step: of the checkpoint, if one was asked for by its number or as the best.
  """

  config: ml_collections.ConfigDict
  variables: dict
  labels: tuple[str, ...] | None
  origin: str
  step: int | None = None

  def __repr__(self):
    height, width = self.config.data.image_size
    names = f': {few(self.labels)}' if self.labels else ''
    outputs = f'{self.num_classes:,} outputs ({self.config.task}){names}' if self.num_classes else 'features'
    leaves = jax.tree.leaves(self.variables)
    places = sorted({'memory of the host' if isinstance(leaf, np.ndarray) else ', '.join(map(str, leaf.devices()))
                     for leaf in leaves})
    return (f'TrainedModel {config_lib.model_name(self.config)} from {self.described_origin}\n'
            f'images {height}x{width} to {outputs}\n'
            f'{sum(leaf.size for leaf in leaves):,} parameters with the statistics of batch norm, in: {"; ".join(places)}')

  @property
  def described_origin(self) -> str:
    """Returns the origin, with the step if there is one."""
    return self.origin if self.step is None else f'{self.origin} at step {self.step}'

  def summary(self) -> str:
    """Returns a table: the output, the Mult-Adds and the parameters of each layer, and the totals; see models.measure."""
    cost = models.measure(self.module, (*self.config.data.image_size, 3), train=False)
    return f'{config_lib.model_name(self.config)} from {self.described_origin}\n\n{models.table(cost)}'

  @property
  def num_classes(self) -> int:
    """Returns the number of outputs; 0 if the model has no classifier."""
    classifier = self.variables['params'].get(models.CLASSIFIER)
    return classifier['bias'].shape[0] if classifier else 0

  @functools.cached_property
  def digest(self) -> str:
    """Returns a digest of the weights and the labels."""
    return digest_of(self.variables, self.labels)

  @functools.cached_property
  def task(self) -> tasks.Task:
    """Returns the task that the model was trained for."""
    return tasks.create(self.config)

  @functools.cached_property
  def module(self):
    """Returns the Flax module."""
    return models.create(self.config.model, self.num_classes)

  def predict(self, images) -> np.ndarray:
    """Returns probabilities of classes or attributes, or embeddings of unit length: float32 (n, num_classes).

    Args:
      images: a path, the bytes of an image file, a PIL image or a uint8 array (h, w, 3) of any size, or several of them, at
        least one.

    Raises:
      UserError: if there is no image, one is not an image, the model has no classifier, or its outputs are not finite.
    """
    return self.prediction(self.prepare(images))

  def prediction(self, prepared: np.ndarray, names: Sequence[str | None] | None = None) -> np.ndarray:
    """Returns the same as `predict`, for images that `prepare` has returned; `names` as in `outputs`."""
    if not self.num_classes:
      raise UserError(f'{self.origin}: the model has no classifier to predict with; use its features')
    return np.asarray(self.task.prediction(self.outputs(prepared, names)))

  def top(self, images, k: int = 5) -> list[list[tuple[str, float]]]:
    """Returns the k most likely labels of each image with their probabilities, most likely first; images as in `predict`.

    Raises:
      UserError: as in `predict`, and if the model predicts embeddings, which have no labels.
    """
    self.check_labels()
    if not isinstance(k, int) or k < 1:
      raise UserError(f'k={k}: expected a number of labels, at least 1')
    return [top_labels(row, self.labels, k) for row in self.predict(images)]

  def check_labels(self) -> None:
    """Raises UserError if the model does not predict labels."""
    if self.task.kind in ('vector', 'numbers'):
      what = 'embeddings' if self.task.kind == 'vector' else 'numbers'
      raise UserError(f'{self.origin}: the model predicts {what}, not labels; use TrainedModel.predict')

  def features(self, images, name: str = 'pooled') -> np.ndarray:
    """Returns an intermediate output, float32: 'pooled' (n, c), or that of a block (n, h, w, c), see the network's __call__.

    Raises:
      UserError: as in `predict`, and if no output has that name; the error lists the names.
    """
    features = self._features(self.prepare(images))
    if name not in features:
      raise UserError(f'features {name!r}: expected one of {", ".join(features)}')
    return self.finite(np.asarray(features[name]), f'features {name}')

  def prepare(self, images) -> np.ndarray:
    """Reads and crops images as in the model's evaluation: uint8 (n, *stream_size, 3); images as in `predict`."""
    if isinstance(images, (str, Path, bytes, bytearray, memoryview, Image.Image)) or (
        not isinstance(images, Sequence) and np.ndim(images) in (2, 3)):
      images = [images]
    try:
      images = list(images)
    except TypeError:
      images = []
    if not images:
      raise UserError('no image was given; expected a path, the bytes of an image file, a PIL image or a uint8 array '
                      '(height, width, 3), or several of them')
    upright = self.config.data.exif_orientation
    return np.stack([self.task.transform(read_image(image, upright), {}, None)[0] for image in images])

  def fold(self):
    """Returns a function of weights and images in [-1, 1], and the weights; see models.fold."""
    return models.fold(self.module, self.variables)

  def outputs(self, prepared: np.ndarray, names: Sequence[str | None] | None = None) -> np.ndarray:
    """Returns the last layer's outputs for images that `prepare` has returned: logits, or embeddings of any length.

    Args:
      prepared: the images.
      names: what an error calls each image, by default its number; None for one whose outputs are not used. They may be fewer
        than the images: those that pad a batch are not used either.

    Raises:
      UserError: if outputs are not finite; it names an image.
    """
    return self.finite(np.asarray(self._outputs(prepared)), 'outputs', names)

  def finite(self, found: np.ndarray, what: str, names: Sequence[str | None] | None = None) -> np.ndarray:
    """Returns what was `found` for images (n, ...). Raises UserError if it is not finite; `names` as in `outputs`."""
    names = names or [f'image {i}, counted from 0' for i in range(len(found))]
    used = [(name, row) for name, row in zip(names, np.isfinite(found).reshape(len(found), -1).all(1)) if name is not None]
    if bad := [name for name, row in used if not row]:
      raise UserError(f'{self.origin}: the {what} for {len(bad)} of {len(used)} images are not finite, such as for {bad[0]}; '
                      'expected a trained model')
    return found

  @functools.cached_property
  def _outputs(self):
    predict, weights = self.fold()
    size = self.config.data.image_size
    return functools.partial(jax.jit(lambda weights, images: predict(weights, normalize(images, size))), weights)

  @functools.cached_property
  def _features(self):
    def features(variables, images):
      found = {}
      self.module.apply(variables, normalize(images, self.config.data.image_size), train=False,
                        features=found)
      return jax.tree.map(lambda x: x.astype(jnp.float32), found)
    return functools.partial(jax.jit(features), self.variables)

  def outputs_of(self, source: Source, every: bool = False) -> np.ndarray | None:
    """Returns the output that stands for each class, attribute or number of `source`, int32; None for embeddings.

    They are matched by name if model and source both have names; the name of a synset is its number, 'n01440764'. If classes
    are matched by number, see `matches_by_number`, the background is not counted.

    Args:
      source: the data.
      every: whether the model must also have the classes of which `source` has no example.

    Raises:
      UserError: if the model lacks some of them; the error names them.
    """
    if self.task.kind == 'vector':
      return None
    if self.task.kind != 'classes':
      names = self.task.outputs(source)[1] or ()
      return self._by_name(self.labels or (), names, self.task.kind, range(len(names)))
    ours, theirs = class_keys(self.labels or ()), class_keys(source.class_names or ())
    all_there = every or not source.records.in_memory
    asked = range(source.num_classes) if all_there else set(np.unique(source.labels).tolist())
    if not self.matches_by_number(source):
      if _are_numbers(theirs) and not set(theirs) <= set(ours):  # 07 is 7
        ours, theirs = ([str(int(name)) if name.isdecimal() else name for name in names] for names in (ours, theirs))
      return self._by_name(ours, theirs, 'classes', asked)
    first = int(bool(ours) and ours[0] == BACKGROUND)
    numbers = [int(name) for name in theirs] if _are_numbers(theirs) else list(range(source.num_classes))
    asked = asked if theirs else range(source.num_classes)  # without names, the number of classes is all there is to compare
    if beyond := [numbers[label] for label in asked if numbers[label] >= self.num_classes - first]:
      such = f', such as {beyond[0]}, counted from 0' if _are_numbers(theirs) else ''
      raise UserError(f'{self.origin}: has {self.num_classes - first} classes, the data has {len(numbers)}{such}; expected '
                      'data with the same classes')
    return np.array(numbers, np.int32) + first

  def _by_name(self, ours, theirs, what, asked):
    places = {name: i for i, name in enumerate(ours)}
    if missing := [name for i, name in enumerate(theirs) if name not in places and i in asked]:
      raise UserError(f'{self.origin}: has {len(ours)} {what} ({few(ours)}), the data has {len(theirs)}; the model '
                      f'lacks {few(missing)}; expected data with the same {what}')
    return np.array([places.get(name, 0) for name in theirs], np.int32)

  def matches_by_number(self, source: Source) -> bool:
    """Returns whether the classes of `source` are numbers of the model's classes, instead of being matched by name.

    They are if one of the two has no names, or if those of the source are numbers and no class of the model has such a name.
    """
    ours, theirs = self.labels or (), source.class_names or ()
    return self.task.kind == 'classes' and (
        not ours or not theirs or _are_numbers(theirs) and not any(name.isdecimal() for name in ours))

  def variables_for(self, source: Source, asked: ml_collections.ConfigDict, like: dict, keep_head: bool) -> dict:
    """Returns {'params', 'batch_stats'} from which the training of another model starts.

    Args:
      source: the data that the other model is trained on.
      asked: the `model` section of the other model's config.
      like: the variables of the other model before training.
      keep_head: whether its classifier starts from this model's rows for the classes of `source`, instead of as in `like`.

    Raises:
      UserError: if the variables do not fit; the error says why.
    """
    params, head = dict(self.variables['params']), like['params'][models.CLASSIFIER]
    classifier = params.pop(models.CLASSIFIER, None)
    if keep_head:
      if classifier is None:
        raise UserError(f'init.keep_head: {self.origin} has no classifier to keep')
      outputs = self.outputs_of(source, every=True)
      outputs = slice(None) if outputs is None else outputs
      head = {'kernel': classifier['kernel'][:, outputs], 'bias': classifier['bias'][outputs]}
    projection = {name: value for name, value in like['params'].items() if name == models.PROJECTION}
    variables = {'params': {**params, **projection, models.CLASSIFIER: head}, 'batch_stats': self.variables['batch_stats']}
    shapes = lambda tree: {jax.tree_util.keystr(path, simple=True, separator='/'): leaf.shape
                           for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    ours, theirs = shapes(variables), shapes(like)
    wrong = [f'{name} is {ours.get(name, "missing")}, expected {theirs.get(name, "nothing")}'
             for name in sorted({*ours, *theirs}) if ours.get(name) != theirs.get(name)]
    if wrong:
      fields = [f'model.{name}={value}, you asked for {asked[name]}' for name, value in self.config.model.items()
                if name != 'num_classes' and _gives_other_shapes(asked, name, value)]
      raise UserError(f'init.model={self.origin}: ' + (
          f'it has {", ".join(fields)}; give the same, or another model to start from' if fields else
          f'its weights have other shapes: {few(wrong)} ({len(wrong)} in all); expected the network of config.model'))
    return jax.tree.map(jnp.asarray, variables)

  def save(self, folder: str | Path) -> None:
    """Writes the model in the form of a run's checkpoint, which `load` reads. It replaces a saved model in the folder.

    Raises:
      UserError: if values are not finite, the folder holds anything else, such as a run, or the disk is full.
    """
    check_finite(self.variables, self.origin)
    folder = expanded(folder)
    run_files.check_is_for_a_model(folder)
    checkpoints.write_model(folder, self.variables, notes(self.config, self.labels))
    write_whole(folder / run_files.CONFIG_FILE, config_lib.to_json(self.config))


def _gives_other_shapes(config, field, value) -> bool:
  """Returns whether another value of a field of the `model` section of a config gives the network other variables."""
  def shapes(config):
    init = lambda image: models.create(config, 1).init(jax.random.key(0), image, train=False)
    return jax.tree.map(jnp.shape, jax.eval_shape(init, jnp.zeros((1, config_lib.MIN_SIZE, config_lib.MIN_SIZE, 3))))
  if config.get(field, value) == value:
    return False
  other = config if field != 'name' else {'num_classes': 0}  # whose fields another network may lack
  return shapes(ml_collections.ConfigDict({**other, field: value})) != shapes(config)


def _are_numbers(names) -> bool:
  return bool(names) and all(name.isdecimal() for name in names)


def digest_of(variables, labels: Sequence[str] | None) -> str:
  """Returns a digest of the weights of a model and of the names of its outputs."""
  leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(variables))
  return digest(repr(labels), {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves})


def check_finite(variables: dict, origin: str) -> None:
  """Checks the weights and the statistics of a model before they are used.

  Raises:
    UserError: if some are NaN or infinite; it names the model and an array.
  """
  leaves = jax.tree_util.tree_leaves_with_path(variables)
  if bad := [jax.tree_util.keystr(path, simple=True, separator='/') for path, leaf in leaves if not np.isfinite(leaf).all()]:
    raise UserError(f'{origin}: {len(bad)} of {len(leaves)} arrays of the model have values that are not finite, such as '
                    f'{bad[0]}; expected a trained model; give another one, or another checkpoint of the run')


def load_folder(folder: Path, origin: str, checkpoint: str = NEWEST, averaged: bool = True) -> TrainedModel:
  """Loads a checkpoint of a run or of an imported model; see trained.load.

  Raises:
    UserError: if there is no such checkpoint, it is damaged, its values are not finite, or an earlier version of this code
      wrote it.
  """
  step = _step(folder, checkpoint)
  variables, kept = checkpoints.read_model(folder, step, averaged)
  variables['params'].pop(models.PROJECTION, None)  # used only in distillation; not part of the model
  check_finite(variables, origin)
  kept['config']['data'].setdefault('exif_orientation', False)  # before there was the field, EXIF was ignored
  config = _with_all_fields(config_lib.from_dict(kept['config']), origin)
  labels = kept.get('labels')
  return TrainedModel(config, variables, tuple(labels) if labels else None, origin, step)


def config_of_folder(folder: Path, origin: str) -> ml_collections.ConfigDict:
  """Returns the config of a run or a saved model, with every field of its network.

  Raises:
    UserError: if there is none, it is damaged, or an earlier version of this code wrote it.
  """
  if not (folder / run_files.CONFIG_FILE).exists():  # a `save` that was interrupted has left only the weights
    return load_folder(folder, origin).config
  return _with_all_fields(run_files.read_config(folder), origin)


def _with_all_fields(config, origin):
  try:
    config.model = models.complete(config.model)
  except UserError as error:
    raise UserError(f'{origin}: written by an earlier version of this code ({error}); train or import it again') from error
  return config


def _step(folder, checkpoint) -> int | None:
  """Returns the step of the checkpoint that is asked for; None for the newest intact one."""
  if checkpoint == NEWEST:
    return None
  steps = run_files.checkpoint_steps(folder)
  if checkpoint == BEST and steps:
    metric = tasks.create(run_files.read_config(folder)).main_metric
    if values := run_files.checkpoint_metrics(folder, metric):
      return max(values, key=lambda step: (values[step], step))
    raise UserError(f'{folder}: none of its checkpoints has the metric {metric}, so none is the best; expected {NEWEST} or a '
                    f'step: {", ".join(map(str, steps))}')
  if checkpoint.isdecimal() and int(checkpoint) in steps:
    return int(checkpoint)
  raise UserError(f'{folder}: has no checkpoint {checkpoint}; expected {NEWEST}, {BEST} or a step: '
                  f'{", ".join(map(str, steps)) or "there are none yet"}')


def notes(config: ml_collections.ConfigDict, labels: Sequence[str] | None) -> dict:
  """Returns the information that is saved with the weights of a model."""
  return {'config': config.to_dict(), 'preprocessing': description(config.data), 'labels': list(labels) if labels else None}
