"""The optimisers and the schedules of the learning rate, by name, with the fields that each of them has.

training/optimizer.py builds them. A field that several of them share is one object here: a value of it means the same in each.
"""

from collections.abc import Mapping

import ml_collections

from mobilenet_jax.config.fields import Field, duration, number

_DECAY = number(at_least=0, below=1)
_MOMENTUM = Field(0.9, '0 is off', _DECAY)
_FINAL_FRACTION = Field(0.0, 'of the learning rate that is left at the end of train_for', number(at_least=0, at_most=1))

OPTIMIZERS = {
    'rmsprop': {
        'rms_decay': Field(0.9, 'of the running mean of squared gradients', _DECAY),
        'momentum': _MOMENTUM,
        'epsilon': Field(1.0, 'added to that mean', number(above=0)),
    },
    'sgd': {
        'momentum': _MOMENTUM,
        'nesterov': Field(False, "Nesterov's momentum"),
    },
    'adamw': {
        'b1': Field(0.9, 'of the running mean of gradients', _DECAY),
        'b2': Field(0.999, 'of the running mean of squared gradients', _DECAY),
        'epsilon': Field(1e-8, 'added to the root of that mean', number(above=0)),
    },
}
SCHEDULES = {
    'staircase': {
        'decay_rate': Field(0.94, 'factor on the learning rate at each decay', number(above=0, at_most=1)),
        'decay_every': Field('2 epochs', 'between two decays; 0 steps is off', duration()),
    },
    'cosine': {'final_fraction': _FINAL_FRACTION},
    'linear': {'final_fraction': _FINAL_FRACTION},
    'constant': {},
}
OVER_THE_RUN = ('cosine', 'linear')  # schedules that depend on train_for
CHOICES = {'name': OPTIMIZERS, 'schedule': SCHEDULES}  # the fields of `optim` that choose one


def own_fields(optim: Mapping) -> dict[str, Field]:
  """Returns the fields of the optimiser and of the schedule that `optim` names; of an unknown one, none."""
  return {name: field for choice, options in CHOICES.items() for name, field in options.get(optim.get(choice), {}).items()}


def complete(optim: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """Returns a copy of `optim`, the section of a config, with all fields of its optimiser and its schedule filled in."""
  return ml_collections.ConfigDict({**{name: field.default for name, field in own_fields(optim).items()}, **optim.to_dict()})


def refusal(name: str, value, optim: Mapping) -> str:
  """Returns why `optim` cannot have the field `name`: only another optimiser or schedule has it. '' if none or its own has."""
  for choice, options in CHOICES.items():
    own = options.get(optim.get(choice), {})
    if name not in own and any(name in fields for fields in options.values()):
      return (f'optim.{name}={value}: optim.{choice}={optim.get(choice)} has no such field; '
              f'it has {", ".join(own) or "none of its own"}')
  return ''


def only_of_former(before: Mapping, now: Mapping) -> dict[str, list[str]]:
  """Returns, for each choice that differs, the fields in `before` that mean nothing, or something else, in `now`."""
  found = {}
  for choice, options in CHOICES.items():
    former, new = (options.get(optim.get(choice), {}) for optim in (before, now))
    found[choice] = [name for name, field in former.items() if name in before and new.get(name) is not field]
  return found
