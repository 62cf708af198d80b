"""The networks, by name, and the contract that every network fulfils.

Each network is a Flax module (flax.linen) in its own file. The rest of the code relies on the following contract, which
tests/models/test_model_contract.py checks for every network in MODELS:

- The fields hold a bool, a number, a string or a dtype, and have defaults. A recipe may set them under `model`, except
  two that `create` sets: `num_classes`, the number of outputs, and `batch_norm_axis`, the mapped axis over which batch
  statistics are synchronised. A recipe asks for the latter with `sync_batch_norm`. A network without batch norm does
  not have this field.
- To count a network or to export it, two fields are changed: `dtype`, the dtype of the computation, and `lowering`, for
  which 'grouped' means plain convolutions; see lowerings.py. A network may lack either field.
- module(images, train=..., features=...) takes float32 images (b, h, w, 3) in [-1, 1]. It returns float32 outputs
  (b, num_classes), or the pooled features (b, c) if num_classes is 0. `features` is None or a dict, which the call
  fills with intermediate feature maps by name; one of them is 'pooled'.
- If the network has dropout and train is True, the call needs an rng named 'dropout'.
- The variables are the collections 'params' and, if the network has batch norm, 'batch_stats'. There are no others.
- The last layer is named CLASSIFIER and has a 'kernel' (c, num_classes) and a 'bias' (num_classes,). No layer is named
  PROJECTION. The name of every layer with a depthwise kernel begins with DEPTHWISE, because these kernels have their
  own weight decay.

This module is the public interface of the package: other packages import from here. `measure` counts Mult-Adds and
parameters; `fold` folds batch norm into the convolutions.
"""

import dataclasses
import math

import jax.numpy as jnp
import ml_collections

from mobilenet_jax.errors import UserError
from mobilenet_jax.models.complexity import CONVENTION, Complexity, measure, table
from mobilenet_jax.models.folding import can_fold, fold, folded_layers
from mobilenet_jax.models.layers import ACTIVATIONS
from mobilenet_jax.models.lowerings import LOWERINGS, padding_of
from mobilenet_jax.models.mobilenet import BODY, ConvMobileNet, MobileNet, ShallowMobileNet
from mobilenet_jax.models.nn2 import NN2

__all__ = ['BODY', 'CLASSIFIER', 'CONVENTION', 'Complexity', 'DEPTHWISE', 'MODELS', 'MobileNet', 'PROJECTION', 'can_fold',
           'complete', 'create', 'fields', 'fold', 'folded_layers', 'measure', 'padding_of', 'table',
           'variables_of']

MODELS = {
    'mobilenet': MobileNet,
    'conv_mobilenet': ConvMobileNet,  # Table 4
    'shallow_mobilenet': ShallowMobileNet,  # Table 5
    'nn2': NN2,  # FaceNet's
}
CLASSIFIER = 'classifier'
PROJECTION = 'projection'  # distillation stores its learned projection in the student's parameters under this name
DEPTHWISE = 'conv_dw'
DTYPES = ('float32', 'bfloat16')

_CREATED = ('num_classes', 'batch_norm_axis', 'parent', 'name')  # fields of a module that `create` or Flax sets
_one_of = lambda *choices: (lambda value: value in choices, f'one of {", ".join(choices)}')
# The valid values of each field, for every network that has the field.
_RANGES = {
    'width_multiplier': (lambda value: 0 < value < math.inf, 'a number above 0, such as 0.75'),
    'activation': _one_of(*ACTIVATIONS),
    'dropout_rate': (lambda value: 0 <= value < 1, 'a number in [0, 1)'),
    'batch_norm_decay': (lambda value: 0 <= value < 1, 'a number in [0, 1)'),
    'batch_norm_epsilon': (lambda value: 0 < value < math.inf, 'a number above 0'),
    'padding': _one_of('same', 'keras'),
    'dtype': _one_of(*DTYPES),
    'lowering': _one_of(*LOWERINGS),
}


def fields(name: str) -> dict[str, bool | int | float | str]:
  """Returns the fields that a recipe may set for a network, with their defaults. A dtype is given by its name.

  Raises:
    UserError: if there is no network with that name.
  """
  if name not in MODELS:
    raise UserError(f'model.name={name!r}: expected one of {", ".join(MODELS)}')
  own = {field.name: field.default for field in dataclasses.fields(MODELS[name])}
  found = {field: default for field, default in own.items() if field not in _CREATED}
  if 'dtype' in found:
    found['dtype'] = jnp.dtype(found['dtype']).name
  if 'batch_norm_axis' in own:
    found['sync_batch_norm'] = False
  return found


def complete(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """Returns a copy of `config`, the `model` section of a config, with all fields of the network filled in.

  Raises:
    UserError: if there is no such network, the network lacks a given field, or a value has the wrong type or range.
  """
  known = fields(config.name)
  given = {name: value for name, value in config.items() if name not in ('name', 'num_classes')}
  for name, value in given.items():
    if name not in known:
      raise UserError(f'model.{name}={value}: {config.name} has no such field; it has {", ".join(known)}')
    kind = type(known[name])
    value = given[name] = getattr(value, 'item', lambda: value)()  # a NumPy number as Python's
    if kind is float and type(value) is int:
      given[name] = float(value)
    elif type(value) is not kind:
      raise UserError(f'model.{name}={value!r}: expected {kind.__name__}, such as {known[name]!r}')
  values = {**known, **given}
  for name, (is_valid, expected) in _RANGES.items():
    if name in values and not is_valid(values[name]):
      raise UserError(f'model.{name}={values[name]!r}: expected {expected}')
  if type(config.num_classes) is not int or config.num_classes < 0:
    raise UserError(f'model.num_classes={config.num_classes}: expected a number of classes, or 0 to take it from the data')
  return ml_collections.ConfigDict({'name': config.name, 'num_classes': config.num_classes, **values})


def create(config: ml_collections.ConfigDict, num_outputs: int, batch_norm_axis: str | None = None):
  """Builds the network that `config`, the `model` section of a config, describes.

  Args:
    config: the same as for `complete`; its `num_classes` is not used.
    num_outputs: width of the last layer; 0 leaves the layer out.
    batch_norm_axis: the mapped axis over which to synchronise batch statistics, if the config asks for it.

  Raises:
    UserError: as in `complete`.
  """
  options = complete(config).to_dict()
  network = MODELS[options.pop('name')]
  del options['num_classes']
  if 'dtype' in options:
    options['dtype'] = jnp.dtype(options['dtype'])
  if options.pop('sync_batch_norm', False):
    options['batch_norm_axis'] = batch_norm_axis
  return network(num_outputs, **options)


def variables_of(collections: dict) -> dict:
  """Returns {'params', 'batch_stats'} from the result of a network's `init`; 'batch_stats' is empty without batch norm.

  Raises:
    UserError: if the network has another collection, which would be neither trained nor saved.
  """
  if others := set(collections) - {'params', 'batch_stats'}:
    raise UserError(f'the network has the collections {", ".join(sorted(others))}; expected params and, with batch norm, '
                    'batch_stats')
  return {'params': collections['params'], 'batch_stats': collections.get('batch_stats', {})}
