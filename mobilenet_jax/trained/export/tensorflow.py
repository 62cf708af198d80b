"""Export to SavedModel, in TensorFlow's operations, and to TFLite (LiteRT), with jax2tf and TensorFlow's converter."""

from pathlib import Path

import numpy as np

from mobilenet_jax import models
from mobilenet_jax.errors import UserError
from mobilenet_jax.storage.files import plain_path
from mobilenet_jax.trained.export.network import Network


def write_saved_model(network: Network, path: Path, calibration: np.ndarray | None = None) -> None:
  """Writes a folder, for any batch size. Its signature 'serving_default' takes `images`.

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
  """Writes a file of built-in operations, for one image.

  Args:
    network: the network to write.
    path: the file.
    calibration: for 'int8', inputs of the network, whose activations give the ranges.
    precision: 'float32'; 'float16' (weights); 'dynamic' (int8 weights, activations quantised at run time); 'int8'
      (everything, with uint8 input and output).
  """
  import tensorflow as tf
  from jax.experimental import jax2tf
  module = tf.Module()
  module.call = _signature(network, jax2tf.convert(network.function(), with_gradient=False), batch=1)
  converter = tf.lite.TFLiteConverter.from_concrete_functions([module.call.get_concrete_function()], module)
  if precision != 'float32':
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
  if precision == 'float16':
    converter.target_spec.supported_types = [tf.float16]
  if precision == 'int8':
    if calibration is None:
      raise UserError('tflite-int8: the ranges of activations are measured on images; give some with --calibration=FOLDER')
    if network.preprocessing:
      raise UserError('tflite-int8: the inputs are pixels already, with the scale in the file; leave out --preprocessing')
    converter.representative_dataset = lambda: ([image[None]] for image in calibration)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = converter.inference_output_type = tf.uint8
  path.write_bytes(converter.convert())


def run_tflite(path: Path, images: np.ndarray) -> np.ndarray:
  """Runs the file image by image in the LiteRT interpreter. Integer outputs are converted to the numbers they stand for."""
  interpreter = _interpreter(path)
  (source,), (target,) = interpreter.get_input_details(), interpreter.get_output_details()
  outputs = []
  for image in images:
    interpreter.set_tensor(source['index'], _quantize(image[None], source))
    interpreter.invoke()
    output = interpreter.get_tensor(target['index'])
    scale, zero = target['quantization']
    outputs.append((output.astype(np.float32) - zero) * scale if scale else output)
  return np.concatenate(outputs)


def quantization(path: Path) -> dict:
  """Returns scale and zero point of a TFLite file's input and output: real = (integer - zero_point) x scale.

  Floats are left out.
  """
  interpreter = _interpreter(path)
  tensors = {'input': interpreter.get_input_details()[0], 'output': interpreter.get_output_details()[0]}
  return {name: {'dtype': np.dtype(tensor['dtype']).name, 'scale': tensor['quantization'][0],
                 'zero_point': tensor['quantization'][1]}
          for name, tensor in tensors.items() if tensor['quantization'][0]}


def _in_tensorflow(network):
  """Returns images -> {output: (b, outputs)}: the folded layers as TensorFlow's operations."""
  import tensorflow as tf
  model, size = network.model, network.model.config.data.image_size
  layers = [layer._replace(kernel=np.asarray(layer.kernel), bias=np.asarray(layer.bias))
            for layer in models.folded_layers(network.module, model.variables)]
  predict = {'classes': tf.nn.softmax, 'attributes': tf.nn.sigmoid,
             'vector': lambda x: tf.math.l2_normalize(x, -1), 'numbers': lambda x: x}[model.task.kind]

  def function(images):
    x = images
    if network.preprocessing:
      x = tf.cast(x, tf.float32) / 127.5 - 1
      if network.input_shape[:2] != tuple(size):
        x = tf.image.resize(x, size, 'bilinear')
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
    return {network.output: predict(x) if network.predicts else x}

  return function


def _image_by_image(network):
  """Returns images -> {output: (b, outputs)}: what jax2tf writes for one image, called for each image."""
  import tensorflow as tf
  from jax.experimental import jax2tf
  function = jax2tf.convert(network.function(), with_gradient=False)
  return lambda images: {network.output: tf.map_fn(
      lambda image: function(image[None])[0], images, fn_output_signature=tf.float32)}


def _interpreter(path):
  from ai_edge_litert.interpreter import Interpreter
  interpreter = Interpreter(str(path))
  interpreter.allocate_tensors()
  return interpreter


def _quantize(values, tensor):
  scale, zero = tensor['quantization']
  if not scale:
    return values
  limits = np.iinfo(tensor['dtype'])
  return np.clip(np.round(values / scale + zero), limits.min, limits.max).astype(tensor['dtype'])


def _signature(network, function, batch):
  import tensorflow as tf
  spec = tf.TensorSpec((batch, *network.input_shape), network.input_dtype, name='images')
  return tf.function(function, input_signature=[spec], autograph=False)
