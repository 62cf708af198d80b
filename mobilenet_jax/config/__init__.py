"""Configs: the functions that build, read, change and check them.

    schema.py   every field, with its default, its comment and its range
    optim.py    the fields that an optimiser or a schedule has and others lack
    fields.py   what a field is

This module is the interface of the package: other packages import from here.
"""

import dataclasses
import difflib
import json
import re
from collections.abc import Iterable, Mapping

import ml_collections

from mobilenet_jax.config import optim as optim_lib
from mobilenet_jax.config import schema
from mobilenet_jax.config.fields import UNITS, Field, number, one_of, parse_duration, text
from mobilenet_jax.config.optim import OVER_THE_RUN
from mobilenet_jax.config.optim import complete as complete_optim
from mobilenet_jax.config.schema import MIN_SIZE, base
from mobilenet_jax.errors import UserError

__all__ = ['Field', 'MIN_SIZE', 'OVER_THE_RUN', 'RESOLUTION_MULTIPLIERS', 'WIDTH_MULTIPLIERS', 'all_fields', 'base', 'changed',
           'complete_optim', 'difference', 'field_of', 'flat', 'from_dict', 'left_out', 'model_name', 'number', 'one_of',
           'overridden', 'parse_arg', 'parse_duration', 'setting', 'square', 'steps', 'to_json', 'unknown_field', 'validated']

RESOLUTION_MULTIPLIERS = (1, 6 / 7, 5 / 7, 4 / 7)  # 224, 192, 160, 128 (section 3.4 of the paper)
WIDTH_MULTIPLIERS = (1.0, 0.75, 0.5, 0.25)
MAX_STEPS = 2**31 - 1  # that the counters of optax and of a checkpoint hold

_SETTING = 'setting'


def setting(default, comment: str, valid=None, of_weights: bool = False):
  """Returns a field of a Flax module that a recipe may set; see fields.Field for the arguments."""
  field = Field(default, comment, *([valid] if valid else []), of_weights=of_weights)
  return dataclasses.field(default=default, metadata={_SETTING: field})


def field_of(field: dataclasses.Field) -> Field:
  """Returns what `setting` has noted about a field of a module, or just its default."""
  return field.metadata.get(_SETTING) or Field(field.default)


def from_dict(values: dict) -> ml_collections.ConfigDict:
  """Returns a complete config from a run's config.json. Missing fields, as in older runs, get their defaults."""
  config = base()
  config.update(values)
  config.optim = complete_optim(config.optim)
  return config


def changed(config: ml_collections.ConfigDict, change: dict) -> ml_collections.ConfigDict:
  """Returns a copy of `config` with other values, given by dotted name.

  If optim.name or optim.schedule changes, what belongs only to the former one is left out; `left_out` says what that is.

  Raises:
    UserError: if there is no such field, or a value has the wrong type or range. models.complete checks those of the model.
  """
  optim = _optim(config, change)
  fields, given = schema.flat_schema(optim), flat(config)
  values = {}
  for name, value in change.items():
    if name in fields:
      value = fields[name].checked(name, value)
    elif refusal := _refusal(name, value, optim):
      raise UserError(refusal)
    elif name not in given and not re.fullmatch(r'model\.\w+', str(name)):  # models.complete knows those of the network
      raise UserError(unknown_field(str(name), {**fields, **given}))
    values[name] = value
  copy = config.to_dict()
  for names in _only_of_former(config, change).values():
    for name in names:
      del copy['optim'][name]
  for name, value in values.items():
    part, _, field = name.rpartition('.')
    (copy[part] if part else copy)[field] = value
  return ml_collections.ConfigDict(copy)


def left_out(config: ml_collections.ConfigDict, change: dict) -> list[str]:
  """Returns what `changed` leaves out if `change` names another optimiser or schedule: a remark for each of the two."""
  said = []
  for choice, names in _only_of_former(config, change).items():
    if names := [name for name in names if f'optim.{name}' not in change]:
      values = ', '.join(f'{name}={config.optim[name]}' for name in names)
      said.append(f'optim.{choice}={change[f"optim.{choice}"]} in place of {config.optim[choice]}, whose {values} '
                  f'{"is" if len(names) == 1 else "are"} left out')
  return said


