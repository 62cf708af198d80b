"""Checks a config before anything is built from it."""

import ml_collections

from mobilenet_jax import config as config_lib
from mobilenet_jax import models, tasks


def checked(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """Checks a complete config and returns a copy in which `model` has every field of its network.

  Raises:
    UserError: if a field has a wrong value. It names the field, what was given and what is expected.
  """
  config_lib.validate(config)
  tasks.create(config)
  config = config_lib.changed(config, {})
  config.model = models.complete(config.model)
  return config
