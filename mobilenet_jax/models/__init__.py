"""Models by name."""

import jax.numpy as jnp
import ml_collections

from mobilenet_jax.models.mobilenet import SHALLOW_BODY, MobileNet
from mobilenet_jax.models.nn2 import NN2

VARIANTS = {
    'mobilenet': {},
    'conv_mobilenet': {'separable': False},
    'shallow_mobilenet': {'body': SHALLOW_BODY},
}
NAMES = (*VARIANTS, 'nn2')


def create(config: ml_collections.ConfigDict, num_classes: int, batch_norm_axis: str | None = None) -> MobileNet | NN2:
  """Builds the model that `config` (the part `model` of a whole config) describes.

  Args:
    config: see mobilenet_jax/config.py.
    num_classes: width of the last layer.
    batch_norm_axis: the mapped axis to synchronise batch statistics over, where the config asks for it.
  """
  options = config.to_dict()
  del options['num_classes']
  name = options.pop('name')
  options['dtype'] = jnp.dtype(options['dtype'])
  options['batch_norm_axis'] = batch_norm_axis if options.pop('sync_batch_norm') else None
  if name == 'nn2':
    for meaningless in ('width_multiplier', 'padding'):
      del options[meaningless]
    return NN2(num_classes, **options)
  return MobileNet(num_classes, **options, **VARIANTS[name])