def overridden(config: ml_collections.ConfigDict, given: dict[str, str], model_fields: dict[str, Field]
               ) -> ml_collections.ConfigDict:
  """Returns a copy of `config` with values given as text, such as {'train_for': '5 epochs', 'data.flip': 'False'}.

  Args:
    config: a complete config.
    given: texts by dotted name. Each is read as a value of the field's type.
    model_fields: the fields of the network, see models.fields.

  Raises:
    UserError: if there is no such field, or if a text is not a value of the field's type or range.
  """
  optim = _optim(config, given)
  known = all_fields(model_fields, optim)
  for name, text in given.items():
    if name not in known:
      raise UserError(_refusal(name, text, optim) or unknown_field(name, known))
  return changed(config, {name: known[name].read(name, text) for name, text in given.items()})


def all_fields(model_fields: dict[str, Field], optim: Mapping | None = None) -> dict[str, Field]:
  """Returns every field of a config by its dotted name.

  Args:
    model_fields: the fields of the network, see models.fields; they are among the model's.
    optim: the section `optim` of a config, to return only the fields of its optimiser and its schedule; None for those of all.
  """
  found = {}
  for name, field in schema.flat_schema(optim).items():
    found[name] = field
    if name == 'model.num_classes':
      found.update({f'model.{own}': content for own, content in model_fields.items()})
  return found


def _optim(config, change) -> dict[str, str]:
  """Returns the names of the optimiser and the schedule that `config` has after a change, which may be text.

  Raises:
    UserError: if the change names another one than there are.
  """
  known, values = schema.flat_schema(), {**flat(config), **change}
  return {choice: known[name].checked(name, values[name]) if (name := f'optim.{choice}') in change else values.get(name)
          for choice in optim_lib.CHOICES}


def _only_of_former(config, change) -> dict[str, list[str]]:
  """Returns, for the optimiser and the schedule, those of its fields in `config` that a change of it leaves out."""
  return optim_lib.only_of_former(config.get('optim', {}), _optim(config, change))


def _refusal(name, value, optim) -> str:
  section, _, field = str(name).rpartition('.')
  return optim_lib.refusal(field, value, optim) if section == 'optim' else ''


def unknown_field(name: str, known: Iterable[str]) -> str:
  """Returns a message that a config has no field `name`, and which fields it has instead."""
  group, _, field = name.rpartition('.')
  inside = f'{group}.' if group else ''
  others = [other.removeprefix(inside).partition('.')[0] for other in known if other.startswith(inside)]
  if field in others:
    return f'{name}: a part of a config, not a field; expected a field in it, such as {name}.NAME'
  near = [f'{inside}{other}' for other in difflib.get_close_matches(field, others, 1)]
  if not group:
    near += [other for other in known if other.rpartition('.')[2] == field]  # without its part
  hint = f'; did you mean {near[0]}?' if near else ''
  if not others:
    return f'{name}: a config has no part {group}; it has {", ".join(dict.fromkeys(n.partition(".")[0] for n in known))}'
  return f'{name}: {group or "a config"} has no field {field!r}{hint or "; it has " + ", ".join(dict.fromkeys(others))}'


def flat(config: ml_collections.ConfigDict) -> dict:
  """Returns every field by its dotted name."""
  fields = {}
  for name, value in config.items():
    fields.update({f'{name}.{inner}': v for inner, v in flat(value).items()}
                  if isinstance(value, ml_collections.ConfigDict) and len(value) else {name: value})
  return fields


def parse_arg(arg: str | None, **defaults):
  """Parses the part of --config after the colon, `key=value,...`.

  Args:
    arg: that part.
    **defaults: the default of each key, which also gives its type. If a type such as float is given in place of a default,
      the default is None, and the recipe does not set the field.

  Raises:
    UserError: on an unknown key, a key that is given twice, or a value of another type.
  """
  kinds = {key: default if isinstance(default, type) else type(default) for key, default in defaults.items()}
  values = {key: None if default is kinds[key] else default for key, default in defaults.items()}
  given = set()
  for item in filter(None, (arg or '').split(',')):
    key, sep, value = item.partition('=')
    if not sep or key not in defaults:
      known = ', '.join(f'{key}={"" if default is kinds[key] else default}' for key, default in defaults.items())
      raise UserError(f'--config: {item!r} is not one of {known}')
    if key in given:
      raise UserError(f'--config: {key} is given twice; expected one value')
    given.add(key)
    try:
      values[key] = kinds[key](value)
    except ValueError:
      example = '' if defaults[key] is kinds[key] else f', such as {defaults[key]}'
      raise UserError(f'--config: {key}={value}: expected {kinds[key].__name__}{example}') from None
  return ml_collections.ConfigDict(values)


