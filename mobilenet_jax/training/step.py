"""One training step for one device, with collectives over the axis devices.AXIS."""

import jax
import jax.numpy as jnp
import ml_collections
import optax

from mobilenet_jax import tasks
from mobilenet_jax.data import distort_colors, normalize
from mobilenet_jax.runtime import devices
from mobilenet_jax.training import distillation, optimizer
from mobilenet_jax.training.state import TrainState

FINITE = 'finite'  # one of the sums of a step: whether its update is finite, which its loss does not show


def make_train_step(model, task, tx, config: ml_collections.ConfigDict, teacher: distillation.Teacher | None = None,
                    labelled: bool = True):
  """Returns step(state, batch, rng, teacher's variables) -> (state, sums) for one device; collectives use devices.AXIS.

  Without labels, the sums lack the task's metrics if these need labels.
  """

  def loss_and_gradient(params, batch_stats, batch, rng, teacher_variables):
    color_rng, dropout_rng = jax.random.split(rng)
    batch, teacher_features = distillation.add_outputs(batch, teacher, teacher_variables)
    images = normalize(batch['image'], config.data.image_size)
    if config.data.color_distortion:
      images = distort_colors(images, color_rng, config.data.color_distortion)

    def loss(params):
      if config.init.freeze_body:  # so that the gradient of the body is not even computed
        params = jax.tree.map(lambda p, frozen: jax.lax.stop_gradient(p) if frozen else p, params, optimizer.in_body(params))
      features = {}
      outputs, updates = model.apply(
          {'params': params, 'batch_stats': batch_stats}, images, train=True, features=features,
          mutable=['batch_stats'], rngs={'dropout': dropout_rng})
      terms = distillation.loss(config, task, outputs, features, params, batch, teacher_features)
      losses = sum(terms.values())
      return losses.mean(), (updates.get('batch_stats', {}), outputs, losses, terms)

    gradient, (batch_stats, outputs, losses, terms) = jax.grad(loss, has_aux=True)(params)
    # 'loss' is the task's own loss, against the labels. If training minimises another loss, that is the 'objective'.
    values = {'loss': losses}
    if distillation.is_soft(config):
      values = {'objective': losses, **{f'objective/{name}': term for name, term in terms.items()}}
    metrics = task.metrics(outputs, batch) if labelled or not task.needs_labels else {}
    return (gradient, batch_stats), tasks.metrics.sums({**values, **metrics}, batch['mask'])

  def train_step(state: TrainState, batch, rng, teacher_variables):
    rng = jax.random.fold_in(jax.random.fold_in(rng, state.step), jax.lax.axis_index(devices.AXIS))
    count = config.accumulate_steps
    if count == 1:
      found, sums = loss_and_gradient(state.params, state.batch_stats, batch, rng, teacher_variables)
    else:
      parts = jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[1:]), batch)  # (b, ...) -> (parts, b/parts, ...)

      def add_part(mean, part_and_rng):  # every part moves the same statistics, so that their mean moves them as one step does
        found, sums = loss_and_gradient(state.params, state.batch_stats, *part_and_rng, teacher_variables)
        return jax.tree.map(lambda total, value: total + value / count, mean, found), sums

      zeros = jax.tree.map(jnp.zeros_like, (state.params, state.batch_stats))
      found, sums = jax.lax.scan(add_part, zeros, (parts, jax.random.split(rng, count)))
      sums = jax.tree.map(lambda x: x.sum(0), sums)

    gradient, batch_stats = jax.lax.pmean(found, devices.AXIS)
    if config.model.get('freeze_batch_stats'):
      batch_stats = state.batch_stats  # without the rounding of a mean
    updates, opt_state = tx.update(gradient, state.opt_state, state.params)
    params = jax.tree.map(jnp.add, state.params, updates)
    step, ema = state.step + 1, state.ema
    if config.ema_decay:
      # The decay ramps up as in TF-slim, so that the averages soon forget the first steps.
      decay = jnp.minimum(config.ema_decay, (1 + step) / (10 + step))
      new = {'params': params, 'batch_stats': batch_stats}
      ema = jax.tree.map(lambda average, value: average + (1 - decay) * (value - average), ema, new)
    sums = jax.lax.psum(sums, devices.AXIS)
    return TrainState(step, params, batch_stats, opt_state, ema), {**sums, FINITE: jnp.isfinite(optax.global_norm(updates))}

  return train_step
