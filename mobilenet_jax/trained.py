"""A trained model with everything that its use depends on: network, weights, preprocessing, labels.

    import mobilenet_jax
    model = mobilenet_jax.load('mobilenet_1.0_224')        # or a run's folder, or a file of published weights
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

from mobilenet_jax import checkpoint, inference, models, tasks
from mobilenet_jax import config as config_lib
from mobilenet_jax.data import images as images_lib
from mobilenet_jax.data import preprocessing
from mobilenet_jax.data.sources import Source
from mobilenet_jax.errors import UserError
from mobilenet_jax.files import write_whole
from mobilenet_jax.models.mobilenet import MobileNet
from mobilenet_jax.optim import PROJECTION

BACKGROUND = 'background'  # the class 0 of TF-slim's models, which no example has
IMAGENET_LABELS = Path(__file__).parent / 'pretrained' / 'imagenet_labels.txt'  # synsets, with WordNet 3.0's words


@dataclasses.dataclass(frozen=True)
class TrainedModel:
  """A trained model.

  Attributes:
    config: a whole config; its part `data` says what is done to an image.
    variables: {'params', 'batch_stats'}.
    labels: the name of each output, or None where nobody named them.
    origin: where it is from, for a person.
  """

  config: ml_collections.ConfigDict
  variables: dict
  labels: tuple[str, ...] | None
  origin: str

  @property
  def num_classes(self) -> int:
    """Outputs; 0 where the model has no classifier."""
    classifier = self.variables['params'].get('classifier')
    return classifier['bias'].shape[0] if classifier else 0

  @functools.cached_property
  def module(self):
    """The Flax module."""
    return models.create(self.config.model, self.num_classes)

  def predict(self, images) -> np.ndarray:
    """Probabilities of classes or attributes, or embeddings of unit length: float32 (n, num_classes).

    Args:
      images: a path, a PIL image or an array uint8 (h, w, 3), or a sequence of them; arrays of any size.

    Raises:
      UserError: on a path that is no image, or a model without a classifier.
    """
    return self.prediction(self.prepare(images))

  def prediction(self, prepared: np.ndarray) -> np.ndarray:
    """`predict` of images as `prepare` gives them."""
    if not self.num_classes:
      raise UserError(f'{self.origin}: has no classifier to predict with; it gives features')
    return np.asarray(tasks.create(self.config).prediction(self._outputs(prepared)))

  def top(self, images, k: int = 5) -> list[list[tuple[str, float]]]:
    """For each image its k likeliest labels with their probabilities, the likeliest first; args as in `predict`.

    Raises:
      UserError: as `predict`, and for a model of embeddings, which has no labels.
    """
    self.check_labels()
    return [top_labels(row, self.labels, k) for row in self.predict(images)]

  def check_labels(self) -> None:
    """Raises UserError where what the model predicts is no label."""
    if self.config.task == 'embedding':
      raise UserError(f'{self.origin}: gives embeddings, not labels; TrainedModel.predict has them')

  def features(self, images, name: str = 'pooled') -> np.ndarray:
    """An intermediate output, float32: 'pooled' (n, c), or of a block (n, h, w, c), see MobileNet.__call__.

    Raises:
      UserError: as `predict`, and naming the outputs there are where `name` is none of them.
    """
    features = self._features(self.prepare(images))
    if name not in features:
      raise UserError(f'features {name!r}: expected one of {", ".join(features)}')
    return np.asarray(features[name])

  def prepare(self, images) -> np.ndarray:
    """Reads and crops images as the model's evaluation does: uint8 (n, *stream_size, 3); args as in `predict`."""
    if isinstance(images, (str, Path)) or not isinstance(images, Sequence) and np.ndim(images) in (0, 3):
      images = [images]
    return np.stack([preprocessing.crop_centrally(images_lib.read(image), self.config.data) for image in images])

  def fold(self):
    """(function of weights and images in [-1, 1], weights): the network with batch norm folded where it is a MobileNet."""
    if isinstance(self.module, MobileNet):
      return inference.fold(self.module, self.variables)
    return lambda variables, images: self.module.apply(variables, images, train=False), self.variables

  def outputs(self, prepared: np.ndarray) -> np.ndarray:
    """What the last layer gives for images as `prepare` gives them: logits, or embeddings of any length."""
    return np.asarray(self._outputs(prepared))

  @functools.cached_property
  def _outputs(self):
    predict, weights = self.fold()
    size = self.config.data.image_size
    return functools.partial(jax.jit(lambda weights, images: predict(weights, preprocessing.normalize(images, size))), weights)

  @functools.cached_property
  def _features(self):
    def features(variables, images):
      found = {}
      self.module.apply(variables, preprocessing.normalize(images, self.config.data.image_size), train=False,
                        features=found)
      return jax.tree.map(lambda x: x.astype(jnp.float32), found)
    return functools.partial(jax.jit(features), self.variables)

  def outputs_of(self, source: Source) -> np.ndarray:
    """Which output stands for each label of `source`: int32 (source.num_classes,).

    Classes are matched by name where both have names; a synset's is its number, 'n01440764'. Else the labels of
    `source` count the model's classes, the background apart.

    Raises:
      UserError: naming the classes that the model does not have.
    """
    ours, theirs = keys(self.labels or ()), keys(source.class_names or ())
    if ours and theirs:
      if missing := [name for name in theirs if name not in ours]:
        raise UserError(f'{self.origin}: knows {len(ours)} classes ({some(ours)}), the data {len(theirs)}, of which it '
                        f'lacks {some(missing)}; expected data of the same classes')
      return np.array([ours.index(name) for name in theirs], np.int32)
    first = int(bool(ours) and ours[0] == BACKGROUND)
    if source.num_classes > self.num_classes - first:
      raise UserError(f'{self.origin}: has {self.num_classes - first} classes, the data {source.num_classes}; expected '
                      'data of the same classes')
    return np.arange(first, first + source.num_classes, dtype=np.int32)

  def variables_for(self, source: Source, like: dict, keep_head: bool) -> dict:
    """{'params', 'batch_stats'} to start the training of another model from.

    Args:
      source: what it is trained on.
      like: the other model's variables, before training.
      keep_head: whether its classifier starts as the rows of this one for the classes of `source`, else as in `like`.

    Raises:
      UserError: naming what does not fit, together.
    """
    params, head = dict(self.variables['params']), like['params']['classifier']
    classifier = params.pop('classifier', None)
    if keep_head:
      if classifier is None:
        raise UserError(f'init.keep_head: {self.origin} has no classifier to keep')
      outputs = self.outputs_of(source) if self.config.task == 'classification' else slice(None)
      head = {'kernel': classifier['kernel'][:, outputs], 'bias': classifier['bias'][outputs]}
    projection = {name: value for name, value in like['params'].items() if name == PROJECTION}
    variables = {'params': {**params, **projection, 'classifier': head}, 'batch_stats': self.variables['batch_stats']}
    shapes = lambda tree: {jax.tree_util.keystr(path, simple=True, separator='/'): leaf.shape
                           for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    ours, theirs = shapes(variables), shapes(like)
    wrong = [f'{name} is {ours.get(name, "missing")}, expected {theirs.get(name, "nothing")}'
             for name in sorted({*ours, *theirs}) if ours.get(name) != theirs.get(name)]
    if wrong:
      raise UserError(f'init.model={self.origin}: not of the architecture that config.model describes: {some(wrong)} '
                      f'({len(wrong)} in all)')
    return jax.tree.map(jnp.asarray, variables)

  def save(self, folder: Path) -> None:
    """Writes the model in the form of a run's checkpoint; `load` reads it."""
    checkpoint.write_model(folder, self.variables, notes(self.config, self.labels))
    write_whole(folder / 'config.json', config_lib.to_json(self.config))


def load(name: str | Path, averaged: bool = True) -> TrainedModel:
  """A trained model.

  Args:
    name: the folder of a run or of an imported model (the newest checkpoint is taken, and of it the averaged weights
      where they are kept), a file of published weights (see pretrained/readers.py), or a published model's name (see
      pretrained/published.py), which is downloaded on first use.
    averaged: of a TF-slim checkpoint, the moving averages of the variables where it has them.

  Raises:
    UserError: where there is no such model, or its file is damaged.
  """
  path = Path(name).expanduser()
  if path.is_dir():
    variables, kept = checkpoint.read_model(path)
    variables['params'].pop(PROJECTION, None)  # of a distillation, which the model does without
    labels = kept.get('labels')
    return TrainedModel(config_lib.from_dict(kept['config']), variables, tuple(labels) if labels else None, str(name))
  from mobilenet_jax import pretrained
  return pretrained.load(name, averaged)


def notes(config: ml_collections.ConfigDict, labels: Sequence[str] | None) -> dict:
  """What is kept beside a model's weights."""
  return {'config': config.to_dict(), 'preprocessing': preprocessing.description(config.data),
          'labels': list(labels) if labels else None}


def top_labels(probabilities: np.ndarray, labels: Sequence[str] | None, k: int) -> list[tuple[str, float]]:
  """The k likeliest of one image, with their names, or numbers where they have none."""
  best = np.argsort(-probabilities, kind='stable')[:k]
  return [(labels[i] if labels else str(i), float(probabilities[i])) for i in best]


def imagenet_labels(num_classes: int) -> tuple[str, ...] | None:
  """'n01440764 tench, Tinca tinca' for each of 1,000 classes, or 1,001 with the background; None for other numbers."""
  names = tuple(IMAGENET_LABELS.read_text().splitlines())
  return {1000: names, 1001: (BACKGROUND, *names)}.get(num_classes)


def keys(labels: Sequence[str]) -> list[str]:
  """What tells each class: of a synset its number, which WordNet's words follow in labels, and nothing in folders."""
  def key(label):
    first = label.partition(' ')[0]
    return first if first[:1] == 'n' and first[1:].isdigit() and len(first) == 9 else label
  return [key(label) for label in labels]


def some(names: Sequence[str]) -> str:
  return ', '.join(names[:3]) + (', ...' if len(names) > 3 else '')
