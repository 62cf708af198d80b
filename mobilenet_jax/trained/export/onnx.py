"""Export to ONNX, with tf2onnx from the TFLite file."""

import tempfile
import textwrap
from pathlib import Path

import numpy as np

from mobilenet_jax.errors import UserError
from mobilenet_jax.trained.export import tensorflow
from mobilenet_jax.trained.export.network import Network, Tensor

OPSET = 18
_DTYPES = {'tensor(float)': 'float32', 'tensor(uint8)': 'uint8'}


def write(network: Network, path: Path, calibration: np.ndarray | None = None) -> None:
  """Writes a file for any batch size. Its input is `images`, its output is named by its kind, and its metadata has labels."""
  import onnx
  import tf2onnx
  with tempfile.TemporaryDirectory() as folder:
    tflite = Path(folder) / 'model.tflite'
    tensorflow.write_tflite(network, tflite, calibration, 'float32')
    try:
      model, _ = tf2onnx.convert.from_tflite(str(tflite), opset=OPSET)
    except ValueError as error:
      raise UserError(f'onnx: tf2onnx does not know an operation of {network.model.config.model.name} '
                      f'({textwrap.shorten(str(error), 100, placeholder=" ...")}); export to another format') from error
  graph = model.graph
  names = {graph.input[0].name: 'images', graph.output[0].name: network.output}
  for node in graph.node:
    node.input[:] = [names.get(name, name) for name in node.input]
    node.output[:] = [names.get(name, name) for name in node.output]
  for value in (*graph.input, *graph.output):
    value.name = names[value.name]
    value.type.tensor_type.shape.dim[0].dim_param = 'batch'
  del graph.value_info[:]
  _keep_batch_in_reshapes(graph)
  if network.model.labels:
    onnx.helper.set_model_props(model, {'labels': '\n'.join(network.model.labels)})
  onnx.checker.check_model(model)
  onnx.save(model, str(path))


def run(path: Path, images: np.ndarray) -> np.ndarray:
  """Runs the file in onnxruntime, all images at once."""
  return _session(path).run(None, {'images': images})[0]


def tensors(path: Path) -> tuple[Tensor, Tensor]:
  """Returns the input and the output."""
  session = _session(path)
  return tuple(Tensor(tensor.name, _DTYPES[tensor.type], tuple(size if isinstance(size, int) else None
                                                              for size in tensor.shape))
               for tensor in (*session.get_inputs(), *session.get_outputs()))


def _session(path):
  import onnxruntime
  options = onnxruntime.SessionOptions()
  options.log_severity_level = 4  # failures are raised; it would print them too
  return onnxruntime.InferenceSession(str(path), options, providers=['CPUExecutionProvider'])


def _keep_batch_in_reshapes(graph):
  """Makes reshapes keep the batch size of their input. They have the 1 of the TFLite file, as where a map is 1x1."""
  from onnx import numpy_helper
  constants = {constant.name: constant for constant in graph.initializer}
  for node in graph.node:
    if node.op_type == 'Reshape' and node.input[0] not in constants and node.input[1] in constants:
      shape = numpy_helper.to_array(constants[node.input[1]]).copy()
      if shape[0] == 1:
        shape[0] = 0  # in ONNX, that of the input
        constants[node.input[1]].CopyFrom(numpy_helper.from_array(shape, node.input[1]))
