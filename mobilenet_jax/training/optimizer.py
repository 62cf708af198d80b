"""The optimisers and schedules by name, built with optax. Their fields are in config/optimizers.py."""

import jax
import jax.numpy as jnp
import ml_collections
import optax

from mobilenet_jax import models


def learning_rate(config: ml_collections.ConfigDict, warmup_steps: int, decay_steps: int = 0,
                  total_steps: int = 0) -> optax.Schedule:
  """Returns the schedule that config.schedule names, with a linear warm-up from 0.

  staircase: config.learning_rate x config.decay_rate ^ floor(step / decay_steps). Steps are counted from the start of
    training, so the warm-up does not delay the first decay. Without decay_steps there is no decay.
  cosine, linear: from config.learning_rate at the end of the warm-up to config.final_fraction of it at the end of the run.
  constant: config.learning_rate.

  Args:
    config: the `optim` section of a config.
    warmup_steps: the steps of the warm-up; 0 is off.
    decay_steps: the steps between two decays of a staircase.
    total_steps: the steps of the run, warm-up included, on which cosine and linear depend.
  """
  peak, after = config.learning_rate, max(total_steps - warmup_steps, 1)
  decayed = {
      'staircase': lambda: optax.exponential_decay(peak, decay_steps, config.decay_rate, staircase=True) if decay_steps
                   else optax.constant_schedule(peak),
      'cosine': lambda: _from(warmup_steps, optax.cosine_decay_schedule(peak, after, config.final_fraction)),
      'linear': lambda: _from(warmup_steps, optax.linear_schedule(peak, config.final_fraction * peak, after)),
      'constant': lambda: optax.constant_schedule(peak),
  }[config.schedule]()

  def rate(step):
    step = jnp.asarray(step, float)  # float32, or float64 if JAX computes in it
    return decayed(step) * (jnp.minimum(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0)

  return rate


def _from(start: int, schedule: optax.Schedule) -> optax.Schedule:
  return lambda step: schedule(jnp.maximum(step - start, 0))


def create(config: ml_collections.ConfigDict, schedule: optax.Schedule,
           freeze_body: bool = False) -> optax.GradientTransformation:
  """Returns the optimiser that config.name names.

  rmsprop, as in section 3.2 of the paper and tf.compat.v1.train.RMSPropOptimizer:
    v <- decay v + (1 - decay) g^2, v starting at 1;  m <- momentum m + lr g / sqrt(v + epsilon);  w <- w - m
    As in TensorFlow, the learning rate is inside the momentum, and epsilon is inside the square root.
  sgd, as in torch.optim.SGD: m <- momentum m + g;  w <- w - lr m, or with Nesterov's momentum w - lr (g + momentum m)
  adamw, as in torch.optim.AdamW: Adam, and w <- w - lr weight_decay w beside it

  For rmsprop and sgd, weight decay is L2: the gradient of weight_decay / 2 x |w|^2 is added to g. It applies to the kernels of
  the convolutions and the classifier. Depthwise kernels have a factor of their own; biases and batch norm have none. With
  config.clip_norm, the gradient of the loss is first scaled down to that norm, over all parameters that are trained. With
  `freeze_body`, everything but the classifier stays as it is.
  """
  decay = (optax.add_decayed_weights(config.weight_decay, mask=lambda params: _select(params, depthwise=False)),
           optax.add_decayed_weights(config.depthwise_weight_decay, mask=lambda params: _select(params, depthwise=True)))
  tx = optax.chain(*{
      'rmsprop': lambda: (*decay, optax.rmsprop(schedule, decay=config.rms_decay, eps=config.epsilon, initial_scale=1.0,
                                                eps_in_sqrt=True, momentum=config.momentum)),
      'sgd': lambda: (*decay, optax.sgd(schedule, config.momentum or None, config.nesterov)),
      'adamw': lambda: (optax.scale_by_adam(config.b1, config.b2, config.epsilon), *decay,
                        optax.scale_by_learning_rate(schedule)),
  }[config.name]())
  if config.clip_norm:
    tx = optax.chain(optax.clip_by_global_norm(config.clip_norm), tx)
  return optax.partition({False: tx, True: optax.set_to_zero()}, in_body) if freeze_body else tx


def in_body(params):
  """Returns True for each parameter that belongs neither to the classifier nor to the projection of a distillation."""
  return jax.tree_util.tree_map_with_path(lambda path, _: path[0].key not in (models.CLASSIFIER, models.PROJECTION), params)


def _select(params, depthwise: bool):
  """Returns True for each depthwise kernel; with depthwise=False, for each other kernel."""
  def is_selected(path, _):
    names = [key.key for key in path]
    return names[-1] == 'kernel' and any(name.startswith(models.DEPTHWISE) for name in names) == depthwise
  return jax.tree_util.tree_map_with_path(is_selected, params)
