"""Export to Keras .h5: keras.applications.MobileNet with our weights. Batch norm is not folded, as in Keras."""

from pathlib import Path

import numpy as np

from mobilenet_jax.errors import UserError
from mobilenet_jax.models import BODY, padding_of
from mobilenet_jax.trained.export.network import Network, Tensor
from mobilenet_jax.trained.published import weights


def write(network: Network, path: Path, calibration: np.ndarray | None = None) -> None:
  """Writes a legacy .h5 file, which any version of Keras loads; the network is one that `refuse` lets pass."""
  del calibration
  import keras
  model = network.model
  options = {'classes': model.num_classes} if model.num_classes else {'include_top': False, 'pooling': 'avg'}
  if model.num_classes:
    options['classifier_activation'] = 'softmax' if network.softmax else None
  theirs = keras.applications.MobileNet((*model.config.data.image_size, 3), model.config.model.width_multiplier,
                                        weights=None, **options)
  arrays = {weights.keras_name(place): weights.to_theirs(place, value)
            for place, value in weights.flatten(model.variables).items()}
  for layer in theirs.layers:
    if layer.weights:
      layer.set_weights([arrays[f'{layer.name}/{i}'] for i in range(len(layer.weights))])
    if isinstance(layer, keras.layers.BatchNormalization):
      layer.epsilon = model.config.model.batch_norm_epsilon
  if network.preprocessing:
    images = keras.Input(network.input_shape, dtype='uint8')
    x = keras.layers.Rescaling(1 / 127.5, -1.0)(images)
    if network.input_shape[:2] != tuple(model.config.data.image_size):
      x = keras.layers.Resizing(*model.config.data.image_size, interpolation='bilinear')(x)
    theirs = keras.Model(images, theirs(x))
  theirs.save(path)


def run(path: Path, images: np.ndarray) -> np.ndarray:
  """Runs the file in Keras."""
  import keras
  return np.asarray(keras.models.load_model(path, compile=False)(images, training=False))


def tensors(path: Path) -> tuple[Tensor, Tensor]:
  """Returns the file's input, by its own name, and its output, by that of the last layer."""
  import keras
  model = keras.models.load_model(path, compile=False)
  source, result = model.inputs[0], model.outputs[0]
  return (Tensor(source.name, source.dtype, tuple(source.shape)),
          Tensor(model.layers[-1].name, result.dtype, tuple(result.shape)))


def refuse(network: Network, calibrated: bool) -> None:
  """Raises UserError if keras.applications.MobileNet is another network."""
  del calibrated
  model = network.model
  config = model.config
  if model.task.kind != 'classes':
    raise UserError(f'keras: its MobileNet is a classifier, but this model has task={config.task}; export to another format')
  if (config.model.name, config.model.get('activation')) != ('mobilenet', 'relu6'):
    other = f'mobilenet with {config.model.activation}' if config.model.name == 'mobilenet' else config.model.name
    raise UserError(f'keras: its MobileNet is the model mobilenet with relu6, not {other}; export to another format')
  for size in config.data.image_size:
    size = -(-size // 2)
    for stride, _ in BODY:
      if padding_of(size, stride, config.model.padding) != padding_of(size, stride, 'keras'):
        raise UserError(f'keras: its MobileNet pads odd sizes differently, as with {config.data.image_size}; export a size '
                        'that is a multiple of 32, or export to another format')
      size = -(-size // stride)
