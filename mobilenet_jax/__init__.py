"""MobileNets (Howard et al., 2017) in JAX: models, training, sweeps, figures.

    import mobilenet_jax
    model = mobilenet_jax.load('mobilenet_1.0_224')
    model.top('cat.jpg')
"""

from mobilenet_jax.runtime import environment as _environment

__version__ = '0.1.0'

_environment.set_defaults()  # before any library that reads them is imported


def load(name, image_size=None, checkpoint='newest'):
  """Returns the trained model in a run's folder or a file, or with a published name; see `trained.load`."""
  from mobilenet_jax import trained
  _environment.quiet()
  return trained.load(name, image_size=image_size, checkpoint=checkpoint)
