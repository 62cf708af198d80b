"""The optimisers and the schedules of the learning rate, built with optax. The default is that of section 3.2 of the paper."""

import jax
import jax.numpy as jnp
import ml_collections
import optax

from mobilenet_jax import config as config_lib
from mobilenet_jax import models


def learning_rate(config: ml_collections.ConfigDict, steps_per_epoch: int) -> optax.Schedule:
  """Returns the learning rate of a run by step, counted from 0.

    staircase  learning_rate x decay_rate ^ floor(step / decay_every); without decay_every there is no decay
    cosine     learning_rate x (f + (1 - f) x (1 + cos(pi p)) / 2), where f = final_fraction
    linear     learning_rate x (f + (1 - f) x (1 - p))
    constant   learning_rate

  p = (step - warmup) / (train_for - warmup), all in steps, so that cosine and linear begin at the full rate where the warm-up
  ends, and would arrive at final_fraction at the step after the last one. During the warm-up p is 0. The staircase is counted
  from the start of training; the warm-up does not delay its first decay.

  In a warm-up of n steps, the rate is multiplied by (step + 1) / n.

  Args:
    config: a complete config; its fields `optim`, `train_for` and `batch_size` are used.
    steps_per_epoch: the number of steps in an epoch.
  """
  optim = config_lib.complete_optim(config.optim)
  steps = lambda field, text: config_lib.steps(text, field, steps_per_epoch, config.batch_size)
  warmup = steps('optim.warmup', optim.warmup)
  rest = max(steps('train_for', config.train_for) - warmup, 1)
  match optim.schedule:
    case 'staircase':
      every = steps('optim.decay_every', optim.decay_every)
      after = (optax.exponential_decay(optim.learning_rate, every, optim.decay_rate, staircase=True) if every
               else optax.constant_schedule(optim.learning_rate))
    case 'cosine':
      cosine = optax.cosine_decay_schedule(optim.learning_rate, rest, optim.final_fraction)
      after = lambda step: cosine(jnp.maximum(step - warmup, 0.0))
    case 'linear':
      after = optax.linear_schedule(optim.learning_rate, optim.learning_rate * optim.final_fraction, rest, warmup)
    case 'constant':
      after = optax.constant_schedule(optim.learning_rate)

  def rate(step):
    step = jnp.asarray(step, float)  # float32, or float64 if JAX computes in it
    return after(step) * (jnp.minimum(1.0, (step + 1) / warmup) if warmup else 1.0)

  return rate


def create(config: ml_collections.ConfigDict, schedule: optax.Schedule,
           freeze_body: bool = False) -> optax.GradientTransformation:
  """Returns the optimiser that `config`, the section `optim` of a config, names.

    rmsprop  as tf.compat.v1.train.RMSPropOptimizer, with the learning rate inside the momentum and epsilon inside the root:
             v <- rms_decay v + (1 - rms_decay) g^2, v starting at 1;  m <- momentum m + lr g / sqrt(v + epsilon);  w <- w - m
    sgd      as torch.optim.SGD, with the learning rate outside the momentum:
             m <- momentum m + g;  w <- w - lr m, or with nesterov  w <- w - lr (momentum m + g)
    adamw    as torch.optim.AdamW: m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) g^2;
             w <- w - lr (m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + epsilon) + weight_decay w), t counted from 1

  With clip_norm, g is first scaled so that its norm over all trained parameters is at most clip_norm.

  Weight decay applies to the kernels of the convolutions and the classifier. Depthwise kernels have a factor of their own;
  biases and batch norm have none. For rmsprop and sgd it is L2, the gradient of weight_decay / 2 x |w|^2, which is added to g
  after clipping. For adamw it is decoupled from g, as above.

  With `freeze_body`, everything but the classifier stays as it is.
  """
  optim = config_lib.complete_optim(config)
  decay = [optax.add_decayed_weights(optim.weight_decay, mask=lambda params: _select(params, depthwise=False)),
           optax.add_decayed_weights(optim.depthwise_weight_decay, mask=lambda params: _select(params, depthwise=True))]
  match optim.name:
    case 'rmsprop':
      parts = [*decay, optax.rmsprop(schedule, decay=optim.rms_decay, eps=optim.epsilon, initial_scale=1.0,
                                     eps_in_sqrt=True, momentum=optim.momentum)]
    case 'sgd':
      parts = [*decay, optax.sgd(schedule, momentum=optim.momentum, nesterov=optim.nesterov)]
    case 'adamw':
      parts = [optax.scale_by_adam(optim.b1, optim.b2, optim.epsilon), *decay, optax.scale_by_learning_rate(schedule)]
  clip = [_clip_by_norm(optim.clip_norm)] if optim.clip_norm else []
  chain = optax.chain(*clip, *parts)  # as it was before there was a choice, so that checkpoints from then can be restored
  return optax.partition({False: chain, True: optax.set_to_zero()}, in_body) if freeze_body else chain


def _clip_by_norm(largest: float) -> optax.GradientTransformation:
  clip = optax.clip_by_global_norm(largest)

  def update(updates, state, params=None):
    overflow = 0 * optax.global_norm(updates)  # NaN if the norm is infinite; optax would return zeros, and nobody would know
    clipped, state = clip.update(updates, state, params)
    return jax.tree.map(lambda update: update + overflow, clipped), state

  return optax.GradientTransformation(clip.init, update)


def in_body(params):
  """Returns True for each parameter that belongs neither to the classifier nor to the projection of a distillation."""
  return jax.tree_util.tree_map_with_path(lambda path, _: path[0].key not in (models.CLASSIFIER, models.PROJECTION), params)


def _select(params, depthwise: bool):
  """Returns True for each depthwise kernel; with depthwise=False, for each other kernel."""
  def is_selected(path, _):
    names = [key.key for key in path]
    return names[-1] == 'kernel' and any(name.startswith(models.DEPTHWISE) for name in names) == depthwise
  return jax.tree_util.tree_map_with_path(is_selected, params)
