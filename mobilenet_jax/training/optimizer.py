"""The optimiser of section 3.2: RMSprop in TensorFlow's semantics, through optax."""

import jax
import ml_collections
import optax

from mobilenet_jax import models


def learning_rate(config: ml_collections.ConfigDict, warmup_steps: int, decay_steps: int) -> optax.Schedule:
  """Linear warm-up from 0, then config.learning_rate x config.decay_rate ^ floor(step / decay_steps).

  Steps are counted from the start of training, so the first decay does not move with the warm-up.
  """
  staircase = optax.exponential_decay(config.learning_rate, max(decay_steps, 1), config.decay_rate, staircase=True)
  if not warmup_steps:
    return staircase
  return lambda step: staircase(step) * jax.numpy.minimum(1.0, (step + 1) / warmup_steps)


def create(config: ml_collections.ConfigDict, schedule: optax.Schedule,
           freeze_body: bool = False) -> optax.GradientTransformation:
  """RMSprop as tf.compat.v1.train.RMSPropOptimizer has it, with L2 added to the gradient.

    v <- decay v + (1 - decay) g^2, v starting at 1;  m <- momentum m + lr g / sqrt(v + epsilon);  w <- w - m

  The learning rate is inside the momentum and epsilon inside the root, as in TensorFlow. The L2 term is the
  gradient of weight_decay / 2 x |w|^2, on the kernels of convolutions and classifier; depthwise kernels have
  their own factor, biases and batch norm none. With `freeze_body` all but the classifier stays as it is.
  """
  rmsprop = optax.chain(
      optax.add_decayed_weights(config.weight_decay, mask=lambda params: _select(params, depthwise=False)),
      optax.add_decayed_weights(config.depthwise_weight_decay, mask=lambda params: _select(params, depthwise=True)),
      optax.rmsprop(schedule, decay=config.rms_decay, eps=config.epsilon, initial_scale=1.0,
                    eps_in_sqrt=True, momentum=config.momentum),
  )
  return optax.partition({False: rmsprop, True: optax.set_to_zero()}, in_body) if freeze_body else rmsprop


def in_body(params):
  """True for what is neither the classifier's nor a distillation's."""
  return jax.tree_util.tree_map_with_path(lambda path, _: path[0].key not in (models.CLASSIFIER, models.PROJECTION), params)


def _select(params, depthwise: bool):
  """True for the kernels that are, or are not, depthwise."""
  def is_selected(path, _):
    names = [key.key for key in path]
    return names[-1] == 'kernel' and any(name.startswith(models.DEPTHWISE) for name in names) == depthwise
  return jax.tree_util.tree_map_with_path(is_selected, params)
