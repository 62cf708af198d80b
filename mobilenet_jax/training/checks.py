"""Checks a config, and fills in what it leaves open, before anything is built from it."""

from collections.abc import Sequence
from pathlib import Path

import ml_collections

from mobilenet_jax import config as config_lib
from mobilenet_jax import models, tasks, trained
from mobilenet_jax.data import stream_size
from mobilenet_jax.errors import UserError
from mobilenet_jax.storage import run_files

FREEZE = 'freeze_batch_stats'  # the field of a network


def checked(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """Checks a complete config. Returns a copy in which `model` has every field of its network, `optim` every
  field of its optimiser and its schedule, and split_by is the task's.

  In it, init.freeze_body freezes the statistics of batch norm, too; see check_freezes for networks that cannot.

  Raises:
    UserError: if a field has a wrong value, or two contradict each other. It names the field, what was given and what is
      expected.
  """
  config = config_lib.validated(config)
  task = tasks.create(config)
  if config.accumulate_steps > 1 and task.compares_examples and config.distill.hard_weight:
    raise UserError(f'accumulate_steps={config.accumulate_steps}: the loss of task={config.task} compares the examples of a '
                    'batch, which parts of it would not; expected 1, or distill.hard_weight=0')
  config = config_lib.changed(config, {'data.split_by': config.data.split_by or task.split_by})
  if config.init.freeze_body and FREEZE in models.fields(config.model.name):
    if not config.model.get(FREEZE, True):
      raise UserError(f'model.{FREEZE}=False: the running statistics of a frozen body would still move; expected True with '
                      'init.freeze_body=True')
    config.model[FREEZE] = True
  config.model = models.complete(config.model)
  config.optim = config_lib.complete_optim(config.optim)
  return config


def check_freezes(config: ml_collections.ConfigDict, batch_stats: dict) -> None:
  """Raises UserError if init.freeze_body is set, and the statistics of the network's batch norm would still move."""
  if config.init.freeze_body and batch_stats and FREEZE not in models.fields(config.model.name):
    raise UserError(f'init.freeze_body=True: {config.model.name} has batch norm, but no field {FREEZE}, without which its '
                    'statistics would still move; give the network the field, see models/layers.py')


def completed(configs: Sequence[ml_collections.ConfigDict], folders: Sequence[Path]) -> list[ml_collections.ConfigDict]:
  """Returns the configs of runs, checked, with what follows from the models that they name.

  If the origin, init.model, is the same network, its fields that are part of what the weights compute are taken over, see
  fields.Field.of_weights, except those that a config sets itself. If a teacher, distill.model, takes larger images than the
  student, data.stream_size grows to their size, so that the teacher sees as much as in its own evaluation.

  If such a model is gone, a run that has begun keeps the values that it began with.

  Args:
    configs: a complete config of each run, in which `model` has only the fields that are set.
    folders: the folder of each run, which need not exist.

  Raises:
    UserError: as in `checked`, or if a model cannot be loaded.
  """
  found = {}

  def config_of(section, config, folder):
    name = config[section].model
    try:
      found[name] = found.get(name) or trained.config_of(name)
    except UserError:
      own = run_files.read_config(folder) if run_files.has_begun(folder) else None
      if not own or own[section].model != name:
        raise
      return own
    return found[name]

  def complete(config, folder):
    plain, changes = checked(config), {}
    left_open = [field for field in models.fields_of_weights(plain.model.name) if field not in config.model]
    if plain.init.model and left_open:
      origin = config_of('init', plain, folder).model
      if origin.name == plain.model.name:
        changes |= {f'model.{field}': origin[field] for field in left_open}
    if plain.distill.model:
      sizes = stream_size(plain.data), stream_size(config_of('distill', plain, folder).data)
      if (size := tuple(map(max, *sizes))) != sizes[0]:
        changes['data.stream_size'] = size
    return checked(config_lib.changed(plain, changes))

  return [complete(config, folder) for config, folder in zip(configs, folders)]


def compared(model: ml_collections.ConfigDict, origin: ml_collections.ConfigDict) -> tuple[str, str]:
  """Returns in words which fields a network takes over from the one whose weights it starts from, and which differ.

  Only fields that are part of what the weights compute are compared, see fields.Field.of_weights. A field that is taken over
  at its default is not worth a word.
  """
  if model.name != origin.name:
    return '', (f'model.name={model.name} instead of its {origin.name}, whose weights have the same shapes: whether both '
                'compute the same is not known')
  fields, usual = models.fields_of_weights(model.name), models.defaults(model.name)
  same = [f'{field}={model[field]}' for field in fields if model[field] == origin[field] != usual[field]]
  other = [f'model.{field}={model[field]}, as the recipe sets it, where it has {origin[field]}' for field in fields
           if model[field] != origin[field]]
  return ' and '.join(same), '; '.join(other)
