"""The optimiser of section 3.2: RMSprop as TensorFlow computes it, built with optax."""

import jax
import jax.numpy as jnp
import ml_collections
import optax

from mobilenet_jax import models


def learning_rate(config: ml_collections.ConfigDict, warmup_steps: int, decay_steps: int) -> optax.Schedule:
  """Returns a schedule with a linear warm-up from 0 and a staircase decay.

  After the warm-up the learning rate is config.learning_rate x config.decay_rate ^ floor(step / decay_steps). Steps are
  counted from the start of training, so the warm-up does not delay the first decay. Without decay_steps there is no decay.
  """
  staircase = optax.constant_schedule(config.learning_rate)
  if decay_steps:
    staircase = optax.exponential_decay(config.learning_rate, decay_steps, config.decay_rate, staircase=True)

  def rate(step):
    step = jnp.asarray(step, float)  # float32, or float64 if JAX computes in it
    return staircase(step) * (jnp.minimum(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0)

  return rate


def create(config: ml_collections.ConfigDict, schedule: optax.Schedule,
           freeze_body: bool = False) -> optax.GradientTransformation:
  """Returns RMSprop as in tf.compat.v1.train.RMSPropOptimizer, with L2 added to the gradient.

    v <- decay v + (1 - decay) g^2, v starting at 1;  m <- momentum m + lr g / sqrt(v + epsilon);  w <- w - m

  As in TensorFlow, the learning rate is inside the momentum, and epsilon is inside the square root. The L2 term is the
  gradient of weight_decay / 2 x |w|^2. It applies to the kernels of the convolutions and the classifier. Depthwise kernels
  have a factor of their own; biases and batch norm have no L2. With `freeze_body`, everything but the classifier stays as
  it is.
  """
  rmsprop = optax.chain(
      optax.add_decayed_weights(config.weight_decay, mask=lambda params: _select(params, depthwise=False)),
      optax.add_decayed_weights(config.depthwise_weight_decay, mask=lambda params: _select(params, depthwise=True)),
      optax.rmsprop(schedule, decay=config.rms_decay, eps=config.epsilon, initial_scale=1.0,
                    eps_in_sqrt=True, momentum=config.momentum),
  )
  return optax.partition({False: rmsprop, True: optax.set_to_zero()}, in_body) if freeze_body else rmsprop


def in_body(params):
  """Returns True for each parameter that belongs neither to the classifier nor to the projection of a distillation."""
  return jax.tree_util.tree_map_with_path(lambda path, _: path[0].key not in (models.CLASSIFIER, models.PROJECTION), params)


def _select(params, depthwise: bool):
  """Returns True for each depthwise kernel; with depthwise=False, for each other kernel."""
  def is_selected(path, _):
    names = [key.key for key in path]
    return names[-1] == 'kernel' and any(name.startswith(models.DEPTHWISE) for name in names) == depthwise
  return jax.tree_util.tree_map_with_path(is_selected, params)
