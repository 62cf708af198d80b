"""Evaluation: every example exactly once."""

from collections.abc import Callable, Sequence

import jax
import ml_collections

from mobilenet_jax import metrics, parallel
from mobilenet_jax.data import pipeline, preprocessing
from mobilenet_jax.data.sources import Source


def make_eval_step(model, task, image_size: tuple[int, int]) -> Callable:
  """step({'params', 'batch_stats'}, batch) -> sums and count over all devices; maps with pmap_evaluation."""
  def eval_step(variables, batch):
    logits = model.apply(variables, preprocessing.normalize(batch['image'], image_size), train=False)
    return jax.lax.psum(metrics.sums(task.metrics(logits, batch), batch['mask']), parallel.AXIS)

  return eval_step


def evaluate(models: Sequence[tuple[Callable, dict]], source: Source, config: ml_collections.ConfigDict,
             on_bad_image: Callable[[str], None]) -> list[dict[str, float]]:
  """The task's metrics of each model over all of `source`, which is read once.

  Args:
    models: of each, its step as from make_eval_step, compiled, and {'params', 'batch_stats'}.
    source: what to evaluate on.
    config: a whole config, whose data and eval_batch_size hold for all.
    on_bad_image: see pipeline.eval_batches.

  Returns:
    For each model the means, and 'examples': how many were counted: all, but for images that could not be decoded
    where data.bad_images is 'skip'.
  """
  skipped = []

  def skip(name):
    skipped.append(name)
    on_bad_image(name)

  means = [metrics.Mean() for _ in models]
  batches = pipeline.eval_batches(source, config.data, config.eval_batch_size, skip)
  for batch in parallel.split_ahead(batches):
    sums = [eval_step(variables, batch) for eval_step, variables in models]
    for mean, values in zip(means, sums):
      mean.add(values)
  for mean in means:
    assert mean.count + len(skipped) == source.num_examples, (mean.count, len(skipped), source.num_examples)
  return [{**mean.compute(), 'examples': mean.count} for mean in means]
