"""Checks a config before anything is built from it."""

import ml_collections

from mobilenet_jax import config as config_lib
from mobilenet_jax import models, tasks
from mobilenet_jax.errors import UserError

FREEZE = 'freeze_batch_stats'  # the field of a network


def checked(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """Checks a complete config. Returns a copy in which nothing is left to be filled in.

  In it, `model` has every field of its network, split_by is the task's, and init.freeze_body freezes batch statistics, too.

  Raises:
    UserError: if a field has a wrong value, or two contradict each other. It names the field, what was given and what is expected.
  """
  config = config_lib.validated(config)
  task = tasks.create(config)
  if config.accumulate_steps > 1 and task.compares_examples and config.distill.hard_weight:
    raise UserError(f'accumulate_steps={config.accumulate_steps}: the loss of task={config.task} compares the examples of a batch, '
                    'which parts of it would not; expected 1, or distill.hard_weight=0')
  config = config_lib.changed(config, {'data.split_by': config.data.split_by or task.split_by})
  if config.init.freeze_body and FREEZE in models.fields(config.model.name):
    if not config.model.get(FREEZE, True):
      raise UserError(f'model.{FREEZE}=False: the running statistics of a frozen body would still move; expected True with '
                      'init.freeze_body=True')
    config.model[FREEZE] = True
  config.model = models.complete(config.model)
  return config
