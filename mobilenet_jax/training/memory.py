"""Estimates the memory that training takes on a device from traced shapes. Nothing is computed."""

import jax
import jax.numpy as jnp
import ml_collections

from mobilenet_jax import config as config_lib
from mobilenet_jax import models
from mobilenet_jax.runtime import devices
from mobilenet_jax.training import optimizer
from mobilenet_jax.training.state import init_state


def state_bytes(config: ml_collections.ConfigDict, num_outputs: int) -> int:
  """Returns the bytes that a run keeps from step to step: parameters, optimiser state, batch statistics, averages."""
  return _bytes(_shapes(config, num_outputs)[1])


def step_bytes(config: ml_collections.ConfigDict, num_outputs: int) -> int:
  """Returns the bytes that one step needs in addition: activations kept for the gradient, the gradient and the update."""
  model, state = _shapes(config, num_outputs)
  images = config.batch_size // devices.device_count() // config.accumulate_steps

  def kept(state, images, rng):
    apply = lambda params: model.apply({'params': params, 'batch_stats': state.batch_stats}, images, train=True,
                                       mutable=['batch_stats'], rngs={'dropout': rng})
    return jax.vjp(apply, state.params)[1]

  shape = jax.ShapeDtypeStruct((images, *config.data.image_size, 3), jnp.float32)
  residuals = jax.eval_shape(kept, state, shape, jax.random.key(0))  # these include the parameters
  return _bytes(residuals) + _bytes(state.params)


def _shapes(config, num_outputs):
  model = models.create(config.model, num_outputs)
  tx = optimizer.create(config.optim, lambda step: 0.0, config.init.freeze_body)
  without_features = config_lib.changed(config, {'distill.features_weight': 0.0})  # a projection is small
  return model, jax.eval_shape(lambda rng: init_state(rng, model, tx, without_features), jax.random.key(0))


def _bytes(tree):
  return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
