"""What every exporter is given: a function of images with the weights inside, batch norm folded."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from mobilenet_jax import inference, tasks
from mobilenet_jax.data import preprocessing as preprocessing_lib
from mobilenet_jax.errors import UserError
from mobilenet_jax.models.mobilenet import MobileNet
from mobilenet_jax.trained import TrainedModel


@dataclasses.dataclass(frozen=True)
class Network:
  """A network to export.

  Attributes:
    model: where it is from.
    softmax: what the task predicts comes out, probabilities or embeddings of unit length, not what the last layer gives;
      features of a model without a classifier are neither.
    preprocessing: images come in as uint8 (b, *stream_size, 3), else as float32 (b, *image_size, 3) in [-1, 1].
  """

  model: TrainedModel
  softmax: bool = True
  preprocessing: bool = False

  def __post_init__(self):
    if not isinstance(self.model.module, MobileNet):
      raise UserError(f'{self.model.origin}: a {self.model.config.model.name}; expected a MobileNet to export')

  @property
  def module(self) -> MobileNet:
    """In float32, whatever it was trained in, and of plain convolutions."""
    return self.model.module.clone(lowering='grouped', dtype=jnp.float32)

  @property
  def input_shape(self) -> tuple[int, int, int]:
    data = self.model.config.data
    return (*(preprocessing_lib.stream_size(data) if self.preprocessing else data.image_size), 3)

  @property
  def input_dtype(self):
    return np.uint8 if self.preprocessing else np.float32

  @property
  def output(self) -> str:
    """What comes out: 'probabilities', 'embeddings', 'logits' or 'features'."""
    if not self.model.num_classes:
      return 'features'
    if not self.softmax:
      return 'logits'
    return 'embeddings' if self.model.config.task == 'embedding' else 'probabilities'

  @property
  def predicts(self) -> bool:
    """Whether it ends in the task's prediction."""
    return self.output in ('probabilities', 'embeddings')

  def function(self) -> Callable[[jax.Array], jax.Array]:
    """images -> float32 (b, outputs), of convolutions that every converter knows."""
    model, size = self.model, self.model.config.data.image_size
    task = tasks.create(model.config)
    predict, weights = inference.fold(self.module, model.variables, as_convolutions=True)

    def function(images):
      outputs = predict(weights, preprocessing_lib.normalize(images, size) if self.preprocessing else images)
      return task.prediction(outputs) if self.predicts else outputs

    return function

  def inputs(self, prepared: np.ndarray) -> np.ndarray:
    """What to feed: of images as TrainedModel.prepare gives them."""
    if self.preprocessing:
      return prepared
    return np.asarray(jax.jit(preprocessing_lib.normalize, static_argnums=1)(prepared, self.model.config.data.image_size))

  def reference(self, prepared: np.ndarray) -> np.ndarray:
    """The outputs of the Flax model itself, neither folded nor converted."""
    model, task = self.model, tasks.create(self.model.config)

    @jax.jit
    def apply(variables, images):
      images = preprocessing_lib.normalize(images, model.config.data.image_size)
      outputs = self.module.apply(variables, images, train=False)
      return task.prediction(outputs) if self.predicts else outputs

    return np.asarray(apply(model.variables, prepared))
