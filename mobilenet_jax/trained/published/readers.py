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
KINDS = 'a frozen graph (.pb), a TF-slim checkpoint (.ckpt or .tgz) or a Keras file (.h5)'

_SUFFIX = re.compile(r'\.(pb|ckpt(-\d+)?|tgz|gz|tar|h5|hdf5|tflite)')
_CHECKPOINT_PART = re.compile(r'\.(index|meta|data-\d+-of-\d+)$')  # model.ckpt-5 is model.ckpt-5.index and others
_AVERAGED = '/ExponentialMovingAverage'
_SLIM_VARIABLE = re.compile(r'MobilenetV1/(Conv2d_|Logits/).*/(\w*weights|biases|gamma|beta|moving_mean|moving_variance)')
_SIZE = re.compile(r'mobilenet_v1_[0-9.]+_(\d{2,3})(?!\d)|mobilenet_\d_\d_(\d{2,3})_tf')  # TF-slim's names, and Keras's
_QUANTISED = re.compile(r'FakeQuant|Quanti[sz]e|Dequanti[sz]e')  # operations in a graph
_NOT_FLOAT = 'expected float weights as they were trained'


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


def is_file(path: Path) -> bool:
  """Returns whether a path is a file or the prefix of a checkpoint, or has a suffix for which it can only be meant as one."""
  return path.exists() or _index_of(path).exists() or bool(
      _SUFFIX.fullmatch(path.suffix) or _CHECKPOINT_PART.search(path.name))


def stem(path: Path) -> str:
  """Returns the name of a file without what only says its kind: model.ckpt-5 of model.ckpt-5.index."""
  name = _CHECKPOINT_PART.sub('', path.name)
  return name if '.ckpt-' in name else Path(name).stem


def size_in(file_name: str) -> tuple[int, int] | None:
  """Returns the image size that a name says if it is one of TF-slim's or Keras's, such as mobilenet_v1_0.25_128.ckpt."""
  match = _SIZE.search(file_name)
  size = match and int(match[1] or match[2])
  return (size, size) if size else None


def read(path: Path, averaged: bool = True) -> Published:
  """Reads a file of any of the KINDS.

  Args:
    path: the file, or the prefix of a checkpoint, such as 'model.ckpt' for 'model.ckpt.index'.
    averaged: use the moving averages of the variables if a checkpoint has them.

  Raises:
    UserError: if there is no such file, or it is of another kind, quantised or truncated.
  """
  if _index_of(path).exists():
    return _whole(path, _read_checkpoint, _index_of(path).with_suffix(''), averaged)
  if not path.is_file():
    raise UserError(f'{path}: there is no such file')
  with path.open('rb') as file:
    if path.suffix == '.tflite' or file.read(8)[4:] == b'TFL3':
      raise UserError(f'{path}: a TFLite file, whose weights are folded and often have 8 bits; {_NOT_FLOAT}: {KINDS}')
  if path.suffix == '.pb':
    return _whole(path, lambda: _read_graph(path, _graph(path)))
  if path.suffix in ('.tgz', '.gz', '.tar'):
    return _whole(path, _read_archive, path, averaged)
  if path.suffix in ('.h5', '.hdf5'):
    return _whole(path, _read_keras, path)
  raise UserError(f'{path}: not a file of weights that can be read; expected {KINDS}')


def _index_of(path):
  return Path(f'{_CHECKPOINT_PART.sub("", str(path))}.index')


def _whole(path, reader, *args):
  try:
    return reader(*args)
  except UserError:
    raise
  except Exception as error:  # from TensorFlow, h5py, tarfile, zlib or protobuf, depending on what is wrong
    first = (str(error).splitlines() or [type(error).__name__])[0][:200]
    raise UserError(f'{path}: truncated, damaged or not of the kind that its name says ({first}); '
                    f'expected {KINDS}') from error


def _read_checkpoint(prefix, averaged):
  import tensorflow as tf
  with tempfile.TemporaryDirectory() as folder:  # TensorFlow takes a path for a pattern
    for part in prefix.parent.iterdir():
      if part.name.startswith(f'{prefix.name}.'):
        (Path(folder) / f'model{part.name.removeprefix(prefix.name)}').symlink_to(part.resolve())
    reader = tf.train.load_checkpoint(f'{folder}/model')
    every = reader.get_variable_to_shape_map()
    if any('_quant/' in name for name in every):
      raise UserError(f'{prefix}: trained for 8 bits, with ranges of quantisation beside its weights; {_NOT_FLOAT}')
    names = {name for name in every if _SLIM_VARIABLE.fullmatch(name)}
    has_averages = averaged and any(reader.has_tensor(name + _AVERAGED) for name in names)
    arrays = {}
    for name in names:
      # Batch norm's statistics are averages themselves, so that training may not have averaged them.
      use_average = has_averages and (reader.has_tensor(name + _AVERAGED) or '/moving_' not in name)
      arrays[name] = reader.get_tensor(name + _AVERAGED if use_average else name)
  return Published('slim', arrays)


def _graph(path):
  import tensorflow as tf
  return tf.compat.v1.GraphDef.FromString(path.read_bytes())


def _graph_size(graph):
  """Returns (height, width) of the input of a graph if they are fixed, else None."""
  sizes = [tuple(d.size for d in node.attr['shape'].shape.dim[1:3]) for node in graph.node if node.op == 'Placeholder']
  return next((size for size in sizes if len(size) == 2 and min(size) > 0), None)


def _read_graph(path, graph):
  import tensorflow as tf
  if any(_QUANTISED.match(node.op) for node in graph.node):
    raise UserError(f'{path}: a quantised (8-bit) graph; {_NOT_FLOAT}')
  arrays = {node.name: tf.make_ndarray(node.attr['value'].tensor) for node in graph.node
            if node.op == 'Const' and _SLIM_VARIABLE.fullmatch(node.name)}
  if not arrays:
    raise UserError(f'{path}: none of the {len(graph.node)} nodes is a weight of a TF-slim MobileNet V1; expected {KINDS}')
  epsilons = [float(tf.make_ndarray(node.attr['value'].tensor)) for node in graph.node
              if node.op == 'Const' and node.name.endswith('/batchnorm/add/y')]
  epsilons += [node.attr['epsilon'].f for node in graph.node if node.op.startswith('FusedBatchNorm')]
  return Published('slim', arrays, _graph_size(graph), epsilons[0] if epsilons else EPSILON)


def _read_archive(path, averaged):
  """Reads the checkpoint in a released .tgz, which also holds the frozen graph of the model, or the graph if it is alone."""
  with tempfile.TemporaryDirectory() as folder, tarfile.open(path) as archive:
    wanted = [member for member in archive if _CHECKPOINT_PART.search(member.name)
              or member.name.endswith('.pb') and not member.name.endswith('saved_model.pb')]
    archive.extractall(folder, wanted, filter='data')
    files = [file for file in sorted(Path(folder).rglob('*')) if file.is_file()]
    prefixes = [file.with_suffix('') for file in files if file.suffix == '.index']
    graphs = [file for file in files if file.suffix == '.pb']
    if len(prefixes) > 1 or not prefixes and len(graphs) != 1:
      raise UserError(f'{path}: has {len(prefixes)} checkpoints (.ckpt.index) and {len(graphs)} frozen graphs (.pb); expected '
                      'one model')
    graph = _graph(graphs[0]) if len(graphs) == 1 else None
    content = _read_checkpoint(prefixes[0], averaged) if prefixes else _read_graph(path, graph)
    size = graph and _graph_size(graph) or size_in((prefixes or graphs)[0].name)
    return dataclasses.replace(content, image_size=size)


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
