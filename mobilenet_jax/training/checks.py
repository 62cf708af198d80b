"""Checks a config before anything is built from it."""

import ml_collections

from mobilenet_jax import config as config_lib
from mobilenet_jax import models, tasks


def checked(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """Checks a complete config. Returns a copy in which `model` has every field of its network, and split_by is the task's.

  Raises:
    UserError: if a field has a wrong value. It names the field, what was given and what is expected.
  """
  config = config_lib.validated(config)
  task = tasks.create(config)
  config = config_lib.changed(config, {'data.split_by': config.data.split_by or task.split_by})
  config.model = models.complete(config.model)
  return config
