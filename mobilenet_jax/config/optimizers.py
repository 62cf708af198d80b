"""The optimisers and schedules by name: the fields that each has besides those that all have, see schema.py.

training/optimizer.py builds them with optax.
"""

from collections.abc import Iterable

import ml_collections

from mobilenet_jax.config.fields import Field, duration, number

_DECAY = number(at_least=0, below=1)
_FINAL = Field(0.0, 'of the learning rate, which it has reached at the end of the run', number(at_least=0, at_most=1))

OPTIMIZERS = {
    'rmsprop': {  # TensorFlow's, as in section 3.2
        'rms_decay': Field(0.9, 'of the running mean of squared gradients', _DECAY),
        'momentum': Field(0.9, '0 is off', _DECAY),
        'epsilon': Field(1.0, 'added to that mean', number(above=0)),
    },
    'sgd': {
        'momentum': Field(0.9, '0 is off', _DECAY),
        'nesterov': Field(False, "take Nesterov's momentum"),
    },
    'adamw': {
        'b1': Field(0.9, 'decay of the running mean of gradients', _DECAY),
        'b2': Field(0.999, 'decay of the running mean of squared gradients', _DECAY),
        'epsilon': Field(1e-8, 'added to the root of that mean', number(above=0)),
    },
}
SCHEDULES = {
    'staircase': {
        'decay_rate': Field(0.94, 'factor on the learning rate at each decay', number(above=0, at_most=1)),
        'decay_every': Field('2 epochs', 'between two decays; 0 steps is off', duration()),
    },
    'cosine': {'final_fraction': _FINAL},
    'linear': {'final_fraction': _FINAL},
    'constant': {},
}
OF_THE_LENGTH = ('cosine', 'linear')  # schedules that depend on the number of steps of a run
_CHOICES = {'name': OPTIMIZERS, 'schedule': SCHEDULES}


def fields(name: str, schedule: str) -> dict[str, Field]:
  """Returns the fields that an optimiser and a schedule have besides those that all have; {} for unknown names."""
  return {**OPTIMIZERS.get(name, {}), **SCHEDULES.get(schedule, {})}


def fields_of(optim: ml_collections.ConfigDict) -> dict[str, Field]:
  """Returns `fields` of the optimiser and the schedule that the section of a config names."""
  return fields(optim.get('name', ''), optim.get('schedule', ''))


def complete(optim: dict, common: Iterable[str]) -> dict:
  """Returns the section of a config with exactly the fields of its optimiser and schedule.

  A missing field gets its default. A field of another optimiser is left out if it has the default that it has there: that
  is how config.base() has it. Any other value is kept, so that it can be refused.

  Args:
    optim: the section.
    common: the names of the fields that all optimisers and schedules have.
  """
  own = fields(optim.get('name'), optim.get('schedule'))
  defaults = [(field, entry.default) for kinds in _CHOICES.values() for kind in kinds.values() for field, entry in kind.items()]
  kept = {field: value for field, value in optim.items()
          if field in own or field in common or not any(field == other and value == default for other, default in defaults)}
  return {**kept, **{field: entry.default for field, entry in own.items() if field not in kept}}


def replaced(optim: dict, change: dict) -> tuple[dict, list[str]]:
  """Returns the section of a config after a change of optimiser or schedule, and which of its fields that takes away.

  The fields of the former optimiser or schedule go; those of the new one have their defaults.

  Args:
    optim: the section.
    change: the fields of the section that change.
  """
  kept, gone = dict(optim), []
  for choice, kinds in _CHOICES.items():
    before, now = optim.get(choice), change.get(choice, optim.get(choice))
    if before != now and now in kinds:
      for field, entry in kinds.get(before, {}).items():
        if field in kept and (value := kept.pop(field)) != entry.default and field not in change:
          gone.append(f'optim.{field}={value}')
      kept |= {field: entry.default for field, entry in kinds[now].items()}
  return kept, gone


def unknown(field: str, optim: dict) -> str:
  """Returns a message that the optimiser or the schedule of a config has no `field`; '' if none has."""
  for choice, kinds in _CHOICES.items():
    if any(field in kind for kind in kinds.values()):
      own = kinds.get(optim.get(choice), {})
      return (f'optim.{field}: {"optim.schedule=" if choice == "schedule" else ""}{optim.get(choice)} has no such field; it has '
              f'{", ".join(own) or "none of its own"}')
  return ''
