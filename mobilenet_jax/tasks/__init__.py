"""Tasks by name. A task is what varies between the paper's sections: head, loss, metrics."""

import ml_collections

from mobilenet_jax.tasks.classification import Classification

TASKS = {'classification': Classification}


def create(config: ml_collections.ConfigDict, num_classes: int):
  return TASKS[config.task](config, num_classes)
