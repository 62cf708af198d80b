"""Tasks by name. A task is what varies between the paper's sections: head, loss, metrics."""

import ml_collections

from mobilenet_jax.tasks.attributes import Attributes
from mobilenet_jax.tasks.classification import Classification
from mobilenet_jax.tasks.embedding import Embedding

TASKS = {'classification': Classification, 'attributes': Attributes, 'embedding': Embedding}


def create(config: ml_collections.ConfigDict):
  """The task that config.task names, of a whole config."""
  return TASKS[config.task](config)
