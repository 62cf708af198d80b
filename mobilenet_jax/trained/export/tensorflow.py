"""Export to SavedModel, in TensorFlow's operations, and to TFLite (LiteRT), with jax2tf and TensorFlow's converter."""

import dataclasses
from pathlib import Path

import numpy as np

from mobilenet_jax import models
from mobilenet_jax.errors import UserError
from mobilenet_jax.storage.files import plain_path
from mobilenet_jax.trained.export.network import Network, Tensor


def write_saved_model(network: Network, path: Path, calibration: np.ndarray | None = None) -> None:
  """Writes a folder, for any batch size. Its signature 'serving_default' takes `images`; its output is named by its kind.

  A MobileNet becomes TensorFlow's own operations. Any other network becomes one XLA call per image, because what jax2tf
  writes for any batch size needs a version of StableHLO that TensorFlow 2.21 cannot read from JAX 0.11.
  """
  del calibration
  import tensorflow as tf
  module = tf.Module()
  function = _in_tensorflow(network) if models.can_fold(network.model.module) else _image_by_image(network)
  module.call = _signature(network, function, batch=None)
  tf.saved_model.save(module, str(path), signatures=module.call)


def run_saved_model(path: Path, images: np.ndarray) -> np.ndarray:
  import tensorflow as tf
  with plain_path(path) as plain:  # TensorFlow takes the path of the weights for a pattern
    loaded = tf.saved_model.load(str(plain))  # a signature does not keep the model alive
    output, = loaded.signatures['serving_default'](images=tf.constant(images)).values()
    return output.numpy()


def write_tflite(network: Network, path: Path, calibration: np.ndarray | None, precision: str) -> None:
  """Writes a file of built-in operations, for one image. Its signature is as in `write_saved_model`.

  Args:
    network: the network to write.
    path: the file.
    calibration: for 'int8', inputs of the network, whose activations give the ranges.
    precision: 'float32'; 'float16' (weights); 'dynamic' (int8 weights, activations quantised at run time); 'int8'
      (everything, with uint8 input and output).
  """
  import tensorflow as tf
  module = tf.Module()
  module.call = _signature(network, _as_converted(network), batch=1)
  converter = tf.lite.TFLiteConverter.from_concrete_functions([module.call.get_concrete_function()], module)
  if precision != 'float32':
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
  if precision == 'float16':
    converter.target_spec.supported_types = [tf.float16]
  if precision == 'int8':
    converter.representative_dataset = lambda: ([image[None]] for image in calibration)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = converter.inference_output_type = tf.uint8
  path.write_bytes(converter.convert())


def refuse_int8(network: Network, calibrated: bool) -> None:
  """Raises UserError if an int8 file cannot be made."""
  if not calibrated:
    raise UserError('tflite-int8: the ranges of activations are measured on images; give some with --calibration=FOLDER')
  if network.preprocessing:
    raise UserError('tflite-int8: the file takes pixels already, with a scale of its own; leave out --preprocessing')


def run_tflite(path: Path, images: np.ndarray) -> np.ndarray:
  """Runs the file image by image in the LiteRT interpreter. Integer outputs are converted to the numbers they stand for."""
  run = _interpreter(path).get_signature_runner()
  source, target = tflite_tensors(path)
  outputs = [run(images=_quantize(image[None], source))[target.name] for image in images]
  return np.concatenate([_dequantize(output, target) for output in outputs])


def tflite_tensors(path: Path) -> tuple[Tensor, Tensor]:
  """Returns the input and the output, with their names in the file's signature."""
  run = _interpreter(path).get_signature_runner()

  def tensor(name, details):
    scale, zero = details['quantization']
    return Tensor(name, np.dtype(details['dtype']).name, tuple(map(int, details['shape'])),
                  {'scale': float(scale), 'zero_point': int(zero)} if scale else None)

  (source,), (target,) = run.get_input_details().items(), run.get_output_details().items()
  return tensor(*source), tensor(*target)


