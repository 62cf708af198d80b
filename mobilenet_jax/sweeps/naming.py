"""Names the runs of a sweep after what differs between them, and finds what varies among the runs of a folder."""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import ml_collections

from mobilenet_jax import config as config_lib
from mobilenet_jax import models
from mobilenet_jax.errors import UserError
from mobilenet_jax.storage.run_files import WITHOUT_TRACE, read_config
from mobilenet_jax.sweeps.tables import SEEDS

IN_MODEL_NAME = ('model.name', 'model.width_multiplier', 'data.image_size')  # see config.model_name
SHORT = {'optim.learning_rate': 'lr', 'seed': 's'}
MAX_VALUE, MAX_NAME = 40, 200  # characters of a value in a name, and of a name


def names(runs: Sequence[tuple[dict, ml_collections.ConfigDict]], existing: dict[str, ml_collections.ConfigDict]) -> list[str]:
  """Returns the name of each run of a sweep, such as mobilenet_0.5_160_lr0.002_s1.

  It is the model's name, and the value of each further field that the sweep changes and that differs among its runs and
  those of the folder. A run that the folder has keeps its name, whatever else the sweep varies by now.

  Args:
    runs: what each run changes, and its config, see training.checked.
    existing: the configs of the runs that the folder has, by name.

  Raises:
    UserError: if two runs are the same.
  """
  flat = [config_lib.flat(config) for _, config in runs]
  others = {name: config_lib.flat(config) for name, config in existing.items()}
  changed = dict.fromkeys(field for change, _ in runs for field in change)
  fields = [field for field in varied([*flat, *others.values()]) if field in changed]
  exact = {_key(other, [*fields, 'train_for']): name for name, other in others.items()}
  own = {_key(other, fields): name for name, other in others.items()}  # a run may become longer
  found = []
  for values, (_, config) in zip(flat, runs):
    parts = [_part(field, values[field]) for field in fields if field in values and field not in IN_MODEL_NAME]
    name = '_'.join([config_lib.model_name(config), *parts])
    same = exact.get(_key(values, [*fields, 'train_for'])) or own.get(_key(values, fields))
    found.append(same or (name if len(name) <= MAX_NAME else _shortened(name, name, MAX_NAME)))
  for i, name in enumerate(found):
    if name in found[:i]:
      raise UserError(f'two runs of the sweep are the same: {name}; expected each combination of values once')
  return found


def existing(workdir: Path, known: Iterable[str]) -> dict[str, ml_collections.ConfigDict]:
  """Returns the configs of those runs of a sweep's folder that have one, by name, with every field of their networks."""
  found = {}
  for name in known:
    try:
      config = read_config(workdir / name)
      config.model = models.complete(config.model)
    except UserError:  # none yet, damaged, or of a network that there is no more
      continue
    found[name] = config
  return found


def varied(runs: Iterable[dict]) -> list[str]:
  """Returns the fields in which configs differ among those that have them, in the order of a config, seeds last.

  Args:
    runs: flat configs, see config.flat. Fields that leave no trace in the results are not compared.
  """
  values = {}
  for run in runs:
    for field, value in run.items():
      values.setdefault(field, set()).add(tuple(value) if isinstance(value, list) else value)
  order = list(config_lib.all_fields({}))
  place = lambda field: (field in SEEDS, order.index(field if field in order else 'model.num_classes'), field)
  return sorted((field for field, found in values.items() if len(found) > 1 and field not in WITHOUT_TRACE), key=place)


def between(others: Iterable[dict], runs: Iterable[dict]) -> list[str]:
  """Returns in what all of some runs differ from all of the others, such as 'batch_size=64, here 32'; see varied."""
  values = lambda field, configs: {config_lib.text(config[field]) for config in configs if field in config}
  others, runs = list(others), list(runs)
  found = [(field, values(field, others), values(field, runs)) for field in varied([*others, *runs])]
  return [f'{field}={there.pop()}, here {here.pop()}' for field, there, here in found
          if len(there) == 1 and len(here) == 1 and there != here]


def _part(field, value) -> str:
  """Returns the part of a name that stands for a field."""
  section, _, last = field.rpartition('.')
  alike = [other for other in config_lib.all_fields({}) if other.rpartition('.')[2] == last]
  word = SHORT.get(field) or (section if last == 'name' else field.replace('.', '-') if len(alike) > 1 else last)
  written = config_lib.text(value)
  plain = written.replace(' ', '') if isinstance(value, str) and config_lib.parse_duration(value) else written
  if not re.fullmatch(rf'[\w.+-]{{1,{MAX_VALUE}}}', plain, re.ASCII):  # two texts may look the same without what is unsafe
    plain = _shortened(re.sub(r'[^\w.+-]+', '-', written, flags=re.ASCII).strip('-'), written, MAX_VALUE)
  return f'{word}{"-" if isinstance(value, str) else ""}{plain}'


def _shortened(safe, whole, length) -> str:
  return f'{safe[-length:]}-{hashlib.sha256(whole.encode()).hexdigest()[:6]}'


def _key(values, fields) -> str:
  """Returns what makes a run the same run: its values but for those that may change when it is started again.

  Those that training.completed may have filled in from an origin or a teacher are not compared unless the sweep varies them.
  """
  filled_in = [*(f'model.{field}' for field in models.fields_of_weights(values['model.name']) if values['init.model']),
               *(['data.stream_size'] if values['distill.model'] else [])]
  free = {*WITHOUT_TRACE, 'train_for', *filled_in} - set(fields)
  return json.dumps({field: value for field, value in values.items() if field not in free}, sort_keys=True, allow_nan=False)
