"""Reads the files in which MobileNet V1 weights are published. Nothing here depends on our own names or shapes."""

import dataclasses
import json
import re
import tarfile
import tempfile
from pathlib import Path

import numpy as np

from mobilenet_jax.errors import UserError

EPSILON = 1e-3  # of batch norm, both in TF-slim's scope and by default in Keras; a value in the file takes precedence
SUFFIXES = ('.pb', '.ckpt', '.index', '.tgz', '.gz', '.tar', '.h5', '.hdf5')
KINDS = 'a frozen graph (.pb), a TF-slim checkpoint (.ckpt or .tgz) or a Keras file (.h5)'

_AVERAGED = '/ExponentialMovingAverage'
_SLIM_VARIABLE = re.compile(r'MobilenetV1/(Conv2d_|Logits/).*/(\w*weights|biases|gamma|beta|moving_mean|moving_variance)')


@dataclasses.dataclass(frozen=True)
class Published:
  """The contents of a file.

  Attributes:
    family: 'slim' or 'keras', which determines names, background class and padding.
    arrays: arrays by name: TF-slim's variable, or Keras's layer and the index among its weights, 'conv1_bn/0'.
    image_size: (height, width) if the file contains it, else None.
    epsilon: epsilon of batch norm.
  """

  family: str
  arrays: dict[str, np.ndarray]
  image_size: tuple[int, int] | None = None
  epsilon: float = EPSILON


def read(path: Path, averaged: bool = True) -> Published:
  """Reads a file of any of the KINDS.

  Args:
    path: the file, or the prefix of a checkpoint, such as 'model.ckpt' for 'model.ckpt.index'.
    averaged: use the moving averages of the variables if a checkpoint has them.

  Raises:
    UserError: if there is no such file, or it is of another kind or truncated.
  """
  prefix = path.with_suffix('') if path.suffix == '.index' else path
  if Path(f'{prefix}.index').exists():
    return _whole(path, _read_checkpoint, prefix, averaged)
  if not path.is_file():
    raise UserError(f'{path}: there is no such file')
  if path.suffix == '.pb':
    return _whole(path, _read_frozen_graph, path)
  if path.suffix in ('.tgz', '.gz', '.tar'):
    return _whole(path, _read_archive, path, averaged)
  if path.suffix in ('.h5', '.hdf5'):
    return _whole(path, _read_keras, path)
  raise UserError(f'{path}: not a file of weights that can be read; expected {KINDS}')


def _whole(path, reader, *args):
  import tensorflow as tf
  from google.protobuf.message import DecodeError
  try:
    return reader(*args)
  except (OSError, EOFError, LookupError, ValueError, tarfile.TarError, DecodeError, tf.errors.OpError) as error:
    first = (str(error).splitlines() or [type(error).__name__])[0][:200]
    raise UserError(f'{path}: truncated, damaged or not of the kind that its name says ({first}); '
                    f'expected {KINDS}') from error


def _read_checkpoint(prefix, averaged):
  import tensorflow as tf
  reader = tf.train.load_checkpoint(str(prefix))
  names = {name for name in reader.get_variable_to_shape_map() if _SLIM_VARIABLE.fullmatch(name)}
  has_averages = averaged and any(reader.has_tensor(name + _AVERAGED) for name in names)
  arrays = {}
  for name in names:
    # Batch norm's statistics are averages themselves, so that training may not have averaged them.
    use_average = has_averages and (reader.has_tensor(name + _AVERAGED) or '/moving_' not in name)
    arrays[name] = reader.get_tensor(name + _AVERAGED if use_average else name)
  return Published('slim', arrays)


def _read_frozen_graph(path):
  import tensorflow as tf
  graph = tf.compat.v1.GraphDef.FromString(path.read_bytes())
  arrays = {node.name: tf.make_ndarray(node.attr['value'].tensor) for node in graph.node
            if node.op == 'Const' and _SLIM_VARIABLE.fullmatch(node.name)}
  if not arrays:
    raise UserError(f'{path}: none of the {len(graph.node)} nodes is a weight of a TF-slim MobileNet V1; expected {KINDS}')
  epsilons = [float(tf.make_ndarray(node.attr['value'].tensor)) for node in graph.node
              if node.op == 'Const' and node.name.endswith('/batchnorm/add/y')]
  epsilons += [node.attr['epsilon'].f for node in graph.node if node.op.startswith('FusedBatchNorm')]
  sizes = [tuple(d.size for d in node.attr['shape'].shape.dim[1:3]) for node in graph.node if node.op == 'Placeholder']
  size = next((size for size in sizes if len(size) == 2 and min(size) > 0), None)
  return Published('slim', arrays, size, epsilons[0] if epsilons else EPSILON)


def _read_archive(path, averaged):
  """Reads the checkpoint in a released .tgz, which holds checkpoint, frozen graph and TFLite file of one model."""
  with tempfile.TemporaryDirectory() as folder, tarfile.open(path) as archive:
    archive.extractall(folder, [member for member in archive if '.ckpt.' in member.name], filter='data')
    index = next(Path(folder).rglob('*.ckpt.index'), None)
    if index is None:
      raise UserError(f'{path}: no checkpoint (.ckpt.index) in this archive')
    return _read_checkpoint(index.with_suffix(''), averaged)


def _read_keras(path):
  import h5py
  with h5py.File(path) as file:
    root = file.get('model_weights', file)
    layers = _keras_legacy(root) if 'layer_names' in root.attrs else _keras_3(file)
    arrays = {f'{layer}/{i}': np.asarray(array) for layer, values in layers.items() for i, array in enumerate(values)}
    architecture = json.loads(file.attrs.get('model_config', '{}'))
  layers = architecture.get('config', {}).get('layers', [])
  shapes = [layer['config'].get('batch_shape', layer['config'].get('batch_input_shape')) for layer in layers]
  size = next((tuple(shape[1:3]) for shape in shapes if shape and None not in shape[1:3]), None)
  epsilons = [layer['config']['epsilon'] for layer in layers if layer['class_name'] == 'BatchNormalization']
  return Published('keras', arrays, size, epsilons[0] if epsilons else EPSILON)


def _keras_legacy(root):
  """Returns the weights by layer from the published files and those of Model.save('x.h5').

  Attributes give the names of the layers and, for each layer, the names of its weights.
  """
  text = lambda names: [name.decode() if isinstance(name, bytes) else name for name in names]
  return {layer: [root[layer][name] for name in text(root[layer].attrs['weight_names'])]
          for layer in text(root.attrs['layer_names'])}


def _keras_3(file):
  """Returns the weights by layer from the files of Model.save_weights('x.weights.h5').

  There is one group per layer, named by class and number; an attribute gives the layer's own name.
  """
  if 'layers' not in file:
    raise UserError(f'{file.filename}: an HDF5 file without the weights of a Keras model')
  groups = [group['vars'] for group in file['layers'].values() if 'vars' in group]
  return {str(group.attrs['name']): [group[str(i)] for i in range(len(group))] for group in groups if len(group)}
