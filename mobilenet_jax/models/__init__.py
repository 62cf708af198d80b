"""Models by name."""

import jax.numpy as jnp
import ml_collections

from mobilenet_jax.models.mobilenet import SHALLOW_BODY, MobileNet

VARIANTS = {
    'mobilenet': {},
    'conv_mobilenet': {'separable': False},
    'shallow_mobilenet': {'body': SHALLOW_BODY},
}


def create(config: ml_collections.ConfigDict, num_classes: int, batch_norm_axis: str | None = None) -> MobileNet:
  """Builds the model that `config` (the part `model` of a whole config) describes.

  Args:
    config: see mobilenet_jax/config.py.
    num_classes: width of the last layer.
    batch_norm_axis: the mapped axis to synchronise batch statistics over, where the config asks for it.
  """
  options = config.to_dict()
  del options['num_classes']
  variant = VARIANTS[options.pop('name')]
  dtype = jnp.dtype(options.pop('dtype'))
  axis = batch_norm_axis if options.pop('sync_batch_norm') else None
  return MobileNet(num_classes, dtype=dtype, batch_norm_axis=axis, **options, **variant)
