"""MobileNets (Howard et al., 2017) in JAX: models, training, sweeps, figures."""


def load(name):
  """A trained model by the folder of its run, its file, or its published name; see trained.load."""
  from mobilenet_jax import cli  # first: it quietens what the others import
  from mobilenet_jax import trained
  cli.quiet()
  return trained.load(name)
