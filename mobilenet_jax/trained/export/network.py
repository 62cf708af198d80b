"""The input of every exporter: a function of images that contains the weights, with batch norm folded."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from mobilenet_jax import models
from mobilenet_jax.data import normalize, stream_size
from mobilenet_jax.trained.model import TrainedModel

PIXEL_RANGE = (-1.0, 1.0)  # of `normalize`: what pixels of 0 and 255 become


@dataclasses.dataclass(frozen=True)
class Tensor:
  """An input or output of a file, as the file's own runtime describes it.

  Attributes:
    name: its name, or None if the runtime knows it by its position.
    dtype: the name of a NumPy dtype.
    shape: its dimensions; None stands for any.
    quantization: None, or the 'scale' and 'zero_point' of integers: real = (integer - zero_point) x scale.
  """

  name: str | None
  dtype: str
  shape: tuple[int | None, ...]
  quantization: dict[str, float | int] | None = None


@dataclasses.dataclass(frozen=True)
class Network:
  """A network to export.

  Attributes:
    model: the trained model.
    softmax: whether the outputs are what the task predicts, i.e. probabilities or embeddings of unit length, instead of
      the outputs of the last layer. A model without a classifier outputs features in either case.
    preprocessing: whether the inputs are images uint8 (b, *stream_size, 3), instead of float32 (b, *image_size, 3) in
      [-1, 1].
  """

  model: TrainedModel
  softmax: bool = True
  preprocessing: bool = False

  @property
  def module(self):
    """Returns the Flax module, in float32 whatever it was trained in, and with plain convolutions."""
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
    """Returns what the outputs are. It also names them, in files that have names.

    'probabilities', 'embeddings' (of unit length), 'features' or 'numbers'; without the prediction, 'logits' or
    'raw_embeddings'.
    """
    if not self.model.num_classes:
      return 'features'
    kinds = {'vector': ('embeddings', 'raw_embeddings'), 'numbers': ('numbers', 'numbers')}
    predicted, raw = kinds.get(self.model.task.kind, ('probabilities', 'logits'))
    return predicted if self.softmax else raw

  @property
  def predicts(self) -> bool:
    """Returns whether the network ends with the task's prediction."""
    return self.softmax and self.model.num_classes > 0

  def function(self) -> Callable[[jax.Array], jax.Array]:
    """Returns a function images -> float32 (b, outputs), made of convolutions that every converter knows."""
    model, size = self.model, self.model.config.data.image_size
    predict, weights = models.fold(self.module, model.variables, as_convolutions=True)

    def function(images):
      outputs = predict(weights, normalize(images, size) if self.preprocessing else images)
      return model.task.prediction(outputs) if self.predicts else outputs

    return function

  def inputs(self, prepared: np.ndarray) -> np.ndarray:
    """Returns the network's inputs for images that TrainedModel.prepare has returned."""
    if self.preprocessing:
      return prepared
    return np.asarray(jax.jit(normalize, static_argnums=1)(prepared, self.model.config.data.image_size))

  def reference(self, prepared: np.ndarray) -> np.ndarray:
    """Returns the outputs of the Flax model itself, neither folded nor converted. Raises UserError if they are not finite."""
    model = self.model

    @jax.jit
    def apply(variables, images):
      images = normalize(images, model.config.data.image_size)
      outputs = self.module.apply(variables, images, train=False)
      return model.task.prediction(outputs) if self.predicts else outputs

    return model.finite(np.asarray(apply(model.variables, prepared)), self.output)
