"""Files of weights as TF-slim writes them, for tests."""

import numpy as np
import pytest

from mobilenet_jax.models import MobileNet
from mobilenet_jax.trained.published import weights

tf = pytest.importorskip('tensorflow', reason='TensorFlow reads the published files, and is not installed')


def random_variables(num_classes, alpha):
  """Returns random variables of our own model, including batch statistics."""
  model = MobileNet(num_classes, alpha)
  rng = np.random.default_rng(0)
  def draw(path, shape):
    if path[2] in ('scale', 'var'):
      return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    return rng.normal(0, 1.5 / np.sqrt(max(np.prod(shape[:-1]), 1)), shape).astype(np.float32)
  return weights.unflatten({path: draw(path, shape) for path, shape in weights.shapes(model).items()})


def slim_arrays(variables, suffix=''):
  return {weights.slim_name(path) + suffix: weights.to_theirs(path, value)
          for path, value in weights.flatten(variables).items()}


def write_checkpoint(prefix, arrays):
  """Writes a checkpoint with tf.compat.v1.train.Saver."""
  with tf.Graph().as_default(), tf.compat.v1.Session() as session:
    variables = {name: tf.compat.v1.Variable(value, name=name) for name, value in arrays.items()}
    session.run(tf.compat.v1.global_variables_initializer())
    tf.compat.v1.train.Saver(variables).save(session, str(prefix), write_meta_graph=False)


def graph_of(arrays, size=None, *operations):
  """Returns a frozen graph with these constants and, if given, an input of that size and nodes of these operations."""
  with tf.Graph().as_default() as graph:
    if size:
      tf.compat.v1.placeholder(tf.float32, (None, size, size, 3), 'input')
    for name, value in arrays.items():
      tf.constant(value, name=name)
  graph = graph.as_graph_def()
  for operation in operations:
    graph.node.add(name=operation, op=operation)
  return graph.SerializeToString()
