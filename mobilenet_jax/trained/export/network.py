"""What every exporter is given: a function of images with the weights inside, batch norm folded."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from mobilenet_jax import models
from mobilenet_jax.data import normalize, stream_size
from mobilenet_jax.trained.model import TrainedModel


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

  @property
  def module(self):
    """The Flax module, in float32 whatever it was trained in, and of plain convolutions."""
    plain = {'lowering': 'grouped', 'dtype': jnp.float32}
    module = self.model.module
    return module.clone(**{name: value for name, value in plain.items() if hasattr(module, name)})

  @property
  def input_shape(self) -> tuple[int, int, int]:
    data = self.model.config.data
    return (*(stream_size(data) if self.preprocessing else data.image_size), 3)

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
    return 'embeddings' if self.model.task.kind == 'vector' else 'probabilities'

  @property
  def predicts(self) -> bool:
    """Whether it ends in the task's prediction."""
    return self.output in ('probabilities', 'embeddings')

  def function(self) -> Callable[[jax.Array], jax.Array]:
    """images -> float32 (b, outputs), of convolutions that every converter knows."""
    model, size = self.model, self.model.config.data.image_size
    predict, weights = models.fold(self.module, model.variables, as_convolutions=True)

    def function(images):
      outputs = predict(weights, normalize(images, size) if self.preprocessing else images)
      return model.task.prediction(outputs) if self.predicts else outputs

    return function

  def inputs(self, prepared: np.ndarray) -> np.ndarray:
    """What to feed: of images as TrainedModel.prepare gives them."""
    if self.preprocessing:
      return prepared
    return np.asarray(jax.jit(normalize, static_argnums=1)(prepared, self.model.config.data.image_size))

  def reference(self, prepared: np.ndarray) -> np.ndarray:
    """The outputs of the Flax model itself, neither folded nor converted."""
    model = self.model

    @jax.jit
    def apply(variables, images):
      images = normalize(images, model.config.data.image_size)
      outputs = self.module.apply(variables, images, train=False)
      return model.task.prediction(outputs) if self.predicts else outputs

    return np.asarray(apply(model.variables, prepared))
