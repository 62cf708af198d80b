"""Export to ONNX, with tf2onnx from the TFLite file."""

import tempfile
from pathlib import Path

import numpy as np

from mobilenet_jax.errors import UserError
from mobilenet_jax.trained.export import tensorflow
from mobilenet_jax.trained.export.network import Network

OPSET = 18


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
                      f'({" ".join(str(error).split())[:100]}); export to another format') from error
  graph = model.graph
  names = {graph.input[0].name: 'images', graph.output[0].name: network.output}
  for node in graph.node:
    node.input[:] = [names.get(name, name) for name in node.input]
    node.output[:] = [names.get(name, name) for name in node.output]
  for value in (*graph.input, *graph.output):
    value.name = names[value.name]
    value.type.tensor_type.shape.dim[0].dim_param = 'batch'  # no operation depends on the batch size
  del graph.value_info[:]
  if network.model.labels:
    onnx.helper.set_model_props(model, {'labels': '\n'.join(network.model.labels)})
  onnx.checker.check_model(model)
  onnx.save(model, str(path))


def run(path: Path, images: np.ndarray) -> np.ndarray:
  import onnxruntime
  session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
  return session.run(None, {'images': images})[0]
