"""Evaluation: every example exactly once."""

from collections.abc import Callable

import jax
import ml_collections

from mobilenet_jax import metrics, parallel
from mobilenet_jax.data import pipeline, preprocessing
from mobilenet_jax.data.sources import Source


def make_eval_step(model, task) -> Callable:
  """step({'params', 'batch_stats'}, batch) -> sums and count over all devices; maps with pmap_evaluation."""
  def eval_step(variables, batch):
    logits = model.apply(variables, preprocessing.normalize(batch['image']), train=False)
    return jax.lax.psum(metrics.sums(task.metrics(logits, batch), batch['mask']), parallel.AXIS)

  return eval_step


def evaluate(eval_step: Callable, variables, source: Source, config: ml_collections.ConfigDict,
             on_bad_image: Callable[[str], None]) -> dict[str, float]:
  """The task's metrics over all of `source`.

  Args:
    eval_step: as from make_eval_step, mapped.
    variables: {'params', 'batch_stats'}.
    source: what to evaluate on.
    config: a whole config.
    on_bad_image: see pipeline.eval_batches.

  Returns:
    The means, and 'examples': how many were counted: all, but for images that could not be decoded where
    data.bad_images is 'skip'.
  """
  skipped = []

  def skip(name):
    skipped.append(name)
    on_bad_image(name)

  mean = metrics.Mean()
  for batch in parallel.split_ahead(pipeline.eval_batches(source, config.data, config.eval_batch_size, skip)):
    mean.add(eval_step(variables, batch))
  assert mean.count + len(skipped) == source.num_examples, (mean.count, len(skipped), source.num_examples)
  return {**mean.compute(), 'examples': mean.count}