def saved_model_tensors(path: Path) -> tuple[Tensor, Tensor]:
  """Returns the input and the output of the signature 'serving_default'."""
  import tensorflow as tf
  with plain_path(path) as plain:
    signature = tf.saved_model.load(str(plain)).signatures['serving_default']
  (source,), (target,) = signature.structured_input_signature[1].items(), signature.structured_outputs.items()
  return tuple(Tensor(name, spec.dtype.name, tuple(spec.shape)) for name, spec in (source, target))


def _in_tensorflow(network):
  """Returns images -> outputs, both float32: the folded layers as TensorFlow's operations."""
  import tensorflow as tf
  model = network.model
  layers = [layer._replace(kernel=np.asarray(layer.kernel), bias=np.asarray(layer.bias))
            for layer in models.folded_layers(network.module, model.variables)]
  predict = {'classes': tf.nn.softmax, 'attributes': tf.nn.sigmoid,
             'vector': lambda x: tf.math.l2_normalize(x, -1), 'numbers': lambda x: x}[model.task.kind]

  def function(x):
    for layer in layers:
      stride = layer.stride
      if layer.kernel.shape[0] > 1:
        pads = (models.padding_of(size, stride, layer.padding) for size in x.shape[1:3])
        x = tf.pad(x, [(0, 0), *pads, (0, 0)])
      if layer.kind == 'depthwise':
        x = tf.nn.depthwise_conv2d(x, layer.kernel.transpose(0, 1, 3, 2), (1, stride, stride, 1), 'VALID')
      else:
        x = tf.nn.conv2d(x, layer.kernel, stride, 'VALID')
      x = tf.clip_by_value(x + layer.bias, 0, layer.cap)
    x = tf.reduce_mean(x, (1, 2))
    if model.num_classes:
      classifier = model.variables['params']['classifier']
      x = x @ np.asarray(classifier['kernel']) + np.asarray(classifier['bias'])
    return predict(x) if network.predicts else x

  return function


def _as_converted(network):
  """Returns images -> outputs, both float32: what jax2tf writes, for one image."""
  from jax.experimental import jax2tf
  return jax2tf.convert(dataclasses.replace(network, preprocessing=False).function(), with_gradient=False)


def _image_by_image(network):
  """Returns images -> outputs, both float32: `_as_converted`, called for each image."""
  import tensorflow as tf
  function = _as_converted(network)
  return lambda images: tf.map_fn(lambda image: function(image[None])[0], images, fn_output_signature=tf.float32)


def _interpreter(path):
  from ai_edge_litert.interpreter import Interpreter
  interpreter = Interpreter(str(path))
  interpreter.allocate_tensors()
  return interpreter


def _quantize(values, tensor):
  if not tensor.quantization:
    return values
  limits = np.iinfo(tensor.dtype)
  integers = np.round(values / np.float32(tensor.quantization['scale'])) + tensor.quantization['zero_point']
  return np.clip(integers, limits.min, limits.max).astype(tensor.dtype)


def _dequantize(integers, tensor):
  if not tensor.quantization:
    return integers
  return (integers.astype(np.float32) - tensor.quantization['zero_point']) * np.float32(tensor.quantization['scale'])


def _signature(network, function, batch):
  """Returns the images of the network -> {output: (b, outputs)}, with scaling and resizing in TensorFlow's operations."""
  import tensorflow as tf
  size = tuple(network.model.config.data.image_size)

  def call(images):
    x = images
    if network.preprocessing:
      x = tf.cast(x, tf.float32) / 127.5 - 1
      if network.input_shape[:2] != size:
        x = tf.image.resize(x, size, 'bilinear')
    return {network.output: function(x)}

  spec = tf.TensorSpec((batch, *network.input_shape), network.input_dtype, name='images')
  return tf.function(call, input_signature=[spec], autograph=False)
