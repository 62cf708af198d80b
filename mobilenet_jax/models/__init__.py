"""The networks, by name, and the contract that every network fulfils.

Each network is a Flax module (flax.linen) in its own file. The rest of the code relies on the following contract, which
tests/models/test_model_contract.py checks for every network in MODELS:

- The fields hold a bool, a number, a string or a dtype, and have defaults. A recipe may set them under `model`, except
  two that `create` sets: `num_classes`, the number of outputs, and `batch_norm_axis`, the mapped axis over which batch
  statistics are synchronised. A recipe asks for the latter with `sync_batch_norm`. A network without batch norm does
  not have this field.
- A field that changes the outputs of the same variables when train is False, other than by rounding, is marked:
  config.setting(..., of_weights=True). A model that starts from the weights of another one takes over these fields.
- A network with batch norm has the field `freeze_batch_stats`, see layers.py; without it, init.freeze_body is refused.
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
import difflib

import jax
import jax.numpy as jnp
import ml_collections

from mobilenet_jax import config as config_lib
from mobilenet_jax.errors import UserError
from mobilenet_jax.models.complexity import CONVENTION, Complexity, measure, table
from mobilenet_jax.models.folding import can_fold, fold, folded_layers
from mobilenet_jax.models.layers import DTYPE, SYNC_BATCH_NORM
from mobilenet_jax.models.lowerings import padding_of
from mobilenet_jax.models.mobilenet import BODY, ConvMobileNet, MobileNet, ShallowMobileNet
from mobilenet_jax.models.nn2 import NN2

__all__ = ['BODY', 'CLASSIFIER', 'CONVENTION', 'Complexity', 'DEPTHWISE', 'MODELS', 'MobileNet', 'PROJECTION', 'can_fold',
           'complete', 'create', 'defaults', 'fields', 'fields_of_weights', 'fold', 'folded_layers', 'measure', 'padding_of',
           'table', 'variables_of']

MODELS = {
    'mobilenet': MobileNet,
    'conv_mobilenet': ConvMobileNet,  # Table 4
    'shallow_mobilenet': ShallowMobileNet,  # Table 5
    'nn2': NN2,  # FaceNet's
}
CLASSIFIER = 'classifier'
PROJECTION = 'projection'  # distillation stores its learned projection in the student's parameters under this name
DEPTHWISE = 'conv_dw'
_CREATED = ('num_classes', 'batch_norm_axis', 'parent', 'name')  # fields of a module that `create` or Flax sets


def fields(name: str) -> dict[str, config_lib.Field]:
  """Returns the fields that a recipe may set for a network. A dtype is given by its name.

  Raises:
    UserError: if there is no network with that name.
  """
  if name not in MODELS:
    raise UserError(f'model.name={name!r}: expected one of {", ".join(MODELS)}')
  own = {field.name: config_lib.field_of(field) for field in dataclasses.fields(MODELS[name])}
  found = {field: content for field, content in own.items() if field not in _CREATED}
  if 'dtype' in found:
    found['dtype'] = DTYPE
  if 'batch_norm_axis' in own:
    found['sync_batch_norm'] = SYNC_BATCH_NORM
  return found


def defaults(name: str) -> dict[str, bool | int | float | str]:
  """Returns the defaults of `fields`."""
  return {field: content.default for field, content in fields(name).items()}


def fields_of_weights(name: str) -> list[str]:
  """Returns those of `fields` that are part of the function that the weights of a network compute."""
  return [field for field, content in fields(name).items() if content.of_weights]


def complete(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """Returns a copy of `config`, the `model` section of a config, with all fields of the network filled in.

  Raises:
    UserError: if there is no such network, the network lacks a given field, or a value has the wrong type or range.
  """
  known = fields(config.name)
  given = {name: value for name, value in config.items() if name not in ('name', 'num_classes')}
  for name, value in given.items():
    if name not in known:
      near = difflib.get_close_matches(name, known, 1)
      hint = f'did you mean model.{near[0]}?' if near else f'it has {", ".join(known)}'
      raise UserError(f'model.{name}={value}: {config.name} has no such field; {hint}')
    given[name] = known[name].checked(f'model.{name}', value)
  return ml_collections.ConfigDict({'name': config.name, 'num_classes': config.num_classes, **defaults(config.name), **given})


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
    if options['dtype'] == 'float64' and not jax.config.jax_enable_x64:
      raise UserError('model.dtype=float64: JAX computes in float32; expected the environment variable JAX_ENABLE_X64=1')
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