def square(size: int) -> tuple[int, int]:
  return (size, size)


def steps(duration: str, field: str, steps_per_epoch: int, batch_size: int) -> int:
  """Converts '3 epochs', '500 steps' or '64000 examples' to optimiser steps. The result is at least 1, or 0 for zero.

  Raises:
    UserError: on any other text, or if the steps are too many to count. It names `field`.
  """
  if not (found := parse_duration(str(duration))):
    raise UserError(f'{field}={duration!r}: expected {UNITS}')
  amount, unit = found
  count = {'step': amount, 'epoch': amount * steps_per_epoch, 'example': amount / batch_size}[unit]
  if count > MAX_STEPS:
    raise UserError(f'{field}={duration!r}: expected at most {MAX_STEPS:,} steps')
  return max(round(count), 1) if count > 0 else 0


def validated(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """Returns a copy of a complete config, checked except for the fields of the network, which models.complete checks.

  The fields of the optimiser and the schedule may be missing; complete_optim fills them in.

  Raises:
    UserError: if there is an unknown field, one is missing, or one has a wrong value. It names the field, what was given and
      what is expected.
  """
  given = flat(config)
  optim = _optim(config, given)
  fields = schema.flat_schema(optim)
  if unknown := [name for name in given if name not in fields and not name.startswith('model.')]:
    raise UserError(_refusal(unknown[0], given[unknown[0]], optim) or unknown_field(unknown[0], fields))
  own = [f'optim.{name}' for name in optim_lib.own_fields(optim)]
  if missing := [name for name in fields if name not in given and name not in own]:
    raise UserError(f'{missing[0]}: missing; expected a config from config.base(), which has every field')
  config = changed(config, {name: given[name] for name in fields if name in given})

  def expect(ok, field, given, expected):
    if not ok:
      raise UserError(f'{field}={given}: expected {expected}')

  optim = complete_optim(config.optim)
  expect(not optim.get('nesterov') or optim.momentum, 'optim.nesterov', True, 'False without optim.momentum')
  data, size = config.data, tuple(config.data.image_size)
  stream = tuple(data.stream_size)
  expect(stream == (0, 0) or all(a >= b for a, b in zip(stream, size)), 'data.stream_size', stream,
         f'(0, 0), or (height, width) of at least image_size={size}')
  expect(not (data.per_identity and config.batch_size % data.per_identity), 'data.per_identity', data.per_identity,
         f'a divisor of batch_size={config.batch_size}, or 0')
  for name in ('keep_head', 'freeze_body'):
    expect(config.init.model or not config.init[name], f'init.{name}', config.init[name],
           'False without init.model, the model to start from')
  return config


def to_json(config: ml_collections.ConfigDict) -> str:
  return json.dumps(config.to_dict(), indent=2, sort_keys=True, allow_nan=False) + '\n'


def difference(old: str, new: str) -> str:
  """Returns what changed between two configs given as JSON, on one line; '' if they are equal."""
  lines = difflib.ndiff(old.splitlines(), new.splitlines())
  return ', '.join(' '.join(line.rstrip(',').split()) for line in lines if line[0] in '+-')


def model_name(config: ml_collections.ConfigDict) -> str:
  """Returns a name like the paper's, such as mobilenet_0.75_192.

  If height and width differ, the name has both. If the network has no width multiplier, the name has none, as in nn2_224.

  Args:
    config: a complete config, to which models.complete has been applied.
  """
  height, width = config.data.image_size
  parts = [config.model.name, f'{height}' if height == width else f'{height}x{width}']
  if 'width_multiplier' in config.model:
    alpha = config.model.width_multiplier
    parts.insert(1, '1.0' if alpha == 1 else text(float(alpha)))
  return '_'.join(parts)
